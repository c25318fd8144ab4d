"""Joint configurations: several members change at once, and no two configurations ever decide on their own."""

from __future__ import annotations

import pytest
from engine_cluster import Cluster, cluster_with, make_learners, members_of
from tenure_raft import ProposalDropped, message_kinds


def test_engine_passes_through_a_joint_configuration_when_several_members_change() -> None:
    cluster = make_learners(cluster_with(4), 4)
    leader = cluster[1]
    leader.propose_conf_change([("add_voter", 4), ("remove", 3)])
    seen = set()
    for _ in range(40):
        cluster.turn()
        cluster.deliver()
        leader.tick()
        seen.add(tuple(leader.voters))
    assert seen == {(1, 2, 3), (1, 2, 3, 4), (1, 2, 4)}
    assert leader.propose([b"a"]) > 0


def test_engine_refuses_to_compact_when_the_configuration_is_joint() -> None:
    engine = make_learners(cluster_with(2, 3, voters=(1,)), 2, 3)[1]
    engine.propose_conf_change([("add_voter", 2), ("add_voter", 3)])
    advanced = engine.advance(engine.ready())
    index, _, kind, data = advanced.committed[-1]
    assert kind == "conf_change"
    assert engine.apply_conf_change(data) == ([1, 2, 3], [])
    engine.applied_to(index)
    with pytest.raises(ValueError, match="joint at that index"):
        engine.compact(index, b"")
    engine.compact(index - 1, b"")


@pytest.mark.parametrize("leader", [1, 2])
def test_engines_grow_to_seven_voters_and_shrink_to_one_when_several_members_change_at_once(leader: int) -> None:
    cluster = Cluster([1])
    cluster.elect(1)
    for pair in ((2, 3), (4, 5), (6, 7)):
        for raft_id in pair:
            cluster.add(raft_id, [1])
        make_learners(cluster, *pair)
        cluster.change(*(("add_voter", raft_id) for raft_id in pair))
        assert members_of(cluster) == {(tuple(range(1, pair[1] + 1)), (), False)}
        if cluster.leaders() != [leader]:
            cluster.elect(leader)
        cluster[leader].propose([b"%d" % pair[1]])
        cluster.settle()
    assert all(member.commands == [b"3", b"5", b"7"] for member in cluster.members.values())
    for pair in ((7, 6), (5, 4), (3, leader ^ 3)):
        cluster.change(*(("remove", raft_id) for raft_id in pair))
        assert len(members_of(cluster)) == 1
        for raft_id in pair:
            cluster.isolate(raft_id)
    assert members_of(cluster) == {((leader,), (), False)}
    assert cluster[leader].propose([b"alone"])
    cluster.settle()
    assert cluster.members[leader].commands[-1] == b"alone"
    assert not any(member.engine.poisoned for member in cluster.members.values())


def test_engines_replace_every_voter_when_it_is_asked_for_in_one_change() -> None:
    cluster = make_learners(cluster_with(4, 5, 6), 4, 5, 6)
    cluster[1].propose([b"before"])
    cluster.settle()
    cluster[1].propose_conf_change([*(("add_voter", i) for i in (4, 5, 6)), *(("remove", i) for i in (1, 2, 3))])
    cluster.settle()
    cluster.tick(4)
    assert cluster.leaders() == []
    assert cluster[1].role == "follower"
    cluster[5].campaign()
    cluster.tick(12, only=5)
    cluster.tick(12, only=6)
    cluster.tick(30)
    [leader] = cluster.leaders()
    assert leader in (4, 5, 6)
    assert members_of(cluster) == {((4, 5, 6), (), False)}
    cluster[leader].propose([b"after"])
    cluster.settle()
    for raft_id in (4, 5, 6):
        assert cluster.members[raft_id].commands == [b"before", b"after"]


def test_engine_is_joint_when_it_applied_the_first_half_of_a_change_of_severalmembers_of() -> None:
    cluster = make_learners(cluster_with(4), 4)
    leader = cluster[1]
    leader.propose_conf_change([("add_voter", 4), ("remove", 3)])
    seen = []
    for _ in range(40):
        cluster.turn()
        cluster.deliver()
        leader.tick()
        seen.append(leader.joint)
        if leader.joint:
            with pytest.raises(ProposalDropped, match="another configuration change"):
                leader.propose_conf_change([("remove", 2)])
    assert seen[0] is False
    assert seen[-1] is False
    assert True in seen


def test_engines_leave_a_joint_configuration_when_the_leader_that_entered_it_is_gone() -> None:
    cluster = make_learners(cluster_with(4), 4)
    cluster[1].propose_conf_change([("add_voter", 4), ("remove", 3)])
    while not cluster[2].joint:
        cluster.turn()
        cluster.flying = type(cluster.flying)(frame for frame in cluster.flying if not _leaves(cluster, frame[2]))
        cluster.deliver()
        cluster[1].tick()
    cluster.isolate(1)
    cluster.flying.clear()
    for raft_id in (2, 3, 4):
        cluster[raft_id].become_follower()
    cluster[2].campaign()
    cluster.settle()
    assert cluster[2].role == "leader"
    cluster.tick(4)
    assert (cluster[2].joint, cluster[2].voters) == (False, [1, 2, 4])
    cluster.heal()
    cluster.tick(8)
    assert (cluster[1].joint, cluster[1].voters) == (False, [1, 2, 4])


def _leaves(cluster: Cluster, payload: bytes) -> bool:
    """Whether a payload could carry the entry that leaves the joint configuration: any from its first holder on."""
    return cluster[1].joint and message_kinds(payload)[0][:2] == ("append", 1) and cluster[2].joint


def test_engine_refuses_several_changes_when_a_new_voter_is_no_learner_yet() -> None:
    """It may need a snapshot, which nobody can take in a joint configuration: nobody could leave that any more."""
    cluster = cluster_with(4)
    with pytest.raises(ValueError, match="4 must be a learner before it votes in a change of several members"):
        cluster[1].propose_conf_change([("add_voter", 4), ("remove", 3)])
    assert cluster[1].last_index == 1
    cluster[1].propose_conf_change([("add_voter", 4)])
    cluster.tick(4)
    assert cluster[4].voters == [1, 2, 3, 4]


@pytest.mark.parametrize("compacted", [False, True])
def test_engine_drops_several_changes_when_a_new_voter_has_not_caught_up(compacted: bool) -> None:
    cluster = cluster_with(4)
    cluster.isolate(4)
    make_learners(cluster, 4)
    if compacted:
        cluster.members[1].compact(b"state")
    changes = [("add_voter", 4), ("remove", 3)]
    with pytest.raises(ProposalDropped, match="a member that is to vote has not caught up"):
        cluster[1].propose_conf_change(changes)
    cluster.heal()
    cluster.tick(6)
    cluster[1].propose_conf_change(changes)
    cluster.tick(4)
    assert members_of(cluster) == {((1, 2, 4), (), False)}


def test_engine_changes_several_voters_when_one_that_stays_lags_behind() -> None:
    cluster = make_learners(cluster_with(4), 4)
    cluster.isolate(2)
    cluster[1].propose([b"a"])
    cluster.settle()
    cluster.members[1].compact(b"state")
    cluster[1].propose_conf_change([("add_voter", 2), ("add_voter", 4), ("remove", 3)])
    cluster.tick(4)
    assert cluster[1].voters == [1, 2, 4]
    cluster.heal()
    cluster.tick(6)
    assert members_of(cluster) == {((1, 2, 4), (), False)}


def test_engine_drops_several_changes_when_too_few_voters_could_leave_them() -> None:
    """Voter 4 was added without a detour and has nothing yet: 1 and 4 alone could not end what they begin."""
    cluster = cluster_with(4)
    cluster.isolate(4)
    cluster.change(("add_voter", 4))
    with pytest.raises(ProposalDropped, match="too few of the voters have caught up"):
        cluster[1].propose_conf_change([("remove", 2), ("remove", 3)])
    cluster[1].propose_conf_change([("remove", 3), ("remove", 4)])
    cluster.tick(4)
    assert members_of(cluster) == {((1, 2), (), False)}


def test_R1_change_is_not_forgotten_when_the_entry_after_it_is_kept() -> None:
    """Voter 1 alone hands over to 2 alone: two configurations without a common voter.

    It crashes at the last moment at which it may: the news that it is over have left, and nothing that came with them
    is durable. If it came back as the voter 1 alone, two would lead and commit in the same term.
    """
    cluster = make_learners(cluster_with(2, voters=(1,)), 2)
    leader = cluster[1]
    leader.propose_conf_change([("add_voter", 2), ("remove", 1)])
    for _ in range(20):
        if leader.joint and leader.commit == leader.last_index:
            break
        cluster.turn()
        leader.tick()
        cluster.deliver()
    ready = leader.ready()
    assert not ready.term_or_vote_changed
    cluster.flying.extend((1, to, payload) for to, payload in ready.messages)
    cluster.members[1].restart()
    cluster.settle()
    assert cluster[2].voters == [2]
    cluster[2].campaign()
    cluster.isolate(1)
    for _ in range(2):
        cluster[1].campaign()
        cluster.settle()
        cluster.tick(40, only=1)
    assert (cluster[2].role, cluster[2].term) == ("leader", 2)
    assert (cluster[1].role, cluster[1].term, cluster[1].joint) == ("pre_candidate", 1, True)


def test_R1_hard_state_repeats_the_commit_index_once_when_a_change_was_applied() -> None:
    cluster = make_learners(cluster_with(2, voters=(1,)), 2)
    leader = cluster[1]
    leader.propose([b"a"])
    cluster.settle()
    leader.propose([b"a"])
    ready = leader.ready()
    assert ready.hard_state is None
    cluster.members[1].apply(leader.advance(ready))
    leader.propose_conf_change([("add_learner", 3)])
    ready = leader.ready()
    assert ready.hard_state is None
    cluster.members[1].apply(leader.advance(ready))
    leader.propose([b"a"])
    ready = leader.ready()
    assert (ready.hard_state, ready.term_or_vote_changed) == ((1, 1, leader.commit), False)
    cluster.members[1].apply(leader.advance(ready))
    leader.propose([b"a"])
    assert leader.ready().hard_state is None


def test_R1_hard_state_repeats_the_commit_index_when_it_was_not_worth_an_fsync_before() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose_conf_change([("add_learner", 4)])
    cluster.settle()
    leader.propose([b"a"])
    ready = leader.ready()
    assert ready.hard_state == (1, 1, leader.commit) == (1, 1, 2)
    leader.advance(ready)
    leader.propose([b"a"])
    assert leader.ready().hard_state is None


@pytest.mark.parametrize("joint", [False, True])
def test_R12_leader_steps_down_when_it_applied_its_own_demotion(joint: bool) -> None:
    cluster = make_learners(cluster_with(4), 4)
    leader = cluster[1]
    changes = [("add_learner", 1), ("add_voter", 4)] if joint else [("add_learner", 1)]
    leader.propose_conf_change(changes)
    leader.propose([b"behind it"])
    cluster.settle()
    cluster.tick(4)
    expected = ([2, 3, 4], [1]) if joint else ([2, 3], [1, 4])
    assert (leader.role, (leader.voters, leader.learners)) == ("follower", expected)
    with pytest.raises(ProposalDropped, match="does not lead"):
        leader.propose([b"a"])
    leader.tick(100)
    leader.campaign()
    cluster.settle()
    assert leader.role == "follower"
    cluster.elect(2).propose([b"later"])
    cluster.settle()
    assert cluster.members[1].commands == [b"behind it", b"later"]
    assert not leader.poisoned
