"""What the demo works out, checks and writes before and beside the processes themselves."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import tomllib
import uuid
from pathlib import Path

import pytest

from tenure import config
from tenure.cli import main
from tenure.cli.output import ExitCode
from tenure.demo import plan, report
from tenure.demo.cluster import Cluster
from tenure.demo.folder import open_folder, write_private
from tenure.demo.plan import Options
from tenure.demo.problems import DemoError


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if every package were there: what is missing is the subject of tests of its own."""
    (tmp_path / "payment-service").touch()
    monkeypatch.setattr(plan, "payment_service", lambda: tmp_path / "payment-service")
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: object())


def free_base_port() -> int:
    """Below the range from which the system gives ports to clients, so that no passer-by takes one meanwhile."""
    for base in range(12_000 + os.getpid() % 500 * 10, 20_000, 10):
        if all(is_free(base + offset + shift) for offset in range(3) for shift in (0, 1000)):
            return base
    raise RuntimeError("no free ports")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def test_plan_gives_names_and_ports_of_the_convention_when_there_are_three_nodes(tmp_path) -> None:
    nodes = plan.plan_nodes(Options(port=8080), tmp_path)
    assert [node.name for node in nodes] == ["payment-1a", "payment-1b", "payment-1c"]
    assert [node.url for node in nodes] == [f"http://127.0.0.1:{port}" for port in (8080, 8081, 8082)]
    assert [node.raft_address for node in nodes] == [f"127.0.0.1:{port}" for port in (9080, 9081, 9082)]
    assert nodes[1].log == tmp_path / "logs" / "payment-1b.log"


def test_settings_of_a_node_are_a_valid_configuration_when_read_back(tmp_path) -> None:
    nodes = plan.plan_nodes(Options(), tmp_path)
    dsn = 'postgresql://postgres:a"b\\c@127.0.0.1/postgres'
    text = plan.as_toml(plan.node_settings(nodes[2], nodes, tmp_path, dsn=dsn, operator_token="t"))
    read = config.from_mapping(tomllib.loads(text))
    assert read.node.name == "payment-1c"
    assert read.database.dsn == dsn
    assert read.raft.peers["payment-1a"].url == "http://127.0.0.1:8080"


@pytest.mark.parametrize("shift", [0, 2, 1001])
def test_demo_names_the_port_and_another_base_when_a_port_is_in_use(installed, capsys, shift) -> None:
    base = free_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base + shift))
        taken.listen()
        assert main(["demo", "--port", str(base), "--for", "1"]) == ExitCode.FAILED
    out, err = capsys.readouterr()
    assert out == ""
    assert f"port {base + shift} on 127.0.0.1" in err
    assert "tenure demo --port " in err
    assert 'make demo ARGS="--port ' in err


def test_demo_names_the_command_when_a_package_is_missing(installed, monkeypatch, capsys) -> None:
    monkeypatch.setattr(plan.importlib.util, "find_spec", lambda name: None)
    assert main(["demo", "--for", "1"]) == ExitCode.FAILED
    _, err = capsys.readouterr()
    assert "tenure-raft" in err
    assert "pip install 'tenure[demo]'" in err


def test_demo_refuses_a_base_port_when_the_raft_ports_would_not_fit(installed, capsys) -> None:
    assert main(["demo", "--port", "65000", "--for", "1"]) == ExitCode.FAILED
    assert "at most 64533" in capsys.readouterr().err


def test_folder_is_removed_at_the_end_when_it_is_temporary() -> None:
    with open_folder(None) as folder:
        folder.prepare(["payment-1a"])
        assert folder.root.exists()
    assert not folder.root.exists()


def test_folder_is_kept_when_it_is_temporary_and_something_went_wrong() -> None:
    """What the message tells to read must still be there."""
    with pytest.raises(DemoError), open_folder(None) as folder:
        raise DemoError("payment-1a ended with code 1", f"read {folder.logs}/payment-1a.stderr")
    assert folder.root.exists()
    shutil.rmtree(folder.root)


@pytest.mark.asyncio
async def test_leader_is_shown_when_the_demo_did_not_start_it(tmp_path) -> None:
    plans = plan.plan_nodes(Options(), tmp_path)
    cluster = Cluster(plans, note=print, changed=lambda: None, environment={})
    assert cluster.leader_from_outside is None
    for node, name, term in zip(cluster.nodes, ("payment-1a", "payment-1d", "payment-1d"), (4, 5, 5), strict=True):
        node.answer = {"state": "follower", "leader_name": name, "term": term}
    assert cluster.leader is None
    assert cluster.leader_from_outside == "payment-1d"
    for node in cluster.nodes:
        node.answer = {"state": "follower", "leader_name": "payment-1a", "term": 6}
    assert cluster.leader_from_outside is None


def test_folder_is_kept_and_can_be_used_again_when_it_was_named(tmp_path) -> None:
    for _ in range(2):
        with open_folder(tmp_path / "demo") as folder:
            folder.prepare(["payment-1a", "payment-1b", "payment-1c"])
    assert folder.logs.is_dir()


def test_folder_refuses_other_nodes_when_it_was_made_with_three(tmp_path) -> None:
    with open_folder(tmp_path) as folder:
        folder.prepare(["payment-1a", "payment-1b", "payment-1c"])
        with pytest.raises(DemoError, match="3 nodes") as refused:
            folder.prepare(["payment-1a"])
    assert "--nodes 3" in refused.value.next_step


def test_folder_refuses_a_second_demo_when_one_runs_in_it(tmp_path) -> None:
    with open_folder(tmp_path), pytest.raises(DemoError, match="another demo"), open_folder(tmp_path):
        pass


def test_folder_keeps_the_mode_of_a_folder_that_it_did_not_make(tmp_path) -> None:
    tmp_path.chmod(0o700)
    with open_folder(tmp_path) as folder:
        folder.prepare(["payment-1a"])
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_private_file_can_be_read_by_its_owner_only_when_written_and_replaced(tmp_path) -> None:
    path = tmp_path / "demo.json"
    for text in ("one", "two"):
        write_private(path, text)
        assert path.read_text() == text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["demo.json"]


def test_acknowledged_ids_are_read_once_each_and_a_torn_line_not_at_all(tmp_path) -> None:
    first, second = uuid.uuid4(), uuid.uuid4()
    path = tmp_path / "acknowledged.txt"
    path.write_text(f"pay_{first}\npay_{second}\npay_{first}\npay_0123")
    assert report.read_acknowledged(path) == [first, second]
    assert report.read_acknowledged(tmp_path / "absent") == []
