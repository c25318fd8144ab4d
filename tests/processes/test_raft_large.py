"""A large log and a large snapshot, moved while the cluster goes on serving; and what breaks on the way (issue 3).

The large test fills a million entries of 200 bytes, which make a snapshot of over 200 MB; it took a minute on two busy
cores. ``LARGE_ENTRIES`` makes it smaller on a slower machine. What was measured is printed (``pytest -rP``).
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from support.raft_processes import BOUND_SECONDS, Process, Processes, running, until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(900)]

ENTRIES_IN_CI = 1_000_000
ENTRIES = int(os.environ.get("LARGE_ENTRIES", ENTRIES_IN_CI))
SIZE = 200
#: An entry in the state machine of the test: its bytes, its head, and what Python adds to them.
ENTRY_MB = (SIZE + 20 + 33 + 8) / (1 << 20)
SIGKILLED = -signal.SIGKILL


async def fill(leader: Process, first: int, count: int, *, in_flight: int = 1024, pause_ms: int = 0) -> dict[str, Any]:
    answer = await leader.do("fill", first=first, count=count, size=SIZE, in_flight=in_flight, pause_ms=pause_ms)
    assert answer["others"] == 0, answer
    return answer


async def rate(leader: Process, seconds: float) -> float:
    """Commands applied in a second, as the leader's state machine sees it."""
    before, began = (await leader.do("state"))["count"], time.monotonic()
    await asyncio.sleep(seconds)
    return float(((await leader.do("state"))["count"] - before) / (time.monotonic() - began))


async def caught_up(process: Process, leader: Process) -> None:
    """Wait until ``process`` has what the leader had a moment ago."""

    async def ask() -> bool:
        target = (await leader.do("state"))["count"]
        return bool((await process.do("state"))["count"] >= target - 2000)

    await until(f"{process.name} has caught up", ask, seconds=300.0)


async def prepared(processes: Processes, count: int) -> tuple[Process, Process]:
    """A cluster with so many entries behind a snapshot: its leader, and a follower."""
    leader = await processes.leader()
    await fill(leader, 0, count)
    for process in list(processes.alive.values()):
        await process.ask("snapshot")
    follower = next(process for process in processes.alive.values() if process is not leader)
    return leader, follower


@pytest.mark.asyncio
async def test_large_snapshot_reaches_a_new_learner_while_the_cluster_serves(tmp_path: Path):
    """All of it arrives; commands go on being applied meanwhile; the leader holds no copy of what it sends."""
    raft = {
        # A restore of a large state holds the interpreter of the test's own state machine for a second.
        "election_timeout_ms": 2000,
        "snapshot_entries": max(20_000, ENTRIES // 4),
        "snapshot_bytes": 1 << 30,
        "keep_entries": 5000,
    }
    async with running(tmp_path, spare="d", store="own", **raft) as processes:
        leader = await processes.leader()
        filled = await fill(leader, 0, ENTRIES)
        assert "error" not in await leader.ask("snapshot") or (await leader.do("state"))["snapshot"] > ENTRIES // 2
        serving = asyncio.create_task(fill(leader, ENTRIES, 10_000_000, in_flight=64))
        before = await rate(leader, 2.0)
        memory = (await leader.do("state"))["rss_mb"]
        learner = processes.start("d")
        await learner.opened.wait()
        began = time.monotonic()
        await leader.do("add", name="d", voter=False)
        catching_up = asyncio.create_task(caught_up(learner, leader))
        during = await rate(leader, 1.0)
        lowest = during
        while not catching_up.done():
            lowest = min(lowest, await rate(leader, 0.5))
        took = time.monotonic() - began
        await catching_up
        after = await rate(leader, 2.0)
        await leader.do("enough")
        answer = await serving
        states = await processes.agree(count=ENTRIES + answer["acknowledged"])
        snapshot = max((processes.folder_of("d") / "snapshots").glob("*.snapshot")).stat().st_size
        grown = states[leader.name]["peak_mb"] - memory - answer["acknowledged"] * ENTRY_MB
        print(  # noqa: T201 - what was measured is for who reads the run.
            f"{ENTRIES} entries filled at {filled['acknowledged'] / filled['seconds']:.0f}/s; a snapshot of "
            f"{snapshot / 1e6:.0f} MB and the rest caught up in {took:.1f} s; applied per second before, at the worst "
            f"while, after: {before:.0f}, {lowest:.0f}, {after:.0f}; memory of the leader {memory:.0f} MB, at most "
            f"{grown:.0f} MB more beside what it applied; of the learner {states['d']['rss_mb']:.0f} MB, at most "
            f"{states['d']['peak_mb']:.0f} MB"
        )
        assert states["d"]["restored"] >= 1
        assert snapshot > ENTRIES // 2 * SIZE
        assert lowest > 0
        repeated = await learner.do("repeated")
        assert repeated["repeated"] == 0


@pytest.mark.asyncio
async def test_large_state_reaches_a_follower_that_was_away_too_long_for_the_log(tmp_path: Path):
    """It was stopped politely; what it lacks is compacted, and the leader's snapshot stands for it."""
    async with running(tmp_path, store="own", snapshot_entries=10_000, keep_entries=1000) as processes:
        leader, follower = await prepared(processes, 5000)
        assert await follower.end() == 0
        await fill(leader, 5000, 40_000)
        await leader.ask("snapshot")
        follower = processes.start(follower.name)
        await caught_up(follower, leader)
        states = await processes.agree(count=45_000)
        assert states[follower.name]["restored"] >= 1


@pytest.mark.asyncio
@pytest.mark.parametrize("point", ["chunk.asked", "snapshot.torn"])
async def test_large_transfer_begins_again_when_the_receiver_is_killed_in_its_middle(tmp_path: Path, point: str):
    """Between two chunks, and in the middle of the writing of one: the torn file is not taken for a snapshot."""
    async with running(tmp_path, spare="d", keep_entries=100) as processes:
        leader, _ = await prepared(processes, 20_000)
        processes.start("d", die={"die_at": point, "after": 2})
        adding = asyncio.create_task(leader.ask("add", name="d", voter=False))
        async with asyncio.timeout(BOUND_SECONDS):
            await processes.running["d"].ended.wait()
        assert processes.running["d"].popen.wait() == SIGKILLED
        torn = list((processes.folder_of("d") / "snapshots").iterdir())
        assert [path.suffix for path in torn] == [".partial"]
        learner = processes.start("d")
        await adding
        await caught_up(learner, leader)
        states = await processes.agree(count=20_000)
        assert states["d"]["restored"] == 1
        assert not list((processes.folder_of("d") / "snapshots").glob(".*.partial"))


@pytest.mark.asyncio
async def test_large_transfer_goes_on_with_the_next_leader_when_the_sender_is_killed(tmp_path: Path):
    """The contents of two members differ in nothing but their name: what the new leader announces is fetched."""
    async with running(tmp_path, spare="d", keep_entries=100) as processes:
        leader, _ = await prepared(processes, 20_000)
        learner = processes.start("d")
        await leader.do("arm", point="chunk.sent", after=2)
        adding = asyncio.create_task(leader.ask("add", name="d", voter=False))
        async with asyncio.timeout(BOUND_SECONDS):
            await leader.ended.wait()
        await asyncio.gather(adding, return_exceptions=True)
        successor = await processes.leader()
        assert successor is not leader
        await caught_up(learner, successor)
        processes.start(leader.name)
        states = await processes.agree(count=20_000)
        assert states["d"]["restored"] >= 1


@pytest.mark.asyncio
async def test_large_file_that_a_crash_left_torn_is_never_loaded(tmp_path: Path):
    """A file with the name of a newer snapshot, cut in its middle, and no record that names it: the log goes on."""
    async with running(tmp_path) as processes:
        leader, follower = await prepared(processes, 20_000)
        await processes.agree(count=20_000)
        assert await follower.end() == 0
        folder = processes.folder_of(follower.name) / "snapshots"
        newest = max(folder.glob("*.snapshot"))
        index, term = (int(part) for part in newest.stem.split("-"))
        data = newest.read_bytes()
        (folder / f"{index + 50:020d}-{term:020d}.snapshot").write_bytes(data[: len(data) // 2])
        follower = processes.start(follower.name)
        await fill(leader, 20_000, 1000)
        states = await processes.agree(count=21_000)
        assert states[follower.name]["restored"] == 1
        assert follower.events == [{"event": "open"}]


@pytest.mark.asyncio
async def test_large_transfer_costs_the_leader_no_memory_when_the_receiver_stops_in_its_middle(tmp_path: Path):
    """It stops itself by SIGSTOP between two chunks; 30,000 commands later the leader has grown as its follower has."""
    raft = {"snapshot_entries": 20_000, "keep_entries": 1000}
    async with running(tmp_path, spare="d", **raft) as processes:
        leader, follower = await prepared(processes, 60_000)
        learner = processes.start("d", die={"die_at": "chunk.asked", "after": 4, "action": "stop"})
        await leader.do("add", name="d", voter=False)

        await until("the receiver stops", lambda: is_stopped(learner))
        before = [(await process.do("state"))["rss_mb"] for process in (leader, follower)]
        await fill(leader, 60_000, 30_000)
        await same_state(leader, follower)
        after = [(await process.do("state"))["peak_mb"] for process in (leader, follower)]
        growth = [late - early for late, early in zip(after, before, strict=True)]
        print(f"grown while the receiver was stopped, in MB: leader and follower {growth}")  # noqa: T201 - as above.
        assert growth[0] < growth[1] + 48
        os.kill(learner.pid, signal.SIGCONT)
        await caught_up(learner, leader)
        await processes.agree(count=90_000)


async def is_stopped(process: Process) -> bool:
    stat = await asyncio.to_thread(Path(f"/proc/{process.pid}/stat").read_text)
    return stat.rsplit(")", 1)[1].split()[0] == "T"


async def same_state(leader: Process, follower: Process) -> None:
    """Wait until these two have the same state."""

    async def same() -> bool:
        states = [await process.do("state") for process in (leader, follower)]
        return bool(states[0]["digest"] == states[1]["digest"])

    await until("the same state", same)
