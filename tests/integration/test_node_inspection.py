"""A running member's own disk in its operator's eyes: where its log stands, and whether what is stored is whole."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tenure
from support.replicas import Replicas, running
from tenure.storage.sqlite import VERIFY_ROWS_MAX


def damage_the_log(replicas: Replicas, name: str) -> Path:
    """The last byte of the log's newest record changes behind the node's back."""
    segment = max((replicas.folder / name / "log").iterdir())
    data = bytearray(segment.read_bytes())
    data[len(data.rstrip(b"\0")) - 1] ^= 1
    segment.write_bytes(data)
    return segment


@pytest.mark.asyncio
async def test_running_log_is_whole_when_it_is_verified_under_load(tmp_path: Path):
    """Every record is read while saves and compactions go on; no leadership is lost over it."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        for number in range(2 * VERIFY_ROWS_MAX + 10):
            await leader.apply(b"%d" % number)
        term = leader.stats().term

        async def load() -> None:
            for number in range(200):
                await leader.apply(b"more %d" % number)

        loading = asyncio.create_task(load())
        report = await leader.verify_storage()
        assert (report.valid, report.problem, report.snapshots) == (True, None, ())
        assert report.records > 2 * VERIFY_ROWS_MAX
        index = await leader.snapshot()
        again = await leader.verify_storage()
        await loading
        assert again.valid
        assert len(again.snapshots) == 1
        (stored,) = await leader.stored_snapshots()
        assert (stored.index, stored.problem, len(stored.voters)) == (index, None, 3)
        state = await leader.log_state()
        assert state.snapshot_index == index
        assert index < state.applied_index <= state.commit_index <= state.last_index
        assert state.term == leader.stats().term == term


@pytest.mark.asyncio
async def test_damage_is_named_and_the_node_goes_on_when_a_running_log_is_verified(tmp_path: Path):
    async with running(tmp_path) as replicas:
        await replicas.apply(b"x")
        leader = await replicas.leader()
        follower = next(node for node in replicas.nodes.values() if node is not leader)
        segment = damage_the_log(replicas, follower.name)
        report = await follower.verify_storage()
        assert (report.valid, report.path) == (False, str(segment))
        assert "fails its checksum" in (report.problem or "")
        assert follower.failed is not None
        assert not follower.failed.done()


@pytest.mark.asyncio
async def test_store_that_was_brought_along_is_refused_by_name_when_it_cannot_be_checked(tmp_path: Path):
    from tenure.raft import Ports
    from tenure.testing import MemoryLogStore

    replicas = Replicas(tmp_path, "a")
    replicas.make_ports = lambda name: Ports(log_store=lambda folder: MemoryLogStore())
    node = await replicas.start("a")
    try:
        with pytest.raises(tenure.StorageError, match="MemoryLogStore cannot be checked while it is used"):
            await node.verify_storage()
    finally:
        await replicas.stop("a")


@pytest.mark.asyncio
async def test_learner_that_never_spoke_is_not_promoted_in_a_young_cluster(tmp_path: Path):
    """It called once and is gone: as a voter it would count, and answer nobody."""
    async with running(tmp_path, spare="d") as replicas:
        leader = await replicas.leader()
        await replicas.start("d")
        await replicas.until(lambda: "d" in leader._driver.roster.applicants)
        await replicas.stop("d")
        await leader.add_learner("d")
        with pytest.raises(tenure.NotCaughtUp, match="has not answered lately"):
            await leader.promote("d")
        await replicas.start("d")
        await leader.add_voter("d")
        assert leader.stats().voters == 4
