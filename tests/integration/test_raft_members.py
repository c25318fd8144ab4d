"""Members that come and go, on real nodes: learners, voters, joint changes, the leader removed (R7, R12)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tenure
from support.replicas import Numbers, Replicas, running
from tenure.raft import Demote, MemberRole, Promote, Remove


def roles(replicas: Replicas, name: str) -> dict[str, MemberRole]:
    """The members as that node has applied them."""
    core = replicas.nodes[name]._driver._core
    return {} if core is None else {state.name: state.role for state in core.members()}


async def knows(replicas: Replicas, expected: dict[str, MemberRole]) -> None:
    """Wait until every running node has applied these members."""
    await replicas.until(lambda: all(roles(replicas, name) == expected for name in replicas.nodes))


@pytest.mark.asyncio
async def test_new_node_waits_until_it_is_added_and_then_has_everything(tmp_path: Path):
    """It says what it waits for; as a learner it has the whole log; as a voter it can lead."""
    async with running(tmp_path, spare="d") as replicas:
        for number in range(50):
            await replicas.apply(b"%d" % number)
        new = await replicas.start("d")
        await replicas.until(lambda: "tenure member add d" in (new._driver.published.reason or ""))
        leader = await replicas.leader()
        assert (await leader.members()).applicants == ("d",)
        await leader.add_learner("d")
        await knows(replicas, {**dict.fromkeys("abc", MemberRole.VOTER), "d": MemberRole.LEARNER})
        await replicas.agree()
        assert leader.stats().voters == 3
        await leader.add_voter("d")
        assert (await leader.members()).warning is not None
        await replicas.until(lambda: new.stats().voters == 4)
        await replicas.until_leads("d")
        assert await replicas.apply(b"from the new one") == 51
        await replicas.agree()


@pytest.mark.asyncio
async def test_joined_node_restarts_from_its_own_disk(tmp_path: Path):
    """It knows the cluster that it joined, and is let in again, although no file but its own names it."""
    async with running(tmp_path, spare="d") as replicas:
        await replicas.start("d")
        leader = await replicas.leader()
        await leader.add_voter("d")
        for name in "abcd":
            await replicas.stop(name)
        await asyncio.gather(*(replicas.start(name) for name in "abcd"))
        await replicas.apply(b"again")
        await replicas.agree()
        assert all(node.stats().voters == 4 for node in replicas.nodes.values())


@pytest.mark.asyncio
async def test_name_that_never_called_is_refused_with_what_to_do(tmp_path: Path):
    """Nothing is proposed for a node that does not run."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        with pytest.raises(tenure.MembershipRefused, match="start it with an empty data directory"):
            await leader.add_learner("nobody", timeout_ms=200)
        with pytest.raises(tenure.MembershipRefused, match="is no member"):
            await leader.remove("nobody")
        with pytest.raises(tenure.MembershipRefused, match="a voter already"):
            await leader.promote("b")
        follower = next(node for node in replicas.nodes.values() if node is not leader)
        with pytest.raises(tenure.NotLeader):
            await follower.remove("b")


@pytest.mark.asyncio
async def test_learner_that_lags_is_not_promoted(tmp_path: Path):
    """Its vote would cost the quorum what it does not have; the refusal says how far it is behind."""
    async with running(tmp_path, spare="d") as replicas:
        await replicas.start("d")
        leader = await replicas.leader()
        await leader.add_learner("d")
        replicas.cut("d")
        await asyncio.gather(*(leader.apply(b"x") for _ in range(1500)))
        with pytest.raises(tenure.NotCaughtUp) as caught:
            await leader.promote("d")
        assert caught.value.name == "d"
        await leader.remove("d")
        assert roles(replicas, leader.name) == dict.fromkeys("abc", MemberRole.VOTER)


@pytest.mark.asyncio
async def test_removed_node_ends_and_its_directory_does_not_come_back(tmp_path: Path):
    """It is told by the log, stops with the reason, and is refused when it is started again."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        gone = next(name for name in "abc" if name != leader.name)
        await leader.remove(gone)
        failed = replicas.nodes[gone].failed
        assert failed is not None
        async with asyncio.timeout(10):
            assert isinstance(await failed, tenure.MemberRemoved)
        await replicas.stop(gone)
        await knows(replicas, {name: MemberRole.VOTER for name in "abc" if name != gone})
        await replicas.apply(b"two are enough for two")
        term = (await replicas.leader()).stats().term
        with pytest.raises(tenure.MemberRemoved, match="a new data directory"):
            await replicas.start(gone)
        assert (await replicas.leader()).stats().term == term


@pytest.mark.asyncio
async def test_R12_leader_that_removes_itself_under_load_stops_and_the_others_go_on(tmp_path: Path):
    """No panic, no entry lost: what it acknowledged is on the others, and one of them leads."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        acknowledged: list[bytes] = []

        async def load(number: int) -> None:
            data = b"%d" % number
            try:
                await leader.apply(data)
            except tenure.TenureError:
                return
            acknowledged.append(data)

        calls = [asyncio.create_task(load(number)) for number in range(300)]
        await leader.remove(leader.name)
        await replicas.until(lambda: not leader.is_leader_hint())
        await asyncio.gather(*calls)
        assert leader.failed is not None
        async with asyncio.timeout(10):
            assert isinstance(await leader.failed, tenure.MemberRemoved)
        await replicas.stop(leader.name)
        await replicas.apply(b"after")
        await replicas.agree()
        survivor = next(iter(replicas.machines[name] for name in replicas.nodes))
        assert set(acknowledged) <= set(survivor.seen)
        assert len(survivor.seen) == len(set(survivor.seen))


@pytest.mark.asyncio
async def test_set_of_changes_passes_through_joint_consensus_while_the_cluster_serves(tmp_path: Path):
    """Three voters are exchanged for three others in one change; the old leader goes with it."""
    async with running(tmp_path, spare="def") as replicas:
        leader = await replicas.leader()
        for name in "def":
            await replicas.start(name)
            await leader.add_learner(name)
        await replicas.apply(b"before")
        await replicas.agree()
        await leader.change_members([*(Promote(name) for name in "def"), *(Remove(name) for name in "abc")])
        for name in "abc":
            failed = replicas.nodes[name].failed
            assert failed is not None
            async with asyncio.timeout(20):
                await failed
            await replicas.stop(name)
        await replicas.apply(b"after")
        await replicas.agree()
        await knows(replicas, dict.fromkeys("def", MemberRole.VOTER))


@pytest.mark.asyncio
@pytest.mark.parametrize("size", [1, 5, 7])
async def test_cluster_grows_and_shrinks(tmp_path: Path, size: int):
    """From one voter to ``size`` and back, one change at a time, each under the leader of the moment."""
    names = "abcdefg"[: max(size, 3)]
    async with running(tmp_path, names[0], spare=names[1:]) as replicas:
        for name in names[1:]:
            await replicas.start(name)
            await (await replicas.leader()).add_voter(name)
        assert await replicas.apply(b"all") == 1
        await replicas.agree()
        assert (await replicas.leader()).stats().voters == len(names)
        for name in names[:-1]:
            leader = await replicas.leader()
            await leader.remove(name)
            await replicas.stop(name)
        assert await replicas.apply(b"one") == 2
        assert (await replicas.leader()).stats().voters == 1


@pytest.mark.asyncio
async def test_voter_is_demoted_and_promoted_again(tmp_path: Path):
    """Its vote goes and comes; it has the log all the time."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        name = next(name for name in "abc" if name != leader.name)
        await leader.demote(name)
        assert roles(replicas, leader.name)[name] is MemberRole.LEARNER
        with pytest.raises(tenure.MembershipRefused, match="a learner already"):
            await leader.demote(name)
        await replicas.apply(b"x")
        await replicas.agree()
        await leader.promote(name)
        with pytest.raises(tenure.MembershipRefused, match="no voter would be left"):
            await leader.change_members([Demote(other) for other in "abc"])


@pytest.mark.asyncio
async def test_member_that_lags_behind_a_change_lets_the_new_leader_in(tmp_path: Path):
    """It has not applied that the new one is a member: it learns of it from the others, and follows it (R3)."""
    async with running(tmp_path, spare="d") as replicas:
        leader = await replicas.leader()
        late = next(name for name in "abc" if name != leader.name)
        await replicas.stop(late)
        await replicas.start("d")
        await leader.add_voter("d")
        await replicas.until_leads("d")
        await replicas.stop(next(name for name in replicas.nodes if name != "d"))
        await replicas.start(late)
        await replicas.apply(b"x")
        await replicas.agree()


def test_state_machine_without_snapshots_is_refused_by_name(tmp_path: Path):
    """Said when the node is made, not when the log is full."""

    class Half:
        def apply(self, data: bytes, *, index: int, term: int) -> None: ...

    replicas = Replicas(tmp_path)
    replicas.make_machine = Half
    with pytest.raises(TypeError, match="Half lacks snapshot"):
        asyncio.run(replicas.start("a"))
    assert Numbers().snapshot is not None
