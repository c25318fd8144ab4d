"""The core of several members on the real engine, under a virtual clock."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from support.virtual_cluster import VirtualCluster
from tenure.types import LossReason


def test_cluster_elects_one_leader_when_all_members_run():
    """Exactly one member leads, with a token, after the first wait."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    grant = cluster.nodes[leader].grants[0]
    assert grant.credential.token == 1
    assert cluster.fence.token == 1


def test_cluster_elects_another_when_the_leader_crashes():
    """The successor's token is higher, and it leads within the declared bound."""
    cluster = VirtualCluster()
    first = cluster.elect()
    cluster.crash(first)
    second = cluster.elect(within_ms=6000)
    assert second != first
    assert cluster.fence.token == 2


def test_leader_steps_down_when_it_is_isolated():
    """The lease lapses by the leader's own clock, before the successor's begins."""
    cluster = VirtualCluster()
    first = cluster.elect()
    cluster.isolate(first)
    assert cluster.advance(2000, until=lambda: bool(cluster.nodes[first].revoked))
    assert cluster.nodes[first].revoked == [LossReason.LEASE_EXPIRED]
    second = cluster.elect(within_ms=8000)
    assert second != first


def test_leader_hands_over_quickly_when_its_body_returns():
    """RELEASE lets the successor skip the wait: a planned change takes well under a lease."""
    cluster = VirtualCluster()
    first = cluster.elect()
    before = cluster.now_ns
    cluster.return_body(first)
    second = cluster.elect(within_ms=3000)
    assert second != first
    assert (cluster.now_ns - before) / 1e6 < 300


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7])
def test_election_timeouts_of_the_members_never_meet_and_take_turns(size: int):
    """Two that wake up together split the vote; one that always wakes up last would never lead."""
    cluster = VirtualCluster(size)
    members = [cluster.core(raft_id).consensus for raft_id in cluster.nodes]
    ticks = [member.election_timeout_ticks() for member in members]
    apart = 40 // size
    assert all(40 <= each < 80 for each in ticks)
    assert all(later - earlier >= apart for earlier, later in itertools.pairwise(sorted(ticks)))
    first_of_term = []
    for term in range(size):
        for member in members:
            member.engine = Standing(term, [*cluster.nodes])
        first_of_term.append(min(members, key=lambda member: member.election_timeout_ticks()))
    assert len(set(map(id, first_of_term))) == size


@dataclass
class Standing:
    """As much of an engine as the choice of a timeout looks at."""

    term: int
    voters: list[int]
