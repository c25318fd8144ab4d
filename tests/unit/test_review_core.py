"""Schedules and misuse that an adversarial reading of the core, the scope and the driver turned up."""

from __future__ import annotations

import msgspec
import tenure_raft

from support.virtual_cluster import SETTINGS, Node, VirtualCluster
from tenure.core.consensus import INBOX_BYTES_MAX
from tenure.core.effects import ReadFence, Send
from tenure.core.holding import FloorRead
from tenure.core.roles import Phase
from tenure.types import LossReason

MS = 1_000_000


def step_down(cluster: VirtualCluster, node: Node) -> None:
    core = cluster.core(node.raft_id)
    cluster.run(node, core.step_down(LossReason.STEPPED_DOWN, cluster.reading(node)))


def kinds(payload: bytes) -> set[str]:
    return {kind for kind, *_ in tenure_raft.message_kinds(payload)}


def asks_for_votes(payload: bytes) -> bool:
    return bool(kinds(payload) & {"request_vote", "request_pre_vote"})


def sent_by(cluster: VirtualCluster, raft_id: int) -> list[Send]:
    return [effect for _, sender, effect in cluster.trace if sender == raft_id and isinstance(effect, Send)]


def in_phase(cluster: VirtualCluster, phase: Phase) -> Node | None:
    return next((node for node in cluster.nodes.values() if node.core and node.core.holding.phase is phase), None)


# -- the lease ------------------------------------------------------------------------------------------------------


def test_R9_cover_is_never_below_the_own_lease_when_the_setting_shrinks_before_the_acquire():
    """The length of the holding is fixed at the own entry: a shorter setting that is applied later must not hide it."""
    cluster = VirtualCluster(settings=msgspec.structs.replace(SETTINGS, lease_duration_ms=2000))
    cluster.fence_delay_ms = 200
    assert cluster.advance(8000, until=lambda: in_phase(cluster, Phase.READING) is not None)
    node = in_phase(cluster, Phase.READING)
    core = cluster.core(node.raft_id)
    shorter = msgspec.structs.replace(cluster.settings, lease_duration_ms=400)
    cluster.run(node, core.change_settings(shorter, cluster.reading(node)))
    assert cluster.advance(1000, until=lambda: core.state.holding is not None)
    holding = core.state.holding
    assert holding.duration_ns == 2000 * MS
    assert holding.cover_ns >= holding.duration_ns


def test_leader_is_granted_its_lease_when_the_margin_of_its_file_exceeds_the_lease_of_the_log():
    """A file that was edited after the founding: the member must not keep the office without ever serving."""
    cluster = VirtualCluster(size=1)
    cluster.margin_ms = SETTINGS.lease_duration_ms + 500
    cluster.crash(1)
    cluster.restart(1)
    assert cluster.elect() == 1
    cluster.advance(5000)
    assert cluster.leaders() == [1]
    assert cluster.nodes[1].revoked == []


# -- liveness -------------------------------------------------------------------------------------------------------


def test_R10_member_with_a_hung_body_neither_campaigns_nor_takes_a_transfer():
    """It may not lead, so it must not win: each such election costs the others another timeout."""
    cluster = VirtualCluster()
    hung = cluster.elect()
    step_down(cluster, cluster.nodes[hung])
    cluster.advance(1100)
    cluster.trace.clear()
    core = cluster.core(hung)
    assert core.view().raft_role == "follower"
    for other in cluster.nodes:
        if other != hung:
            order = tenure_raft.encode_message("timeout_now", sender=other, to=hung, term=core.view().term)
            cluster.hand_over(other, hung, order)
            cluster.advance(300)
    # Nobody else's request arrives: this member alone could win now.
    cluster.filter = lambda sender, _, payload: sender == hung or not asks_for_votes(payload)
    cluster.advance(20_000)
    assert not any("append" in kinds(effect.payload) for effect in sent_by(cluster, hung))


def test_R10_member_with_a_hung_body_still_votes():
    """Its vote may be the one that a quorum needs."""
    cluster = VirtualCluster()
    first = cluster.elect()
    step_down(cluster, cluster.nodes[first])
    second = cluster.elect(within_ms=15_000)
    third = next(i for i in cluster.nodes if i not in (first, second))
    cluster.crash(second)
    assert cluster.elect(within_ms=15_000) == third
    term = cluster.core(third).view().term
    step_down(cluster, cluster.nodes[third])
    cluster.return_body(third)
    cluster.advance(6000)
    assert cluster.leaders() == [third]
    assert cluster.core(third).view().term - term <= 3


def test_R15_floor_that_leaves_no_room_for_a_token_is_refused_before_anything_is_proposed():
    """A committed ACQUIRE that no state machine can apply would end every member, at every start."""
    cluster = VirtualCluster()
    cluster.fence.token = (1 << 32) - 1
    cluster.advance(8000)
    assert all(node.core.state.holding is None for node in cluster.nodes.values())
    assert any("no room" in (node.core.view().reason or "") for node in cluster.nodes.values())
    cluster.fence.token = 7
    cluster.elect()
    assert cluster.fence.raises == [8]


def test_late_answer_of_the_fence_to_an_earlier_term_changes_nothing():
    """Requests are numbered over all terms: what a former life of the holding asked is not taken by the present one."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    asked = max(effect.request for _, i, effect in cluster.trace if i == leader and isinstance(effect, ReadFence))
    cluster.return_body(leader)
    cluster.advance(5)
    before = core.holding.phase
    cluster.run(node, core.fence_read(asked, FloorRead(token=99, expected=1), cluster.reading(node)))
    assert core.holding.phase is before


def test_inbox_is_bounded_in_bytes_while_the_disk_hangs():
    """Some thousand frames of four megabytes would be more memory than the machine has."""
    cluster = VirtualCluster()
    node = cluster.nodes[cluster.elect()]
    core = cluster.core(node.raft_id)
    node.hold_persist = True
    core.consensus.propose(b"\x01")
    assert cluster.advance(200, until=lambda: core.consensus.persisting)
    frame = bytes(4 << 20)
    before = core.consensus.dropped_payloads
    for _ in range(100):
        cluster.hand_over(2, node.raft_id, frame)
    waiting = [payload for _, payload in core.consensus._inbox]
    assert sum(map(len, waiting)) <= INBOX_BYTES_MAX
    assert core.consensus.dropped_payloads > before
