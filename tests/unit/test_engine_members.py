"""Changes of the members: applied in order, before what comes after them, and safe for a leader that removes itself."""

from __future__ import annotations

import pytest
from engine_cluster import Cluster, Member
from tenure_raft import Engine, EngineError, ProposalDropped, decode_conf_change, encode_conf_change, message_kinds


def _cluster_with(raft_id: int) -> Cluster:
    """Three voters, and a fourth member that only listens so far."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.members[raft_id] = Member(raft_id, [1, 2, 3], [])
    return cluster


def _leader_with_change() -> tuple[Engine, bytes, int]:
    """A leader that was handed a committed change, the addition of learner 2, and has not applied it."""
    leader = Cluster([1]).elect(1)
    leader.propose_conf_change([("add_learner", 2)])
    [(index, _, kind, data)] = leader.advance(leader.ready()).committed
    assert kind == "conf_change"
    return leader, data, index


def test_engine_adds_a_learner_and_promotes_it_when_it_is_asked() -> None:
    cluster = _cluster_with(4)
    leader = cluster[1]
    assert leader.propose_conf_change([("add_learner", 4)]) == 2
    cluster.settle()
    cluster.tick(4)
    assert (leader.voters, leader.learners) == ([1, 2, 3], [4])
    assert cluster[4].last_index == leader.last_index
    leader.propose_conf_change([("add_voter", 4)])
    cluster.settle()
    cluster.tick(4)
    for raft_id in (1, 2, 3, 4):
        assert (cluster[raft_id].voters, cluster[raft_id].learners) == ([1, 2, 3, 4], [])
    assert [raft_id for raft_id, *_ in leader.progress()] == [1, 2, 3, 4]
    assert cluster[4].progress() == []


def test_engine_passes_through_a_joint_configuration_when_several_members_change() -> None:
    cluster = _cluster_with(4)
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


def test_engine_keeps_its_members_when_it_is_restarted_after_a_change() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1).propose_conf_change([("remove", 3)])
    cluster.settle()
    cluster.members[1].restart()
    assert cluster[1].voters == [1, 2, 3]
    cluster.settle()
    assert cluster[1].voters == [1, 2]


def test_engine_compacts_with_the_members_of_that_index_when_they_changed_since() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    cluster.isolate(2)
    leader.propose([b"a"])
    cluster.settle()
    index = leader.applied
    leader.propose_conf_change([("remove", 3)])
    cluster.settle()
    assert leader.voters == [1, 2]
    leader.compact(index, b"a")
    cluster.heal()
    cluster.tick(6)
    disk = cluster.members[2].disk
    assert disk.snapshot == (index, 1, b"a")
    assert disk.voters == [1, 2, 3]
    assert cluster[2].voters == [1, 2]


def test_engine_refuses_to_compact_when_the_configuration_is_joint() -> None:
    engine = Cluster([1])[1]
    engine.campaign()
    engine.propose_conf_change([("add_voter", 2), ("add_voter", 3)])
    advanced = engine.advance(engine.ready())
    index, _, kind, data = advanced.committed[-1]
    assert kind == "conf_change"
    assert engine.apply_conf_change(data) == ([1, 2, 3], [])
    engine.applied_to(index)
    with pytest.raises(ValueError, match="joint at that index"):
        engine.compact(index, b"")
    engine.compact(index - 1, b"")


def test_engine_drops_a_change_when_another_is_under_way() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose_conf_change([("add_learner", 4)])
    with pytest.raises(ProposalDropped, match="another configuration change"):
        leader.propose_conf_change([("add_learner", 5)])
    with pytest.raises(ProposalDropped, match="does not lead"):
        cluster[2].propose_conf_change([("add_learner", 5)])


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ([], "at least one id"),
        ([("add_voter", 0)], "none of them 0"),
        ([("promote", 4)], 'unknown change "promote"'),
        ([("remove", 1), ("remove", 2), ("remove", 3)], "removed all voters"),
    ],
)
def test_engine_refuses_a_change_when_it_cannot_be_applied(changes: list[tuple[str, int]], text: str) -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    with pytest.raises(ValueError, match=text):
        leader.propose_conf_change(changes)
    assert leader.last_index == 1
    assert leader.propose([b"a"]) == 2


def test_R12_nothing_counts_as_applied_when_a_change_before_it_is_not() -> None:
    leader, data, index = _leader_with_change()
    with pytest.raises(EngineError, match=f"configuration change of index {index} must be applied first"):
        leader.applied_to(index)
    assert leader.apply_conf_change(data) == ([1], [2])
    leader.applied_to(index)
    assert not leader.poisoned


def test_R12_change_is_refused_when_it_is_not_the_one_that_was_handed_out() -> None:
    leader, data, index = _leader_with_change()
    with pytest.raises(EngineError, match=f"the next is that of index {index}"):
        leader.apply_conf_change(data + b"x")
    leader.apply_conf_change(data)
    with pytest.raises(EngineError, match="no configuration change is waiting"):
        leader.apply_conf_change(data)
    assert leader.learners == [2]
    assert not leader.poisoned


@pytest.mark.parametrize("told", [False, True])
def test_R12_leader_steps_down_when_it_applied_its_own_removal(told: bool) -> None:
    """P11: raft-rs would keep it leader, answer its reads, and panic at the next commit."""
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose_conf_change([("remove", 1)])
    leader.propose([b"behind it"])
    cluster.settle()
    assert leader.role == "follower"
    if told:
        leader.become_follower()
    with pytest.raises(ProposalDropped, match="does not lead"):
        leader.propose([b"a"])
    leader.read_index(b"x")
    leader.tick(100)
    cluster.settle()
    assert not leader.poisoned
    assert leader.role == "follower"
    assert cluster.members[1].read_states == []
    assert cluster.elect(2).voters == [2, 3]
    assert cluster.members[3].commands == [b"behind it"]


def test_engine_forgets_the_leader_when_it_is_told_to() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster[2].become_follower()
    assert (cluster[2].leader_id, cluster[2].term, cluster[2].vote) == (0, 1, 1)
    cluster[2].become_follower(3)
    assert cluster[2].leader_id == 3
    for leader in (2, 77):
        with pytest.raises(ValueError, match="is no other member"):
            cluster[2].become_follower(leader)


def _members(cluster: Cluster) -> set[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """What the members that are left in it take the configuration for."""
    [leader] = cluster.leaders()
    left = [*cluster[leader].voters, *cluster[leader].learners]
    return {(tuple(cluster[i].voters), tuple(cluster[i].learners), cluster[i].joint) for i in left}


@pytest.mark.parametrize("leader", [1, 2])
def test_engines_grow_to_seven_voters_and_shrink_to_one_when_several_members_change_at_once(leader: int) -> None:
    cluster = Cluster([1])
    cluster.elect(1)
    for pair in ((2, 3), (4, 5), (6, 7)):
        for raft_id in pair:
            cluster.add(raft_id, [1])
        cluster.change(*(("add_voter", raft_id) for raft_id in pair))
        assert _members(cluster) == {(tuple(range(1, pair[1] + 1)), (), False)}
        if cluster.leaders() != [leader]:
            cluster.elect(leader)
        cluster[leader].propose([b"%d" % pair[1]])
        cluster.settle()
    assert all(member.commands == [b"3", b"5", b"7"] for member in cluster.members.values())
    for pair in ((7, 6), (5, 4), (3, leader ^ 3)):
        cluster.change(*(("remove", raft_id) for raft_id in pair))
        assert len(_members(cluster)) == 1
        for raft_id in pair:
            cluster.isolate(raft_id)
    assert _members(cluster) == {((leader,), (), False)}
    assert cluster[leader].propose([b"alone"])
    cluster.settle()
    assert cluster.members[leader].commands[-1] == b"alone"
    assert not any(member.engine.poisoned for member in cluster.members.values())


def test_engines_replace_every_voter_when_it_is_asked_for_in_one_change() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1).propose([b"before"])
    for raft_id in (4, 5, 6):
        cluster.add(raft_id, [1, 2, 3])
    cluster.change(*(("add_learner", raft_id) for raft_id in (4, 5, 6)))
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
    assert _members(cluster) == {((4, 5, 6), (), False)}
    cluster[leader].propose([b"after"])
    cluster.settle()
    for raft_id in (4, 5, 6):
        assert cluster.members[raft_id].commands == [b"before", b"after"]


def test_engine_is_joint_when_it_applied_the_first_half_of_a_change_of_several_members() -> None:
    cluster = _cluster_with(4)
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
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.add(4, [1, 2, 3])
    cluster.change(("add_learner", 4))
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


def test_engine_promotes_a_voter_that_it_had_demoted() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.change(("add_learner", 3))
    assert _members(cluster) == {((1, 2), (3,), False)}
    cluster[3].campaign()
    cluster.tick(30, only=3)
    assert (cluster[3].role, cluster[3].term) == ("follower", 1)
    cluster[1].propose([b"a"])
    cluster.settle()
    assert cluster.members[3].commands == [b"a"]
    cluster.change(("add_voter", 3))
    assert _members(cluster) == {((1, 2, 3), (), False)}
    assert cluster.elect(3).propose([b"b"])


def test_engine_takes_a_snapshot_as_a_learner_when_it_was_a_voter() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.isolate(3)
    cluster.change(("add_learner", 3))
    cluster.members[1].compact(b"state")
    cluster.heal()
    cluster.tick(6)
    assert cluster.members[3].disk.snapshot is not None
    assert (cluster[3].voters, cluster[3].learners) == ([1, 2], [3])
    cluster[3].become_follower()
    cluster[3].campaign()
    cluster.tick(30, only=3)
    assert (cluster[3].role, cluster[3].term) == ("follower", 1)
    cluster.members[3].restart()
    assert (cluster[3].voters, cluster[3].learners) == ([1, 2], [3])


@pytest.mark.parametrize("joint", [False, True])
def test_R12_leader_steps_down_when_it_applied_its_own_demotion(joint: bool) -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    cluster.add(4, [1, 2, 3])
    changes = [("add_learner", 1), ("add_voter", 4)] if joint else [("add_learner", 1)]
    leader.propose_conf_change(changes)
    leader.propose([b"behind it"])
    cluster.settle()
    cluster.tick(4)
    voters = [2, 3, 4] if joint else [2, 3]
    assert (leader.role, leader.voters, leader.learners) == ("follower", voters, [1])
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


def test_R12_member_does_not_campaign_when_it_applied_its_own_removal() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose_conf_change([("remove", 1)])
    cluster.settle()
    leader.become_follower()
    leader.campaign()
    cluster.settle()
    assert (leader.role, leader.term, leader.poisoned) == ("follower", 1, False)


def test_R12_leadership_is_not_handed_over_when_its_heir_is_demoted() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.propose_conf_change([("add_learner", 3)])
    leader.transfer_leader(3)
    cluster.settle()
    assert leader.propose([b"a"])
    cluster.heal()
    cluster.tick(8)
    assert cluster.leaders() == [1]


def test_engine_votes_for_a_candidate_when_its_own_log_does_not_name_it_yet() -> None:
    """Member 3 missed the change that made 4 a voter: without its vote, and with 1 gone, nobody could lead."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.add(4, [1, 2, 3])
    cluster.change(("add_learner", 4))
    cluster.isolate(3)
    cluster.change(("add_voter", 4))
    assert (4 in cluster[3].voters, 4 in cluster[4].voters) == (False, True)
    cluster.heal()
    cluster.isolate(1)
    for raft_id in (2, 3, 4):
        cluster[raft_id].become_follower()
    cluster[4].campaign()
    cluster.settle()
    assert cluster[4].role == "leader"
    cluster.tick(4)
    assert cluster[3].voters == [1, 2, 3, 4]


@pytest.mark.parametrize("context", [b"", b"name=a", bytes(300)])
def test_conf_change_is_read_back_when_it_was_written(context: bytes) -> None:
    changes = [("add_voter", 1), ("add_learner", 300), ("remove", (1 << 62) - 1)]
    assert decode_conf_change(encode_conf_change(changes, context)) == (changes, context)
    assert decode_conf_change(b"") == ([], b"")


def test_conf_change_is_read_as_it_was_proposed() -> None:
    cluster = Cluster([1])
    leader = cluster.elect(1)
    leader.propose_conf_change([("add_learner", 2)], b"context")
    [(_, _, _, data)] = leader.advance(leader.ready()).committed
    assert decode_conf_change(data) == ([("add_learner", 2)], b"context")
    assert encode_conf_change([("add_learner", 2)], b"context") == data


def test_conf_change_is_refused_when_it_is_malformed() -> None:
    for data in (b"\x20", b"\x12\x04\x08\x02", b"\x12\x02\x10\x00"):
        with pytest.raises(ValueError, match=r"."):
            decode_conf_change(data)
    for changes in ([("promote", 1)], [("remove", 0)], [("remove", 1 << 62)]):
        with pytest.raises(ValueError, match=r"unknown change|out of range"):
            encode_conf_change(changes)
    with pytest.raises(ValueError, match="context too long"):
        encode_conf_change([("remove", 1)], bytes(1 << 20))
