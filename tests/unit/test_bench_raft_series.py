"""The Raft benchmark over payload sizes, numbers of voters and the life of one log, on nodes that only speak."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # The benchmarks are no installed package; they run from the top folder.

from bench.raft import long, ours, series  # noqa: E402
from bench.raft.cluster import Cluster, MeasurementFailed, NodeCommand, occupied_mb  # noqa: E402
from bench.raft.figures import Idle, Measured, Spread, idle_spread, rows, table  # noqa: E402
from bench.raft.systems import System  # noqa: E402

from tenure import OutcomeUnknown, ProposalDropped  # noqa: E402

#: A node without Raft: the first voter leads, counts what it is asked for and takes snapshots unless told not to.
FAKE_NODE = """
import json, sys
index, fault, count = int(sys.argv[1]), sys.argv[2], 0
def say(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
if index == 0: say("leader")
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "applied":
        say("applied", count=0 if fault == "lags" and index == 1 and count else 10**9)
        count += 1 if index else 0
    elif request["do"] == "log":
        entries = count if index == 0 else 2000
        snapshot = 0 if fault == "hoards" and index == 2 else entries - 20
        say("log", commit_index=entries, snapshot_index=snapshot, snapshot_entries=100)
    elif request["do"] == "fill":
        count += request["count"]
        say("filled")
    else:
        count += 50
        say("measuring")
        say("stopped")
        say("measured", ops=request["payload_bytes"], seconds=2.0, p50_ms=1.0, p99_ms=2.0, acknowledged=50)
"""


def fake(fault: str = "") -> NodeCommand:
    def command(index: int, voters: Sequence[str], directory: Path) -> list[str]:
        return [sys.executable, "-c", FAKE_NODE, str(index), fault]

    return command


def directories(folder: Path) -> list[Path]:
    made = [folder / str(index) for index in range(3)]
    for directory in made:
        directory.mkdir()
    return made


# -- figures ----------------------------------------------------------------------------------------------------------


def test_idle_has_median_and_range_of_each_figure_when_rounds_differ() -> None:
    over = idle_spread([Idle(10, 2, 8, 1), Idle(30, 1, 9, 3), Idle(20, 9, 7, 2)])
    assert over.leader_memory_mb == Spread(20, 10, 30, 3)
    assert over.follower_cpu_percent == Spread(2, 1, 3, 3)
    with pytest.raises(ValueError, match="no round idled"):
        idle_spread([])


def test_table_tells_the_megabytes_carried_when_the_payload_is_given() -> None:
    found = rows({"ours": [Measured(1, 1000, 4000, 2.0, 1.0, 2.0, 30.0, 20.0)]}, [])
    lines = table(found, {"ours": "tenure"}, {"ours": "1"}, payload_bytes=1000).splitlines()
    assert lines[1].split()[-1] == "MB/s"
    assert lines[2].split()[-2:] == ["-", "2.00"]


def test_occupied_is_summed_by_first_name_when_files_lie_deeper(tmp_path: Path) -> None:
    (tmp_path / "log" / "old").mkdir(parents=True)
    (tmp_path / "log" / "a").write_bytes(bytes(100_000))
    (tmp_path / "log" / "old" / "b").write_bytes(bytes(200_000))
    (tmp_path / "lock").touch()
    found = occupied_mb(tmp_path)
    assert list(found) == ["lock", "log"]
    assert 0.3 <= found["log"] < 0.35
    assert found["lock"] == 0


# -- nodes and clusters -----------------------------------------------------------------------------------------------


@pytest.mark.asyncio
@pytest.mark.parametrize(("count", "in_flight"), [(50, 16), (3, 3), (7, 2)])
async def test_our_fill_applies_as_many_as_asked_when_they_do_not_divide_evenly(
    count: int, in_flight: int, capsys: Any
) -> None:
    done, under_way, most = 0, 0, 0

    async def apply(_data: bytes) -> None:
        nonlocal done, under_way, most
        under_way += 1
        most = max(most, under_way)
        await ours.asyncio.sleep(0)
        under_way -= 1
        done += 1

    await ours.fill(apply, {"count": count, "in_flight": in_flight, "payload_bytes": 8})
    assert (done, most) == (count, in_flight)
    assert json.loads(capsys.readouterr().out) == {"event": "filled"}


class Leading:
    """What a benchmark's node asks of a leader; its barriers end as ``ends`` says, in turn."""

    def __init__(self, *ends: Exception | None) -> None:
        self.ends = list(ends)

    async def observe(self) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(role="follower")
        yield SimpleNamespace(role="leader")

    def is_leader_hint(self) -> bool:
        return True

    async def barrier(self) -> None:
        if (end := self.ends.pop(0)) is not None:
            raise end


@pytest.mark.asyncio
async def test_our_leader_is_announced_once_when_its_first_barriers_fail(capsys: Any) -> None:
    await ours.announce(Leading(OutcomeUnknown("no answer"), ProposalDropped("not taken"), None))
    assert json.loads(capsys.readouterr().out) == {"event": "leader"}


@pytest.mark.asyncio
async def test_our_leader_says_what_went_wrong_when_its_barrier_raises_anything_else(capsys: Any) -> None:
    with pytest.raises(OSError, match="no space"):
        await ours.announce(Leading(OSError("no space")))
    said = json.loads(capsys.readouterr().out)
    assert (said["event"], "no space" in said["problem"]) == ("failed", True)


def test_cluster_shows_the_logs_of_its_nodes_when_none_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def mute(index: int, voters: Sequence[str], directory: Path) -> list[str]:
        return [sys.executable, "-c", f"import sys; print('node {index} is alone', file=sys.stderr); sys.stdin.read()"]

    monkeypatch.setattr("bench.raft.cluster.ELECTION_SECONDS_MAX", 3.0)
    with (
        pytest.raises(MeasurementFailed, match=r"no node said 'leader'(?s:.*)node 2 is alone"),
        Cluster(mute, directories(tmp_path)),
    ):
        pytest.fail("a cluster without a leader was entered")


def test_cluster_fills_and_tells_the_leaders_footprint_first_when_asked(tmp_path: Path) -> None:
    with Cluster(fake(), directories(tmp_path)) as cluster:
        assert cluster.fill(300, in_flight=4, payload_bytes=8) > 0
        leader, *followers = cluster.footprints()
    assert (leader.commit_index, leader.snapshot_index, leader.snapshot_entries) == (350, 330, 100)
    assert [node.commit_index for node in followers] == [2000, 2000]
    assert leader.memory_mb > 1
    assert "node.log" in leader.disk_mb


def test_cluster_refuses_a_fill_when_a_follower_did_not_apply_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Cluster(fake("lags"), directories(tmp_path)) as cluster:
        monkeypatch.setattr("bench.raft.cluster.CATCH_UP_SECONDS_MAX", 0.2)
        with pytest.raises(MeasurementFailed, match="node 1 applied 0 of 350"):
            cluster.fill(300, in_flight=4, payload_bytes=8)


# -- whole runs -------------------------------------------------------------------------------------------------------


def run_series(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, *more: str) -> int:
    systems = [
        System("ours", "Ours", "1", lambda: None, fake()),
        System("peer", "The Peer", "1", lambda: None, fake(), is_reference=True),
    ]
    monkeypatch.setattr(series, "SYSTEMS", {system.name: system for system in systems})
    times = ["--seconds=0.02", "--warm-up-seconds=0", "--rounds=2", "--systems", "ours", "peer"]
    monkeypatch.setattr(sys, "argv", ["series", name, f"--directory={folder}", *times, *more])
    return series.main()


def test_sizes_tell_operations_and_bytes_for_each_payload_when_they_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert run_series(monkeypatch, tmp_path, "sizes", "--in-flight", "16") == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["variants"]) == ["256", "1024", "16384", "1048575"]
    row = report["variants"]["16384"]["systems"]["ours"]["16"]  # The fake answers as many operations as bytes.
    assert row["ops_per_second"] == {"median": 8192, "low": 8192, "high": 8192, "rounds": 2}
    assert row["bytes_per_second"] == {"median": 8192 * 16384, "low": 8192 * 16384, "high": 8192 * 16384, "rounds": 2}
    assert row["ratio"] == 1.0
    assert report["variants"]["1048575"]["disk"][0]["block_bytes"] == 1048575
    assert report["failures"] == []
    assert list(tmp_path.iterdir()) == []


def test_largest_payload_of_the_sizes_is_the_largest_command_that_ours_takes() -> None:
    from tenure.node.raft_node import COMMAND_BYTES_MAX

    assert COMMAND_BYTES_MAX == series.LARGEST_PAYLOAD_BYTES


def test_voters_found_clusters_of_three_five_and_seven_when_they_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert run_series(monkeypatch, tmp_path, "voters", "--in-flight", "1", "--rounds=1") == 0
    said = capsys.readouterr().out
    report = json.loads(said.splitlines()[-1])
    assert [of["voters"] for of in report["variants"].values()] == [3, 5, 7]
    assert report["variants"]["7"]["hashicorp_best"]["1"]["system"] == "peer"
    assert "share the" in said


def test_idle_tells_leader_and_follower_when_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert run_series(monkeypatch, tmp_path, "idle", "--idle-seconds=0.05") == 0
    said = capsys.readouterr().out
    idle = json.loads(said.splitlines()[-1])["variants"]["3"]["idle"]
    assert idle["ours"]["leader_memory_mb"]["rounds"] == 2
    assert idle["ours"]["follower_cpu_percent"]["low"] <= idle["ours"]["follower_cpu_percent"]["high"]
    assert "Ours, idle" in said


def run_long(monkeypatch: pytest.MonkeyPatch, folder: Path, fault: str = "") -> int:
    monkeypatch.setattr(ours, "command", fake(fault))
    monkeypatch.setattr(long, "PLACES", (100, 1000))
    times = ["--windows=2", "--seconds=0.02", "--warm-up-seconds=0", "--idle-seconds=0.02", "--in-flight", "4"]
    monkeypatch.setattr(sys, "argv", ["long", "--entries=3000", f"--directory={folder}", *times])
    return long.main()


def test_long_measures_each_place_beside_a_young_cluster_when_it_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert run_long(monkeypatch, tmp_path) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [place["entries"] for place in report["places"]] == [100, 1000, 3000]
    assert [len(place["young"]) for place in report["places"]] == [0, 1, 1]
    assert report["places"][2]["entries_after"] == 3100  # Two windows, of 50 operations each.
    assert report["ratios"] == {"4": {"last_to_first": 1.0, "last_to_young": 1.0}}
    assert len(report["filling"]) == 1 + 2 * long.STEPS
    assert list(tmp_path.iterdir()) == []


def test_long_gives_no_figure_when_a_follower_does_not_compact_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    assert run_long(monkeypatch, tmp_path, "hoards") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "a follower has 2,000 entries since its last snapshot" in said.err
