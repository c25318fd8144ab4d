"""The log: proposals, what is handed out to be stored, restart from it, and snapshots in its place."""

from __future__ import annotations

from typing import Any

import pytest
from engine_cluster import Cluster
from tenure_raft import Engine, ProposalDropped, decode_batch, encode_batch

#: What a new single voter is made from.
ARGUMENTS: dict[str, Any] = {
    "raft_id": 1,
    "election_tick": 10,
    "heartbeat_tick": 2,
    "voters": [1],
    "learners": [],
    "term": 0,
    "vote": 0,
    "commit": 0,
    "batches": [],
}


def test_engine_appends_a_batch_as_one_proposal_when_it_leads() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    assert leader.propose([b"a", b"bb", b"ccc"]) == 2
    ready = leader.ready()
    assert (ready.entries_first, ready.entries_count, ready.must_sync) == (2, 3, True)
    assert decode_batch(ready.entries) == [
        (2, 1, "command", b"a"),
        (3, 1, "command", b"bb"),
        (4, 1, "command", b"ccc"),
    ]
    assert sorted(to for to, _ in ready.messages) == [2, 3]
    cluster.flying.extend((1, to, payload) for to, payload in ready.messages)
    assert leader.advance(ready).committed == []
    cluster.settle()
    for raft_id in (1, 2, 3):
        assert cluster.members[raft_id].commands == [b"a", b"bb", b"ccc"]
        assert cluster[raft_id].applied == 4


def test_engine_hands_out_committed_entries_in_order_when_a_quorum_has_them() -> None:
    cluster = Cluster([1])
    engine = cluster[1]
    engine.campaign()
    engine.propose([b"a"])
    ready = engine.ready()
    advanced = engine.advance(ready)
    assert advanced.committed == [(1, 1, "empty", b""), (2, 1, "command", b"a")]
    assert advanced.commit == 2
    assert engine.applied == 0
    engine.applied_to(2)
    assert engine.applied == 2


def test_engine_drops_a_proposal_when_it_does_not_lead() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    with pytest.raises(ProposalDropped, match="does not lead"):
        cluster[2].propose([b"a"])
    assert not cluster[2].has_ready()
    assert not cluster[2].poisoned


def test_engine_drops_a_proposal_when_too_much_is_uncommitted() -> None:
    cluster = Cluster([1, 2, 3], max_size_per_message=50, max_uncommitted_size=100)
    leader = cluster.elect(1)
    leader.propose([b"x" * 90])
    with pytest.raises(ProposalDropped, match="too much is uncommitted"):
        leader.propose([b"x" * 90])
    cluster.settle()
    assert leader.propose([b"x" * 90]) == 3


def test_engine_drops_a_proposal_when_leadership_is_being_transferred() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.transfer_leader(2)
    with pytest.raises(ProposalDropped, match="transferred"):
        leader.propose([b"a"])


@pytest.mark.parametrize("commands", [[], [b""], [b"a", b""], [b"x" * ((1 << 20) + 1)]])
def test_engine_refuses_commands_when_their_size_is_wrong(commands: list[bytes]) -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    with pytest.raises(ValueError, match=r"no commands|a command has 1 to"):
        leader.propose(commands)
    assert leader.last_index == 1


def test_engine_cuts_payloads_when_much_is_sent_at_once() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    for _ in range(12):
        leader.propose([b"x" * (1 << 20)])
    sizes = [len(payload) for to, payload in leader.ready().messages if to == 2]
    assert len(sizes) >= 4
    assert 3 << 20 < max(sizes) <= 4 << 20


def test_engine_stands_where_it_stood_when_it_is_restarted() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1).propose([b"a", b"b"])
    cluster.settle()
    before = [(e.term, e.vote, e.commit, e.last_index, e.last_term) for e in (cluster[1], cluster[2])]
    for raft_id in (1, 2, 3):
        cluster.members[raft_id].restart()
    after = [(e.term, e.vote, e.commit, e.last_index, e.last_term) for e in (cluster[1], cluster[2])]
    assert after == before
    cluster.settle()
    assert cluster.members[1].commands == [b"a", b"b"]
    assert cluster[1].role == "follower"
    assert cluster.elect(2).term == 2


def test_engine_replays_a_truncation_when_a_batch_overwrites_older_ones() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.isolate(1)
    cluster[1].propose([b"lost 1", b"lost 2"])
    cluster[1].propose([b"lost 3"])
    cluster.settle()
    cluster[2].campaign()
    cluster.tick(20, only=2)
    cluster.tick(20, only=3)
    leader = cluster.leaders()[-1]
    cluster[leader].propose([b"kept"])
    cluster.settle()
    cluster.heal()
    cluster.tick(4)
    assert len(cluster.members[1].disk.batches) >= 3
    cluster.members[1].restart()
    cluster.settle()
    assert cluster.members[1].commands == [b"kept"]
    assert cluster[1].last_index == cluster[leader].last_index


def test_engine_refuses_a_stored_log_when_it_has_a_gap() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    for command in (b"a", b"b", b"c"):
        cluster[1].propose([command])
        cluster.settle()
    del cluster.members[1].disk.batches[1]
    with pytest.raises(ValueError, match="a stored batch starts at 3, the log before it ends at 1"):
        cluster.members[1].restart()


def test_engine_refuses_a_stored_log_when_it_ends_before_the_commit_index() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1).propose([b"a"])
    cluster.settle()
    cluster.tick(2)
    cluster.members[1].disk.batches.pop()
    with pytest.raises(ValueError, match="commit 2 and last index 1 contradict"):
        cluster.members[1].restart()


def test_engine_refuses_a_stored_batch_when_it_is_malformed() -> None:
    cluster = Cluster([1])
    cluster.elect(1)
    disk = cluster.members[1].disk
    disk.batches[0] = disk.batches[0][:-1]
    with pytest.raises(ValueError, match="more entries than bytes"):
        cluster.members[1].restart()


@pytest.mark.parametrize(("voters", "learners"), [([], []), ([1, 1], []), ([1], [1]), ([0, 1], []), ([], [1])])
def test_engine_refuses_members_when_they_are_not_distinct(voters: list[int], learners: list[int]) -> None:
    cluster = Cluster([1])
    disk = cluster.members[1].disk
    disk.voters, disk.learners = voters, learners
    with pytest.raises(ValueError, match="distinct ids above 0"):
        disk.open(1)


@pytest.mark.parametrize("settings", [{"term": 1 << 62}, {"raft_id": 0}, {"voters": [1, 1 << 62]}])
def test_engine_refuses_a_number_when_it_is_out_of_range(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="an id, a term or an index is out of range"):
        Engine(**(ARGUMENTS | settings))


@pytest.mark.parametrize("settings", [{"heartbeat_tick": 0}, {"heartbeat_tick": 10}, {"max_size_per_message": 0}])
def test_engine_refuses_a_setting_when_raft_cannot_work_with_it(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"heartbeat tick|max_size_per_message"):
        Engine(**(ARGUMENTS | settings))


def test_engine_refuses_a_snapshot_when_it_would_not_fit_into_one_payload() -> None:
    cluster = Cluster([1])
    leader = cluster.elect(1)
    with pytest.raises(ValueError, match="a snapshot has at most 3145728 bytes"):
        leader.compact(1, bytes((3 << 20) + 1))
    leader.compact(1, bytes(3 << 20))


def test_engine_keeps_its_log_when_it_is_compacted_and_restarted() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose([b"a", b"b", b"c"])
    cluster.settle()
    leader.compact(3, b"state at 3")
    disk = cluster.members[1].disk
    disk.snapshot = (3, 1, b"state at 3")
    assert (leader.last_index, leader.last_term, leader.applied) == (4, 1, 4)
    cluster.members[1].restart()
    cluster.settle()
    assert cluster[1].last_index == 4
    assert cluster.members[1].commands == [b"c"]
    assert cluster.elect(1).propose([b"d"]) == 6


@pytest.mark.parametrize("index", [0, 3, 9])
def test_engine_refuses_to_compact_when_the_index_is_not_applied_or_gone(index: int) -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    leader.propose([b"a"])
    with pytest.raises(ValueError, match="outside of what may be compacted, 1 to 1"):
        leader.compact(index, b"")


def test_engine_sends_a_snapshot_when_a_member_needs_what_was_compacted() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    cluster.isolate(3)
    leader.propose([b"a", b"b"])
    cluster.settle()
    leader.compact(3, b"a and b")
    leader.propose([b"c"])
    cluster.settle()
    cluster.heal()
    cluster.tick(4)
    disk = cluster.members[3].disk
    assert disk.snapshot == (3, 1, b"a and b")
    assert cluster.members[3].commands == [b"c"]
    assert (cluster[3].applied, cluster[3].voters) == (4, [1, 2, 3])
    cluster.members[3].restart()
    cluster.settle()
    assert cluster[3].last_index == 4
    assert cluster.members[3].commands == [b"c"]
    assert cluster.elect(3).term == 2


def test_encode_batch_writes_what_decode_batch_reads() -> None:
    entries = [(3, 1, "empty", b""), (4, 1, "command", b"a"), (5, 2, "conf_change", b"")]
    blob = encode_batch(entries)
    assert decode_batch(blob) == entries
    cluster = Cluster([1])
    cluster.elect(1).propose([b"a", b"b"])
    cluster.settle()
    for stored in cluster.members[1].disk.batches:
        assert encode_batch(decode_batch(stored)) == stored
    assert encode_batch([]) == b""


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([(0, 1, "command", b"a")], "indexes do not follow"),
        ([(1, 1, "command", b"a"), (3, 1, "command", b"a")], "indexes do not follow"),
        ([(1 << 62, 1, "command", b"a")], "indexes do not follow"),
        ([(1, 0, "command", b"a")], "the term of an entry"),
        ([(1, 2, "command", b"a"), (2, 1, "command", b"a")], "the term of an entry"),
        ([(1, 1, "command", b"")], "does not fit its data"),
        ([(1, 1, "empty", b"a")], "does not fit its data"),
        ([(1, 1, "snapshot", b"a")], "does not fit its data"),
        ([(1, 1, "command", bytes((1 << 20) + 1))], "too long"),
    ],
)
def test_encode_batch_refuses_entries_when_they_could_not_be_read_back(
    entries: list[tuple[int, int, Any, bytes]], text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        encode_batch(entries)
