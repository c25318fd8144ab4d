"""R1 and R2 with real processes: killed at each step of the persist order, with disks that are full, broken or slow.

Three processes apply commands without a pause. One of them is told to die at a step, by SIGKILL from within, and is
started again; in the end no term was led twice, no vote given twice, no acknowledged command lost or doubled, and all
hold the same state and log. What the disks and the links do is described in :mod:`support.raft_process_faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.raft_processes import (
    BOUND_SECONDS,
    Clients,
    Process,
    ProcessEnded,
    Processes,
    check_end,
    running,
    until,
)

pytestmark = [pytest.mark.processes, pytest.mark.timeout(150)]

#: Snapshots come often, and hardly anything stays in the log behind them.
SMALL = {"snapshot_entries": 200, "keep_entries": 20}
LOG_STEPS = ("save.before", "save.torn", "save.after", "send.after", "apply.before")
SNAPSHOT_STEPS = (
    "snapshot.torn",
    "snapshot.before_sync",
    "snapshot.before_rename",
    "snapshot.renamed",
    "compact.before",
    "compact.torn",
    "compact.after",
)
#: The store that a node has by default goes through all steps, the other one through those that are its own.
STEPS = {
    "segments": (*LOG_STEPS, *SNAPSHOT_STEPS),
    "sqlite": ("save.torn", "save.after", "compact.torn"),
}
VOTE_STEPS = ("vote.before", "vote.torn", "vote.after")
JOIN_STEPS = (
    "founding.identity",
    "founding.enrolled",
    "snapshot.renamed",
    "restore.torn",
    "restore.after",
)


async def died(process: Process) -> None:
    """Wait until the process has killed itself."""
    async with asyncio.timeout(BOUND_SECONDS):
        await process.ended.wait()
    assert process.popen.wait() == -signal.SIGKILL, process.events


def another(processes: Processes, leader: Process) -> Process:
    """A member that follows."""
    return next(process for name, process in sorted(processes.alive.items()) if name != leader.name)


@pytest.mark.asyncio
@pytest.mark.parametrize("store", STEPS)
async def test_R1_nothing_is_lost_or_told_twice_when_members_die_at_each_step(tmp_path: Path, store: str):
    """Each step of a save and of a snapshot, on the leader and on a follower, in one run."""
    async with running(tmp_path, store=store, **SMALL) as processes:
        clients = Clients(processes)
        clients.start()
        await clients.reach(100)
        for number, step in enumerate(STEPS[store]):
            # A snapshot is every member's own affair: there the two take turns.
            for role in ("leader", "follower") if step in LOG_STEPS else (("leader", "follower")[number % 2],):
                leader = await processes.leader()
                victim = leader if role == "leader" else another(processes, leader)
                await victim.do("arm", point=step, after=3 if step in LOG_STEPS else 0)
                if step in SNAPSHOT_STEPS:
                    with contextlib.suppress(ProcessEnded):
                        await victim.ask("snapshot")
                await died(victim)
                await clients.more(20)
                processes.start(victim.name)
        deaths = {line["point"] for line in processes.journal() if line["what"] == "died"}
        assert deaths == set(STEPS[store])
        await check_end(processes, clients)


@pytest.mark.asyncio
async def test_R1_no_vote_is_given_twice_when_voter_and_candidate_die_at_each_step_of_it(tmp_path: Path):
    """Leadership is handed to one follower while it, or the other one, is told to die with the vote in its hands."""
    async with running(tmp_path, store="segments", **SMALL) as processes:
        clients = Clients(processes)
        clients.start()
        for step in VOTE_STEPS:
            for role in ("voter", "candidate"):
                await clients.more(20)
                leader = await processes.leader()
                first, second = sorted(set(processes.alive) - {leader.name})
                victim = processes.running[first if role == "candidate" else second]
                await victim.do("arm", point=step)

                async def hand_over(victim: Process = victim, first: str = first) -> bool:
                    # A member takes no office for one election timeout after its start (R6): so it is tried again.
                    current = await processes.leader()
                    if current.name != first and not victim.ended.is_set():
                        await current.ask("transfer", to=first)
                    return victim.ended.is_set()

                await until(f"{victim.name} dies at {step}", hand_over)
                await died(victim)
                processes.start(victim.name)
        await check_end(processes, clients)


@pytest.mark.asyncio
async def test_R7_the_same_cluster_is_founded_when_members_die_in_the_middle_of_it(tmp_path: Path):
    """One dies with its directory's id on the disk, one with the founding on the disk and nothing said of it."""
    async with running(tmp_path, start=False) as processes:
        early = processes.start("a", die={"die_at": "founding.identity"})
        late = processes.start("b", die={"die_at": "founding.enrolled"})
        processes.start("c")
        await died(early)
        processes.start("a")
        await died(late)
        processes.start("b")
        clients = Clients(processes)
        clients.start()
        await clients.reach(50)
        clusters = {(await process.do("members"))["cluster"] for process in processes.alive.values()}
        assert len(clusters) == 1
        await check_end(processes, clients)


@pytest.mark.asyncio
async def test_R1_member_that_dies_while_it_joins_joins_after_a_restart(tmp_path: Path):
    """At each step: the id, the enrolment, the file of the snapshot that it fetched, its record."""
    async with running(tmp_path, spare="d", **SMALL) as processes:
        clients = Clients(processes)
        clients.start()
        await clients.reach(300)
        for number, step in enumerate(JOIN_STEPS):
            leader = await processes.leader()
            await leader.ask("snapshot")
            joining = processes.start("d", directory=f"d{number}", die={"die_at": step})

            async def add() -> bool:
                answer = await (await processes.leader()).ask("add", name="d", voter=False, timeout_ms=5000)
                return "error" not in answer or "is a member already" in answer["text"]

            adding = asyncio.create_task(until("d is added", add))
            await died(joining)
            process = processes.start("d")
            await adding
            await until("d has caught up", lambda process=process: _caught_up(processes, process))
            leader = await processes.leader()
            await leader.do("remove", name="d")
            async with asyncio.timeout(BOUND_SECONDS):
                await process.ended.wait()
            assert process.events[-1]["error"] == "MemberRemoved"
        await check_end(processes, clients)


async def _caught_up(processes: Processes, process: Process) -> bool:
    leader = await processes.leader()
    target = (await leader.do("state"))["count"]
    return bool((await process.do("state"))["count"] >= target - 50)


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("state", "error", "text"),
    [
        ("full", "StorageFull", "free space"),
        ("broken", "SyncFailed", "EIO"),
        ("stalled", "SyncFailed", "has not finished a write for 1 s"),
    ],
)
async def test_R2_leader_ends_with_the_reason_when_its_disk_fails(tmp_path: Path, state: str, error: str, text: str):
    """The others elect and go on; nothing that was acknowledged is lost, and it is started again."""
    async with running(tmp_path, start=False) as processes:
        for name in processes.founders:
            processes.start(name, stall_limit=1.0)
        clients = Clients(processes)
        clients.start()
        await clients.reach(50)
        leader = await processes.leader()
        await leader.do("disk", state=state, stall_seconds=60.0)
        async with asyncio.timeout(10):
            await leader.ended.wait()
        assert leader.popen.wait() == 3
        assert leader.events[-1]["error"] == error
        assert text in leader.events[-1]["text"]
        await clients.more(50)
        processes.start(leader.name)
        await check_end(processes, clients)


@pytest.mark.asyncio
async def test_R2_cluster_goes_on_when_each_write_of_the_leader_is_slow(tmp_path: Path):
    """Half an election timeout for each fsync, and below the limit at which a disk counts as gone: nobody ends."""
    async with running(tmp_path) as processes:
        clients = Clients(processes)
        clients.start()
        await clients.reach(50)
        leader = await processes.leader()
        await leader.do("disk", state="stalled", stall_seconds=0.25)
        await clients.more(30)
        await leader.do("disk", state=None)
        await clients.more(30)
        assert set(processes.alive) == set("abc")
        await check_end(processes, clients)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, with room for one segment of the log and not for two."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def enlarge(folder: Path) -> None:
    subprocess.run(["mount", "-o", "remount,size=96m", folder], check=True)


def move(folder: Path, target: Path) -> None:
    """Move a data directory to another file system."""
    shutil.copytree(folder, target)
    shutil.rmtree(folder)
    folder.symlink_to(target)


@pytest.mark.asyncio
async def test_R2_member_ends_and_comes_back_when_its_real_disk_is_full(tmp_path: Path, small_disk: Path):
    """Its own stores on a small file system; with more room it starts where it stood."""
    async with running(tmp_path, store="own") as processes:
        leader = await processes.leader()
        victim = another(processes, leader)
        await victim.end()
        move(processes.folder_of(victim.name), small_disk / "data")
        victim = processes.start(victim.name)
        filling = asyncio.create_task(leader.ask("fill", first=0, count=3000, size=8000, in_flight=64))
        async with asyncio.timeout(BOUND_SECONDS):
            await victim.ended.wait()
        assert victim.popen.wait() == 3
        assert victim.events[-1]["error"] == "StorageFull"
        assert (await filling)["acknowledged"] == 3000
        enlarge(small_disk)
        processes.start(victim.name)
        await processes.agree(count=3000)
