"""The rules of the Raft driver, R1 to R7 and R12, each with a test that goes red when the rule is broken."""

from __future__ import annotations

import pytest
import tenure_raft

from support.virtual_cluster import SETTINGS, Node, VirtualCluster
from tenure.core.consensus import Cadence, Consensus
from tenure.core.effects import Persist, Send
from tenure.core.founding import PROTOCOL_VERSION, Hello, Refuse, Wait, cluster_id_of, decide
from tenure.core.fsm import Enrolment
from tenure.core.roles import Phase
from tenure.core.roster import Roster
from tenure.errors import InvariantViolated
from tenure.instants import Reading
from tenure.types import LossReason


def held_effects(cluster: VirtualCluster, node: Node) -> list[object]:
    return [effect for _, raft_id, effect in cluster.trace if raft_id == node.raft_id]


def kinds_sent(effects: list[object]) -> list[str]:
    return [
        kind for effect in effects if isinstance(effect, Send) for kind, *_ in tenure_raft.message_kinds(effect.payload)
    ]


# -- R1 -----------------------------------------------------------------------------------------------------------


def test_R1_vote_leaves_only_after_it_is_durable():
    """A voter whose fsync hangs sends no answer; the answer follows the fsync."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    voter = cluster.nodes[next(i for i in cluster.nodes if i != leader)]
    voter.hold_persist = True
    cluster.crash(leader)
    assert cluster.advance(6000, until=lambda: voter.pending_persist is not None)
    cluster.trace.clear()
    cluster.advance(200)
    assert not any("vote" in kind and "response" in kind for kind in kinds_sent(held_effects(cluster, voter)))
    hard_state = voter.pending_persist.hard_state
    cluster.finish_persist(voter)
    assert voter.hard_state == hard_state


def test_R1_nothing_overtakes_the_fsync_of_a_new_term_when_one_voter_has_a_learner():
    """P9b: the engine hands out an append for the learner in the very Ready whose term is not durable yet."""
    engine = tenure_raft.Engine(
        raft_id=1, election_tick=10, heartbeat_tick=2, voters=[1], learners=[2], term=0, vote=0, commit=0, batches=[]
    )
    cadence = Cadence(tick_ns=10, heartbeat_tick=2, election_tick=10)
    consensus = Consensus(engine, raft_id=1, cadence=cadence, started=Reading(0, 0), binding=tenure_raft)
    effects: list[object] = []
    for now in range(10, 1000, 10):
        effects = list(consensus.pump(Reading(now, now)))
        if effects:
            break
    assert [type(effect) for effect in effects] == [Persist]
    assert "append" in kinds_sent(list(consensus.persisted().effects))


def test_R1_single_voter_announces_nothing_before_its_term_is_durable():
    """P9: with one voter the engine leads in the very Ready that still has to be made durable."""
    cluster = VirtualCluster(size=1)
    node = cluster.nodes[1]
    node.hold_persist = True
    assert cluster.advance(5000, until=lambda: node.pending_persist is not None)
    cluster.advance(3000)
    assert cluster.core(1).durable_term == 0
    assert cluster.core(1).holding.phase is Phase.FOLLOWING
    assert node.grants == []
    assert not any(isinstance(effect, Send) for effect in held_effects(cluster, node))


def test_R1_leaders_messages_overtake_fsync_only_with_other_voters():
    """The one exception: a leader with other voters, in a Ready that changes neither term nor vote."""
    cluster = VirtualCluster()
    leader = cluster.nodes[cluster.elect()]
    cluster.advance(500)
    leader.hold_persist = True
    cluster.trace.clear()
    cluster.core(leader.raft_id).consensus.propose(b"\x01")
    cluster.advance(50)
    effects = held_effects(cluster, leader)
    position = next(i for i, effect in enumerate(effects) if isinstance(effect, Persist) and effect.entries)
    assert "append" in kinds_sent(effects[:position])


# -- R2 -----------------------------------------------------------------------------------------------------------


def test_R2_engine_is_not_touched_between_ready_and_advance():
    """While a Persist is in flight the core queues everything; touching the engine would raise."""
    cluster = VirtualCluster()
    leader = cluster.nodes[cluster.elect()]
    core = cluster.core(leader.raft_id)
    leader.hold_persist = True
    core.consensus.propose(b"\x01")
    assert cluster.advance(100, until=lambda: leader.pending_persist is not None)
    cluster.advance(300)
    assert core.consensus.persisting
    core.consensus.propose(b"\x01")
    core.consensus.read_index(b"context")
    cluster.hand_over(next(i for i in cluster.nodes if i != leader.raft_id), leader.raft_id, b"garbage")
    assert core.consensus.persisting


def test_R2_persisted_without_a_ready_is_refused():
    """The driver's own mistake is an invariant, not a silent step."""
    cluster = VirtualCluster()
    with pytest.raises(InvariantViolated):
        cluster.core(1).persisted(cluster.reading(cluster.nodes[1]))


# -- R3 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "from_member", "term"),
    [
        ("heartbeat", False, 99),
        ("timeout_now", False, 0),
        ("timeout_now", True, 0),
        ("heartbeat", True, 0),
        ("propose", True, 1),
        ("transfer_leader", True, 1),
    ],
)
def test_R3_forged_frames_change_nothing(kind: str, from_member: bool, term: int):
    """P5, P12: strangers, term 0 and forwarded proposals are dropped with the state as it was."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    # Never the leader itself: what claims to come from oneself is dropped before anything else is looked at.
    sender = next(i for i in cluster.nodes if i != leader) if from_member else 77
    cluster.advance(1500)
    core = cluster.core(leader)
    before = core.view()
    forged = tenure_raft.encode_message(kind, sender=sender, to=leader, term=term)
    dropped = core.consensus.dropped_payloads
    cluster.hand_over(sender, leader, forged)
    after = core.view()
    assert (after.raft_role, after.term, after.leader_id) == (before.raft_role, before.term, before.leader_id)
    assert core.consensus.dropped_payloads == dropped + 1
    assert not core.consensus.persisting


# -- R4 -----------------------------------------------------------------------------------------------------------


def test_isolated_leader_leaves_the_office_in_raft_too_when_it_hears_nobody():
    """Within two election timeouts: by the quorum check, or because its lease lapsed (R10), whichever comes first."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    cluster.isolate(leader)
    assert cluster.advance(2500, until=lambda: cluster.core(leader).view().raft_role != "leader")


def test_R4_pre_vote_keeps_the_term_when_a_cut_member_returns():
    """pre_vote is on: a member that campaigned in vain does not depose the leader when it comes back."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    follower = next(i for i in cluster.nodes if i != leader)
    term = cluster.core(leader).view().term
    cluster.isolate(follower)
    cluster.advance(6000)
    cluster.heal()
    cluster.advance(3000)
    assert cluster.core(leader).view().term == term
    assert cluster.leaders() == [leader]


# -- R5 -----------------------------------------------------------------------------------------------------------


def test_R5_owed_ticks_run_before_queued_messages():
    """P2: a follower that slept with a heartbeat in its queue does not vote right after reading it."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    cluster.advance(1500)
    follower, candidate = (i for i in cluster.nodes if i != leader)
    cluster.pause(follower)
    cluster.advance(1100)
    heartbeat = tenure_raft.encode_message(
        "heartbeat", sender=leader, to=follower, term=cluster.core(leader).view().term
    )
    cluster.nodes[follower].inbox_while_paused = [(leader, heartbeat)]
    cluster.trace.clear()
    cluster.resume(follower)
    term = cluster.core(follower).view().term + 1
    request = tenure_raft.encode_message(
        "request_vote", sender=candidate, to=follower, term=term, index=10_000, log_term=term
    )
    cluster.hand_over(candidate, follower, request)
    granted = [
        message
        for effect in held_effects(cluster, cluster.nodes[follower])
        if isinstance(effect, Send)
        for message in tenure_raft.message_kinds(effect.payload)
        if message[0] == "request_vote_response"
    ]
    assert granted == []
    assert cluster.core(follower).view().term < term


# -- R6 -----------------------------------------------------------------------------------------------------------


def test_R6_restarted_voter_does_not_vote_for_one_election_timeout():
    """P3, TiKV 15035: a restarted voter forgot the leader that it owes its promise to."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    voter, candidate = (i for i in cluster.nodes if i != leader)
    cluster.crash(voter)
    cluster.advance(100)
    cluster.isolate(leader)
    cluster.restart(voter)
    term = cluster.core(voter).view().term + 1
    request = tenure_raft.encode_message(
        "request_vote", sender=candidate, to=voter, term=term, index=10_000, log_term=term
    )
    cluster.trace.clear()
    cluster.hand_over(candidate, voter, request)
    assert cluster.core(voter).view().term == term - 1
    assert "request_vote_response" not in kinds_sent(held_effects(cluster, cluster.nodes[voter]))


# -- R7 -----------------------------------------------------------------------------------------------------------

NAMES = ("a", "b", "c")


def hello(name: str, directory: str, *, cluster: str = "", names: tuple[str, ...] = NAMES) -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION,
        cluster_name="payments",
        cluster_id=cluster,
        name=name,
        directory_id=directory,
        incarnation=1,
        member_names=names,
        settings=SETTINGS,
    )


def test_R7_founding_needs_all_configured_members():
    """Two of three that answer are not enough."""
    decision = decide(hello("a", "1"), {"b": hello("b", "2")})
    assert decision == Wait(("c",))


def test_R7_every_member_founds_the_same_cluster():
    """Each decides for itself; the id is a hash of all (name, directory id) pairs."""
    hellos = {name: hello(name, f"d{name}") for name in NAMES}
    records = [decide(hellos[name], {other: hellos[other] for other in NAMES if other != name}) for name in NAMES]
    assert all(isinstance(enrolment, Enrolment) for enrolment in records)
    assert len({enrolment.record.cluster_id for enrolment in records if isinstance(enrolment, Enrolment)}) == 1


def test_R7_crash_in_the_middle_founds_the_same_cluster_again():
    """One member has founded already: the others, whose directories it counted, join that same cluster."""
    cluster = cluster_id_of("payments", {"a": "1", "b": "2", "c": "3"})
    decision = decide(hello("a", "1"), {"b": hello("b", "2", cluster=cluster), "c": hello("c", "3")})
    assert isinstance(decision, Enrolment)
    assert decision.record.cluster_id == cluster


def test_R7_wiped_member_is_refused():
    """Its new directory is no member, and says so with the way on."""
    cluster = cluster_id_of("payments", {"a": "1", "b": "2", "c": "3"})
    answers = {"b": hello("b", "2", cluster=cluster), "c": hello("c", "3", cluster=cluster)}
    decision = decide(hello("a", "new"), answers)
    assert isinstance(decision, Refuse)
    assert "tenure member replace a" in decision.reasons[0]


def test_R7_two_wiped_of_three_are_refused():
    """They must not found a second cluster beside the surviving member."""
    cluster = cluster_id_of("payments", {"a": "1", "b": "2", "c": "3"})
    decision = decide(hello("a", "new-a"), {"b": hello("b", "new-b"), "c": hello("c", "3", cluster=cluster)})
    assert isinstance(decision, Refuse)


def test_R7_frames_of_a_replaced_directory_are_refused():
    """The others do not take frames from a directory that is not the member's."""
    enrolment = decide(hello("a", "1"), {"b": hello("b", "2"), "c": hello("c", "3")})
    assert isinstance(enrolment, Enrolment)
    cluster, roster = enrolment.record.cluster_id, Roster(enrolment)
    own = hello("a", "1", cluster=cluster)
    assert roster.admit(own, hello("b", "2", cluster=cluster)) is None
    problem = roster.admit(own, hello("b", "another", cluster=cluster))
    assert problem is not None
    assert "replaced" in problem


def test_R3_member_of_another_cluster_is_refused_although_names_and_directory_fit():
    """Two clusters of one name, a directory copied from one to the other: the id tells them apart."""
    enrolment = decide(hello("a", "1"), {"b": hello("b", "2"), "c": hello("c", "3")})
    assert isinstance(enrolment, Enrolment)
    own = hello("a", "1", cluster=enrolment.record.cluster_id)
    problem = Roster(enrolment).admit(own, hello("b", "2", cluster="00" * 16))
    assert problem is not None
    assert "belongs to cluster 0000" in problem


# -- R12 ----------------------------------------------------------------------------------------------------------


def test_R12_removed_leader_loses_its_lease_within_one_ready():
    """P11: raft-rs leaves a removed leader in office; the core does not, and nothing panics."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    core.consensus.engine.propose_conf_change([("remove", leader)])
    assert cluster.advance(1000, until=lambda: core.removed)
    assert node.revoked == [LossReason.REMOVED]
    assert core.view().raft_role == "follower"
    cluster.advance(3000)
    assert leader not in cluster.leaders()
    assert cluster.elect() != leader


def test_R12_one_refusal_ends_the_lease_at_once():
    """The database said no: the holding is over before anything else happens."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    cluster.run(node, core.refused(node.grants[0].credential.token, LossReason.REFUSED, cluster.reading(node)))
    assert node.revoked == [LossReason.REFUSED]
    assert leader not in cluster.leaders()
    cluster.return_body(leader)
    assert cluster.elect() != leader


def test_R12_losing_leadership_ends_the_lease_before_any_fsync():
    """A message of a higher term deposes the leader; its lease ends while that term is still being made durable."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    node.hold_persist = True
    other = next(i for i in cluster.nodes if i != leader)
    term = core.view().term + 1
    cluster.hand_over(other, leader, tenure_raft.encode_message("append", sender=other, to=leader, term=term))
    assert node.revoked == [LossReason.DEPOSED]
