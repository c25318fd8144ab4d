"""What the quick way of a lone command takes for granted."""

from __future__ import annotations

import pytest
import tenure_raft

from support.virtual_cluster import VirtualCluster
from tenure.core.commands import USER
from tenure.core.effects import Proposed, Send
from tenure.node.engine import SNAPSHOT, snapshot_in
from tenure.node.envelopes import FIRST

KINDS = ("append", "append_response", "heartbeat", "heartbeat_response", "request_vote", "request_vote_response",
         "request_pre_vote", "request_pre_vote_response", "timeout_now")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_payload_does_not_begin_like_a_snapshot_when_it_is_another_message(kind: str):
    payload = tenure_raft.encode_message(kind, sender=1, to=2, term=3)
    assert payload[:1] != SNAPSHOT
    assert payload[0] < FIRST
    assert snapshot_in(payload) is None
    assert tenure_raft.snapshot_in(payload) is None


@pytest.mark.parametrize("kind", ["append", "append_response"])
def test_payload_of_a_command_is_taken_at_first_sight_when_it_is_routed(kind: str):
    assert tenure_raft.encode_message(kind, sender=1, to=2, term=3)[:1] < SNAPSHOT


def test_payload_begins_with_the_mark_when_it_is_a_snapshot():
    payload = tenure_raft.encode_message("snapshot", sender=1, to=2, term=3)
    assert payload[:1] == SNAPSHOT
    with pytest.raises(ValueError, match="snapshot"):
        snapshot_in(payload)


def test_step_asks_for_nothing_and_shows_nothing_new_when_an_acknowledgement_completes_no_quorum():
    """The driver does not show such a step: that must hide nothing."""
    cluster = VirtualCluster()
    leader = cluster.nodes[cluster.elect()]
    core = cluster.core(leader.raft_id)
    cluster.advance(3000)
    effects = core.propose([(bytes([USER]) + b"command", "ticket")], cluster.reading(leader))
    assert isinstance(effects[0], Proposed)
    sent = [effect for effect in effects if isinstance(effect, Send)]
    assert len(sent) == len(cluster.nodes) - 1
    index = effects[0].first
    core.persisted(cluster.reading(leader))
    first, second = (
        tenure_raft.encode_message(
            "append_response",
            sender=effect.peer,
            to=leader.raft_id,
            term=effects[0].term,
            index=index,
            commit=index - 1,
        )
        for effect in sent
    )
    committed = core.receive(sent[0].peer, first, cluster.reading(leader))
    assert committed
    core.persisted(cluster.reading(leader))
    before = core.view()
    assert before.applied_index == index
    assert core.receive(sent[1].peer, second, cluster.reading(leader)) == []
    assert core.view() == before
