"""``tenure.raft``: a user's state machine on real sockets and disks, three members in one process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import tenure_raft

import tenure
from support.replicas import BOUND_SECONDS, running
from support.virtual_cluster import VirtualCluster
from tenure.core.effects import Proposed, Proved, Rejected
from tenure.core.member import PROOF
from tenure.raft import RaftEvent


@pytest.mark.asyncio
async def test_commands_are_applied_in_one_order_on_every_member(tmp_path: Path):
    """Concurrent commands: each caller gets its own result, and all members hold the same sequence."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        results = await asyncio.gather(*(leader.apply(b"%d" % number) for number in range(500)))
        assert sorted(results) == list(range(1, 501))
        await replicas.until(lambda: all(len(machine.seen) == 500 for machine in replicas.machines.values()))
        sequences = [machine.seen for machine in replicas.machines.values()]
        assert sequences[0] == sequences[1] == sequences[2]


@pytest.mark.asyncio
async def test_follower_refuses_and_names_the_leader(tmp_path: Path):
    """Surely not applied: nothing is forwarded behind the caller's back."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        follower = next(node for node in replicas.nodes.values() if node is not leader)
        await replicas.until(lambda: follower.stats().leader_name == leader.name)
        for call in (follower.apply(b"x"), follower.verify_leader(), follower.barrier()):
            with pytest.raises(tenure.NotLeader) as caught:
                await call
            assert caught.value.leader_name == leader.name
        assert all(machine.seen == [] for machine in replicas.machines.values())


@pytest.mark.asyncio
async def test_G1_acknowledged_commands_survive_a_restart_of_all(tmp_path: Path):
    """Everything that was answered is there again, in the same order, and the term has grown."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        for number in range(50):
            await leader.apply(b"%d" % number)
        before, term = list(replicas.machines[leader.name].seen), leader.stats().term
        for name in list(replicas.nodes):
            await replicas.stop(name)
        for name in replicas.ports:
            await replicas.start(name)
        leader = await replicas.leader()
        await leader.barrier()
        assert replicas.machines[leader.name].seen == before
        assert leader.stats().term > term


@pytest.mark.asyncio
async def test_command_of_a_cut_off_leader_is_unknown_and_never_called_failed(tmp_path: Path):
    """It stands in the leader's log and nobody can say more within the timeout: OutcomeUnknown."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        replicas.cut(leader.name)
        with pytest.raises(tenure.OutcomeUnknown):
            await leader.apply(b"lost?", timeout_ms=300)
        with pytest.raises(tenure.QuorumUnavailable):
            await leader.verify_leader(timeout_ms=300)
        others = {name: node for name, node in replicas.nodes.items() if node is not leader}
        await replicas.until(lambda: any(node.is_leader_hint() for node in others.values()))
        await replicas.until(lambda: not leader.is_leader_hint())
        with pytest.raises(tenure.NotLeader):
            await leader.apply(b"after")


@pytest.mark.asyncio
async def test_command_whose_place_another_leader_took_is_surely_not_applied(tmp_path: Path):
    """The entry at its index is of another term: the command is gone for good, and says so."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        pending = leader._requests.track(60_000)
        # The leader's own entries (ACQUIRE, SETTLED) are in the log by now: the next one is the caller's.
        await replicas.until(lambda: leader._driver.published.token is not None)
        await leader.barrier()
        index = leader.stats().commit_index + 1
        leader._take(Proposed(first=index, term=leader.stats().term - 1, tickets=[pending]))
        await leader.apply(b"another's")
        with pytest.raises(tenure.ProposalDropped):
            await pending.future


@pytest.mark.asyncio
async def test_stopped_members_know_what_they_had_applied_when_they_start_alone(tmp_path: Path):
    """A commit index travels without an fsync of its own; a stop in good order keeps it, so nobody has to be asked."""
    async with running(tmp_path) as replicas:
        await replicas.apply(b"applied by all")
        await replicas.agree()
        leader = (await replicas.leader()).name
        followers = [name for name in "abc" if name != leader]
        # The leader goes last: by then it can write nothing more that would carry the commit index to the others.
        for name in (*followers, leader):
            await replicas.stop(name)
        for name in followers:
            await replicas.start(name)
            await replicas.until(lambda name=name: replicas.machines[name].seen == [b"applied by all"])
            await replicas.stop(name)


@pytest.mark.asyncio
async def test_transfer_hands_over_and_commands_go_on(tmp_path: Path):
    """The next leader is another member; what was committed stays."""
    async with running(tmp_path) as replicas:
        first = await replicas.leader()
        await first.apply(b"one")
        second = replicas.nodes[await first.transfer_leadership()]
        assert second is not first
        assert await second.apply(b"two") == 2
        with pytest.raises(tenure.NotLeader, match=second.name):
            await first.transfer_leadership()


@pytest.mark.asyncio
async def test_transfer_goes_to_the_member_that_was_named(tmp_path: Path):
    """There and back, whoever is the most advanced; a name that cannot take over is refused."""
    async with running(tmp_path) as replicas:
        first = await replicas.leader()
        for _ in range(2):
            for name in sorted(set(replicas.nodes) - {first.name}):
                leader = await replicas.leader()
                if leader.name != name:
                    assert await leader.transfer_leadership(to=name) == name
        leader = await replicas.leader()
        for name in (leader.name, "nobody"):
            with pytest.raises(tenure.MembershipRefused, match="cannot take over"):
                await leader.transfer_leadership(to=name)


@pytest.mark.asyncio
async def test_observers_see_the_present_first_and_then_every_change(tmp_path: Path):
    """Several of them, level-triggered, each event with its term."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        seen: list[list[RaftEvent]] = [[], []]

        async def watch(events: list[RaftEvent]) -> None:
            async for event in leader.observe():
                events.append(event)

        watchers = [asyncio.create_task(watch(events)) for events in seen]
        await replicas.until(lambda: all(seen))
        assert {events[0] for events in seen} == {RaftEvent("leader", leader.stats().term, leader.name)}
        await leader.transfer_leadership()
        await replicas.until(lambda: all(events[-1].leader_name not in (None, leader.name) for events in seen))
        assert seen[0] == seen[1]
        assert seen[0][-1].term > seen[0][0].term
        await replicas.stop(leader.name)
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.gather(*watchers)


@pytest.mark.asyncio
async def test_state_machine_that_fails_ends_its_node(tmp_path: Path):
    """A member whose state machine broke is no replica: it answers nothing more and tells its owner."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        with pytest.raises(tenure.NodeClosed, match="the state machine broke"):
            await leader.apply(b"fail")
        assert leader.failed is not None
        assert isinstance(await leader.failed, ZeroDivisionError)
        with pytest.raises(tenure.NodeClosed):
            await leader.apply(b"x")


@pytest.mark.asyncio
async def test_closed_node_and_oversized_command_are_refused(tmp_path: Path):
    """Each with its own error, nothing proposed."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        with pytest.raises(ValueError, match="at most"):
            await leader.apply(b"x" * (1 << 20))
        await replicas.stop(leader.name)
        with pytest.raises((tenure.NodeClosed, tenure.NotLeader)):
            await leader.apply(b"x")


def test_R8_proof_of_another_term_is_no_proof():
    """P8b: the engine hands a read state out after stepping down; the term in its context decides."""
    cluster = VirtualCluster()
    core = cluster.core(cluster.elect())
    term = core.view().term
    contexts = [PROOF.pack(7, asked_in, 1, b"p") for asked_in in (term - 1, term)]
    core._proofs.update(dict.fromkeys(contexts, "asked"))
    assert [core._judge_proof(context) for context in contexts] == [Rejected(["asked"]), Proved("asked")]


def test_proof_is_rejected_when_leadership_is_lost_before_the_answer():
    """Nobody waits for an answer that cannot come any more."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    cluster.trace.clear()
    cluster.run(node, core.prove_leadership("asked", cluster.reading(node)))
    other = next(i for i in cluster.nodes if i != leader)
    deposing = tenure_raft.encode_message("append", sender=other, to=leader, term=core.view().term + 1)
    cluster.hand_over(other, leader, deposing)
    cluster.advance(300)
    fates = [effect for _, i, effect in cluster.trace if i == leader and isinstance(effect, Proved | Rejected)]
    assert fates == [Rejected(["asked"])]
