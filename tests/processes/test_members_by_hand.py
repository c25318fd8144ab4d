"""Members that come and go, as an operator does it: real services, real PostgreSQL, the real commands."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from support.services import NAMES, Services, free_ports, new_key, wait_for

pytestmark = [pytest.mark.processes, pytest.mark.timeout(240)]

TENURE = Path(sys.executable).with_name("tenure")
TOKEN = "operator-token-of-the-test"
NEW = "payment-1d"


class Members(Services):
    """Three founders whose files know nothing of a fourth, and a fourth whose file lists all four."""

    def __init__(self, folder: Path, dsn: str) -> None:
        super().__init__(folder, dsn)
        self.http[NEW], self.raft[NEW] = free_ports(2)
        self.token = folder / "token"
        self.token.write_text(f"{TOKEN}\n")

    def config(self, name: str, *, data_dir: Path | None = None) -> Path:
        listed = sorted({*NAMES, name})
        peers = [f'{p} = {{ raft = "127.0.0.1:{self.raft[p]}", url = "{self.url(p)}" }}' for p in listed]
        path = self.folder / f"{name}.toml"
        path.write_text(
            f'[node]\nname = "{name}"\ndata_dir = "{self.folder / name}"\nlog_dir = "{self.logs}"\n'
            f'[raft]\nlisten = "127.0.0.1:{self.raft[name]}"\n[raft.peers]\n' + "\n".join(peers) + "\n"
            f'[http]\nlisten = "127.0.0.1:{self.http[name]}"\noperator_token_file = "{self.token}"\n'
            f'[database]\ndsn = "{self.dsn}"\n'
        )
        return path

    def tenure(self, *words: str, asked: str | None = None) -> subprocess.Popen[str]:
        """The command, which is told of one node alone (by default one that does not lead)."""
        asked = asked or next(name for name in NAMES if self.processes[name].poll() is None and name != self.leading())
        return subprocess.Popen(
            [TENURE, *words, "--endpoint", self.url(asked), "--operator-token-file", self.token],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A suite in the background ignores SIGINT, and so would its children: here one is interrupted.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - nothing else runs here.
        )  # fmt: skip

    def done(self, *words: str, asked: str | None = None) -> tuple[int, str, str]:
        process = self.tenure(*words, asked=asked)
        out, err = process.communicate(timeout=90)
        return process.returncode, out, err

    def json(self, *words: str, asked: str | None = None) -> dict[str, Any]:
        code, out, err = self.done(*words, "-o", "json", asked=asked)
        assert code == 0, err
        return json.loads(out)

    def leading(self) -> str | None:
        for name, process in self.processes.items():
            if process.poll() is None and (self.ask(name, "/v1/state") or {}).get("state") == "leader":
                return name
        return None

    def roles(self, **options: Any) -> dict[str, str]:
        return {member["name"]: member["role"] for member in self.json("member", "list", **options)["members"]}

    def hand_over_to(self, name: str) -> None:
        """A node that has just started takes no leadership for one election timeout (R6): ask until it has it."""

        def handed_over() -> bool:
            leader = self.leading()
            if leader in (None, name):
                return leader == name
            self.client.post(
                f"{self.url(leader)}/v1/leadership/transfer",
                json={"to": name}, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20,
            )  # fmt: skip
            return False

        wait_for(f"{name} leads", handed_over)

    def stderr(self, name: str) -> str:
        return (self.folder / f"{name}.stderr").read_text()

    def exit_code(self, name: str) -> int:
        return self.processes[name].wait(20)

    def count(self, ids: list[str]) -> int:
        """How many of these payments the database has."""
        with psycopg.connect(self.dsn) as connection:
            row = connection.execute(
                "SELECT count(DISTINCT payment_id) FROM payment_events WHERE payment_id = ANY(%s::uuid[])",
                ([name.removeprefix("pay_") for name in ids],),
            ).fetchone()
        assert row is not None
        return row[0]


@contextlib.contextmanager
def running(folder: Path, dsn: str) -> Iterator[Members]:
    members = Members(folder, dsn)
    try:
        for name in NAMES:
            members.start(name)
        members.leader()
        yield members
    finally:
        members.stop()


def test_fourth_node_joins_leads_and_serves_payments_when_it_is_added_by_hand(tmp_path: Path, database: str):
    """As docs/operating/members.md says it: its own file, the start, the addition, and the old one goes."""
    with running(tmp_path, database) as members:
        paid = [members.pay_until_acknowledged(new_key())["id"] for _ in range(10)]
        members.start(NEW)
        waits = wait_for("it says what it waits for", lambda: (members.ask(NEW, "/readyz") or {}).get("cluster"))
        assert f"tenure member add {NEW}" in waits
        assert members.pay(NEW, new_key()).status_code == 503
        wait_for("it has called", lambda: NEW in members.json("member", "list")["applicants"])

        added = members.json("member", "add", NEW)
        assert added["member"]["role"] == "voter"
        assert "odd number" in added["warning"]
        assert "cluster" not in (members.ask(NEW, "/readyz") or {})

        gone = next(name for name in NAMES if name != members.leading())
        code, out, err = members.done("member", "remove", gone, "--yes")
        assert (code, out) == (0, f"{gone} is no member any more\n"), err
        assert members.exit_code(gone) == 4

        members.hand_over_to(NEW)
        payment = members.pay(NEW, new_key()).json()
        assert payment["node"] == NEW
        paid.append(payment["id"])
        # It comes back by its own disk, and the others dial it although no file of theirs names it.
        members.signal(NEW, signal.SIGKILL)
        paid += [members.pay_until_acknowledged(new_key())["id"] for _ in range(3)]
        members.start(NEW)
        members.hand_over_to(NEW)
        assert members.roles() == dict.fromkeys({*NAMES, NEW} - {gone}, "voter")
        assert members.count(paid) == len(paid)


def test_wiped_member_is_replaced_when_its_node_starts_with_a_new_directory(tmp_path: Path, database: str):
    """The wiped node says which command replaces it and ends with 4; the command says each step and waits for it."""
    with running(tmp_path, database) as members:
        paid = [members.pay_until_acknowledged(new_key())["id"] for _ in range(3)]
        lost = next(name for name in NAMES if name != members.leading())
        before = next(m for m in members.json("member", "list")["members"] if m["name"] == lost)
        members.signal(lost, signal.SIGKILL)
        shutil.rmtree(tmp_path / lost)
        members.start(lost)
        assert members.exit_code(lost) == 4
        assert f"tenure member replace {lost}" in members.stderr(lost)

        # Interrupted while it waits for the new node, and run again.
        interrupted = members.tenure("member", "replace", lost, "--yes")
        assert interrupted.stderr is not None
        said = ""
        while "calls yet: waiting" not in said:
            line = interrupted.stderr.readline()
            assert line, said
            said += line
        assert f"removing {lost} with its old data directory" in said
        interrupted.send_signal(signal.SIGINT)
        assert interrupted.wait(10) == 130
        interrupted.communicate()
        again = members.tenure("member", "replace", lost)
        members.start(lost)
        out, err = again.communicate(timeout=60)
        assert (again.returncode, out) == (0, f"{lost} is a voter\n"), err
        assert "is no member now: going on with its new data directory" in err

        after = next(m for m in members.json("member", "list")["members"] if m["name"] == lost)
        assert after["raft_id"] > before["raft_id"]
        members.hand_over_to(lost)
        paid.append(members.pay_until_acknowledged(new_key())["id"])
        assert members.count(paid) == len(paid)


def test_removed_leader_ends_by_itself_and_the_others_go_on(tmp_path: Path, database: str):
    """Exit code 4 with the reason, again when it is started once more; another one leads and pays."""
    with running(tmp_path, database) as members:
        paid = [members.pay_until_acknowledged(new_key())["id"] for _ in range(3)]
        leader = members.leader()
        code, out, err = members.done("member", "remove", leader, "--yes")
        assert (code, out) == (0, f"{leader} is no member any more\n"), err
        assert "of the 2 voters that stay 2 are needed" in err
        assert members.exit_code(leader) == 4
        (line,) = [
            line for line in (members.logs / f"{leader}.log").read_text().splitlines() if "member_removed" in line
        ]
        assert "was removed from the cluster" in json.loads(line)["reason"]
        assert members.leader(other_than=leader) != leader
        paid.append(members.pay_until_acknowledged(new_key())["id"])
        members.start(leader)
        assert members.exit_code(leader) == 4
        assert f"payment-service: {leader} was removed from the cluster" in members.stderr(leader)
        assert members.count(paid) == len(paid)


def test_operator_looks_at_and_changes_a_running_cluster(tmp_path: Path, database: str):
    """Times through the log, a snapshot of each node, the log verified while it runs; nothing without the token."""
    with running(tmp_path, database) as members:
        paid = [members.pay_until_acknowledged(new_key())["id"] for _ in range(5)]
        everyone = [word for name in NAMES[1:] for word in ("--endpoint", members.url(name))]
        assert members.json("settings", "change", "--lease-duration-ms", "800")["lease_duration_ms"] == 800
        assert members.json("settings", "show")["lease_duration_ms"] == 800
        code, _, err = members.done("settings", "change", "--lease-duration-ms", "10")
        assert code == 4
        assert "lease_duration_ms: 10 must lie between" in err

        taken = members.json("snapshot", "take", *everyone, asked=NAMES[0])["nodes"]
        assert sorted(snapshot["node"] for snapshot in taken) == sorted(NAMES)
        # Nothing is new then: that is no error.
        again = members.json("snapshot", "take", *everyone, asked=NAMES[0])["nodes"]
        assert [node["taken"] for node in again] == [False] * 3
        verified = members.json("log", "verify", *everyone, asked=NAMES[0])
        assert verified["valid"]
        assert all(report["records"] > 5 for report in verified["nodes"])
        states = members.json("log", "inspect", *everyone, asked=NAMES[0])["nodes"]
        assert all(0 < state["snapshot_index"] <= state["last_index"] for state in states)
        starts = members.json("snapshot", "inspect", *everyone, asked=NAMES[0])["nodes"]
        assert [node["snapshots"] for node in starts] == [[], [], []]

        other = next(name for name in NAMES if name != members.leader())
        handed = members.json("member", "transfer", "--to", other)
        assert (handed["leader"], handed["leader_url"]) == (other, members.url(other))
        assert members.json("member", "transfer", "--to", other)["before"] == other

        leader = members.leader()
        wrong = subprocess.run(
            [TENURE, "member", "demote", leader, "--endpoint", members.url(leader), "--operator-token", "wrong"],
            capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
        assert wrong.returncode == 7
        assert "operator token" in wrong.stderr
        # A wrong target costs the leader nothing.
        token = (members.ask(leader, "/v1/node") or {})["fencing_token"]
        answer = members.client.post(
            f"{members.url(leader)}/v1/leadership/transfer",
            json={"to": "nobody"}, headers={"Authorization": f"Bearer {TOKEN}"},
        )  # fmt: skip
        assert answer.status_code == 409
        assert (members.ask(leader, "/v1/node") or {})["fencing_token"] == token
        # The shorter lease counts from the next leadership on.
        members.hand_over_to(next(name for name in NAMES if name != leader))
        paid.append(members.pay_until_acknowledged(new_key())["id"])
        assert 0 < (members.ask(members.leader(), "/v1/node") or {})["lease_remaining_ms"] <= 800
        assert members.count(paid) == len(paid)
