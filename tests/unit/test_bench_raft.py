"""The Raft benchmark: figures, the judgement of a cluster, and whole runs over nodes that only speak the protocol."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # The benchmarks are no installed package; they run from the top folder.

from bench.raft import ours, preparation, run  # noqa: E402
from bench.raft.cluster import Cluster, Load, MeasurementFailed, NodeCommand  # noqa: E402
from bench.raft.disk import disk_rate  # noqa: E402
from bench.raft.figures import (  # noqa: E402
    Idle,
    Measured,
    Spread,
    best_rows,
    median_idle,
    percentile,
    rotated,
    rows,
    spread,
    table,
)
from bench.raft.measure import measure  # noqa: E402
from bench.raft.speech import Window  # noqa: E402
from bench.raft.systems import SYSTEMS, System, hashicorp, pysyncobj  # noqa: E402

LOAD = Load(in_flight=4, seconds=0.05, warm_up_seconds=0.0, payload_bytes=8)

#: A node without Raft: the first voter leads and answers a load at once. What it does wrong is its last argument.
FAKE_NODE = """
import json, sys, time
index, fault, applied, loads = int(sys.argv[1]), sys.argv[2], 0, 0
def say(event, **fields): print(json.dumps({"event": event, **fields}), flush=True)
if index == 0: say("leader")
for line in sys.stdin:
    request = json.loads(line)
    if request["do"] == "applied":
        say("applied", count=0 if fault == "loses" and index == 2 else 10_000)
        continue
    loads += 1
    say("measuring")
    while fault == "works" and time.process_time() < 0.1 * loads: pass
    if loads > 1 and fault == "moves": say("leader")
    if loads > 1 and fault == "dies": sys.exit("the disk is full")
    if loads > 1 and fault == "babbles": print("panic: no JSON", flush=True)
    say("stopped")
    ops = 0 if loads > 1 and fault == "stands" else 40
    say("measured", ops=ops, seconds=0.05, p50_ms=1.0, p99_ms=2.0, acknowledged=50)
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


def measured(rate: int, *, in_flight: int = 1, p99_ms: float = 2.0) -> Measured:
    return Measured(
        in_flight=in_flight,
        payload_bytes=256,
        ops=rate * 2,
        seconds=2.0,
        p50_ms=1.0,
        p99_ms=p99_ms,
        leader_cpu_us_per_op=30.0,
        follower_cpu_us_per_op=20.0,
    )


# -- figures ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("samples", "percent", "expected"),
    [([], 50, 0), ([7], 99, 7), ([1, 2, 3, 4], 50, 2), (range(1, 101), 99, 99), (range(1, 1001), 99, 990)],
)
def test_percentile_is_the_nearest_rank_when_samples_are_sorted(
    samples: Sequence[int], percent: int, expected: int
) -> None:
    assert percentile(samples, percent) == expected


def test_spread_is_median_and_range_when_rounds_differ() -> None:
    assert spread([5.0, 1.0, 9.0]) == Spread(median=5.0, low=1.0, high=9.0, rounds=3)


def test_spread_is_refused_when_there_is_no_round() -> None:
    with pytest.raises(ValueError, match="no samples"):
        spread([])


def test_order_puts_each_system_first_once_when_rounds_are_as_many_as_systems() -> None:
    assert [rotated("abc", number) for number in range(4)] == [list("abc"), list("bca"), list("cab"), list("abc")]


def test_ratio_is_to_the_best_reference_of_the_same_load_when_several_are_measured() -> None:
    given = {
        "ours": [measured(300), measured(3000, in_flight=16)],
        "slow": [measured(100), measured(2000, in_flight=16)],
        "fast": [measured(200), measured(1000, in_flight=16)],
    }
    found = rows(given, ["slow", "fast"])
    assert {(row.system, row.in_flight): row.ratio for row in found} == {
        ("ours", 1): 1.5,
        ("ours", 16): 1.5,
        ("slow", 1): 0.5,
        ("slow", 16): 1.0,
        ("fast", 1): 1.0,
        ("fast", 16): 0.5,
    }
    assert {load: row.system for load, row in best_rows(found, ["slow", "fast"]).items()} == {1: "fast", 16: "slow"}


def test_ratio_is_of_medians_when_one_round_was_disturbed() -> None:
    given = {"ours": [measured(400), measured(1), measured(400)], "peer": [measured(200), measured(200), measured(9)]}
    assert [row.ratio for row in rows(given, ["peer"]) if row.system == "ours"] == [2.0]


def test_ratio_is_absent_when_no_reference_was_measured() -> None:
    assert [row.ratio for row in rows({"ours": [measured(300)]}, [])] == [None]


def test_table_names_rate_range_and_ratio_when_rows_are_given() -> None:
    found = rows({"ours": [measured(1000), measured(3000)], "peer": [measured(1000)]}, ["peer"])
    lines = table(found, {"ours": "tenure", "peer": "the peer"}, {"ours": "1", "peer": "2"}).splitlines()
    assert lines[0] == "1 in flight"
    assert lines[2].split() == ["tenure", "1", "2,000", "[1,000-3,000]", "1.00", "2.00", "30.0", "20.0", "2.00"]
    assert lines[3].split()[:4] == ["the", "peer", "2", "1,000"]


def test_idle_is_the_median_of_each_figure_when_rounds_differ() -> None:
    rounds = [Idle(10, 2, 8, 1), Idle(30, 1, 9, 3), Idle(20, 9, 7, 2)]
    assert median_idle(rounds) == Idle(20, 2, 8, 2)


# -- clients in Python ------------------------------------------------------------------------------------------------


def test_window_counts_only_answers_between_opening_and_closing_when_a_load_runs(capsys: Any) -> None:
    window = Window()
    window.answered(0)
    window.open()
    window.answered(0)
    assert not window.closed
    window.close()
    window.answered(0)
    window.report()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in said] == ["measuring", "stopped", "measured"]
    assert (said[2]["ops"], said[2]["acknowledged"]) == (1, 3)


@pytest.mark.asyncio
async def test_our_load_keeps_as_many_under_way_as_asked_when_apply_answers(capsys: Any) -> None:
    under_way, most = 0, 0

    async def apply(data: bytes) -> None:
        nonlocal under_way, most
        assert len(data) == 32
        under_way += 1
        most = max(most, under_way)
        await ours.asyncio.sleep(0.001)
        under_way -= 1

    await ours.drive(apply, {"in_flight": 16, "seconds": 0.05, "warm_up_seconds": 0.01, "payload_bytes": 32})
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert most == 16
    assert under_way == 0
    assert 0 < result["ops"] <= result["acknowledged"]
    assert 1.0 <= result["p50_ms"] <= result["p99_ms"]


@pytest.mark.asyncio
async def test_our_load_ends_with_the_error_when_apply_raises() -> None:
    async def apply(_data: bytes) -> None:
        raise ConnectionError("not the leader")

    with pytest.raises(ExceptionGroup) as raised:
        await ours.drive(apply, {"in_flight": 2, "seconds": 30, "warm_up_seconds": 30, "payload_bytes": 1})
    assert raised.group_contains(ConnectionError, match="not the leader")


# -- systems ----------------------------------------------------------------------------------------------------------


def test_commands_carry_place_and_settings_when_a_node_is_started(tmp_path: Path) -> None:
    voters = ["127.0.0.1:1", "127.0.0.1:2"]
    go = hashicorp("-store=wal", "-tuned")(1, voters, tmp_path)
    assert go[1:] == ["-index=1", "-voters=127.0.0.1:1,127.0.0.1:2", f"-directory={tmp_path}", "-store=wal", "-tuned"]
    python = pysyncobj("--unbatched")(0, voters, tmp_path)
    assert python[3:] == ["--index=0", "--voters=127.0.0.1:1,127.0.0.1:2", f"--directory={tmp_path}", "--unbatched"]


def test_hashicorp_is_unavailable_with_advice_when_there_is_no_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(preparation.Unavailable, match="Install Go"):
        preparation.build_hashicorp()


# -- clusters ---------------------------------------------------------------------------------------------------------


def test_cluster_measures_when_its_nodes_answer(tmp_path: Path) -> None:
    with Cluster(fake("works"), directories(tmp_path)) as cluster:
        idle = cluster.idle(0.01)
        result = cluster.drive(LOAD)
    assert (result.in_flight, result.payload_bytes, result.ops, result.ops_per_second) == (4, 8, 40, 800.0)
    assert 500 < result.leader_cpu_us_per_op < 5000  # 0.1 s for 40 operations, and some for speaking
    assert result.follower_cpu_us_per_op < 250
    assert idle.leader_memory_mb > 1
    assert idle.follower_memory_mb > 1


@pytest.mark.parametrize(
    ("fault", "problem"),
    [
        ("moves", "node 0 said 'leader' instead of 'stopped'"),
        ("dies", "node 0 said 'ended'.*exit code 1(?s:.*)the disk is full"),
        ("babbles", "this line is not JSON: 'panic: no JSON"),
        ("stands", "nothing was acknowledged"),
    ],
)
def test_cluster_gives_no_figure_when_a_load_goes_wrong(tmp_path: Path, fault: str, problem: str) -> None:
    with Cluster(fake(fault), directories(tmp_path)) as cluster, pytest.raises(MeasurementFailed, match=problem):
        cluster.drive(LOAD)


def test_cluster_gives_no_figure_when_a_follower_lost_operations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.raft.cluster.CATCH_UP_SECONDS_MAX", 0.2)
    with (
        pytest.raises(MeasurementFailed, match="node 2 applied 0 of 50 acknowledged"),
        Cluster(fake("loses"), directories(tmp_path)),
    ):
        pytest.fail("a cluster was entered whose follower applies nothing")


def test_measure_is_refused_when_a_directory_holds_an_old_log(tmp_path: Path) -> None:
    (tmp_path / "raft.db").touch()
    with pytest.raises(MeasurementFailed, match="not empty"):
        measure(SYSTEMS["ours"], [tmp_path], [LOAD], idle_seconds=0)


def test_disk_rate_leaves_nothing_behind_when_it_was_measured(tmp_path: Path) -> None:
    rate = disk_rate(tmp_path, writers=2, seconds=0.02)
    assert rate.syncs_per_second > 0
    assert 0 < rate.p50_ms <= rate.p99_ms
    assert list(tmp_path.iterdir()) == []


# -- a whole run ------------------------------------------------------------------------------------------------------


def unavailable() -> None:
    raise preparation.Unavailable("no toolchain; install one")


def whole_run(monkeypatch: pytest.MonkeyPatch, folder: Path, systems: Sequence[System]) -> int:
    monkeypatch.setattr(run, "SYSTEMS", {system.name: system for system in systems})
    times = ["--seconds=0.05", "--warm-up-seconds=0", "--idle-seconds=0.01", "--rounds=2", "--in-flight", "1", "16"]
    monkeypatch.setattr(sys, "argv", ["run", f"--directory={folder}", *times])
    return run.main()


def test_run_ends_with_one_line_of_json_when_a_peer_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    peer = System("peer", "The Peer", "1", lambda: None, fake(), is_reference=True)
    missing = System("missing", "The Missing", "1", unavailable, fake())
    assert whole_run(monkeypatch, tmp_path, [replace(peer, name="ours", is_reference=False), peer, missing]) == 0
    said = capsys.readouterr()
    report = json.loads(said.out.splitlines()[-1])
    assert report["systems"]["ours"]["16"]["ratio"] == 1.0
    assert report["systems"]["ours"]["16"]["ops_per_second"] == {"median": 800, "low": 800, "high": 800, "rounds": 2}
    assert report["hashicorp_best"]["1"]["system"] == "peer"
    assert report["missing"] == {"missing": "The Missing: no toolchain; install one"}
    assert report["failures"] == []
    assert "left out: The Missing: no toolchain; install one" in said.err
    assert list(tmp_path.iterdir()) == []


def test_run_fails_and_keeps_the_other_figures_when_one_system_fails(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    good = System("good", "The Good", "1", lambda: None, fake())
    bad = System("bad", "The Bad", "1", lambda: None, fake("stands"))
    assert whole_run(monkeypatch, tmp_path, [good, bad]) == 1
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(report["systems"]) == ["good"]
    assert report["systems"]["good"]["1"]["ratio"] is None
    assert [failure.partition(":")[0] for failure in report["failures"]] == ["bad", "bad"]
