"""What a survey looks at: flags before the environment before a demo, and never two clusters mixed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tenure.demo import pointer
from tenure.endpoints import Endpoint
from tenure.errors import ConfigError
from tenure.recovery.targets import DEFAULT_LOGS, Targets, find_targets

DSN = "postgresql://payments@db/payments"


@pytest.fixture(autouse=True)
def runtime_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No demo of this machine may be found: the pointer lives in a folder of the test's own."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    (tmp_path / "run").mkdir(mode=0o700)
    return tmp_path / "run"


@pytest.fixture
def demo(tmp_path: Path) -> Path:
    nodes = [
        {"name": f"payment-1{zone}", "url": f"http://127.0.0.1:808{n}", "pid": 100 + n, "log": f"/d/1{zone}.log"}
        for n, zone in enumerate("abc")
    ]
    folder = tmp_path / "demo"
    folder.mkdir()
    (folder / "demo.json").write_text(
        json.dumps({"pid": os.getpid(), "nodes": nodes, "database": {"dsn": "postgresql://demo"}})
    )
    return folder


def find(environ: dict[str, str] | None = None, **options: Any) -> Targets:
    given: dict[str, Any] = {"endpoints": (), "dsn": None, "logs": (), "demo": None} | options
    return find_targets(**given, environ=environ or {})


def test_flags_are_taken_when_the_environment_says_otherwise():
    environ = {"TENURE_ENDPOINTS": "http://other:1", "TENURE_DATABASE__DSN": "postgresql://other"}
    found = find(environ, endpoints=["http://payment-1b:8080/"], dsn=DSN, logs=["/tmp/x.log"])
    assert found == Targets((Endpoint("http://payment-1b:8080"),), DSN, ("/tmp/x.log",))


def test_environment_is_taken_when_no_flag_is_given():
    environ = {"TENURE_ENDPOINTS": "payment-1a:8080, http://payment-1b:8080", "TENURE_DATABASE__DSN": DSN}
    found = find(environ)
    assert found.endpoints == (Endpoint("http://payment-1a:8080"), Endpoint("http://payment-1b:8080"))
    assert found.dsn == DSN
    assert found.logs == DEFAULT_LOGS


@pytest.mark.parametrize("text", ["ftp://payment-1b", "http://", "http://payment-1b:port", "http://[::1"])
def test_endpoint_is_refused_by_name_when_it_is_no_url(text: str):
    with pytest.raises(ConfigError, match="--endpoint") as caught:
        find(endpoints=[text])
    assert text in str(caught.value)


def test_password_of_an_endpoint_is_dropped_when_one_is_given():
    assert find(endpoints=["http://me:secret@payment-1b:8080"]).endpoints == (Endpoint("http://payment-1b:8080"),)


def test_usage_error_names_every_way_when_nothing_is_given_and_no_demo_runs():
    with pytest.raises(ConfigError) as caught:
        find()
    for way in ("--endpoint", "TENURE_ENDPOINTS", "--dsn", "TENURE_DATABASE__DSN", "--log", "tenure demo"):
        assert way in str(caught.value)


def test_demo_gives_nodes_database_and_logs_when_named_by_folder_or_file(demo: Path):
    found = find(demo=demo)
    assert found.endpoints[1] == Endpoint("http://127.0.0.1:8081", "payment-1b", 101)
    assert found.dsn == "postgresql://demo"
    assert found.logs == ("/d/1a.log", "/d/1b.log", "/d/1c.log")
    assert find(demo=demo / "demo.json") == found


def test_running_demo_is_found_when_nothing_else_is_named(demo: Path):
    pointer.publish(demo / "demo.json")
    assert find().endpoints[0].name == "payment-1a"


@pytest.mark.parametrize("named", [{"dsn": DSN}, {"endpoints": ["http://payment-1b:8080"]}, {"logs": ["/tmp/x.log"]}])
def test_running_demo_is_left_alone_when_something_is_named(demo: Path, named: dict[str, Any]):
    pointer.publish(demo / "demo.json")
    assert find(**named).demo is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"nodes": 5}', '{"nodes": [], "database": null}'])
def test_demo_is_refused_when_its_file_is_none_of_a_demo(tmp_path: Path, text: str):
    (tmp_path / "demo.json").write_text(text)
    with pytest.raises(ConfigError, match="--demo"):
        find(demo=tmp_path)


def test_demo_is_refused_when_it_is_not_there(tmp_path: Path):
    with pytest.raises(ConfigError, match="No such file"):
        find(demo=tmp_path / "gone.json")


@pytest.mark.parametrize("pid", [None, "1", 0, -1, 2**22 + 1])
def test_demo_is_refused_when_it_has_ended(demo: Path, pid: object):
    record = json.loads((demo / "demo.json").read_text()) | {"pid": pid}
    (demo / "demo.json").write_text(json.dumps(record))
    pointer.publish(demo / "demo.json")
    for way in ({"demo": demo}, {}):
        with pytest.raises(ConfigError, match="has ended"):
            find(**way)


def test_pointer_is_ignored_when_its_folder_is_writable_by_others(demo: Path, runtime_dir: Path):
    pointer.publish(demo / "demo.json")
    assert pointer.find() == demo / "demo.json"
    (runtime_dir / "tenure").chmod(0o777)
    assert pointer.find() is None
    with pytest.raises(PermissionError):
        pointer.publish(demo / "demo.json")


def test_pointer_stays_when_an_older_demo_withdraws(demo: Path, tmp_path: Path):
    older = tmp_path / "older.json"
    older.write_text("{}")
    pointer.publish(older)
    pointer.publish(demo / "demo.json")
    pointer.withdraw(older)
    assert pointer.find() == demo / "demo.json"
    pointer.withdraw(demo / "demo.json")
    assert pointer.find() is None
    pointer.withdraw(demo / "demo.json")


def test_pointer_lies_in_a_private_folder_when_there_is_no_runtime_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert pointer.path() == tmp_path / f"tenure-demo-{os.getuid()}" / "demo.json"
