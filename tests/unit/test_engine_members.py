"""Changes of the members: applied in order, before what comes after them, and safe for a leader that removes itself."""

from __future__ import annotations

import pytest
from engine_cluster import Cluster, Member
from tenure_raft import Engine, EngineError, ProposalDropped


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
    leader.propose_conf_change([("add_learner", 4)])
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
        leader.propose_conf_change(changes)  # type: ignore[arg-type]
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
