"""``tenure demo`` as a newcomer runs it: real processes, real faults, and the database asked for the facts.

Each demo carries a mark in its environment, which every process that it starts inherits: what is left running is
found by that mark, whoever its parent is by then.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

TENURE = Path(sys.executable).with_name("tenure")
TAKEOVER_SECONDS_MAX = 5.0


class Demo:
    """One run of the command, with what it printed and what it left behind."""

    def __init__(self, folder: Path, *arguments: str, port: int | None = None) -> None:
        self.port = port or free_base_port()
        self.mark = uuid.uuid4().hex
        self.errors = folder / f"{self.mark}.stderr"
        self.folder = folder
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                [TENURE, "demo", "--port", str(self.port), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "DEMO_TEST_MARK": self.mark, "XDG_RUNTIME_DIR": str(folder), "TMPDIR": str(folder)},
                start_new_session=True,
            )

    def said(self) -> str:
        return self.errors.read_text()

    def record(self) -> dict[str, Any]:
        """The newest ``demo.json``, as another program finds it."""
        pointer = self.folder / "tenure" / "demo.json"

        def found() -> bool:
            if self.process.poll() is not None:
                pytest.fail(f"the demo ended with {self.process.returncode}: {self.said()}")
            return pointer.exists()

        until(found, 30)
        return dict(json.loads(pointer.read_text()))

    def node_that_leads(self) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def leads() -> bool:
            found[:] = [node for node in self.record()["nodes"] if node["state"] == "leader"]
            return bool(found)

        until(leads, 60)
        return found[0]

    def node(self, name: str) -> dict[str, Any]:
        return next(dict(node) for node in self.record()["nodes"] if node["name"] == name)

    def wait_for_payments(self, number: int) -> None:
        path = Path(self.record()["acknowledged"])
        until(lambda: path.exists() and len(path.read_text().split()) >= number, 60)

    def end(self, seconds: float = 90) -> tuple[int, str]:
        out, _ = self.process.communicate(timeout=seconds)
        return self.process.returncode, out

    def summary(self, seconds: float = 120) -> dict[str, Any]:
        code, out = self.end(seconds)
        assert code == 0, self.said()
        assert out.count("\n") == 1, "stdout carries the one object and nothing else"
        return dict(json.loads(out))

    def survivors(self) -> list[int]:
        """Every process, of whatever parent, that this demo started, itself included."""
        mark = f"DEMO_TEST_MARK={self.mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if mark in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
        return found


@pytest.fixture
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that other users may pass, as the database's own user must when root runs the tests."""
    path = Path(tempfile.mkdtemp(prefix="tenure-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def start(folder: Path) -> Iterator[Callable[..., Demo]]:
    """Starts demos; whatever a test did to them, none is left afterwards."""
    demos: list[Demo] = []

    def launch(*arguments: str, port: int | None = None) -> Demo:
        demos.append(Demo(folder, *arguments, port=port))
        return demos[-1]

    yield launch
    for demo in demos:
        for pid in demo.survivors():
            os.kill(pid, signal.SIGKILL)
        demo.process.wait(10)
        if demo.process.stdout is not None:
            demo.process.stdout.close()


def until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:g} s")
        time.sleep(0.05)


def free_base_port() -> int:
    """A base port of which the three HTTP and the three Raft ports are free."""
    for base in range(20_000 + os.getpid() % 1000 * 10, 60_000, 10):
        with_room = [base + offset + shift for offset in range(3) for shift in (0, 1000)]
        if all(is_free(port) for port in with_room):
            return base
    raise RuntimeError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def assert_clean(summary: dict[str, Any]) -> None:
    assert (summary["lost"], summary["doubled"], summary["stale_rows"]) == (0, 0, 0), summary
    assert summary["payments_in_database"] >= summary["payments_acknowledged"] > 0, summary


def test_demo_ends_0_with_no_takeover_when_nothing_happens(start) -> None:
    """The control: the same run without a fault."""
    summary = start("--for", "12", "--fault", "none", "-o", "json").summary()
    assert_clean(summary)
    assert summary["schema"] == 1
    assert (summary["faults"], summary["takeovers"], summary["takeover_seconds"]) == (0, 0, [])
    assert summary["payments_acknowledged"] > 500
    assert summary["payments_per_second"] > 40
    assert summary["leader"] in {"payment-1a", "payment-1b", "payment-1c"}
    assert summary["fencing_token"] == 1


@pytest.mark.parametrize("fault", ["kill", "stop"])
def test_demo_loses_and_doubles_nothing_when_leaders_are_taken_away(start, fault) -> None:
    demo = start("--for", "22", "--fault", fault, "--every", "7", "-o", "json")
    summary = demo.summary()
    assert_clean(summary)
    assert summary["faults"] >= 2
    assert summary["takeovers"] >= summary["faults"] - 1
    assert len(summary["takeover_seconds"]) == summary["faults"], demo.said()
    assert max(summary["takeover_seconds"]) < TAKEOVER_SECONDS_MAX, demo.said()
    assert summary["payments_acknowledged"] > 800


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_demo_ends_0_with_the_summary_and_leaves_nothing_when_told_to_stop(start, number) -> None:
    demo = start("-o", "json")
    demo.wait_for_payments(20)
    temporary = Path(demo.record()["data_dir"])
    assert len(demo.survivors()) >= 5
    demo.process.send_signal(number)
    assert_clean(demo.summary(30))
    assert demo.survivors() == []
    assert not temporary.exists()
    assert not (demo.folder / "tenure" / "demo.json").is_symlink()


def test_demo_leaves_nothing_running_when_it_is_killed_with_a_node_paused(start) -> None:
    """No code of the demo's own runs after kill -9: the kernel ends the children."""
    demo = start("-o", "json")
    demo.wait_for_payments(20)
    os.kill(demo.node_that_leads()["pid"], signal.SIGSTOP)
    demo.process.kill()
    demo.process.wait(10)
    until(lambda: demo.survivors() == [], 15)


def test_demo_shows_a_node_as_lost_and_starts_it_again_when_it_is_killed_from_outside(start) -> None:
    demo = start("-o", "json")
    demo.wait_for_payments(20)
    victim = demo.node_that_leads()
    os.kill(victim["pid"], signal.SIGKILL)
    until(lambda: demo.node(victim["name"])["state"] == "lost", 5)
    until(lambda: demo.node_that_leads()["name"] != victim["name"], 10)
    until(lambda: demo.node(victim["name"])["state"] == "follower", 15)
    assert demo.node(victim["name"])["pid"] != victim["pid"]
    demo.process.send_signal(signal.SIGINT)
    summary = demo.summary(30)
    assert_clean(summary)
    assert summary["takeovers"] >= 1


def test_demo_s_commands_work_as_printed_when_a_newcomer_copies_them(start) -> None:
    demo = start("-o", "json")
    demo.wait_for_payments(50)
    record = demo.record()
    leader = demo.node_that_leads()
    assert Path(demo.folder / "tenure" / "demo.json").stat().st_mode & 0o777 == 0o600

    states = {node["name"]: httpx2.get(f"{node['url']}/v1/state").text for node in record["nodes"]}
    term = json.loads(states[leader["name"]])["term"]
    for name, state in states.items():
        shown = "leader" if name == leader["name"] else "follower"
        assert state == f'{{"state": "{shown}", "term": {term}}}'

    printed = [line.strip() for line in demo.said().splitlines()]
    (query,) = [line for line in printed if "GROUP BY node_id" in line]
    answer = subprocess.run(shlex.split(query), capture_output=True, text=True, check=True)
    assert leader["name"] in answer.stdout
    (grep,) = [line for line in printed if line.startswith("grep")]
    rows = subprocess.run(["bash", "-c", grep], capture_output=True, text=True, check=True)
    assert leader["name"] in rows.stdout
    assert f"kill -9 {leader['pid']} " in demo.said()
    (pay,) = [line for line in printed if "/v1/payments" in line]
    paid = subprocess.run(["bash", "-c", f"{pay} -s"], capture_output=True, text=True, check=True)
    assert json.loads(paid.stdout)["node"] == leader["name"]
    (survey,) = [line for line in printed if "recover survey" in line]
    looked = subprocess.run(shlex.split(survey), capture_output=True, text=True, check=True)
    assert leader["name"] in looked.stdout

    demo.process.send_signal(signal.SIGINT)
    assert_clean(demo.summary(30))


@pytest.mark.parametrize("document", ["README.md", "docs/payments.md"])
def test_documents_commands_pay_once_and_tell_who_leads_when_the_demo_runs(start, document: str) -> None:
    """Exactly as they are written but for the ports, which may be taken on this machine."""
    demo = start("--rate", "5", "-o", "json")
    leader = demo.node_that_leads()
    text = (Path(__file__).parents[2] / document).read_text()
    ports = f"[{demo.port}-{demo.port + 2}]"
    commands = [
        block.replace("[8080-8082]", ports)
        for block in re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S)
        if "[8080-8082]" in block
    ]
    assert "/v1/payments" in commands[0]
    # curl ends with what the last of the three nodes answered, and that one may follow.
    told = "".join(
        subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False).stdout
        for command in commands * 2
    )
    answers = told.replace("}{", "}\n{").splitlines()
    payments = [answer for answer in answers if '"id"' in answer]
    assert len(payments) == 2
    assert payments[0] == payments[1]
    assert json.loads(payments[0])["node"] == leader["name"]
    states = [json.loads(answer)["state"] for answer in answers if answer not in payments]
    assert sorted(states) == ["follower"] * 4 + ["leader"] * 2


def test_demo_goes_on_where_it_ended_when_its_data_folder_is_used_again(start, folder) -> None:
    kept = folder / "kept"
    first = start("--for", "3", "--data-dir", str(kept), "-o", "json").summary()
    second = start("--for", "3", "--data-dir", str(kept), "-o", "json").summary()
    assert_clean(second)
    assert second["payments_acknowledged"] > first["payments_acknowledged"]
    assert second["fencing_token"] > first["fencing_token"]
    record = json.loads((kept / "demo.json").read_text())
    assert {node["state"] for node in record["nodes"]} == {"stopped"}


def test_demo_has_no_leader_until_the_rebase_when_only_the_nodes_are_new(start, folder) -> None:
    """New data directories on the old database: the fence refuses them, and the words name the way on."""
    kept = folder / "kept"
    first = start("--for", "2", "--data-dir", str(kept), "-o", "json").summary()
    shutil.rmtree(kept / "nodes")
    demo = start("--data-dir", str(kept), "-o", "json")
    until(lambda: "tenure fence rebase payments" in demo.said(), 30)
    assert {node["state"] for node in demo.record()["nodes"]} <= {"follower", "candidate"}
    dsn = demo.record()["database"]["dsn"]
    rebase = [TENURE, "fence", "rebase", "payments", "--dsn", dsn, "--reason", "the old nodes are gone"]
    subprocess.run(rebase, capture_output=True, check=True)
    demo.node_that_leads()
    demo.wait_for_payments(first["payments_acknowledged"] + 20)
    demo.process.send_signal(signal.SIGINT)
    second = demo.summary(30)
    assert_clean(second)
    assert second["fencing_token"] > first["fencing_token"]


def test_demo_keeps_the_database_elsewhere_when_its_user_cannot_reach_the_folder(start, folder) -> None:
    """`--data-dir $(mktemp -d)` by root: the folder keeps its mode, and both runs find the same database."""
    if os.geteuid() != 0:
        pytest.skip("only root runs the database as another user")
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    first = start("--for", "2", "--data-dir", str(closed), "-o", "json").summary()
    elsewhere = (closed / "postgres").resolve()
    try:
        second = start("--for", "2", "--data-dir", str(closed), "-o", "json").summary()
        assert closed.stat().st_mode & 0o777 == 0o700
        assert second["payments_acknowledged"] > first["payments_acknowledged"]
        assert_clean(second)
    finally:
        shutil.rmtree(elsewhere.parent)


def test_demo_starts_nothing_and_names_the_port_when_it_is_in_use(start, folder) -> None:
    port = free_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        demo = start("--for", "5", port=port)
        code, out = demo.end(20)
    assert (code, out) == (1, "")
    assert f"port {port} on 127.0.0.1, wanted for HTTP, is not free" in demo.said()
    assert "--port" in demo.said()
    assert demo.survivors() == []


def test_demo_ends_5_when_the_database_tells_of_harm(start, folder) -> None:
    """The summary can go red: an id that was never written is in the file of acknowledged payments."""
    demo = start("-o", "json")
    demo.wait_for_payments(20)
    with Path(demo.record()["acknowledged"]).open("a") as file:
        file.write(f"pay_{uuid.uuid4()}\n")
    with psycopg.connect(demo.record()["database"]["dsn"]) as connection:
        row = connection.execute("SELECT count(*) FROM payment_events").fetchone()
        assert row is not None
        assert row[0] >= 20
    demo.process.send_signal(signal.SIGINT)
    code, out = demo.end(30)
    assert code == 5
    assert json.loads(out)["lost"] == 1


def test_operators_commands_find_a_running_demo_and_its_token_by_themselves(start: Callable[..., Demo], folder: Path):
    """Nothing is named: neither a URL nor the token."""
    demo = start("--rate", "20")
    leader = demo.node_that_leads()["name"]

    def tenure(*words: str) -> dict[str, Any]:
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        ended = subprocess.run(
            [TENURE, *words, "-o", "json"], capture_output=True, text=True, env=environment, check=False, timeout=60
        )
        assert ended.returncode == 0, ended.stderr
        return dict(json.loads(ended.stdout))

    members = tenure("member", "list")["members"]
    assert [member["role"] for member in members] == ["voter"] * 3
    follower = next(member["name"] for member in members if member["name"] != leader)
    assert tenure("member", "demote", follower)["member"]["role"] == "learner"
    assert tenure("settings", "show")["lease_duration_ms"] == 1000
    demo.process.send_signal(signal.SIGINT)
    assert demo.end()[0] == 0
