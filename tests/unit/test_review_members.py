"""Members, snapshots and calls between two durable steps: what a review of step 2 tried to break."""

from __future__ import annotations

from support.virtual_cluster import Node
from support.virtual_members import ReplicatingCluster
from tenure.core.effects import Effect, MembersChanged, Proposed


def _leading(cluster: ReplicatingCluster) -> Node:
    return cluster.nodes[cluster.elect()]


def _propose(cluster: ReplicatingCluster, node: Node, data: bytes) -> None:
    core = cluster.core(node.raft_id)
    cluster.run(node, core.propose([(b"\x02" + data, None)], cluster.reading(node)))


def _told(cluster: ReplicatingCluster, node: Node, kind: type[Effect]) -> list[Effect]:
    return [effect for _, raft_id, effect in cluster.trace if raft_id == node.raft_id and isinstance(effect, kind)]


def test_R7_no_raft_id_is_given_twice_when_a_change_is_asked_for_while_another_one_becomes_durable():
    """The second change is judged when the engine takes it, not when it was asked for."""
    cluster = ReplicatingCluster(fenced=False)
    leader = _leading(cluster)
    core = cluster.core(leader.raft_id)
    cluster.change(leader.raft_id, [cluster.add_directory("d")], "first")
    leader.hold_persist = True
    # The commit of the first change comes while one fsync lasts, and its Ready has entries, so an fsync, of its own.
    _propose(cluster, leader, b"x")
    cluster.advance(10)
    _propose(cluster, leader, b"y")
    cluster.finish_persist(leader)
    assert core.consensus.persisting
    assert core.view().commit_index > core.applied_index
    assert all(record.name != "d" for record in core.state.members)
    cluster.change(leader.raft_id, [cluster.add_directory("e")], "second")
    leader.hold_persist = False
    cluster.finish_persist(leader)
    cluster.advance(500)
    assert _told(cluster, leader, MembersChanged)
    assert any("second" in effect.tickets for effect in _told(cluster, leader, Proposed))  # type: ignore[attr-defined]
    names = {record.name: record.raft_id for record in core.state.members}
    assert (names["d"], names["e"]) == (4, 5)
