"""Who belongs to the cluster, as far as this member knows, and whose frames it takes (R3, R7, R16). Pure.

It knows the members from three places: the founding record, the state machine as far as it is applied here, and what
other members say of a later state. The newest of them counts, by log index: a member that lags behind a change must
not refuse the very leader from which it could learn of it.

A member that was away while everybody it knew was replaced is let in by nobody it knows. It may hear the later members
from whomever its own file names, too: ``learn`` says whom it believes, and why that is safe.

An old copy of a disk is told in two ways. A directory counts its openings and keeps the incarnation of each, so a copy
comes with a count that was seen before, or without the opening that was seen last, however often it is opened; and a
leader remembers what each member has acknowledged to it.
"""

from __future__ import annotations

from collections.abc import Callable

from tenure.core.commands import MemberRecord
from tenure.core.founding import PROTOCOL_VERSION, Hello, Welcome
from tenure.core.fsm import Enrolment, Membership, founding_membership

#: New directories that asked to be added and are remembered; more than a cluster could want.
APPLICANTS_MAX = 64
#: One that has not called for so long is gone. It calls several times a second as long as it is not added.
APPLICANT_SECONDS = 60.0


class Roster:
    """The members in this member's eyes. ``acknowledged`` tells what a member has acknowledged to this leader, or 0."""

    def __init__(
        self,
        enrolment: Enrolment | None = None,
        *,
        acknowledged: Callable[[int], int] = lambda _: 0,
        seen: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self._enrolment = enrolment
        self._acknowledged = acknowledged
        self._applied: Membership | None = None
        self._heard: Membership | None = enrolment.membership if enrolment is not None else None
        #: Directory id to how often it was opened and its incarnation then.
        self._seen = dict(seen) if seen is not None else {}
        self.applicants: dict[str, Hello] = {}
        #: When each of them called last, in seconds of the owner's clock.
        self._called: dict[str, float] = {}
        #: Counts every change of what ``membership`` returns.
        self.version = 0
        self._let_in: tuple[int, dict[str, MemberRecord]] = (-1, {})

    @property
    def enrolment(self) -> Enrolment | None:
        """To which cluster this member belongs; None while its directory is new."""
        return self._enrolment

    def enrol(self, enrolment: Enrolment) -> None:
        """The directory is not new any more."""
        self._enrolment, self._heard = enrolment, enrolment.membership
        self.version += 1

    def membership(self) -> Membership | None:
        """The newest that is known; None while the directory is new."""
        if self._enrolment is None:
            return None
        known = [founding_membership(self._enrolment.record)]
        known += [membership for membership in (self._heard, self._applied) if membership is not None]
        return max(known, key=lambda membership: membership.index)

    def applied(self, membership: Membership) -> None:
        """The state machine has applied a change of the members."""
        self._applied = membership
        for record in membership.members:
            self.applicants.pop(record.name, None)
        self.version += 1

    def hear(self, membership: Membership) -> bool:
        """An admitted member told what it knows; True if that is news."""
        known = self.membership()
        # Of another lineage it says nothing of this cluster: that of a recovery by force must not be taken here (R16).
        if known is None or membership.index <= known.index or membership.lineage != known.lineage:
            return False
        self._heard = membership
        self.version += 1
        return True

    def learn(self, hello: Hello) -> bool:
        """Who was dialled answered by its own name and says who the members are; True if that is news.

        Only a name that is let in already, or that the own file lists, is dialled, and the transport has verified it:
        no stranger that dials in is heard. It is believed if it is a member of what it tells, of the same founding and
        lineage. All that follows is that connections are opened, and that the engine takes frames of those members:
        term and vote then move by Raft's own rules, as for every member whose configuration is not applied here yet.
        """
        enrolment, told = self._enrolment, hello.welcome
        if enrolment is None or told is None or told.record != enrolment.record:
            return False
        teller = (hello.name, hello.directory_id)
        if all((record.name, record.directory_id) != teller for record in told.membership.members):
            return False
        return self.hear(told.membership)

    def let_in(self) -> dict[str, MemberRecord]:
        """By name, whose frames are taken: the members, and whoever was one at the state that is applied here.

        As long as this member has not applied a removal, its engine asks for that vote: without it no leader might be
        found that tells of the removal. Of another lineage nobody is needed (R16).
        """
        if self._let_in[0] != self.version:
            newest, applied = self.membership(), self._applied
            records: dict[str, MemberRecord] = {}
            for membership in (applied, newest):
                if membership is not None and newest is not None and membership.lineage == newest.lineage:
                    records |= {record.name: record for record in membership.members}
            self._let_in = (self.version, records)
        return self._let_in[1]

    def dropped_by(self) -> tuple[int, ...]:
        """The voters of the newest members, if this member is none of those any more; nobody as long as it is one.

        It knows by its own log, or was told: the commit of its removal may never reach it.
        """
        membership, enrolment = self.membership(), self._enrolment
        if membership is None or enrolment is None:
            return ()
        if any(record.raft_id == enrolment.raft_id for record in membership.members):
            return ()
        return membership.voters

    def find(self, name: str) -> MemberRecord | None:
        """The member of that name."""
        membership = self.membership()
        if membership is None:
            return None
        return next((record for record in membership.members if record.name == name), None)

    def raft_id_of(self, name: str) -> int | None:
        """The raft id of the member of that name. Cheap: it is asked for every frame."""
        record = (self._let_in[1] if self._let_in[0] == self.version else self.let_in()).get(name)
        return None if record is None else record.raft_id

    def name_of(self, raft_id: int) -> str | None:
        """The name of a member by its raft id."""
        return next((record.name for record in self.let_in().values() if record.raft_id == raft_id), None)

    def welcome_for(self, hello: Hello) -> Welcome | None:
        """What this one knows of the members, for those who may be told.

        These are a new directory that is a member here (founded with this one, or added since), and whoever belongs to
        this cluster: it may lag behind, or have been removed without knowing it.
        """
        membership, enrolment = self.membership(), self._enrolment
        if membership is None or enrolment is None or hello.cluster_id not in ("", enrolment.record.cluster_id):
            return None
        if not hello.cluster_id:
            record = self.find(hello.name)
            if record is None or record.directory_id != hello.directory_id:
                return None
        return Welcome(record=enrolment.record, membership=membership)

    def note_applicant(self, hello: Hello, now: float) -> None:
        """A new directory called at ``now``: it can be added by its name, unless a member has that name."""
        if self._enrolment is None or self.find(hello.name) is not None:
            return
        if hello.cluster_name != self._enrolment.record.cluster_name:
            return
        if hello.name in self.applicants or len(self.applicants) < APPLICANTS_MAX:
            self.applicants[hello.name], self._called[hello.name] = hello, now

    def forget_silent_applicants(self, now: float) -> None:
        """Who has not called for :data:`APPLICANT_SECONDS` asks no more to be added."""
        self._called = {name: at for name, at in self._called.items() if name in self.applicants}
        for name, at in self._called.items():
            if now - at >= APPLICANT_SECONDS:
                del self.applicants[name]

    def admit(self, own: Hello, other: Hello, *, expected_name: str | None = None) -> str | None:
        """Why a connection with ``other`` is refused, or None if its frames may be taken (R3, R7)."""
        if other.protocol != PROTOCOL_VERSION:
            return f"{other.name} speaks protocol {other.protocol}, this version speaks {PROTOCOL_VERSION}"
        if other.cluster_name != own.cluster_name:
            return (
                f"{other.name} is of cluster {other.cluster_name!r}, this node is of {own.cluster_name!r} "
                "(cluster.name)"
            )
        if expected_name is not None and other.name != expected_name:
            return f"the address of {expected_name} is answered by {other.name} (check raft.peers)"
        if self._enrolment is None or not other.cluster_id:
            return "not founded yet"
        cluster_id = self._enrolment.record.cluster_id
        if other.cluster_id != cluster_id:
            return f"{other.name} belongs to cluster {other.cluster_id}, this node to {cluster_id}"
        return self._judge_directory(own, other)

    def note_seen(self, other: Hello) -> bool:
        """Remember an admitted directory's count of openings; True if it is news, to be kept durably."""
        now = (other.starts, other.incarnation)
        if self._seen.get(other.directory_id) == now:
            return False
        self._seen[other.directory_id] = now
        return True

    def _judge_directory(self, own: Hello, other: Hello) -> str | None:
        if own.lineage != other.lineage:
            return (
                f"{other.name} follows lineage {other.lineage}, this node {own.lineage}: a lost quorum was given up by "
                "force on one side; stop the members of the side that is not to live, give each a new data directory, "
                "and run 'tenure member add' for it on the other side"
            )
        record = self.let_in().get(other.name)
        if record is None:
            return f"{other.name} is not a member of this cluster: it was removed, or never added"
        replace = f"run 'tenure member replace {other.name}' and give that node a new data directory"
        if record.directory_id != other.directory_id:
            return f"the data directory of {other.name} is not the one that is a member: it was replaced; {replace}"
        starts, incarnation = self._seen.get(other.directory_id, (0, other.incarnation))
        if other.incarnation == incarnation:
            return None
        if other.starts <= starts:
            return (
                f"the data directory of {other.name} is an old copy, or a copy of it was started: it was opened "
                f"{other.starts} times, and {starts} were seen; {replace}"
            )
        if dict(other.openings).get(starts, incarnation) != incarnation:
            return (
                f"the data directory of {other.name} is an old copy, or a copy of it was started: another one was its "
                f"opening number {starts}; {replace}"
            )
        acknowledged = self._acknowledged(record.raft_id)
        if other.last_index < acknowledged:
            return (
                f"the data directory of {other.name} is an old copy: its log ends at {other.last_index}, and it had "
                f"acknowledged {acknowledged}; {replace}"
            )
        return None
