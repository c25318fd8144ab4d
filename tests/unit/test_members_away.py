"""Members that were away while others came and went: how they hear of it, and from whom they do not (R3, R7)."""

from __future__ import annotations

import msgspec
import pytest

from support.virtual_cluster import SETTINGS
from support.virtual_members import ReplicatingCluster
from tenure.core.commands import MemberRecord
from tenure.core.founding import PROTOCOL_VERSION, Hello, Welcome
from tenure.core.fsm import ClusterRecord, Enrolment, Membership, founding_membership
from tenure.core.membership import Promote, Remove
from tenure.core.roster import APPLICANT_SECONDS, APPLICANTS_MAX, Roster


def exchange_all_but(cluster: ReplicatingCluster, away: int) -> None:
    """Everybody but ``away``, which hears nothing, is replaced: by two new directories, one change after the other."""
    leader = cluster.elect()
    cluster.advance(500)
    cluster.cut |= {pair for other in range(1, 6) for pair in ((away, other), (other, away))}
    for name in ("d", "e"):
        cluster.change(leader, [cluster.add_directory(name)])
        assert cluster.advance(5000, until=lambda name=name: name not in cluster.applicants), cluster.standings()
        cluster.advance(500)
        cluster.change(leader, [Promote(name)])
        cluster.advance(500)
    others = [raft_id for raft_id in (1, 2, 3) if raft_id not in (away, leader)]
    for raft_id in (*others, leader):
        cluster.change(leader, [Remove(cluster.replicas[raft_id].name)])
        assert cluster.advance(10_000, until=lambda raft_id=raft_id: raft_id in cluster.gone), cluster.standings()


def test_R7_member_comes_back_when_everybody_it_knew_was_replaced():
    """Its file names the new ones: it hears from them who belongs to the cluster, and follows their leader."""
    cluster = ReplicatingCluster(fenced=False)
    away = next(raft_id for raft_id in (1, 2, 3) if raft_id != cluster.elect())
    exchange_all_but(cluster, away)
    membership = cluster.replicas[away].roster.membership()
    assert membership is not None
    assert [record.raft_id for record in membership.members] == [1, 2, 3]
    cluster.heal()
    assert cluster.advance(10_000, until=lambda: cluster.agree() and len(cluster.leaders()) == 1), cluster.standings()
    assert {record.raft_id for record in cluster.core(away).membership().members} == {away, 4, 5}


def test_members_are_not_heard_when_nobody_dials_them():
    """They dial the member that was away, and are strangers to it: neither its members nor its term move."""
    cluster = ReplicatingCluster(fenced=False)
    away = next(raft_id for raft_id in (1, 2, 3) if raft_id != cluster.elect())
    exchange_all_but(cluster, away)
    cluster.files_name_all = False
    term = cluster.core(away).view().term
    cluster.heal()
    cluster.advance(5000)
    membership = cluster.replicas[away].roster.membership()
    assert membership is not None
    assert membership.index == 0
    assert cluster.core(away).view().term == term


def record_of(raft_id: int, name: str, directory_id: str | None = None) -> MemberRecord:
    return MemberRecord(raft_id=raft_id, name=name, directory_id=directory_id or f"directory of {name}")


RECORD = ClusterRecord(
    format=1,
    cluster_name="test",
    cluster_id="c" * 32,
    lineage="l",
    members=(record_of(1, "a"), record_of(2, "b")),
    settings=SETTINGS,
)
LATER = Membership(
    index=9, members=(record_of(1, "a"), record_of(3, "c"), record_of(4, "d")), voters=(1, 3, 4), lineage="l"
)


def told_by(name: str, membership: Membership, *, record: ClusterRecord = RECORD, directory_id: str = "") -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION,
        cluster_name="test",
        cluster_id=record.cluster_id,
        name=name,
        directory_id=directory_id or f"directory of {name}",
        incarnation=1,
        member_names=(),
        settings=SETTINGS,
        lineage=membership.lineage,
        welcome=Welcome(record=record, membership=membership),
    )


def test_later_members_are_heard_from_one_of_them():
    """From then on the frames of all of them are taken, and that of those who are applied here as well."""
    roster = Roster(Enrolment(record=RECORD, raft_id=1))
    roster.applied(founding_membership(RECORD))
    assert roster.learn(told_by("c", LATER))
    assert [roster.raft_id_of(name) for name in "abcd"] == [1, 2, 3, 4]
    assert not roster.learn(told_by("d", LATER)), "that is no news"


@pytest.mark.parametrize(
    "told",
    [
        told_by("b", LATER),
        told_by("c", LATER, directory_id="another"),
        told_by("c", LATER, record=msgspec.structs.replace(RECORD, members=RECORD.members[:1])),
        told_by("c", msgspec.structs.replace(LATER, lineage="of a recovery")),
        told_by("c", msgspec.structs.replace(LATER, index=0)),
        msgspec.structs.replace(told_by("c", LATER), welcome=None),
    ],
    ids=["removed itself", "another directory", "another founding", "another lineage", "not later", "says nothing"],
)
def test_R3_later_members_are_not_heard_when_who_tells_of_them_is_none(told: Hello):
    """Whoever answers at an address of the file has to be one of those of whom it tells, in this very cluster."""
    roster = Roster(Enrolment(record=RECORD, raft_id=1))
    assert not roster.learn(told)
    assert roster.raft_id_of("c") is None


def test_members_are_told_to_those_of_the_cluster_alone():
    """A new directory is told if it is a member; whoever comes with the cluster's id, in any case."""
    roster = Roster(Enrolment(record=RECORD, raft_id=1))
    stranger = msgspec.structs.replace(told_by("x", LATER), cluster_id="", welcome=None)
    assert roster.welcome_for(stranger) is None
    assert roster.welcome_for(msgspec.structs.replace(stranger, cluster_id="d" * 32)) is None
    assert roster.welcome_for(msgspec.structs.replace(stranger, cluster_id=RECORD.cluster_id)) is not None
    new = msgspec.structs.replace(told_by("b", LATER), cluster_id="", welcome=None)
    assert roster.welcome_for(new) is not None


def test_R7_removed_member_goes_when_the_commit_of_its_removal_does_not_reach_it():
    """It is up and has the removal in its log, but the last word of it is lost: it is told with the refusals."""
    cluster = ReplicatingCluster(fenced=False)
    leader = cluster.elect()
    gone = next(raft_id for raft_id in (1, 2, 3) if raft_id != leader)
    cluster.advance(500)
    core = cluster.core(gone)
    index = core.consensus.engine.last_index
    cluster.change(leader, [Remove(cluster.replicas[gone].name)])
    assert cluster.advance(1000, until=lambda: core.consensus.engine.last_index > index)
    cluster.filter = lambda sender, to, payload: to != gone
    assert cluster.advance(10_000, until=lambda: gone in cluster.gone), cluster.standings()
    assert not core.removed


def test_applicant_is_forgotten_when_it_has_not_called_for_a_minute():
    """Each call counts from anew; who is gone makes room for others."""
    roster = Roster(Enrolment(record=RECORD, raft_id=1))
    calls = {
        name: msgspec.structs.replace(told_by(name, LATER), cluster_id="", welcome=None)
        for name in (f"new-{number}" for number in range(APPLICANTS_MAX + 1))
    }
    for call in calls.values():
        roster.note_applicant(call, 10.0)
    assert len(roster.applicants) == APPLICANTS_MAX
    roster.note_applicant(calls["new-1"], 40.0)
    roster.forget_silent_applicants(10.0 + APPLICANT_SECONDS - 0.1)
    assert len(roster.applicants) == APPLICANTS_MAX
    roster.forget_silent_applicants(10.0 + APPLICANT_SECONDS)
    assert set(roster.applicants) == {"new-1"}
    roster.note_applicant(calls[f"new-{APPLICANTS_MAX}"], 71.0)
    roster.applied(msgspec.structs.replace(LATER, members=(*LATER.members, record_of(9, "new-1"))))
    roster.forget_silent_applicants(72.0)
    assert set(roster.applicants) == {f"new-{APPLICANTS_MAX}"}
