"""Elections by the bound raft-rs: R4, R5 and R6 as the driver leans on them."""

from __future__ import annotations

import pytest
from engine_cluster import ELECTION_TICK, Cluster
from tenure_raft import encode_message, message_kinds


def _vote_request(cluster: Cluster, *, sender: int, to: int, context: bytes = b"") -> bytes:
    candidate = cluster[sender]
    return encode_message(
        "request_vote",
        sender=sender,
        to=to,
        term=candidate.term + 1,
        index=candidate.last_index,
        log_term=candidate.last_term,
        context=context,
    )


def test_engine_elects_one_leader_when_three_voters_talk() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    assert cluster.leaders() == [1]
    assert (leader.term, leader.vote, leader.leader_id) == (1, 1, 1)
    assert [cluster[i].leader_id for i in (2, 3)] == [1, 1]
    assert [cluster[i].vote for i in (2, 3)] == [1, 1]
    assert leader.granted_votes >= 2
    assert cluster[2].granted_votes == 0


def test_engine_campaigns_by_itself_when_its_election_timeout_has_passed() -> None:
    cluster = Cluster([1, 2, 3])
    cluster[1].set_randomized_election_timeout(ELECTION_TICK)
    cluster[2].set_randomized_election_timeout(2 * ELECTION_TICK - 1)
    cluster[3].set_randomized_election_timeout(2 * ELECTION_TICK - 1)
    cluster.tick(ELECTION_TICK - 1)
    assert cluster.leaders() == []
    cluster.tick(1)
    assert cluster.leaders() == [1]


@pytest.mark.parametrize("ticks", [ELECTION_TICK - 1, 2 * ELECTION_TICK])
def test_engine_refuses_an_election_timeout_when_it_is_out_of_range(ticks: int) -> None:
    with pytest.raises(ValueError, match=r"not in 10\.\.20"):
        Cluster([1])[1].set_randomized_election_timeout(ticks)


def test_engine_elects_nobody_when_there_is_no_quorum() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.isolate(2)
    cluster.isolate(3)
    cluster[1].campaign()
    cluster.settle()
    cluster.tick(4 * ELECTION_TICK)
    assert cluster.leaders() == []
    assert [cluster[i].term for i in (1, 2, 3)] == [0, 0, 0]


def test_engine_counts_votes_of_a_candidate_when_they_are_not_enough() -> None:
    cluster = Cluster([1, 2, 3, 4, 5])
    cluster[1].campaign()
    while cluster[1].role != "candidate":
        cluster.turn()
        cluster.deliver()
    assert cluster[1].granted_votes == 1
    cluster.turn()
    cluster.isolate(3)
    cluster.isolate(4)
    cluster.isolate(5)
    cluster.settle()
    assert cluster[1].role == "candidate"
    assert cluster[1].granted_votes == 2


def test_engine_transfers_leadership_when_asked() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1).transfer_leader(2)
    cluster.settle()
    assert cluster.leaders() == [2]
    assert cluster[2].term == 2


def test_engine_lets_two_believe_when_an_old_timeout_now_arrives_late() -> None:
    """P6: the leader gave the transfer up and leads on; the late order still makes a second one. R10 is why."""
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.transfer_leader(2)
    cluster.turn()
    late = [frame for frame in cluster.flying if message_kinds(frame[2])[0][0] == "timeout_now"]
    cluster.flying.clear()
    cluster.tick(ELECTION_TICK)
    leader.propose([b"the transfer is over"])
    cluster.settle()
    cluster.cut |= {(2, 1), (3, 1)}
    [(sender, to, payload)] = late
    assert cluster[to].receive(sender, payload, refuse_votes=False) == (1, 0)
    cluster.settle()
    assert cluster.leaders() == [1, 2]
    assert (cluster[1].term, cluster[2].term) == (1, 2)


def test_R4_leader_steps_down_when_it_hears_no_quorum() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.isolate(1)
    cluster.tick(2 * ELECTION_TICK, only=1)
    assert cluster[1].role != "leader"


def test_R4_vote_is_refused_when_the_leader_was_heard_of() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.tick(4)
    stepped = cluster[2].receive(3, _vote_request(cluster, sender=3, to=2), refuse_votes=False)
    cluster.settle()
    assert stepped == (1, 0)
    assert (cluster[2].term, cluster[2].vote, cluster.leaders()) == (1, 1, [1])


def test_R4_term_stays_when_a_cut_off_member_campaigns() -> None:
    """Pre-vote: without it the returning member's higher term would depose a healthy leader."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.isolate(3)
    cluster.tick(8 * ELECTION_TICK)
    assert cluster[3].term == 1
    cluster.heal()
    cluster.tick(4)
    assert (cluster.leaders(), cluster[1].term, cluster[3].leader_id) == ([1], 1, 1)


def test_R5_vote_is_refused_when_owed_ticks_run_before_the_queued_heartbeat() -> None:
    """P2: a paused follower owes a whole timeout; the heartbeat that waits for it must count from now on."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster[2].set_randomized_election_timeout(2 * ELECTION_TICK - 1)
    heartbeat = encode_message("heartbeat", sender=1, to=2, term=1)
    cluster[2].tick(ELECTION_TICK)
    cluster[2].receive(1, heartbeat, refuse_votes=False)
    cluster[2].receive(3, _vote_request(cluster, sender=3, to=2), refuse_votes=False)
    assert (cluster[2].term, cluster[2].vote) == (1, 1)


def test_R5_vote_is_granted_when_owed_ticks_run_after_the_queued_heartbeat() -> None:
    """The control of the test above: in the wrong order the same follower votes at once."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster[2].set_randomized_election_timeout(2 * ELECTION_TICK - 1)
    heartbeat = encode_message("heartbeat", sender=1, to=2, term=1)
    cluster[2].receive(1, heartbeat, refuse_votes=False)
    cluster[2].tick(ELECTION_TICK)
    cluster[2].receive(3, _vote_request(cluster, sender=3, to=2), refuse_votes=False)
    assert (cluster[2].term, cluster[2].vote) == (2, 3)


@pytest.mark.parametrize("kind", ["request_vote", "request_pre_vote", "timeout_now"])
def test_R6_votes_are_dropped_when_the_node_has_just_started(kind: str) -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.members[2].restart()
    cluster.settle()
    payload = encode_message(kind, sender=3, to=2, term=5, index=9, log_term=5)
    assert cluster[2].receive(3, payload, refuse_votes=True) == (0, 1)
    assert (cluster[2].term, cluster[2].vote, cluster[2].has_ready()) == (1, 1, False)
    assert cluster[2].receive(3, payload, refuse_votes=False) == (1, 0)
    assert cluster[2].has_ready()
