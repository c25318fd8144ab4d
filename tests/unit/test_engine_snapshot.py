"""Snapshots: what stays in the log beside one, who is given which, and what a member makes of one that it gets."""

from __future__ import annotations

import pytest
from engine_cluster import Cluster, Member
from tenure_raft import Engine, encode_message, message_kinds, snapshot_in


def _lagging(*, commands: int, keep: int) -> Cluster:
    """Members 1 and 2 have gone on without 3, which has only entry 1; 1 leads and has compacted all it applied."""
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.isolate(3)
    for number in range(commands):
        cluster[1].propose([b"%d" % number])
        cluster.settle()
    cluster.members[1].compact(b"state", keep=keep)
    return cluster


def _same_log(cluster: Cluster) -> None:
    states = {(e.last_index, e.last_term, e.commit, e.applied) for e in map(cluster.__getitem__, cluster.members)}
    assert len(states) == 1


def test_engine_serves_a_member_from_the_log_when_the_entries_that_it_needs_are_kept() -> None:
    cluster = _lagging(commands=5, keep=5)
    cluster.heal()
    cluster.tick(6)
    assert cluster.members[3].disk.snapshot is None
    assert cluster.members[3].commands == [b"0", b"1", b"2", b"3", b"4"]


def test_engine_serves_a_member_from_a_snapshot_when_one_entry_too_few_is_kept() -> None:
    cluster = _lagging(commands=5, keep=4)
    cluster.heal()
    cluster[1].propose([b"after"])
    cluster.tick(6)
    assert cluster.members[3].disk.snapshot == (6, 1, b"state")
    assert cluster.members[3].commands == [b"after"]
    _same_log(cluster)


def test_engine_does_not_bring_entries_back_when_it_is_compacted_again_with_more_kept() -> None:
    cluster = _lagging(commands=5, keep=0)
    cluster[1].propose([b"after"])
    cluster.settle()
    cluster.members[1].compact(b"newer", keep=100)
    cluster.heal()
    cluster.tick(6)
    assert cluster.members[3].disk.snapshot == (7, 1, b"newer")
    _same_log(cluster)


def test_engine_starts_at_the_snapshot_when_it_is_restarted_with_entries_kept() -> None:
    cluster = _lagging(commands=5, keep=3)
    cluster[1].propose([b"after"])
    cluster.settle()
    before = (cluster[1].last_index, cluster[1].last_term, cluster[1].commit)
    cluster.members[1].restart()
    assert (cluster[1].last_index, cluster[1].last_term, cluster[1].commit, cluster[1].applied) == (*before, 6)
    cluster.settle()
    assert cluster.members[1].commands == [b"after"]


def test_engine_takes_a_snapshot_when_its_own_log_is_longer_and_of_an_older_term() -> None:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster.isolate(1)
    cluster[1].propose([b"lost"] * 9)
    cluster.settle()
    cluster[1].become_follower()
    cluster[2].become_follower()
    cluster[3].become_follower()
    cluster[2].campaign()
    cluster.settle()
    cluster[2].propose([b"kept"])
    cluster.settle()
    index = cluster.members[2].compact(b"kept")
    assert index < cluster[1].last_index
    cluster.heal()
    cluster.tick(6)
    assert cluster.members[1].disk.snapshot == (index, 2, b"kept")
    _same_log(cluster)
    cluster.members[1].restart()
    cluster.settle()
    assert cluster[1].last_index == index
    assert cluster.elect(1).propose([b"more"]) == index + 2


@pytest.mark.parametrize("committed", [False, True])
def test_engine_keeps_its_log_when_it_gets_a_snapshot_of_an_index_that_it_has(committed: bool) -> None:
    """A snapshot that arrives late: the member was brought up to date by the log meanwhile."""
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    sender, _, payload = cluster.next_frame("snapshot")
    # Another leader, which has the whole log, brings it up to date; or nearly so.
    donor = Cluster([1, 2, 3])
    donor.elect(1)
    donor[1].propose([b"0", b"1", b"2", b"longer"])
    if committed:
        donor.settle()
        donor.tick(2)
    else:
        donor.turn()
        donor.deliver()
        donor.members[3].turn()
    engine = donor[3]
    before = (engine.last_index, engine.commit)
    assert before == ((5, 5) if committed else (5, 1))
    assert engine.receive(sender, payload, refuse_votes=False) == (1, 0)
    ready = engine.ready()
    assert ready.snapshot is None
    donor.members[3].disk.save(ready, engine)
    donor.members[3].apply(engine.advance(ready))
    assert (engine.last_index, engine.commit) == (5, 5 if committed else 4)
    assert donor.members[3].commands[:3] == [b"0", b"1", b"2"]
    donor.settle()
    assert not engine.poisoned


def test_engine_goes_on_after_a_snapshot_when_entries_follow_it_in_the_same_ready() -> None:
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    sender, _, snapshot = cluster.next_frame("snapshot")
    cluster[1].report_snapshot(3, received=True)
    cluster[1].propose([b"after"])
    engine = cluster[3]
    engine.receive(sender, snapshot, refuse_votes=False)
    cluster.settle()
    cluster.tick(4)
    assert cluster.members[3].commands == [b"after"]
    _same_log(cluster)


def test_engine_campaigns_when_it_has_just_taken_a_snapshot() -> None:
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    sender, _, snapshot = cluster.next_frame("snapshot")
    engine = cluster[3]
    engine.receive(sender, snapshot, refuse_votes=False)
    engine.become_follower()
    engine.campaign()
    assert engine.role == "pre_candidate"
    cluster.settle()
    assert not engine.poisoned
    assert cluster.elect(3).last_index == 5


@pytest.mark.parametrize("received", [False, True])
def test_engine_sends_a_snapshot_again_when_it_is_reported_lost(received: bool) -> None:
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    frame = cluster.next_frame("snapshot")
    cluster.tick(8)
    cluster[1].report_unreachable(3)
    cluster.tick(8)
    assert cluster.members[3].disk.snapshot is None
    if received:
        cluster.flying.append(frame)
        cluster.turn()
    cluster[1].report_snapshot(3, received=received)
    cluster.tick(4)
    assert cluster.members[3].disk.snapshot == (4, 1, b"state")
    _same_log(cluster)


def test_engine_ignores_the_report_of_a_snapshot_when_none_is_on_its_way() -> None:
    cluster = Cluster([1, 2, 3])
    leader = cluster.elect(1)
    for peer in (2, 77):
        for received in (False, True):
            leader.report_snapshot(peer, received=received)
            cluster[2].report_snapshot(peer, received=received)
    leader.propose([b"a"])
    cluster.settle()
    assert cluster.members[2].commands == [b"a"]


def test_snapshot_travels_alone_when_other_messages_are_for_the_same_member() -> None:
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    payloads: list[list[str]] = []
    for _ in range(20):
        if ["snapshot"] in payloads:
            break
        cluster[1].tick(2)
        cluster.deliver()
        cluster[1].tick(2)
        before = len(cluster.flying)
        cluster.turn()
        sent = [payload for sender, to, payload in [*cluster.flying][before:] if (sender, to) == (1, 3)]
        payloads = [[kind for kind, *_ in message_kinds(payload)] for payload in sent]
    assert payloads == [["heartbeat", "append"], ["snapshot"], ["heartbeat"]]


@pytest.mark.parametrize("first", [True, False])
def test_R3_snapshot_is_dropped_when_it_does_not_travel_alone(first: bool) -> None:
    """Its content would not have been fetched: whoever does that looks at the start of a payload alone."""
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    sender, _, snapshot = cluster.next_frame("snapshot")
    engine = cluster[3]
    heartbeat = encode_message("heartbeat", sender=1, to=3, term=1)
    payload = snapshot + heartbeat if first else heartbeat + snapshot
    assert engine.receive(sender, payload, refuse_votes=False) == (1, 1)
    assert engine.ready().snapshot is None


def test_snapshot_in_tells_what_a_payload_holds() -> None:
    cluster = _lagging(commands=3, keep=0)
    cluster.heal()
    _, _, snapshot = cluster.next_frame("snapshot")
    _, _, heartbeat = cluster.next_frame("heartbeat")
    assert snapshot_in(snapshot) == (4, 1, b"state")
    assert snapshot_in(heartbeat) is None
    assert snapshot_in(b"") is None
    assert snapshot_in(heartbeat + snapshot) is None
    with pytest.raises(ValueError, match="does not travel alone"):
        snapshot_in(snapshot + heartbeat)
    for end in range(1, len(snapshot)):
        with pytest.raises(ValueError, match="ends too early"):
            snapshot_in(snapshot[:end])


def _joined_after_a_snapshot() -> Cluster:
    cluster = Cluster([1, 2, 3])
    cluster.elect(1)
    cluster[1].propose([b"a"])
    cluster.settle()
    cluster.members[1].compact(b"before")
    cluster.add(4, [1, 2, 3])
    cluster.change(("add_learner", 4))
    cluster.tick(8)
    return cluster


def test_engine_wants_a_newer_snapshot_when_a_member_joined_after_the_last_one() -> None:
    """raft-rs alone would send the older one, which the new member throws away for not being named in it."""
    cluster = _joined_after_a_snapshot()
    assert cluster[1].snapshot_wanted
    assert (cluster[4].last_index, cluster.members[4].disk.snapshot) == (0, None)
    index = cluster.members[1].compact(b"after")
    assert not cluster[1].snapshot_wanted
    cluster.tick(6)
    assert cluster.members[4].disk.snapshot == (index, 1, b"after")
    assert (cluster[4].voters, cluster[4].learners) == ([1, 2, 3], [4])
    _same_log(cluster)


def test_engine_wants_no_snapshot_when_nobody_needs_one() -> None:
    cluster = _lagging(commands=3, keep=0)
    assert not any(cluster[i].snapshot_wanted for i in (1, 2, 3))
    cluster.heal()
    cluster.tick(6)
    assert not any(cluster[i].snapshot_wanted for i in (1, 2, 3))


def test_engine_answers_like_one_that_was_never_compacted_when_many_entries_are_kept() -> None:
    """The places in the log move with its start: every member that lags gets exactly what it lacks."""
    for lag in range(1, 8):
        cluster = Cluster([1, 2, 3])
        cluster.elect(1)
        cluster[1].propose([b"first"] * (8 - lag))
        cluster.settle()
        cluster.isolate(3)
        cluster[1].propose([b"%d" % i for i in range(lag)])
        cluster.settle()
        cluster.members[1].compact(b"state", keep=4)
        cluster.heal()
        cluster.tick(6)
        assert (cluster.members[3].disk.snapshot is None) == (lag <= 4)
        _same_log(cluster)


def test_member_is_served_from_the_start_of_the_log_when_it_is_new_and_nothing_was_compacted() -> None:
    cluster = Cluster([1])
    cluster.elect(1).propose([b"a"])
    cluster.settle()
    engine: Engine = cluster.add(2, [1])
    cluster.change(("add_learner", 2))
    member: Member = cluster.members[2]
    assert (engine.learners, member.commands, member.disk.snapshot) == ([2], [b"a"], None)
