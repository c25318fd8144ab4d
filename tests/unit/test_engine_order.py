"""R1 and R2: what may leave before the fsync, the order of calls, and the end of an engine that failed."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
from engine_cluster import Cluster, Member
from tenure_raft import Engine, EngineError, ProposalDropped, Ready, encode_batch, encode_message, message_kinds

CALLS: dict[str, Callable[[Engine], object]] = {
    "tick": lambda engine: engine.tick(),
    "receive": lambda engine: engine.receive(
        2, encode_message("heartbeat", sender=2, to=1, term=9), refuse_votes=False
    ),
    "propose": lambda engine: engine.propose([b"a"]),
    "propose_conf_change": lambda engine: engine.propose_conf_change([("add_learner", 9)]),
    "apply_conf_change": lambda engine: engine.apply_conf_change(b""),
    "read_index": lambda engine: engine.read_index(b"context"),
    "transfer_leader": lambda engine: engine.transfer_leader(2),
    "become_follower": lambda engine: engine.become_follower(),
    "campaign": lambda engine: engine.campaign(),
    "report_unreachable": lambda engine: engine.report_unreachable(2),
    "report_snapshot": lambda engine: engine.report_snapshot(2, received=True),
    "vouch_for": lambda engine: engine.vouch_for([2]),
    "set_randomized_election_timeout": lambda engine: engine.set_randomized_election_timeout(12),
    "has_ready": lambda engine: engine.has_ready(),
    "ready": lambda engine: engine.ready(),
    "applied_to": lambda engine: engine.applied_to(1),
    "compact": lambda engine: engine.compact(1, b""),
}


def _leader_with_ready() -> tuple[Engine, Ready]:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose([b"a"])
    return leader, leader.ready()


@pytest.mark.parametrize("call", CALLS)
def test_R2_call_is_refused_when_a_ready_is_outstanding(call: str) -> None:
    leader, ready = _leader_with_ready()
    before = (leader.term, leader.role, leader.last_index, leader.commit, leader.applied)
    with pytest.raises(EngineError, match=f"Ready {ready.number} must be advanced first"):
        CALLS[call](leader)
    assert (leader.term, leader.role, leader.last_index, leader.commit, leader.applied) == before
    assert not leader.poisoned
    assert leader.advance(ready).messages == []
    assert leader.propose([b"b"]) == 3


def test_R2_engine_is_unusable_when_raft_has_panicked(capfd: pytest.CaptureFixture[str]) -> None:
    """A log that contradicts its own configuration: it leaves a joint one that it never entered."""
    member = Member(1, [1, 2, 3], [])
    member.disk.term = member.disk.commit = 1
    member.disk.batches = [encode_batch([(1, 1, "conf_change", b"")])]
    member.restart()
    engine = member.engine
    with pytest.raises(EngineError, match=r"configuration change of index 1: .*can't leave a non-joint") as failure:
        member.turn()
    assert not isinstance(failure.value, ProposalDropped)
    assert engine.poisoned
    for call in CALLS.values():
        with pytest.raises(EngineError, match="unusable since: configuration change of index 1"):
            call(engine)
    for name in ("term", "vote", "commit", "applied", "last_index", "leader_id", "role", "voters", "joint"):
        with pytest.raises(EngineError, match="unusable since"):
            getattr(engine, name)
    assert engine.raft_id == 1
    assert capfd.readouterr() == ("", "")


def test_engine_refuses_to_advance_when_the_ready_is_not_the_outstanding_one() -> None:
    leader, ready = _leader_with_ready()
    leader.advance(ready)
    with pytest.raises(EngineError, match=f"Ready {ready.number} is not the outstanding one"):
        leader.advance(ready)
    other = Cluster([2, 1, 3])
    with pytest.raises(EngineError, match="another engine's"):
        other[2].advance(ready)
    assert not leader.poisoned


def test_engine_refuses_to_apply_when_the_index_was_not_handed_out() -> None:
    leader, ready = _leader_with_ready()
    leader.advance(ready)
    for index in (0, 2):
        with pytest.raises(EngineError, match=f"index {index} is outside of what may be applied, 1 to 1"):
            leader.applied_to(index)
    leader.applied_to(1)
    assert not leader.poisoned


def test_engine_error_can_be_pickled_when_it_crosses_a_process() -> None:
    error = pickle.loads(pickle.dumps(ProposalDropped("why")))
    assert isinstance(error, EngineError)
    assert type(error).__module__ == "tenure_raft"
    assert str(error) == "why"


def test_R1_nothing_leaves_before_the_fsync_when_a_member_votes_or_follows() -> None:
    cluster = Cluster([1, 2, 3])
    cluster[1].campaign()
    for _ in range(20):
        for member in cluster.members.values():
            if not member.engine.has_ready():
                continue
            ready = member.engine.ready()
            if member.engine.role != "leader":
                assert ready.messages == []
            member.disk.save(ready, member.engine)
            advanced = member.engine.advance(ready)
            member.apply(advanced)
            sent = [*ready.messages, *advanced.messages]
            cluster.flying.extend((member.raft_id, to, payload) for to, payload in sent)
        cluster.deliver()
    assert cluster.leaders() == [1]


def test_R1_change_of_term_is_told_when_a_single_voter_becomes_leader() -> None:
    """P9: it leads in the very Ready whose term is not durable yet; a crash now would lead that term twice."""
    engine = Cluster([1])[1]
    engine.campaign()
    ready = engine.ready()
    assert (ready.role, ready.hard_state) == ("leader", (1, 1, 0))
    assert ready.term_or_vote_changed
    assert ready.must_sync
    engine.applied_to(engine.advance(ready).committed[-1][0])
    engine.propose([b"a"])
    later = engine.ready()
    assert later.entries_count == 1
    assert not later.term_or_vote_changed


def test_R1_change_of_term_is_told_when_a_learner_is_sent_the_first_entries() -> None:
    """P9b: with one voter and a learner the append is among the early messages of that same Ready."""
    engine = Cluster([1], [2])[1]
    engine.campaign()
    ready = engine.ready()
    assert ready.term_or_vote_changed
    [(to, payload)] = ready.messages
    assert to == 2
    assert {kind for kind, *_ in message_kinds(payload)} == {"append"}


def test_R1_change_of_vote_is_told_when_a_restarted_member_votes() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    member = cluster.members[2]
    member.restart()
    ready = member.engine.ready()
    assert not ready.term_or_vote_changed
    member.apply(member.engine.advance(ready))
    request = encode_message("request_vote", sender=3, to=2, term=2, index=1, log_term=1)
    member.engine.receive(3, request, refuse_votes=False)
    ready = member.engine.ready()
    assert ready.hard_state is not None
    assert ready.hard_state[:2] == (2, 3)
    assert ready.term_or_vote_changed


@pytest.mark.parametrize(
    ("crash", "voted_for"),
    [("before the fsync", {3}), ("after the fsync", set()), ("after the answer", {1})],
)
def test_R1_no_vote_is_given_twice_when_a_member_crashes(crash: str, voted_for: set[int]) -> None:
    """Two candidates of one term ask one after the other, with a crash of the voter in between."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    victim = cluster.members[2]
    votes = _ask_for_vote(victim, candidate=1, crash=crash)
    victim.restart()
    votes |= _ask_for_vote(victim, candidate=3, crash=None)
    assert votes == voted_for


def _ask_for_vote(victim: Member, *, candidate: int, crash: str | None) -> set[int]:
    """Whom the victim's answers grant its vote. On a crash it leaves off where that would."""
    victim.engine.become_follower()
    request = encode_message("request_vote", sender=candidate, to=2, term=5, index=1, log_term=1)
    victim.engine.receive(candidate, request, refuse_votes=False)
    ready = victim.engine.ready()
    if crash == "before the fsync":
        return set()
    victim.disk.save(ready, victim.engine)
    if crash == "after the fsync":
        return set()
    granted = victim.engine.vote == candidate
    answers = [message_kinds(payload) for _, payload in victim.engine.advance(ready).messages]
    assert [kind for [(kind, *_)] in answers] == ["request_vote_response"]
    return {candidate} if granted else set()


def test_engine_hands_out_the_read_state_when_it_stepped_down_in_between() -> None:
    """P8b: one Ready says follower and carries a read earned as leader. R8 compares the term in the context."""
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.read_index(b"term 1")
    cluster.turn()
    cluster.deliver()
    cluster.turn()
    [answer] = [frame for frame in cluster.flying if frame[:2] == (2, 1)]
    leader.receive(2, answer[2], refuse_votes=False)
    leader.become_follower()
    ready = leader.ready()
    assert ready.role == "follower"
    assert ready.read_states == [(1, b"term 1")]


def test_engine_answers_a_read_when_a_quorum_acknowledged_it_and_not_before() -> None:
    cluster = Cluster([1, 2, 3, 4])
    leader = cluster.elect(1)
    cluster.cut |= {(1, 3), (1, 4)}
    leader.read_index(b"first")
    cluster.settle()
    assert cluster.members[1].read_states == []
    cluster.heal()
    leader.read_index(b"second")
    cluster.settle()
    assert cluster.members[1].read_states == [(1, b"first"), (1, b"second")]


def test_engine_answers_no_read_when_it_follows() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster[2].read_index(b"x")
    assert not cluster[2].has_ready()


@pytest.mark.parametrize("context", [b"", b"x" * 1025])
def test_engine_refuses_a_read_when_its_context_is_of_a_wrong_size(context: bytes) -> None:
    with pytest.raises(ValueError, match="a context has 1 to 1024 bytes"):
        Cluster([1])[1].read_index(context)
