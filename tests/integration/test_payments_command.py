"""The command ``payment-service``: how it refuses to start, and one real node from start to stop."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from payment_service import cli
from tenure.fence import rebase

COMMAND = str(Path(sys.executable).with_name("payment-service"))
BODY = {"amount": 1250, "currency": "EUR", "debtor": "alice", "creditor": "bob", "reference": "invoice 7"}
NOWHERE = "postgresql://127.0.0.1:1/nowhere"


@pytest.fixture(autouse=True)
def untouched_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The commands run in this process: give it its signals and its log level back."""
    for name in [name for name in os.environ if name.startswith("TENURE_")]:
        monkeypatch.delenv(name)
    handler, level = signal.getsignal(signal.SIGTERM), logging.getLogger().level
    yield
    signal.signal(signal.SIGTERM, handler)
    logging.getLogger().setLevel(level)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Settings:
    """A configuration file of one node that is a cluster by itself."""

    def __init__(self, folder: Path, dsn: str, *, name: str = "payment-1a") -> None:
        self.folder = folder
        self.name = name
        self.http, self.raft = free_port(), free_port()
        self.sections: dict[str, dict[str, Any]] = {
            "cluster": {"name": "payments"},
            "node": {"name": name, "data_dir": str(folder / name), "log_dir": str(folder / "logs")},
            "raft": {"listen": f"127.0.0.1:{self.raft}"},
            "http": {"listen": f"127.0.0.1:{self.http}", "operator_token": "operator-token"},
            "database": {"dsn": dsn, "start_timeout_ms": 300},
        }

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http}"

    @property
    def log(self) -> Path:
        return self.folder / "logs" / f"{self.name}.log"

    def write(self, **changes: Any) -> Path:
        """The file, with ``section__key`` changed."""
        for field, value in changes.items():
            section, _, key = field.partition("__")
            self.sections.setdefault(section, {})[key] = value
        lines = []
        for section, table in self.sections.items():
            lines += [f"[{section}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
        lines += [f"[raft.peers.{self.name}]", f'raft = "127.0.0.1:{self.raft}"', f'url = "{self.url}"']
        path = self.folder / f"{self.name}.toml"
        path.write_text("\n".join(lines) + "\n")
        return path


# -- refusals: the field, the fix, the exit code, and nothing half started -------------------------------------------


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"raft__heartbeat_interval_ms": "fast"}, "raft.heartbeat_interval_ms"),
        ({"raft__heartbeat_interval_ms": 500}, "raft.heartbeat_interval_ms"),
        ({"lease__duration_ms": 100}, "lease.duration_ms"),
        ({"payments__batch_rows_max": 0}, "payments.batch_rows_max"),
        ({"payments__colour": "red"}, "payments.colour"),
        ({"http__listen": "8080"}, "http.listen"),
        ({"database__dsn": ""}, "database.dsn"),
        ({"database__dsn": "no dsn at all"}, "database.dsn"),
    ],
)
def test_run_refuses_and_names_the_field_when_a_setting_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], field: str
):
    settings = Settings(tmp_path, NOWHERE)
    assert cli.execute(["run", "--config", str(settings.write(**change))]) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith(f"payment-service: {field}")
    assert not (tmp_path / "payment-1a").exists()


def test_run_refuses_when_there_is_no_such_file_or_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["run", "--config", str(tmp_path / "none.toml")]) == 2
    assert "there is no file" in capsys.readouterr().err
    assert cli.execute(["run", "--colour", "red"]) == 2
    assert "--colour" in capsys.readouterr().err
    assert cli.execute(["fly"]) == 2


def test_run_refuses_when_the_port_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = Settings(tmp_path, NOWHERE)
    with socket.create_server(("127.0.0.1", settings.http)):
        assert cli.execute(["run", "--config", str(settings.write())]) == 2
    message = capsys.readouterr().err
    assert "http.listen" in message
    assert "in use" in message
    assert f"'sport = :{settings.http}'" in message


@pytest.mark.parametrize("command", ["run", "migrate"])
def test_command_names_the_field_and_no_secret_when_the_dsn_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
):
    path = Settings(tmp_path, "postgresql//anna:hunter2@db/payments").write()
    assert cli.execute([command, "--config", str(path)]) == 2
    assert capsys.readouterr().err == (
        "payment-service: database.dsn: it cannot be read; write it as postgresql://USER@HOST/DATABASE\n"
    )


@pytest.mark.parametrize("key", ["data_dir", "log_dir"])
def test_run_refuses_and_names_the_fix_when_a_folder_is_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str
):
    """One code for both: the file of settings is wrong."""
    settings, place = Settings(tmp_path, NOWHERE), tmp_path / "place"
    place.write_text("a file where the folder should be")
    assert cli.execute(["run", "--config", str(settings.write(**{f"node__{key}": str(place)}))]) == 2
    assert capsys.readouterr().err == (
        f"payment-service: node.{key}: {place} is there and is no folder; name another folder, or move it away\n"
    )


def test_run_ends_with_6_and_starts_nothing_when_the_database_does_not_answer(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    settings = Settings(tmp_path, NOWHERE)
    assert cli.execute(["run", "--config", str(settings.write())]) == 6
    message = capfd.readouterr().err
    assert "database.dsn" in message
    assert "database.start_timeout_ms" in message
    assert not (tmp_path / "payment-1a").exists()


def test_run_ends_with_4_when_the_tables_are_missing_and_it_may_not_make_them(
    tmp_path: Path, database: str, capfd: pytest.CaptureFixture[str]
):
    settings = Settings(tmp_path, database)
    path = settings.write(database__auto_migrate=False, database__start_timeout_ms=5000)
    assert cli.execute(["run", "--config", str(path)]) == 4
    assert "payment-service migrate" in capfd.readouterr().err


def test_flag_wins_over_the_environment_and_the_file_when_all_three_are_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    path = Settings(tmp_path, NOWHERE).write()
    monkeypatch.setenv("TENURE_DATABASE__DSN", "environment, no dsn")
    assert cli.execute(["run", "--config", str(path)]) == 2
    assert cli.execute(["run", "--config", str(path), "--dsn", NOWHERE, "--log-dir", str(tmp_path / "elsewhere")]) == 6
    assert (tmp_path / "elsewhere" / "payment-1a.log").exists()
    capfd.readouterr()


def test_migrate_makes_the_tables_when_only_a_dsn_is_given(
    database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    assert cli.execute(["migrate"]) == 2
    assert "database.dsn" in capsys.readouterr().err
    assert cli.execute(["migrate", "--dsn", database]) == 0
    assert "applied migrations 1" in capsys.readouterr().out
    monkeypatch.setenv("TENURE_DATABASE__DSN", database)
    assert cli.execute(["migrate"]) == 0
    assert "up to date" in capsys.readouterr().out


def test_version_and_help_are_told_when_asked(capsys: pytest.CaptureFixture[str]):
    assert cli.execute(["--version"]) == 0
    assert capsys.readouterr().out.startswith("payment-service 0.")
    assert cli.execute(["--help"]) == 0
    text = capsys.readouterr().out
    for word in ("run", "migrate", "TENURE_SECTION__KEY"):
        assert word in text


# -- one real node -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def running_node(settings: Settings, path: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    with (settings.folder / "stderr").open("wb") as stderr:
        process = subprocess.Popen([COMMAND, "run", "--config", str(path)], stderr=stderr, env=os.environ | environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def until(condition: Callable[[], Any], process: subprocess.Popen[bytes], *, seconds: float = 30.0) -> Any:
    """Poll until ``condition`` holds; fail at the deadline, or when the process has ended."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert process.poll() is None, f"the node ended with {process.returncode}"
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)
    return value


def leads(settings: Settings) -> bool:
    try:
        return httpx2.get(f"{settings.url}/v1/state", trust_env=False).json()["state"] == "leader"
    except httpx2.HTTPError:
        return False


def pay(settings: Settings, key: str, *, seconds: float = 10.0) -> httpx2.Response:
    headers = {"Idempotency-Key": key}
    return httpx2.post(f"{settings.url}/v1/payments", json=BODY, headers=headers, trust_env=False, timeout=seconds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_node_leads_pays_and_ends_with_0_when_it_is_stopped(tmp_path: Path, database: str, number: signal.Signals):
    settings = Settings(tmp_path, database)
    with running_node(settings, settings.write(database__start_timeout_ms=20_000)) as process:
        until(lambda: leads(settings), process)
        payment = pay(settings, "k-1").json()
        assert (payment["node"], payment["fencing_token"], payment["status"]) == ("payment-1a", 1, "accepted")
        node = httpx2.get(f"{settings.url}/v1/node", trust_env=False).json()
        assert (node["state"], node["pid"], node["fencing_token"]) == ("leader", process.pid, 1)
        process.send_signal(number)
        assert process.wait(20) == 0
    lines = [json.loads(line) for line in settings.log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events[-1] == "stopped"
    assert ("role_changed", "leader", 1) in [(line["event"], line.get("state"), line.get("token")) for line in lines]
    committed = [line for line in lines if line["event"] == "payment_committed"]
    assert [line["payment_id"] for line in committed] == [payment["id"]]
    assert settings.log.read_text() == (tmp_path / "stderr").read_text()
    with psycopg.connect(database) as connection:
        assert connection.execute("SELECT node_id, fencing_token FROM payment_events").fetchall() == [("payment-1a", 1)]


def test_R14_write_is_refused_and_counted_when_the_node_slept_between_its_check_and_its_insert(
    tmp_path: Path, database: str
):
    settings, trigger = Settings(tmp_path, database), tmp_path / "pause"
    path = settings.write(database__start_timeout_ms=20_000)
    with running_node(settings, path, PAYMENT_SERVICE_PAUSE_BEFORE_INSERT=str(trigger)) as process:
        until(lambda: leads(settings), process)
        assert pay(settings, "before").status_code == 201
        trigger.touch()
        with (
            httpx2.Client(trust_env=False, timeout=30) as client,
            background(
                lambda: client.post(f"{settings.url}/v1/payments", json=BODY, headers={"Idempotency-Key": "zombie"})
            ) as zombie,
        ):
            paused = tmp_path / "pause.paused"
            until(paused.exists, process)
            assert int(paused.read_text()) == process.pid
            until(lambda: process_state(process.pid) == "T", process)
            trigger.unlink()
            rebase(database, "payments", who="test", why="another elector takes over")
            process.send_signal(signal.SIGCONT)
            answer = zombie()
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["reason"]) == (503, "not_leader", "stale_token")
        metrics = httpx2.get(f"{settings.url}/metrics", trust_env=False).text
        assert "fencing_token_failures 1.0" in metrics.splitlines()
        with psycopg.connect(database) as connection:
            keys = connection.execute("SELECT idempotency_key FROM payment_events").fetchall()
        assert keys == [("before",)]
        assert settings.log.read_text().count("INSERT INTO payment_events") == 1


def test_node_refuses_to_start_when_the_data_directory_belongs_to_another_node(tmp_path: Path, database: str):
    settings = Settings(tmp_path, database)
    path = settings.write(database__start_timeout_ms=20_000)
    with running_node(settings, path) as process:
        until(lambda: leads(settings), process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    other = Settings(tmp_path, database, name="payment-1b")
    path = other.write(node__data_dir=str(tmp_path / "payment-1a"), database__start_timeout_ms=20_000)
    ended = subprocess.run(
        [COMMAND, "run", "--config", str(path)], capture_output=True, text=True, timeout=60, check=False
    )
    assert ended.returncode == 4, ended.stderr
    assert str(tmp_path / "payment-1a") in ended.stderr.splitlines()[-1]


@contextlib.contextmanager
def background(call: Callable[[], httpx2.Response]) -> Iterator[Callable[[], httpx2.Response]]:
    """Run ``call`` on a thread; the value waits for its result."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        yield lambda: future.result(30)


def process_state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
