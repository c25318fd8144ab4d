"""Suspicion after a death: it only shortens the detection, never the wait, and never moves a term by itself."""

from __future__ import annotations

import pytest

from support.virtual_cluster import SETTINGS, VirtualCluster
from tenure.instants import wait_out_ns

MS = 1_000_000
LEASE_WAIT_MS = wait_out_ns(SETTINGS.lease_duration_ms * MS, SETTINGS.clock_rate_error_ppm, 0) // MS


def suspect_everywhere(cluster: VirtualCluster, gone: int, *, apart_ms: int = 0) -> None:
    """Every running member sees that nobody listens at the address of ``gone``, one after the other."""
    for raft_id, node in cluster.nodes.items():
        if raft_id != gone and node.running:
            cluster.run(node, cluster.core(raft_id).suspect(gone, cluster.reading(node)))
            if apart_ms:
                cluster.advance(apart_ms)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("apart_ms", [0, 5, 20])
def test_successor_leads_within_the_wait_when_the_leaders_process_is_gone(seed: int, apart_ms: int):
    """No election timeout passes: about the old lease and a few round trips."""
    cluster = VirtualCluster(seed=seed)
    first = cluster.elect()
    cluster.advance(1500)
    cluster.crash(first)
    before = cluster.now_ns
    cluster.advance(5)
    suspect_everywhere(cluster, first, apart_ms=apart_ms)
    second = cluster.elect()
    assert second != first
    took_ms = (cluster.now_ns - before) // MS
    assert LEASE_WAIT_MS - 150 <= took_ms <= LEASE_WAIT_MS + 300


def test_suspicion_moves_no_term_when_the_leader_is_alive():
    """A false alarm at one member: pre-vote is refused by those who hear the leader, which goes on leading."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    cluster.advance(1500)
    term = cluster.core(leader).view().term
    follower = next(i for i in cluster.nodes if i != leader)
    for _ in range(20):
        node = cluster.nodes[follower]
        cluster.run(node, cluster.core(follower).suspect(leader, cluster.reading(node)))
        cluster.advance(200)
    assert cluster.core(leader).view().term == term
    assert cluster.leaders() == [leader]
    assert cluster.nodes[leader].revoked == []


def test_suspicion_of_a_follower_changes_nothing():
    """Only the leader's death calls for an election."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    cluster.advance(1500)
    suspected = next(i for i in cluster.nodes if i != leader)
    term = cluster.core(leader).view().term
    suspect_everywhere(cluster, suspected)
    cluster.advance(2000)
    assert cluster.core(leader).view().term == term
    assert cluster.leaders() == [leader]


def test_R6_suspicion_does_not_make_a_restarted_member_campaign():
    """The embargo after a start holds for suspicion, too."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    voter = next(i for i in cluster.nodes if i != leader)
    cluster.crash(voter)
    cluster.restart(voter)
    cluster.isolate(voter)
    node = cluster.nodes[voter]
    cluster.run(node, cluster.core(voter).suspect(leader, cluster.reading(node)))
    cluster.advance(900)
    assert cluster.core(voter).view().raft_role == "follower"
    cluster.advance(300)
    assert cluster.core(voter).view().raft_role == "pre_candidate"
