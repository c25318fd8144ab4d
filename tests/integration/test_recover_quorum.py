"""A lost majority given up by an operator: offline, on real directories, then real nodes and the real fence (R16)."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import psycopg
import pytest

import tenure
from support.member_cluster import Cluster
from support.member_cluster import running as members_running
from support.replicas import Replicas, running
from tenure.fence import fenced_transaction, install, show
from tenure.node.recover_cluster import recover_data_dir, survivor_in
from tenure.raft import Survivor
from tenure.types import GENERATION_SHIFT

#: Several elections of the side that must not lead.
QUIET_SECONDS = 4.0


async def stop_all(replicas: Replicas) -> None:
    for name in list(replicas.nodes):
        await replicas.stop(name)


def recover(folder: Path) -> Survivor:
    """Recover the stopped directory by its own cluster's id; as it stood before."""
    return recover_data_dir(folder, all_others_are_dead=survivor_in(folder).cluster_id).before


@pytest.fixture
def fenced_database(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE entries (note text, fencing_token bigint)")
    install(database, "payments", tables=["entries"])
    return database


@pytest.mark.asyncio
async def test_R16_survivor_leads_alone_and_the_others_join_anew_when_a_majority_is_lost(tmp_path: Path):
    """It has everything that it had, under the next generation; a lost name comes back with a new directory."""
    async with running(tmp_path) as replicas:
        for number in range(20):
            await replicas.apply(b"%d" % number)
        await replicas.agree()
        await stop_all(replicas)
        before = recover(tmp_path / "b")
        after = survivor_in(tmp_path / "b")
        assert (before.generation, before.voters, before.others) == (0, ("a", "b", "c"), ("a", "c"))
        assert (after.generation, after.voters, after.learners) == (1, ("b",), ())
        assert after.lineage != before.lineage
        assert (after.commit_index, after.last_term) == (after.last_index, before.last_term + 1)
        await replicas.start("b")
        assert await replicas.apply(b"alone") == 21
        shutil.rmtree(tmp_path / "a")
        await replicas.start("a")
        await replicas.nodes["b"].add_voter("a")
        assert await replicas.apply(b"together") == 22
        await replicas.agree()
        assert replicas.nodes["b"].stats().voters == 2


@pytest.mark.asyncio
async def test_R16_tail_that_was_not_known_to_be_committed_counts_and_learners_go(tmp_path: Path):
    """A learner is the only survivor: it is made a voter, and its log counts to its end."""
    async with running(tmp_path, spare="d") as replicas:
        await replicas.start("d")
        leader = await replicas.leader()
        await leader.add_learner("d")
        await replicas.apply(b"one")
        await replicas.agree()
        await stop_all(replicas)
        before = recover(tmp_path / "d")
        assert (before.voters, before.learners) == (("a", "b", "c"), ("d",))
        assert before.commit_index <= before.last_index
        await replicas.start("d")
        assert await replicas.apply(b"two") == 2
        assert replicas.machines["d"].seen == [b"one", b"two"]


@pytest.mark.asyncio
async def test_R16_survivor_with_a_snapshot_goes_on_from_it_and_recovers_again(tmp_path: Path):
    """Behind a compacted log as well; a second loss takes the generation after the next."""
    async with running(tmp_path) as replicas:
        for number in range(10):
            await replicas.apply(b"%d" % number)
        await replicas.agree()
        assert await replicas.nodes["c"].snapshot() > 0
        await replicas.apply(b"10")
        await replicas.agree()
        await stop_all(replicas)
        recover(tmp_path / "c")
        await replicas.start("c")
        assert await replicas.apply(b"11") == 12
        await replicas.nodes["c"].snapshot()
        shutil.rmtree(tmp_path / "a")
        await replicas.start("a")
        await replicas.nodes["c"].add_voter("a")
        await replicas.apply(b"12")
        await replicas.agree()
        await stop_all(replicas)
        again = recover(tmp_path / "a")
        assert (again.generation, again.voters) == (1, ("c", "a"))
        assert survivor_in(tmp_path / "a").generation == 2
        await replicas.start("a")
        assert await replicas.apply(b"13") == 14


# -- with the fence ---------------------------------------------------------------------------------------------------


def raises(dsn: str) -> list[int | None]:
    """The tokens that the fence was raised to, in their order."""
    _, lines = show(dsn, "payments", limit=1000)
    return [line.to_token for line in reversed(lines) if line.action == "raise"]


async def write(dsn: str, leadership: tenure.HeldLeadership, note: str) -> None:
    async with (
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
        fenced_transaction(connection, leadership, resource="payments") as transaction,
    ):
        await transaction.execute("INSERT INTO entries (note, fencing_token) VALUES (%s, %s)", (note, leadership.token))


def notes(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT note FROM entries ORDER BY fencing_token")]


async def refuses_to_lead(cluster: Cluster, names: list[str], why: str) -> None:
    """Wait until one of these has been elected, has read the fence, and says why it does not lead."""
    await cluster.until(lambda: any(why in (cluster.members[name].status().reason or "") for name in names))


async def nobody_duels(dsn: str, leadership: tenure.HeldLeadership) -> None:
    """Several election timeouts of the other side later the fence is as it was, and its holder leads."""
    before = raises(dsn)
    await asyncio.sleep(QUIET_SECONDS)
    assert raises(dsn) == before
    assert leadership.remaining() > 0
    assert before[-1] == leadership.token


@pytest.mark.asyncio
async def test_R16_old_leader_is_fenced_for_ever_when_it_outlives_a_recovery(tmp_path: Path, fenced_database: str):
    """The operator was wrong: two of three live on. The fence refuses their generation, and nobody takes the other's
    frames; the old leader's own write is refused, and no quorum of the old side changes that.
    """
    async with members_running(tmp_path, fenced_database) as cluster:
        old_name, old = await cluster.leader()
        await write(fenced_database, old, "old")
        survivor = next(name for name in "abc" if name != old_name)
        others = [name for name in "abc" if name != survivor]
        await cluster.stop(survivor)
        before = recover(tmp_path / survivor)
        member = await cluster.start(survivor)
        name, new = await cluster.leader()
        assert name == survivor
        assert (before.generation, new.token >> GENERATION_SHIFT) == (0, 1)
        await write(fenced_database, new, "new")
        with pytest.raises((tenure.StaleToken, tenure.LeadershipLost)):
            await write(fenced_database, old, "old again")
        await refuses_to_lead(cluster, others, "a forced recovery replaced this cluster")
        await nobody_duels(fenced_database, new)
        await write(fenced_database, new, "new again")
        assert notes(fenced_database) == ["old", "new", "new again"]
        assert member.status().leader_name == survivor
        for other in others:
            problems = cluster.members[other]._driver._links.transport.problems
            assert "follows lineage" in problems[survivor]
            assert cluster.members[other].status().leader_name != survivor
        assert member._driver._links.transport.connected() == set()


@pytest.mark.asyncio
async def test_R16_second_recovery_of_the_same_loss_is_refused_like_another_elector(
    tmp_path: Path, fenced_database: str
):
    """Run on two survivors, it makes two clusters of one generation: the first that raised the fence keeps it."""
    async with members_running(tmp_path, fenced_database) as cluster:
        await cluster.leader()
        await cluster.close()
        while not cluster.won.empty():
            cluster.won.get_nowait()
        recover(tmp_path / "b")
        recover(tmp_path / "c")
        await cluster.start("b")
        name, first = await cluster.leader()
        assert name == "b"
        await cluster.start("c")
        await refuses_to_lead(cluster, ["c"], "another recovery of the same cluster holds the fence")
        await nobody_duels(fenced_database, first)
        assert cluster.members["b"].status().state is tenure.State.LEADER


@pytest.mark.asyncio
async def test_R16_cloned_directories_do_not_take_the_fence_from_the_originals(tmp_path: Path, fenced_database: str):
    """All disks were copied and both clusters run: the count in the fence is above what the copies ever minted."""
    async with members_running(tmp_path / "originals", fenced_database) as cluster:
        await cluster.leader()
        await cluster.close()
        while not cluster.won.empty():
            cluster.won.get_nowait()
        shutil.copytree(tmp_path / "originals", tmp_path / "clones")
        for name in "abc":
            await cluster.start(name)
        _, leadership = await cluster.leader()
        async with members_running(tmp_path / "clones", fenced_database) as clones:
            await clones.until(
                lambda: any("a copy of this cluster" in (m.status().reason or "") for m in clones.members.values())
            )
            await nobody_duels(fenced_database, leadership)
            assert clones.won.empty()
