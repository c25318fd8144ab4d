"""R13: a renewal needs a live application and a working disk."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.virtual_cluster import SETTINGS, VirtualCluster
from tenure.core.effects import Persist
from tenure.core.roles import Phase
from tenure.types import LossReason

TIMEOUT_MS = 5 * SETTINGS.lease_duration_ms
LEASE_MS = SETTINGS.lease_duration_ms


def alive(cluster: VirtualCluster, *ids: int) -> None:
    """The applications of these members are seen alive now."""
    for raft_id in ids:
        if cluster.nodes[raft_id].running:
            cluster.core(raft_id).holding.application_at = cluster.reading(cluster.nodes[raft_id])


def live(cluster: VirtualCluster, ms: int, *ids: int, until: Callable[[], bool] = lambda: False) -> bool:
    """Advance while the applications of ``ids``, and no other, go on."""
    for _ in range(ms // 50):
        alive(cluster, *ids)
        if cluster.advance(50, until=until):
            return True
    return False


def elected(cluster: VirtualCluster) -> int:
    assert live(cluster, 15_000, *cluster.nodes, until=lambda: len(cluster.leaders()) == 1)
    return cluster.leaders()[0]


def test_R13_leadership_ends_when_the_application_hangs_and_another_member_leads():
    """The engine goes on answering all the time: nothing but the application's silence ends the leadership."""
    cluster = VirtualCluster()
    leader = elected(cluster)
    others = [i for i in cluster.nodes if i != leader]
    live(cluster, TIMEOUT_MS - 100, *others)
    assert cluster.nodes[leader].revoked == []
    live(cluster, 200, *others)
    assert cluster.nodes[leader].revoked == [LossReason.APPLICATION_STALLED]
    # Its body hangs and never returns: the office goes to a member whose application lives.
    assert live(cluster, 12_000, *others, until=lambda: cluster.leaders() not in ([], [leader]))


def test_R13_application_that_answers_now_and_then_costs_nothing():
    """A loop that is blocked for less than the timeout loses nothing."""
    cluster = VirtualCluster()
    leader = elected(cluster)
    others = [i for i in cluster.nodes if i != leader]
    for _ in range(4):
        live(cluster, TIMEOUT_MS - 500, *others)
        alive(cluster, leader)
    assert cluster.nodes[leader].revoked == []
    assert cluster.leaders() == [leader]


@pytest.mark.parametrize("which", [0, 1])
def test_R13_member_whose_application_hangs_does_not_stand_for_election(which: int):
    """It votes, or the cluster could not do with one member less; it does not campaign."""
    cluster = VirtualCluster()
    leader = elected(cluster)
    followers = [i for i in cluster.nodes if i != leader]
    hung, other = followers[which], followers[1 - which]
    live(cluster, TIMEOUT_MS + 100, leader, other)
    cluster.crash(leader)
    roles = set()

    def other_leads() -> bool:
        roles.add(cluster.core(hung).view().raft_role)
        return cluster.leaders() == [other]

    assert live(cluster, 10_000, other, until=other_leads)
    assert roles == {"follower"}


def test_R13_idle_leader_proves_its_disk_once_a_lease():
    """Nothing is to be written, and something is all the same: one synchronous write for each lease, no log entry."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    cluster.advance(LEASE_MS)
    last, before = cluster.core(leader).view().commit_index, len(cluster.trace)
    cluster.advance(10 * LEASE_MS)
    written = [
        raft_id for _, raft_id, effect in cluster.trace[before:] if isinstance(effect, Persist) and effect.must_sync
    ]
    assert 8 <= written.count(leader) <= 11
    assert set(written) == {leader}
    assert cluster.core(leader).view().commit_index == last


def test_R13_lease_of_an_idle_leader_lapses_within_two_leases_when_its_disk_hangs():
    """Nobody writes anything: the proof itself hangs, and while it does nothing is renewed."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    cluster.advance(LEASE_MS // 2)
    cluster.nodes[leader].hold_persist = True
    assert cluster.advance(2 * LEASE_MS + 200, until=lambda: bool(cluster.nodes[leader].revoked))
    assert cluster.nodes[leader].revoked == [LossReason.LEASE_EXPIRED]


def test_proof_of_the_disk_is_no_announcement_when_leadership_is_lost_meanwhile():
    """The write returns after the office is lost: it renews nothing and proves nothing for another term."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node = cluster.nodes[leader]
    node.hold_persist = True
    assert cluster.advance(3 * LEASE_MS, until=lambda: bool(node.revoked))
    assert node.pending_persist is not None
    cluster.isolate(leader)
    cluster.advance(3 * LEASE_MS)
    node.hold_persist = False
    cluster.finish_persist(node)
    cluster.heal()
    cluster.advance(2 * LEASE_MS)
    assert cluster.core(leader).holding.phase in (Phase.FOLLOWING, Phase.YIELDING)
    assert node.granted is None
