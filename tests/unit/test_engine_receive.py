"""R3: what a peer sends is judged before raft-rs sees it, and bytes that nobody sends cannot harm it."""

from __future__ import annotations

from typing import Any

import pytest
from engine_cluster import Cluster
from hypothesis import given, settings
from hypothesis import strategies as st
from tenure_raft import Engine, decode_batch, encode_message, message_kinds

STRANGER = 77


def _view(engine: Engine) -> tuple[Any, ...]:
    return (
        engine.term,
        engine.vote,
        engine.commit,
        engine.last_index,
        engine.leader_id,
        engine.role,
        engine.has_ready(),
        engine.poisoned,
    )


def _follower() -> Engine:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    return cluster[2]


def _drops(payload: bytes, *, sender: int, engine: Engine | None = None) -> None:
    engine = engine or _follower()
    before = _view(engine)
    assert engine.receive(sender, payload, refuse_votes=False) == (0, 1)
    assert _view(engine) == before


@pytest.mark.parametrize("kind", ["heartbeat", "append", "request_vote", "timeout_now"])
def test_R3_message_is_dropped_when_its_sender_is_no_member(kind: str) -> None:
    """P12: raft-rs alone obeys a higher term from an id outside of the configuration."""
    payload = encode_message(kind, sender=STRANGER, to=2, term=9, index=5, log_term=9)
    _drops(payload, sender=STRANGER)


def test_R3_message_is_dropped_when_it_names_another_sender() -> None:
    _drops(encode_message("heartbeat", sender=1, to=2, term=9), sender=3)


def test_R3_message_is_dropped_when_it_is_for_another_member() -> None:
    _drops(encode_message("heartbeat", sender=1, to=3, term=9), sender=1)


def test_R3_message_is_dropped_when_it_comes_from_oneself() -> None:
    _drops(encode_message("heartbeat", sender=2, to=2, term=9), sender=2)


@pytest.mark.parametrize("kind", ["timeout_now", "heartbeat", "append", "request_vote"])
def test_R3_message_is_dropped_when_its_term_is_0(kind: str) -> None:
    """P5: a term of 0 marks a call of one's own; from outside it goes round every check of the term."""
    _drops(encode_message(kind, sender=3, to=2, term=0), sender=3)


@pytest.mark.parametrize("kind", ["propose", "transfer_leader", "read_index", "hup"])
@pytest.mark.parametrize("role", ["leader", "follower"])
def test_R3_message_is_dropped_when_its_kind_does_not_travel(kind: str, role: str) -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    to = 1 if role == "leader" else 2
    payload = encode_message(kind, sender=3, to=to, term=cluster[to].term)
    _drops(payload, sender=3, engine=cluster[to])


@pytest.mark.parametrize(
    ("kind", "context"),
    [
        ("request_pre_vote", b"CampaignTransfer"),
        ("request_vote", b"CampaignElection"),
        ("append", b"x"),
        ("timeout_now", b"x"),
    ],
)
def test_R3_message_is_dropped_when_its_context_is_not_one_that_raft_writes(kind: str, context: bytes) -> None:
    _drops(encode_message(kind, sender=3, to=2, term=9, context=context), sender=3)


@pytest.mark.parametrize("kind", ["heartbeat", "append", "request_vote", "timeout_now"])
def test_R3_message_is_dropped_when_its_sender_is_not_the_one_that_is_vouched_for(kind: str) -> None:
    """P12 again, beside a member that is vouched for, and after it is not any more."""
    payload = encode_message(kind, sender=STRANGER, to=2, term=9, index=5, log_term=9)
    engine = _follower()
    engine.vouch_for([4, 78])
    _drops(payload, sender=STRANGER, engine=engine)
    _drops(payload, sender=4, engine=engine)
    engine.vouch_for([STRANGER])
    engine.vouch_for([4])
    _drops(payload, sender=STRANGER, engine=engine)
    engine.vouch_for([])
    _drops(encode_message(kind, sender=4, to=2, term=9), sender=4, engine=engine)


@pytest.mark.parametrize("kind", ["append_response", "heartbeat_response", "request_vote_response"])
def test_R3_response_is_dropped_when_its_sender_is_only_vouched_for(kind: str) -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster[1].vouch_for([STRANGER])
    _drops(encode_message(kind, sender=STRANGER, to=1, term=1, index=1), sender=STRANGER, engine=cluster[1])


def test_engine_obeys_a_leader_when_it_is_only_vouched_for() -> None:
    engine = _follower()
    engine.vouch_for([STRANGER])
    heartbeat = encode_message("heartbeat", sender=STRANGER, to=2, term=9, commit=1)
    assert engine.receive(STRANGER, heartbeat, refuse_votes=False) == (1, 0)
    assert (engine.term, engine.leader_id) == (9, STRANGER)


@pytest.mark.parametrize("ids", [[0], [4, 1 << 62]])
def test_engine_vouches_for_nobody_new_when_an_id_is_out_of_range(ids: list[int]) -> None:
    engine = _follower()
    engine.vouch_for([4])
    with pytest.raises(ValueError, match="an id is out of range"):
        engine.vouch_for(ids)
    assert engine.receive(4, encode_message("heartbeat", sender=4, to=2, term=9), refuse_votes=False) == (1, 0)


@pytest.mark.parametrize("term", [1, 9])
def test_R3_heartbeat_is_dropped_when_it_commits_what_the_own_log_does_not_hold(term: int) -> None:
    """P10: the disk of this member was wiped or is an old copy; raft-rs alone panics."""
    engine = _follower()
    _drops(encode_message("heartbeat", sender=1, to=2, term=term, commit=2), sender=1, engine=engine)
    assert engine.receive(1, encode_message("heartbeat", sender=1, to=2, term=1, commit=1), refuse_votes=False)[0] == 1


def test_R3_acknowledgement_is_dropped_when_it_lies_beyond_the_own_log() -> None:
    """The other side of P10: it is this leader that has forgotten something, or the member that makes it up."""
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    _drops(encode_message("append_response", sender=3, to=1, term=1, index=2), sender=3, engine=leader)
    leader.propose([b"a"])
    cluster.settle()
    assert leader.progress()[2][:3] == (3, 2, 3)


def test_R10_order_to_campaign_is_dropped_when_it_is_refused() -> None:
    engine = _follower()
    order = encode_message("timeout_now", sender=1, to=2, term=1)
    before = _view(engine)
    assert engine.receive(1, order, refuse_votes=False, refuse_campaign=True) == (0, 1)
    assert _view(engine) == before
    vote = encode_message("request_vote", sender=3, to=2, term=2, index=9, log_term=1, context=b"CampaignTransfer")
    assert engine.receive(3, vote, refuse_votes=False, refuse_campaign=True) == (1, 0)
    assert (engine.term, engine.vote) == (2, 3)
    order = encode_message("timeout_now", sender=1, to=2, term=2)
    assert engine.receive(1, order, refuse_votes=False) == (1, 0)
    assert engine.role == "candidate"


def test_engine_steps_the_rest_when_one_message_is_dropped() -> None:
    engine = _follower()
    good = encode_message("heartbeat", sender=1, to=2, term=1)
    forged = encode_message("heartbeat", sender=STRANGER, to=2, term=9)
    assert engine.receive(1, good + forged + good, refuse_votes=False) == (2, 1)
    assert engine.term == 1


def test_engine_steps_nothing_when_a_later_message_is_malformed() -> None:
    engine = _follower()
    before = _view(engine)
    good = encode_message("heartbeat", sender=1, to=2, term=2)
    with pytest.raises(ValueError, match="ends too early"):
        engine.receive(1, good + good[:-1], refuse_votes=False)
    assert _view(engine) == before


def test_engine_refuses_a_payload_when_it_is_longer_than_any_that_is_sent() -> None:
    with pytest.raises(ValueError, match="payload too long"):
        _follower().receive(1, bytes((4 << 20) + 1), refuse_votes=False)


def test_engine_refuses_a_message_when_it_claims_more_entries_than_it_has_bytes() -> None:
    empty = encode_message("append", sender=1, to=2, term=1, index=1, log_term=1)
    assert empty.endswith(bytes(4))
    with pytest.raises(ValueError, match="more entries than bytes"):
        _follower().receive(1, empty[:-4] + b"\xff\xff\xff\xff", refuse_votes=False)


def test_engine_refuses_a_message_when_a_number_is_out_of_range() -> None:
    message = bytearray(encode_message("heartbeat", sender=1, to=2, term=1))
    message[18:26] = b"\xff" * 8
    with pytest.raises(ValueError, match="number out of range"):
        _follower().receive(1, bytes(message), refuse_votes=False)


def test_message_kinds_tells_what_a_payload_holds_when_it_is_well_formed() -> None:
    payload = encode_message("append", sender=1, to=2, term=3) + encode_message(
        "request_vote", sender=2, to=1, term=4, context=b"CampaignTransfer"
    )
    assert message_kinds(payload) == [("append", 1, 2, 3), ("request_vote", 2, 1, 4)]
    assert message_kinds(b"") == []


@settings(max_examples=400, deadline=None)
@given(payload=st.binary(max_size=400), sender=st.sampled_from([1, 2, 3, STRANGER]))
def test_engine_is_unharmed_when_it_receives_any_bytes(payload: bytes, sender: int) -> None:
    engine = _shared_follower()
    before = _view(engine)
    try:
        stepped, _ = engine.receive(sender, payload, refuse_votes=False)
    except ValueError:
        stepped = 0
    assert stepped == 0
    assert _view(engine) == before


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_engine_is_unharmed_when_a_true_payload_is_cut_or_bent(data: st.DataObject) -> None:
    """Bytes of a real message, changed: it is refused, dropped or obeyed, but the engine stays well.

    Its sender, receiver and term are left alone: whoever is let in is believed in what it is.
    """
    payload = bytearray(_true_append() if data.draw(st.booleans()) else _true_snapshot())
    free = [*range(2), *range(26, len(payload))]
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.sampled_from(free))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(payload)))
    engine = _follower()
    try:
        engine.receive(1, bytes(payload[: end or None]), refuse_votes=False)
    except ValueError:
        assert not engine.has_ready()
    if engine.has_ready():
        engine.advance(engine.ready())
    engine.tick(30)
    assert not engine.poisoned
    assert engine.term == 1


@settings(max_examples=300, deadline=None)
@given(blob=st.binary(max_size=200))
def test_decode_batch_refuses_or_reads_when_it_gets_any_bytes(blob: bytes) -> None:
    for candidate in (blob, b"\x01" + blob):
        try:
            entries = decode_batch(candidate)
        except ValueError:
            continue
        assert [index for index, *_ in entries] == list(range(entries[0][0], entries[0][0] + len(entries)))


_cache: dict[str, Any] = {}


def _shared_follower() -> Engine:
    """One engine for many examples: none of them may change it."""
    if "follower" not in _cache:
        _cache["follower"] = _follower()
    engine: Engine = _cache["follower"]
    return engine


def _true_append() -> bytes:
    if "append" not in _cache:
        cluster = Cluster([1, 2, 3])
        leader = cluster.elect(1)
        leader.propose([b"a", b"bb"])
        _cache["append"] = next(payload for to, payload in leader.ready().messages if to == 2)
    payload: bytes = _cache["append"]
    return payload


def _true_snapshot() -> bytes:
    if "snapshot" not in _cache:
        cluster = Cluster([1, 2, 3])
        cluster.elect(1)
        cluster.isolate(2)
        cluster[1].propose([b"a"])
        cluster.settle()
        cluster.members[1].compact(b"state")
        cluster.heal()
        _cache["snapshot"] = cluster.next_frame("snapshot")[2]
    payload: bytes = _cache["snapshot"]
    return payload
