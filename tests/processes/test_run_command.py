"""``tenure run -- COMMAND`` with real processes: what the command gets, and that nothing outlives the leadership."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from support.services import free_ports
from tenure.demo.postgres import EmbeddedPostgres
from tenure.fence import install
from tenure.supervision import guardian
from tenure.supervision.guard import NS_PER_SECOND, Ended, Guard
from tenure.supervision.guardian import read_clocks

pytestmark = pytest.mark.processes

ROOT = Path(__file__).parents[2]
TENURE = str(Path(sys.executable).with_name("tenure"))
BOUND_SECONDS = 30.0
LEASE_MS = 1000


class Supervised:
    """One ``tenure run``, of a cluster of one or of two; its command writes process ids into a folder."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        command: str,
        program: str = "sh",
        alone: bool = True,
        stdin: str | None = None,
    ) -> None:
        port, other = free_ports(2)
        absent = "" if alone else f', b = {{ raft = "127.0.0.1:{other}", url = "http://b.test" }}'
        config = folder / "node.toml"
        config.write_text(
            f"""[cluster]
name = "jobs"
[node]
name = "a"
data_dir = "{folder / "data"}"
[raft]
listen = "127.0.0.1:{port}"
heartbeat_interval_ms = 50
election_timeout_ms = 300
peers = {{ a = {{ raft = "127.0.0.1:{port}", url = "http://a.test" }}{absent} }}
[lease]
duration_ms = {LEASE_MS}
"""
        )
        supervisor = [TENURE, "run", "--config", str(config), *options]
        self.folder, self.stdin = folder, stdin
        self.process = subprocess.Popen(
            [*supervisor, "--", program, "-c", command],
            cwd=folder,
            stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # A suite in the background ignores SIGINT, and so would its children.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - nothing else runs here.
        )

    def guardian(self) -> int:
        """The process id of the guardian: the supervisor's only child."""
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        (guardian,) = listed.read_text().split()
        return int(guardian)

    def pids(self, *names: str) -> list[int]:
        """The process ids that the command has written under these names, once all are there."""
        until(lambda: all((self.folder / name).exists() and (self.folder / name).read_text().strip() for name in names))
        return [int((self.folder / name).read_text()) for name in names]

    def end(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate(self.stdin, timeout=BOUND_SECONDS)
        return self.process.returncode, out, errors


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def read_line_with(running: Supervised, words: str) -> None:
    """Read the supervisor's lines up to the one with these words."""
    assert running.process.stderr is not None
    while words not in (line := running.process.stderr.readline()):
        assert line, f"it ended without saying {words!r}"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def supervised(
    folder: Path, *options: str, command: str, program: str = "sh", alone: bool = True
) -> Iterator[Supervised]:
    running = Supervised(folder, *options, command=command, program=program, alone=alone)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                running.process.send_signal(signal.SIGCONT)
            running.process.terminate()
        running.process.communicate(timeout=BOUND_SECONDS)


#: A child and a grandchild in a session of its own; both ignore SIGTERM.
STUBBORN = """trap '' TERM
setsid sh -c "trap '' TERM; echo \\$\\$ > grandchild; while :; do sleep 1; done" &
echo $$ > child
while :; do sleep 1; done
"""


def test_command_finds_its_leadership_in_its_environment_and_its_exit_code_is_passed(tmp_path: Path):
    command = (
        'echo "$TENURE_TOKEN $TENURE_TERM $TENURE_RESOURCE ${TENURE_CREDENTIAL%%.*} ${#TENURE_CREDENTIAL}"; exit 7'
    )
    with supervised(tmp_path, command=command) as running:
        code, out, errors = running.end()
    assert code == 7, errors
    token, term, resource, credential, length = out.split()
    assert (token, term, resource, credential) == ("1", "1", "payments", "1")
    assert int(length) > 32
    assert "the command ended with 7" in errors


def test_command_that_cannot_be_found_ends_with_127(tmp_path: Path):
    running = Supervised(tmp_path, command="", program="no-such-command")
    code, _, errors = running.end()
    assert code == 127
    assert "no-such-command is not a command" in errors


def test_command_that_cannot_be_executed_ends_with_126(tmp_path: Path):
    (tmp_path / "garbage").write_text("no program\n")
    (tmp_path / "garbage").chmod(0o700)
    with supervised(tmp_path, program="./garbage", command="") as running:
        code, _, errors = running.end()
    assert code == 126, errors
    assert "cannot be started: Exec format error" in errors


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "paused"])
def test_whole_group_ends_when_the_supervisor_is_killed_or_paused(tmp_path: Path, number: signal.Signals):
    """R8, R11: a supervisor that cannot renew, or is gone, must not leave work that goes on after the lease."""
    with supervised(tmp_path, command=STUBBORN) as running:
        pids = running.pids("child", "grandchild")
        assert all(map(is_alive, pids))
        running.process.send_signal(number)
        began = time.monotonic()
        until(lambda: not any(map(is_alive, pids)))
        # The lease, and a second for a busy machine.
        assert time.monotonic() - began < LEASE_MS / 1000 + 1


def test_command_that_ends_of_sigterm_is_gone_at_once_when_the_supervisor_is_killed(tmp_path: Path):
    with supervised(tmp_path, command="trap 'date +%s > told; exit' TERM; echo $$ > child; sleep 60 & wait") as running:
        pids = running.pids("child")
        running.process.kill()
        until(lambda: not any(map(is_alive, pids)))
    assert (tmp_path / "told").exists()


def test_command_is_told_before_the_lease_ends_when_the_supervisor_is_paused(tmp_path: Path):
    """R11: SIGTERM comes a quarter of a lease before SIGKILL."""
    command = "trap 'date +%s%N > told' TERM; echo $$ > child; while :; do sleep 0.02; done"
    with supervised(tmp_path, command=command) as running:
        pids = running.pids("child")
        running.process.send_signal(signal.SIGSTOP)
        until(lambda: not any(map(is_alive, pids)))
        ended = time.time()
    told = int((tmp_path / "told").read_text()) / 1e9
    assert 0.1 < ended - told < 1.0


def test_whole_group_ends_and_another_term_begins_when_the_guardian_is_killed(tmp_path: Path):
    with supervised(tmp_path, command=STUBBORN) as running:
        pids = running.pids("child", "grandchild")
        for name in ("child", "grandchild"):
            (tmp_path / name).unlink()
        os.kill(running.guardian(), signal.SIGKILL)
        until(lambda: not any(map(is_alive, pids)))
        assert set(pids).isdisjoint(running.pids("child", "grandchild"))


def test_whole_group_ends_when_the_guardian_is_paused_as_well(tmp_path: Path):
    """The supervisor does not wait for a guardian that hangs."""
    with supervised(tmp_path, "--grace", "0.2", command=STUBBORN) as running:
        pids = running.pids("child", "grandchild")
        os.kill(running.guardian(), signal.SIGSTOP)
        running.process.send_signal(signal.SIGSTOP)
        time.sleep(LEASE_MS / 1000)  # Nobody watches for the whole of a lease.
        running.process.send_signal(signal.SIGCONT)
        until(lambda: not any(map(is_alive, pids)))


@pytest.mark.parametrize("once", [True, False], ids=["once", "again"])
def test_loss_ends_with_75_or_another_term_begins_when_the_supervisor_was_paused(tmp_path: Path, once: bool):
    command = "echo $TENURE_TOKEN >> tokens; echo $$ > child; sleep 60"
    with supervised(tmp_path, *(["--once"] if once else []), command=command) as running:
        pids = running.pids("child")
        running.process.send_signal(signal.SIGSTOP)
        until(lambda: not any(map(is_alive, pids)))
        running.process.send_signal(signal.SIGCONT)
        if once:
            code, _, errors = running.end()
            assert code == 75, errors
            assert "lost the leadership of term 1" in errors
        else:
            until(lambda: (tmp_path / "tokens").read_text().split() == ["1", "2"])


def test_another_term_begins_when_the_command_says_that_it_was_refused(tmp_path: Path):
    with supervised(tmp_path, command="[ $TENURE_TOKEN = 1 ] && exit 75; exit 3") as running:
        code, _, errors = running.end()
    assert code == 3, errors
    assert "leads term 2 with token 2" in errors


def test_what_the_command_left_in_the_background_is_gone_when_it_has_ended(tmp_path: Path):
    command = (
        "setsid sh -c 'echo $$ > grandchild; sleep 60' & sleep 60 & echo $! > child; "
        "until [ -s grandchild ]; do sleep 0.01; done"
    )
    with supervised(tmp_path, "--grace", "0.3", command=command) as running:
        pids = running.pids("child", "grandchild")
        code, _, errors = running.end()
        assert not any(map(is_alive, pids))
    assert code == 0, errors


def test_signal_is_passed_to_the_command_when_it_is_not_for_the_supervisor(tmp_path: Path):
    with supervised(tmp_path, command="trap 'exit 9' HUP; echo $$ > child; while :; do sleep 0.02; done") as running:
        running.pids("child")
        running.process.send_signal(signal.SIGHUP)
        code, _, errors = running.end()
    assert code == 9, errors


def test_command_exit_code_is_passed_when_it_ends_in_order_on_sigterm(tmp_path: Path):
    with supervised(tmp_path, command="trap 'exit 5' TERM; echo $$ > child; while :; do sleep 0.02; done") as running:
        running.pids("child")
        running.process.terminate()
        code, _, errors = running.end()
    assert code == 5, errors


@pytest.mark.parametrize(
    ("number", "expected"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)], ids=str
)
def test_member_that_waits_ends_in_order_when_it_is_asked_to(tmp_path: Path, number: signal.Signals, expected: int):
    with supervised(tmp_path, command="exit 1", alone=False) as running:
        read_line_with(running, "waits to lead")
        running.process.send_signal(number)
        code, _, errors = running.end()
    assert code == expected, errors


def test_standard_streams_are_those_of_the_supervisor(tmp_path: Path):
    running = Supervised(tmp_path, command="cat; echo warned >&2", stdin="given")
    code, out, errors = running.end()
    assert (code, out) == (0, "given")
    assert "warned" in errors


def test_own_lines_are_objects_when_json_is_asked_for(tmp_path: Path):
    running = Supervised(tmp_path, "-o", "json", command="exit 0")
    code, out, errors = running.end()
    assert (code, out) == (0, "")
    events = [json.loads(line) for line in errors.splitlines()]
    assert [event["event"] for event in events if event["event"] not in ("log", "waiting")] == ["started", "ended"]
    assert {event["schema"] for event in events} == {1}


def test_second_start_on_the_same_directory_ends_with_4(tmp_path: Path):
    with supervised(tmp_path, command="echo $$ > child; sleep 60") as running:
        running.pids("child")
        second = subprocess.run(
            [TENURE, "run", "--config", str(tmp_path / "node.toml"), "--", "true"],
            check=False,
            capture_output=True,
            timeout=30,
        )
    assert second.returncode == 4, second.stderr


def test_work_is_gone_before_the_supervisor_ends_when_it_is_asked_to(tmp_path: Path):
    """R9: RELEASE and the exit come after the last process of the command, which ignores SIGTERM here."""
    with supervised(tmp_path, "--grace", "0.3", command=STUBBORN) as running:
        pids = running.pids("child", "grandchild")
        running.process.terminate()
        code, _, errors = running.end()
        assert not any(map(is_alive, pids))
    assert code == 128 + signal.SIGTERM, errors


def test_credential_is_in_no_argument_and_no_line(tmp_path: Path):
    with supervised(tmp_path, command="echo $TENURE_CREDENTIAL > secret; echo $$ > child; sleep 30") as running:
        running.pids("child")
        secret = (tmp_path / "secret").read_text().strip()
        arguments = []
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                arguments.append((process / "cmdline").read_bytes().decode(errors="replace"))
        running.process.terminate()
        _, out, errors = running.end()
    assert len(secret) > 32
    assert not any(secret in text for text in [*arguments, out, errors])


class Machines:
    """Three machines with the same command, which is a shell script."""

    def __init__(self, folder: Path, script: str, *options: str, environment: dict[str, str] | None = None) -> None:
        (folder / "script").write_text(script)
        ports = dict(zip("abc", free_ports(3), strict=True))
        peers = ", ".join(f'{n} = {{ raft = "127.0.0.1:{p}", url = "http://{n}.test" }}' for n, p in ports.items())
        self.errors = {name: folder / f"{name}.stderr" for name in ports}
        self.processes = {}
        for name, port in ports.items():
            variables = {
                **os.environ,
                **(environment or {}),
                "TENURE_NODE__NAME": name,
                "TENURE_NODE__DATA_DIR": str(folder / name),
                "TENURE_RAFT__LISTEN": f"127.0.0.1:{port}",
                "TENURE_RAFT__PEERS": f"{{ {peers} }}",
            }
            with self.errors[name].open("wb") as errors:
                self.processes[name] = subprocess.Popen(
                    [TENURE, "run", "-o", "json", *options, "--", "sh", "script"],
                    cwd=folder, env=variables, stdin=subprocess.DEVNULL, stderr=errors,
                )  # fmt: skip

    def starter(self, token: int) -> str | None:
        """Who has started the command under this token."""
        for name, errors in self.errors.items():
            # The last line may be half written.
            for line in errors.read_text().split("\n")[:-1]:
                event = json.loads(line)
                if event["event"] == "started" and event["token"] == token:
                    return name
        return None

    def leader(self, token: int) -> str:
        """The same, once it is known."""
        until(lambda: self.starter(token) is not None)
        return str(self.starter(token))

    def close(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGCONT)
            process.terminate()
        for process in self.processes.values():
            process.wait(BOUND_SECONDS)


#: Writes when it was alive first and last, and does not end of SIGTERM.
MORTAL = """trap '' TERM
date +%s%N > begun.$TENURE_TOKEN
while :; do date +%s%N > draft.$TENURE_TOKEN; mv draft.$TENURE_TOKEN alive.$TENURE_TOKEN; done
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGSTOP, signal.SIGKILL], ids=lambda number: number.name)
def test_R8_R9_commands_of_two_machines_do_not_overlap_when_the_first_is_ended_paused_or_killed(
    tmp_path: Path, number: signal.Signals
):
    with contextlib.closing(Machines(tmp_path, MORTAL, "--grace", "1")) as machines:
        until((tmp_path / "alive.1").exists)
        machines.processes[machines.leader(1)].send_signal(number)
        until((tmp_path / "alive.2").exists)
        begun = int((tmp_path / "begun.2").read_text())
    assert int((tmp_path / "alive.1").read_text()) < begun


def test_script_of_the_guide_writes_on_one_machine_and_goes_on_elsewhere_when_that_one_is_paused_or_killed(
    tmp_path: Path, postgres: EmbeddedPostgres, database: str
):
    (script,) = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/run.md").read_text(encoding="utf-8"), re.DOTALL)
    environment = {
        "PATH": f"{postgres.bin_dir}:{os.environ['PATH']}",
        "DSN": database,
        "TENURE_DATABASE__DSN": database,
        "TENURE_FENCE__RESOURCE": "heart",
    }
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE beats (at timestamptz DEFAULT clock_timestamp(), fencing_token bigint)")
        install(database, "heart", tables=["beats"])

        def tokens() -> list[int]:
            """Of the rows in the order of their commits."""
            return [token for (token,) in connection.execute("SELECT fencing_token FROM beats ORDER BY ctid")]

        with contextlib.closing(
            Machines(tmp_path, script.replace("sleep 1", "sleep 0.1"), environment=environment)
        ) as machines:
            until(lambda: bool(tokens()))
            first = tokens()[-1]
            paused = machines.leader(first)
            machines.processes[paused].send_signal(signal.SIGSTOP)
            until(lambda: tokens()[-1] > first)
            second = tokens()[-1]
            killed = machines.leader(second)
            assert killed != paused
            machines.processes[paused].send_signal(signal.SIGCONT)
            until(lambda: '"lost"' in machines.errors[paused].read_text())
            machines.processes[killed].kill()
            until(lambda: tokens()[-1] > second)
        written = tokens()
    assert written == sorted(written), "a row under an old token after a newer one"


@pytest.mark.asyncio
async def test_end_of_the_command_is_heard_when_the_supervisor_slept_through_it():
    guard = await Guard.open()
    raw_ns, boottime_ns = read_clocks()
    lease = (raw_ns + NS_PER_SECOND, boottime_ns + NS_PER_SECOND)
    guard.run(["sleep", "60"], {}, lease=lease, window_ns=0, grace_ns=1)
    assert await guard.started is not None
    guard.stop(NS_PER_SECOND)
    time.sleep(1.5)  # noqa: ASYNC251 - the whole supervisor stands still.
    for _ in range(3):
        guard.renew(lease)
    await guard.until_gone()
    assert await guard.ended == Ended(-signal.SIGTERM, "asked")
    await guard.close()


@pytest.mark.parametrize("listed", [True, False], ids=["kernel lists children", "kernel does not"])
def test_children_are_found(monkeypatch: pytest.MonkeyPatch, listed: bool):
    read_text = Path.read_text

    def without_list(path: Path, **options: str) -> str:
        if path.name == "children":
            raise FileNotFoundError
        return read_text(path, **options)

    if not listed:
        monkeypatch.setattr(Path, "read_text", without_list)
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert child.pid in guardian._children()
        assert os.getppid() not in guardian._children()
    finally:
        child.kill()
        child.wait()
    assert child.pid not in guardian._children()
