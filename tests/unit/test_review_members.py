"""Members, snapshots and calls between two durable steps: what a review of step 2 tried to break."""

from __future__ import annotations

from support.virtual_cluster import Node
from support.virtual_members import ReplicatingCluster
from tenure.core.effects import Compact, Declined, Effect, MembersChanged, Persist, Proposed, Proved, TakeSnapshot
from tenure.core.membership import Remove
from tenure.core.snapshots import SnapshotLimits


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


def _lagging(cluster: ReplicatingCluster) -> tuple[Node, Node]:
    """A leader, and a follower that was cut off so long that it needs the leader's snapshot."""
    leader = _leading(cluster)
    late = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.advance(200)
    cluster.isolate(late.raft_id)
    for number in range(30):
        _propose(cluster, leader, b"%d" % number)
        cluster.advance(10)
    cluster.advance(200)
    assert cluster.core(leader.raft_id).snapshot_index > cluster.core(late.raft_id).applied_index
    return leader, late


def test_own_snapshot_is_let_go_when_the_leaders_is_becoming_durable():
    """Its record is durable, the leader's snapshot is on its way to the disk: the engine must not go back."""
    cluster = ReplicatingCluster(fenced=False)
    cluster.limits = SnapshotLimits(entries=10, size_bytes=1 << 20, keep_entries=0)
    for raft_id in list(cluster.nodes):
        cluster.restart(raft_id)
    _, late = _lagging(cluster)
    core = cluster.core(late.raft_id)
    cluster.compact_ms = lambda: 1 << 20
    cluster.run(late, core.ask_snapshot(None, cluster.reading(late)))
    cluster.advance(100)
    (compact,) = [effect for effect in _told(cluster, late, Compact) if isinstance(effect, Compact)][-1:]
    late.hold_persist = True
    cluster.heal()
    assert cluster.advance(5000, until=lambda: isinstance(late.pending_persist, Persist) and _brings(late))
    cluster.run(late, cluster._compact(late, core, compact.manifest))
    late.hold_persist = False
    cluster.finish_persist(late)
    assert cluster.advance(5000, until=cluster.agree), cluster.standings()
    cluster.crash(late.raft_id)
    cluster.restart(late.raft_id)
    assert cluster.advance(5000, until=cluster.agree), cluster.standings()


def _brings(node: Node) -> bool:
    """Whether the save that waits brings a snapshot."""
    return node.pending_persist is not None and node.pending_persist.snapshot is not None


def test_snapshot_can_be_taken_again_at_once_when_it_failed():
    """Nothing was applied in between: it is due all the same, and who asks is answered."""
    cluster = ReplicatingCluster(fenced=False)
    node = _leading(cluster)
    _propose(cluster, node, b"x")
    cluster.advance(100)
    core = cluster.core(node.raft_id)
    cluster.snapshot_fails = lambda: True
    cluster.run(node, core.ask_snapshot("first", cluster.reading(node)))
    cluster.advance(100)
    assert [effect.ticket for effect in _told(cluster, node, Declined) if isinstance(effect, Declined)] == ["first"]
    cluster.snapshot_fails = lambda: False
    cluster.run(node, core.ask_snapshot("second", cluster.reading(node)))
    cluster.advance(100)
    assert [effect.ticket for effect in _told(cluster, node, Proved) if isinstance(effect, Proved)] == ["second"]


def test_one_snapshot_is_under_way_when_the_leaders_overtook_the_one_before():
    """The leader's snapshot came while the own was written: the next one begins at its end."""
    cluster = ReplicatingCluster(fenced=False)
    leader, late = _lagging(cluster)
    core = cluster.core(late.raft_id)
    cluster.snapshot_ms = lambda: 1000
    cluster.run(late, core.ask_snapshot("first", cluster.reading(late)))
    assert core.snapshots.under_way
    cluster.heal()
    assert cluster.advance(900, until=lambda: cluster.replicas[late.raft_id].restored == 1)
    _propose(cluster, leader, b"more")
    cluster.advance(100)
    cluster.snapshot_ms = lambda: 3000
    cluster.run(late, core.ask_snapshot("next", cluster.reading(late)))
    assert len(_told(cluster, late, TakeSnapshot)) == 1
    assert cluster.advance(1500, until=lambda: len(_told(cluster, late, TakeSnapshot)) == 2)
    assert not _told(cluster, late, Declined)
    cluster.advance(3500)
    assert [effect.ticket for effect in _told(cluster, late, Proved) if isinstance(effect, Proved)] == ["first", "next"]
    assert len(_told(cluster, late, TakeSnapshot)) == 2


def test_R3_removed_voter_stays_and_is_let_in_until_its_vote_is_needed_no_more():
    """The removal stands on both disks; that it is committed reached a learner alone, which tells the other voter.

    That one has not applied it, so its engine asks for the vote of who was removed: were that one gone, or refused, no
    leader could be found any more, though everybody lives.
    """
    cluster = ReplicatingCluster(2, fenced=False)
    leader = _leading(cluster)
    other = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.change(leader.raft_id, [cluster.add_directory("new")])
    assert cluster.advance(2000, until=lambda: len(cluster.nodes) == 3 and cluster.agree())
    cluster.advance(500)
    cluster.delay_ms[other.raft_id, leader.raft_id] = 50
    name = cluster.replicas[leader.raft_id].name
    cluster.change(leader.raft_id, [Remove(name)])
    engine = cluster.core(other.raft_id).consensus.engine
    last = engine.last_index
    assert cluster.advance(40, until=lambda: engine.last_index > last)
    cluster.cut |= {(leader.raft_id, other.raft_id)}
    cluster.advance(3000)
    assert cluster.core(leader.raft_id).removed
    assert cluster.core(other.raft_id).applied_index == last
    assert cluster.replicas[other.raft_id].roster.find(name) is None
    cluster.heal()
    assert cluster.advance(10_000, until=lambda: cluster.leaders() == [other.raft_id]), cluster.standings()
    assert cluster.advance(3000, until=lambda: leader.raft_id in cluster.gone)


def test_removal_that_was_applied_is_not_forgotten():
    """A commit that came alone is not durable; whoever was removed goes once it is applied, and must not be needed."""
    cluster = ReplicatingCluster(2, fenced=False)
    leader = _leading(cluster)
    other = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.advance(500)
    name = cluster.replicas[leader.raft_id].name
    cluster.change(leader.raft_id, [Remove(name)])
    core = cluster.core(other.raft_id)
    assert cluster.advance(1000, until=lambda: len(core.membership().voters) == 1)
    cluster.crash(other.raft_id)
    cluster.crash(leader.raft_id)
    cluster.restart(other.raft_id)
    assert cluster.advance(10_000, until=lambda: cluster.leaders() == [other.raft_id]), cluster.standings()


def test_removed_member_goes_when_it_restarts_from_a_snapshot_behind_its_removal():
    """Its log does not tell of the removal any more, the snapshot does."""
    cluster = ReplicatingCluster(fenced=False)
    leader = _leading(cluster)
    gone = next(node for node in cluster.nodes.values() if node is not leader)
    cluster.advance(500)
    cluster.change(leader.raft_id, [Remove(cluster.replicas[gone.raft_id].name)])
    core = cluster.core(gone.raft_id)
    assert cluster.advance(1000, until=lambda: core.removed)
    cluster.isolate(gone.raft_id)
    cluster.run(gone, core.ask_snapshot(None, cluster.reading(gone)))
    assert cluster.advance(400, until=lambda: core.snapshot_index > 0)
    cluster.crash(gone.raft_id)
    cluster.restart(gone.raft_id)
    assert cluster.replicas[gone.raft_id].restored == 0
    cluster.heal()
    assert cluster.advance(3000, until=lambda: gone.raft_id in cluster.gone)
