"""Changes of the members: applied in order, before what comes after them, and safe for a leader that removes itself."""

from __future__ import annotations

import pytest
from engine_cluster import Cluster, cluster_with, make_learners, members_of
from tenure_raft import Engine, EngineError, ProposalDropped, decode_conf_change, encode_conf_change


def _leader_with_change() -> tuple[Engine, bytes, int]:
    """A leader that was handed a committed change, the addition of learner 2, and has not applied it."""
    leader = Cluster([1]).elect(1)
    leader.propose_conf_change([("add_learner", 2)])
    [(index, _, kind, data)] = leader.advance(leader.ready()).committed
    assert kind == "conf_change"
    return leader, data, index


def test_engine_adds_a_learner_and_promotes_it_when_it_is_asked() -> None:
    cluster = cluster_with(4)
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


def test_engine_promotes_a_voter_that_it_had_demoted() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.change(("add_learner", 3))
    assert members_of(cluster) == {((1, 2), (3,), False)}
    cluster[3].campaign()
    cluster.tick(30, only=3)
    assert (cluster[3].role, cluster[3].term) == ("follower", 1)
    cluster[1].propose([b"a"])
    cluster.settle()
    assert cluster.members[3].commands == [b"a"]
    cluster.change(("add_voter", 3))
    assert members_of(cluster) == {((1, 2, 3), (), False)}
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


def test_R12_member_does_not_campaign_when_it_applied_its_own_removal() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose_conf_change([("remove", 1)])
    cluster.settle()
    leader.become_follower()
    leader.campaign()
    cluster.settle()
    assert (leader.role, leader.term, leader.poisoned) == ("follower", 1, False)


def test_engine_keeps_its_leadership_when_the_heir_is_demoted() -> None:
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
    cluster = make_learners(cluster_with(4), 4)
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
