"""``tenure run -- COMMAND`` with real processes: what the command gets, and that nothing outlives the leadership."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from support.services import free_ports

pytestmark = pytest.mark.processes

TENURE = str(Path(sys.executable).with_name("tenure"))
BOUND_SECONDS = 30.0
LEASE_MS = 1000


class Supervised:
    """One ``tenure run`` of a cluster of one, whose command writes its process ids into a folder."""

    def __init__(self, folder: Path, *options: str, command: str, program: str = "sh") -> None:
        (port,) = free_ports(1)
        config = folder / "node.toml"
        config.write_text(
            f"""[cluster]
name = "jobs"
[node]
name = "a"
data_dir = "{folder / "data"}"
[raft]
listen = "127.0.0.1:{port}"
peers = {{ a = {{ raft = "127.0.0.1:{port}", url = "http://a.test" }} }}
[lease]
duration_ms = {LEASE_MS}
"""
        )
        supervisor = [TENURE, "run", "--config", str(config), *options]
        self.folder = folder
        self.process = subprocess.Popen(
            [*supervisor, "--", program, "-c", command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def pids(self, *names: str) -> list[int]:
        """The process ids that the command has written under these names, once all are there."""
        until(lambda: all((self.folder / name).exists() and (self.folder / name).read_text().strip() for name in names))
        return [int((self.folder / name).read_text()) for name in names]

    def end(self) -> tuple[int, str, str]:
        out, errors = self.process.communicate(timeout=BOUND_SECONDS)
        return self.process.returncode, out, errors


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + BOUND_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def supervised(folder: Path, *options: str, command: str) -> Iterator[Supervised]:
    running = Supervised(folder, *options, command=command)
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


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "paused"])
def test_whole_group_ends_when_the_supervisor_is_killed_or_paused(tmp_path: Path, number: signal.Signals):
    """R8, R11: a supervisor that cannot renew, or is gone, must not leave work that goes on after the lease."""
    with supervised(tmp_path, command=STUBBORN) as running:
        pids = running.pids("child", "grandchild")
        assert all(map(is_alive, pids))
        running.process.send_signal(number)
        until(lambda: not any(map(is_alive, pids)))


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
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                arguments.append(file.read_bytes().decode(errors="replace"))
        running.process.terminate()
        _, out, errors = running.end()
    assert len(secret) > 32
    assert not any(secret in text for text in [*arguments, out, errors])
