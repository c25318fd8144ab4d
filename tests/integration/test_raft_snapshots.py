"""Snapshots and compaction on real nodes: taken by themselves, restored at a start, sent to who lags."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import tenure
from support.replicas import BOUND_SECONDS, Numbers, Replicas, running
from tenure.node import exchange

SMALL = {"snapshot_entries": 50, "keep_entries": 10}


async def fill(replicas: Replicas, count: int, *, start: int = 0) -> None:
    leader = await replicas.leader()
    await asyncio.gather(*(leader.apply(b"%d" % number) for number in range(start, start + count)))


async def compacted(replicas: Replicas, index: int) -> None:
    """Wait until every running node has let its log go up to ``index``."""
    await replicas.until(lambda: all(node.stats().snapshot_index >= index for node in replicas.nodes.values()))


@pytest.mark.asyncio
async def test_log_is_compacted_by_count_and_a_restart_starts_at_the_snapshot(tmp_path: Path):
    """Every member takes its own; the state after a restart is the snapshot and what follows it."""
    async with running(tmp_path, **SMALL) as replicas:
        for part in range(4):
            await fill(replicas, 60, start=60 * part)
        await compacted(replicas, 150)
        # One that lagged here would get the leader's snapshot as well, after its own.
        await replicas.agree()
        for name in "abc":
            await replicas.stop(name)
        await asyncio.gather(*(replicas.start(name) for name in "abc"))
        await replicas.apply(b"after")
        await replicas.agree()
        restored = {name: (machine.restored, len(machine.seen)) for name, machine in replicas.machines.items()}
        assert restored == dict.fromkeys("abc", (1, 241))


@pytest.mark.asyncio
async def test_log_is_compacted_by_size(tmp_path: Path):
    """A few large entries are enough."""
    async with running(tmp_path, "a", snapshot_bytes=200_000) as replicas:
        for number in range(5):
            await replicas.apply(b"%d" % number + b"x" * 100_000)
        await compacted(replicas, 2)


@pytest.mark.asyncio
async def test_member_that_lags_behind_the_log_gets_the_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What it lacks is not in the log any more; the content comes in chunks, in order."""
    monkeypatch.setattr("tenure.storage.snapshot_files.CHUNK_LIMIT", 64)
    async with running(tmp_path, **SMALL) as replicas:
        leader = await replicas.leader()
        late = next(name for name in "abc" if name != leader.name)
        await replicas.stop(late)
        await fill(replicas, 300)
        await compacted(replicas, 200)
        await replicas.start(late)
        await replicas.apply(b"after")
        await replicas.agree()
        assert replicas.machines[late].restored >= 1


@pytest.mark.asyncio
async def test_new_learner_starts_with_a_snapshot_while_the_cluster_serves(tmp_path: Path):
    """It has no log at all; entries go on being committed while it catches up."""
    async with running(tmp_path, spare="d", **SMALL) as replicas:
        await fill(replicas, 300)
        await compacted(replicas, 200)
        await replicas.start("d")
        leader = await replicas.leader()
        load = asyncio.create_task(fill(replicas, 200, start=300))
        await leader.add_voter("d")
        await load
        await replicas.agree()
        assert replicas.machines["d"].restored >= 1
        assert len(replicas.machines["d"].seen) == 500
        await replicas.stop("d")
        await replicas.start("d")
        await replicas.agree()


@pytest.mark.asyncio
async def test_chunk_that_is_lost_is_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Every second answer is dropped on its way; the content arrives whole all the same."""
    monkeypatch.setattr("tenure.storage.snapshot_files.CHUNK_LIMIT", 400)
    monkeypatch.setattr(exchange, "REPEAT_SECONDS", 0.02)
    real, count = exchange.SnapshotExchange.on_chunk, [0]

    def lossy(self: exchange.SnapshotExchange, sender: int, chunk: Any) -> None:
        count[0] += 1
        if count[0] % 2:
            real(self, sender, chunk)

    monkeypatch.setattr(exchange.SnapshotExchange, "on_chunk", lossy)
    async with running(tmp_path, spare="d", **SMALL) as replicas:
        await fill(replicas, 300)
        await compacted(replicas, 200)
        await replicas.start("d")
        await (await replicas.leader()).add_learner("d")
        await replicas.agree()
        assert count[0] > 4


@pytest.mark.asyncio
async def test_content_that_is_not_the_announced_one_is_dropped_and_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A bit flips on the way: the state machine never sees it, and the leader tries again."""
    monkeypatch.setattr(exchange, "SILENCE_SECONDS", 0.3)
    real, flips = exchange.SnapshotExchange.on_chunk, [0]

    def flipping(self: exchange.SnapshotExchange, sender: int, chunk: Any) -> None:
        if flips[0] < 1 and chunk.data:
            flips[0] += 1
            chunk = type(chunk)(chunk.id, chunk.sha256, chunk.number, b"\0" + chunk.data[1:], chunk.last)
        real(self, sender, chunk)

    monkeypatch.setattr(exchange.SnapshotExchange, "on_chunk", flipping)
    async with running(tmp_path, spare="d", **SMALL) as replicas:
        await fill(replicas, 300)
        await compacted(replicas, 200)
        await replicas.start("d")
        await (await replicas.leader()).add_learner("d")
        await replicas.agree()
        assert flips == [1]
        assert replicas.machines["d"].restored == 1


@pytest.mark.asyncio
async def test_snapshot_is_taken_when_asked_for_and_refused_when_there_is_nothing_new(tmp_path: Path):
    """Any member; the answer is the index up to which it stands."""
    async with running(tmp_path) as replicas:
        await fill(replicas, 20)
        await replicas.agree()
        for node in replicas.nodes.values():
            index = await node.snapshot()
            assert index == node.stats().snapshot_index >= 20
            with pytest.raises(tenure.SnapshotRefused, match="nothing was applied"):
                await node.snapshot()


@pytest.mark.asyncio
async def test_snapshot_that_fails_leaves_the_log_and_the_node_as_they_are(tmp_path: Path):
    """The generator of the state machine breaks half-way: said to who asked, and tried again later."""

    class Broken(Numbers):
        breaks = True

        def snapshot(self) -> Iterable[bytes]:
            if not self.breaks:
                return super().snapshot()

            def pieces() -> Iterable[bytes]:
                yield b"half"
                raise ZeroDivisionError("the snapshot broke")

            return pieces()

    replicas = Replicas(tmp_path, "a")
    replicas.make_machine = Broken
    node = await replicas.start("a")
    try:
        await fill(replicas, 10)
        with pytest.raises(tenure.SnapshotRefused, match="the node's log says why"):
            await node.snapshot()
        assert node.stats().snapshot_index == 0
        assert not list((tmp_path / "a" / "snapshots").iterdir())
        replicas.machines["a"].breaks = False
        await replicas.apply(b"x")
        assert await node.snapshot() > 10
    finally:
        await replicas.stop("a")


@pytest.mark.asyncio
async def test_damaged_content_is_named_at_the_start_and_never_restored(tmp_path: Path):
    """The node fails with the file's name; its state machine was not touched."""
    async with running(tmp_path, "a") as replicas:
        await fill(replicas, 20)
        await replicas.nodes["a"].snapshot()
        await replicas.stop("a")
        (path,) = (tmp_path / "a" / "snapshots").glob("*.snapshot")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        node = await replicas.start("a")
        assert node.failed is not None
        async with asyncio.timeout(BOUND_SECONDS):
            error = await node.failed
        assert isinstance(error, tenure.LogCorrupt)
        assert path.stem in str(error)
        assert replicas.machines["a"].restored == 0


@pytest.mark.asyncio
async def test_state_machine_goes_on_while_its_snapshot_is_written(tmp_path: Path):
    """The iterable is read on another thread: commands are applied meanwhile, and are not in the snapshot."""
    started, go_on = asyncio.Event(), os.pipe()

    class Slow(Numbers):
        def snapshot(self) -> Iterable[bytes]:
            chunks, loop = list(super().snapshot()), asyncio.get_running_loop()

            def pieces() -> Iterable[bytes]:
                loop.call_soon_threadsafe(started.set)
                os.read(go_on[0], 1)
                yield from chunks

            return pieces()

    replicas = Replicas(tmp_path, "a")
    replicas.make_machine = Slow
    node = await replicas.start("a")
    try:
        await fill(replicas, 10)
        asked = asyncio.create_task(node.snapshot())
        await started.wait()
        await fill(replicas, 100, start=10)
        os.write(go_on[1], b"x")
        index = await asked
        assert index < node.stats().applied_index - 90
        await replicas.stop("a")
        replicas.make_machine = Numbers
        await replicas.start("a")
        await replicas.until(lambda: len(replicas.machines["a"].seen) == 110)
    finally:
        await replicas.stop("a")
        for descriptor in go_on:
            os.close(descriptor)


@pytest.mark.asyncio
async def test_R4_times_are_changed_through_the_log_and_outlive_the_files(tmp_path: Path):
    """Asked of the leader, known to every member, kept by each for its next start; what cannot be is refused."""
    async with running(tmp_path, **SMALL) as replicas:
        leader = await replicas.leader()
        with pytest.raises(tenure.MembershipRefused, match="lease_duration_ms: 100 must lie between"):
            await leader.change_settings(lease_duration_ms=100)
        changed = await leader.change_settings(lease_duration_ms=2000, election_timeout_ms=1500)
        assert (changed.lease_duration_ms, changed.election_timeout_ms) == (2000, 1500)
        await replicas.apply(b"x")
        await replicas.agree()
        for node in replicas.nodes.values():
            assert await node.settings() == changed
        await fill(replicas, 120)
        await compacted(replicas, 50)
        for name in "abc":
            await replicas.stop(name)
        await asyncio.gather(*(replicas.start(name) for name in "abc"))
        await replicas.leader()
        for node in replicas.nodes.values():
            assert await node.settings() == changed
            core = node._driver._core
            assert core is not None
            assert core.consensus.election_timeout_ticks() * core.tick_ns >= 1500 * 1_000_000
