"""A commit travels with the next entries, or with a heartbeat where none follow: never in a frame of its own."""

from __future__ import annotations

from engine_cluster import Cluster
from tenure_raft import message_kinds

from support.virtual_cluster import VirtualCluster
from tenure.core.commands import USER

COMMAND = bytes([USER]) + b"command"


def sent_for_one_command(cluster: Cluster, leader: int) -> list[str]:
    """The kinds of all messages until nothing is in flight."""
    kinds: list[str] = []
    cluster[leader].propose([COMMAND])
    while cluster.turn() or cluster.flying:
        kinds += [kind for frame in cluster.flying for kind, *_ in message_kinds(frame[2])]
        cluster.deliver()
    return kinds


def test_engine_sends_half_the_messages_when_commits_are_not_told():
    """Each commit and its answer would be as many frames again as the entries and theirs."""
    told, untold = Cluster([1, 2, 3]), Cluster([1, 2, 3], tell_commits=False)
    leaders = told.elect(1).raft_id, untold.elect(1).raft_id
    counts = [len(sent_for_one_command(*pair)) for pair in zip((told, untold), leaders, strict=True)]
    assert counts == [8, 4]


def test_engine_tells_what_is_committed_when_it_is_pinged():
    """By a heartbeat, which the others answer as any other."""
    cluster = Cluster([1, 2, 3], tell_commits=False)
    leader = cluster.elect(1).raft_id
    sent_for_one_command(cluster, leader)
    behind = [raft_id for raft_id in (1, 2, 3) if cluster[raft_id].commit < cluster[leader].commit]
    assert len(behind) == 2
    cluster[leader].ping()
    cluster.settle()
    assert {cluster[raft_id].commit for raft_id in (1, 2, 3)} == {cluster[leader].commit}


def test_engine_tells_a_commit_by_itself_when_a_configuration_change_waits():
    """Members that come and go must not wait for traffic."""
    cluster = Cluster([1, 2, 3], tell_commits=False)
    leader = cluster.elect(1).raft_id
    cluster[leader].propose_conf_change([("add_learner", 4)])
    cluster.settle()
    assert all(cluster[raft_id].learners == [4] for raft_id in (1, 2, 3))


def test_engine_ignores_a_ping_when_it_follows():
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1).raft_id
    follower = next(raft_id for raft_id in (1, 2, 3) if raft_id != leader)
    cluster[follower].ping()
    assert not cluster[follower].has_ready()


def test_follower_applies_a_command_within_a_tick_when_no_other_follows():
    """A lone command must not wait for the next one, nor for the next heartbeat."""
    cluster = VirtualCluster(fenced=False)
    leader = cluster.elect()
    node = cluster.nodes[leader]
    cluster.run(node, cluster.core(leader).propose([(COMMAND, object())], cluster.reading(node)))
    tick_ms = cluster.core(leader).tick_ns / 1e6
    index = cluster.core(leader).consensus.engine.last_index
    assert cluster.advance(20, until=lambda: cluster.core(leader).applied_index >= index)
    assert cluster.advance(
        round(tick_ms) + 20, until=lambda: all(cluster.core(other).applied_index >= index for other in cluster.nodes)
    )
