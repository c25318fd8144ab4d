"""Lost, copied and foreign disks under real nodes: each is refused with the way on, and disturbs nobody (R7)."""

from __future__ import annotations

import asyncio
import re
import shutil
from pathlib import Path

import pytest

import tenure
from support.replicas import BOUND_SECONDS, Replicas, running
from support.services import free_ports

#: Long enough for a member that were let in to campaign, several times over.
ELECTION_TIMEOUTS_SECONDS = 2.5


async def victim_of(replicas: Replicas) -> str:
    """A member that does not lead."""
    leader = await replicas.leader()
    return next(name for name in replicas.founders if name != leader.name)


async def is_refused(replicas: Replicas, name: str, *reasons: str) -> None:
    """Wait until its own status says so, then see that the others' terms do not move and that they go on."""
    node = replicas.nodes[name]
    await replicas.until(lambda: all(reason in (node._driver.published.reason or "") for reason in reasons))
    others = [other for other in replicas.nodes if other != name]
    await replicas.apply(b"before")
    terms = [replicas.nodes[other].stats().term for other in others]
    await asyncio.sleep(ELECTION_TIMEOUTS_SECONDS)
    assert [replicas.nodes[other].stats().term for other in others] == terms
    assert all(reason in (node._driver.published.reason or "") for reason in reasons)
    await replicas.apply(b"after")


def put_back(replicas: Replicas, name: str, copy: Path) -> None:
    """The disk of a stopped member is lost; somebody puts an old copy in its place."""
    shutil.rmtree(replicas.folder / name)
    shutil.copytree(copy, replicas.folder / name)


@pytest.mark.asyncio
async def test_R7_old_copy_is_refused_by_all_however_often_it_is_started(tmp_path: Path):
    """The copy was taken while the node stood still, and the node ran on since. Its count or its openings tell."""
    async with running(tmp_path) as replicas:
        name = await victim_of(replicas)
        await replicas.stop(name)
        shutil.copytree(tmp_path / name, tmp_path / "copy")
        await replicas.start(name)
        await replicas.apply(b"acknowledged since the copy was taken")
        await replicas.agree()
        await replicas.stop(name)
        put_back(replicas, name, tmp_path / "copy")
        others = ", ".join(sorted(set(replicas.founders) - {name}))
        await replicas.start(name)
        await is_refused(replicas, name, f"refused by {others}: ", "old copy", f"tenure member replace {name}")
        await replicas.stop(name)
        await replicas.start(name)
        await is_refused(replicas, name, f"refused by {others}: ", "old copy", f"tenure member replace {name}")
        assert b"acknowledged since the copy was taken" not in replicas.machines[name].seen


@pytest.mark.asyncio
async def test_R7_old_copy_is_refused_by_the_restarted_others(tmp_path: Path):
    """What they saw of it is on their own disks."""
    async with running(tmp_path) as replicas:
        name = await victim_of(replicas)
        await replicas.stop(name)
        shutil.copytree(tmp_path / name, tmp_path / "copy")
        await replicas.start(name)
        await replicas.apply(b"since")
        await replicas.agree()
        for running_name in list(replicas.nodes):
            await replicas.stop(running_name)
        put_back(replicas, name, tmp_path / "copy")
        await asyncio.gather(*(replicas.start(other) for other in replicas.founders))
        await is_refused(replicas, name, "old copy")


@pytest.mark.asyncio
async def test_R7_copy_of_a_running_node_is_refused_by_the_leader_that_knows_more(tmp_path: Path):
    """Nothing in the copy tells that it is old but its end: the leader remembers what was acknowledged to it."""
    async with running(tmp_path) as replicas:
        name = await victim_of(replicas)
        await replicas.apply(b"in the copy")
        await replicas.agree()
        shutil.copytree(tmp_path / name, tmp_path / "copy")
        for number in range(5):
            await replicas.apply(b"%d" % number)
        await replicas.agree()
        leader = (await replicas.leader()).name
        await replicas.stop(name)
        put_back(replicas, name, tmp_path / "copy")
        await replicas.start(name)
        await is_refused(replicas, name, f"refused by {leader}: ", "it had acknowledged", f"member replace {name}")
        assert (await replicas.leader()).name == leader
        assert b"4" not in replicas.machines[name].seen


@pytest.mark.asyncio
async def test_R7_member_that_only_restarts_is_let_in_again(tmp_path: Path):
    """However often, and although one of the others does not see all of its starts."""
    async with running(tmp_path) as replicas:
        name = await victim_of(replicas)
        leader = (await replicas.leader()).name
        absent = next(other for other in replicas.founders if other not in (name, leader))
        await replicas.stop(absent)
        for _ in range(3):
            await replicas.stop(name)
            await replicas.start(name)
            await replicas.apply(b"again")
        await replicas.start(absent)
        await replicas.agree()
        transport = replicas.nodes[absent]._driver._links.transport
        await replicas.until(lambda: len(transport.connected()) == 2)


async def fails(replicas: Replicas, name: str) -> BaseException:
    """Why the node ends."""
    async with asyncio.timeout(BOUND_SECONDS):
        return await asyncio.shield(replicas.nodes[name].failed)


@pytest.mark.asyncio
async def test_R7_wiped_members_neither_join_nor_found_beside_the_one_that_is_left(tmp_path: Path):
    """Two of three have lost their disks: both are refused with the way on, and the third one leads nothing."""
    async with running(tmp_path) as replicas:
        await replicas.apply(b"kept by the last one")
        await replicas.agree()
        for name in "abc":
            await replicas.stop(name)
        shutil.rmtree(tmp_path / "a")
        shutil.rmtree(tmp_path / "b")
        await asyncio.gather(*(replicas.start(name) for name in "abc"))
        for name in "ab":
            error = await fails(replicas, name)
            assert isinstance(error, tenure.FoundingRefused)
            assert f"tenure member replace {name}" in str(error)
        with pytest.raises((tenure.NotLeader, tenure.QuorumUnavailable)):
            await replicas.nodes["c"].verify_leader(timeout_ms=500)
        await replicas.stop("c")
        await replicas.start("c")
        await replicas.until(lambda: b"kept by the last one" in replicas.machines["c"].seen)


@pytest.mark.asyncio
async def test_R7_directory_that_is_in_use_or_another_members_is_refused_by_name(tmp_path: Path):
    """A second node on a running one's directory, and a node on the directory of another one."""
    async with running(tmp_path) as replicas:
        with pytest.raises(tenure.DirectoryInUse, match=r"in use by process \d+"):
            await replicas.start("b", directory="a")
        await replicas.stop("a")
        with pytest.raises(tenure.WrongCluster, match="belongs to node 'a'"):
            await replicas.start("b", directory="a")
        await replicas.apply(b"the others go on")


@pytest.mark.asyncio
async def test_R7_directory_of_another_cluster_is_refused_although_all_names_fit(tmp_path: Path):
    """Two clusters were founded from one file: a disk that is carried over belongs to the other one."""
    async with running(tmp_path / "one") as one:
        await one.apply(b"of the first")
        async with running(tmp_path / "two") as two:
            name = await victim_of(two)
            cluster_id = two.nodes[name]._driver.roster.enrolment.record.cluster_id
            await one.stop(name)
            await two.stop(name)
            put_back(one, name, tmp_path / "two" / name)
            await one.start(name)
            await is_refused(one, name, f"{name} belongs to cluster {cluster_id}, this node to ")


@pytest.mark.asyncio
async def test_R7_member_that_joined_is_let_in_when_all_restart_behind_their_snapshots(tmp_path: Path):
    """No log tells any more that it was added: the snapshot has to."""
    async with running(tmp_path, spare="d", keep_entries=0) as replicas:
        await replicas.start("d")
        await (await replicas.leader()).add_voter("d")
        await replicas.apply(b"one")
        await replicas.agree()
        for name in "abcd":
            await replicas.nodes[name].snapshot()
        for name in "abcd":
            await replicas.stop(name)
        await asyncio.gather(*(replicas.start(name) for name in "abcd"))
        await replicas.apply(b"two")
        await replicas.agree()
        transports = [node._driver._links.transport for node in replicas.nodes.values()]
        await replicas.until(lambda: all(len(transport.connected()) == 3 for transport in transports))


@pytest.mark.asyncio
async def test_R7_original_is_told_of_the_other_process_when_a_copy_was_started_beside_it(tmp_path: Path):
    """Which of the two is the copy cannot be told: neither is accused, and where the other one is, is said."""
    async with running(tmp_path) as replicas:
        name = await victim_of(replicas)
        await replicas.agree()
        shutil.copytree(tmp_path / name, tmp_path / "copy")
        original = replicas.nodes.pop(name)
        try:
            directory_id = original._driver.stores.directory.directory_id
            (replicas.ports[name],) = free_ports(1)
            await replicas.start(name, directory="copy")
            links = original._driver._links
            await replicas.until(lambda: bool(links._refusals))
            (reason, *_) = links._refusals.values()
            assert re.fullmatch(
                rf"another process with the same data directory \(id {directory_id}\) is connected from 127\.0\.0\.1 "
                r"since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: stop one of the two; if one is a copy, remove that one",
                reason,
            )
        finally:
            await original.close()
        await replicas.apply(b"the others go on")
