"""How a new data directory comes to belong to a cluster: it founds one with the others, or it is welcomed. Pure.

::

    a new directory hears its peers --> all are new and agree      found: the same record everywhere
                                    --> one welcomes it            enrol: it is a member there already
                                    --> they do not know it        wait, until a leader adds it
                                    --> its name is taken          refuse: it was replaced or wiped

Every data directory has a random id, durable before the first hello. The cluster's id is a hash of all (name,
directory id) pairs, so that members which decide at different times, or crash in the middle, found the same cluster.
A member that lost its disk comes with another directory id: it can neither join by itself nor found a second cluster
(R7).
"""

from __future__ import annotations

import hashlib

import msgspec

from tenure.core.commands import MemberRecord, Settings
from tenure.core.fsm import ClusterRecord, Enrolment, Membership

RECORD_FORMAT = 1
PROTOCOL_VERSION = 2


class Welcome(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a member tells another one of the cluster, new directories among them: its founding, and who is in it."""

    record: ClusterRecord
    membership: Membership


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each side of a connection says first. ``cluster_id`` is empty while the directory is new."""

    protocol: int
    cluster_name: str
    cluster_id: str
    name: str
    directory_id: str
    incarnation: int
    #: The members that this one knows (new: that its file lists), and the times: two founders must agree on them.
    member_names: tuple[str, ...]
    settings: Settings
    #: Where this member is, as it says itself: HOST:PORT of its Raft port and the base URL of its HTTP port.
    address: str = ""
    url: str = ""
    #: Of the cluster's state; empty while new. It changes when a lost quorum was given up (R16).
    lineage: str = ""
    #: How often the directory was opened, and where its log ended at the last time: an old copy has less (R7).
    starts: int = 0
    #: The last openings by that count, with the incarnation of each: an old copy that was opened often has others.
    openings: tuple[tuple[int, int], ...] = ()
    last_index: int = 0
    welcome: Welcome | None = None


class Wait(msgspec.Struct, frozen=True):
    """These members have not answered yet."""

    missing: tuple[str, ...]


class Apply(msgspec.Struct, frozen=True):
    """The cluster does not know this member: a leader must add it."""

    cluster_id: str
    name: str


class Refuse(msgspec.Struct, frozen=True):
    """This directory may not found or join, with every reason."""

    reasons: tuple[str, ...]


def cluster_id_of(cluster_name: str, pairs: dict[str, str]) -> str:
    """The id of the cluster that these members (name to directory id) found: 32 hexadecimal digits."""
    lines = [cluster_name] + [f"{name}={pairs[name]}" for name in sorted(pairs)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def decide(own: Hello, answers: dict[str, Hello]) -> Enrolment | Wait | Apply | Refuse:
    """What a new directory does with the answers so far (by member name, the own one not among them)."""
    for name in sorted(answers):
        welcome = answers[name].welcome
        if welcome is not None and answers[name].cluster_name == own.cluster_name:
            return _enrol(own, welcome)
    hellos = [own] + [answers[name] for name in sorted(answers)]
    pairs = {hello.name: hello.directory_id for hello in hellos}
    missing = tuple(name for name in own.member_names if name not in pairs)
    founded = [hello for hello in hellos if hello.cluster_id and not _founds(own, hello, pairs, missing)]
    if founded:
        return _unknown(own, founded, missing)
    reasons = [reason for hello in hellos[1:] for reason in _differences(own, hello)]
    if reasons:
        return Refuse(tuple(reasons))
    if missing:
        return Wait(missing)
    return _found(own, hellos)


def _enrol(own: Hello, welcome: Welcome) -> Enrolment | Refuse:
    for member in welcome.membership.members:
        if (member.name, member.directory_id) == (own.name, own.directory_id):
            founded = member.raft_id in {record.raft_id for record in welcome.record.members}
            membership = None if founded and welcome.membership.index == 0 else welcome.membership
            return Enrolment(record=welcome.record, raft_id=member.raft_id, membership=membership)
    return Refuse((f"a welcome that does not name {own.name} was received",))


def _founds(own: Hello, other: Hello, pairs: dict[str, str], missing: tuple[str, ...]) -> bool:
    """Whether that member founded the very cluster that all configured members found."""
    return not missing and other.cluster_id == cluster_id_of(own.cluster_name, pairs)


def _unknown(own: Hello, founded: list[Hello], missing: tuple[str, ...]) -> Apply | Wait | Refuse:
    """The others belong to a cluster that does not welcome this directory."""
    first = founded[0]
    reasons = [reason for hello in founded for reason in _differences(own, hello, founders=False)]
    if reasons:
        return Refuse(tuple(reasons))
    if own.name not in first.member_names:
        return Apply(first.cluster_id, own.name)
    if missing and set(own.member_names) == set(first.member_names):
        # A founder that was slow may still be welcomed by one that has not answered yet.
        return Wait(missing)
    return Refuse(
        (
            f"{first.name} belongs to cluster {first.cluster_id}, where the name {own.name} stands for another data "
            "directory: this one was replaced, wiped or belongs elsewhere. Start the lost directory again, or run "
            f"'tenure member replace {own.name}' and start this node again; to found a new cluster, give every member "
            "a new data directory",
        )
    )


def _found(own: Hello, hellos: list[Hello]) -> Enrolment:
    ordered = sorted(hellos, key=lambda hello: hello.name)
    members = tuple(
        MemberRecord(
            raft_id=position, name=hello.name, directory_id=hello.directory_id, address=hello.address, url=hello.url
        )
        for position, hello in enumerate(ordered, start=1)
    )
    cluster_id = cluster_id_of(own.cluster_name, {hello.name: hello.directory_id for hello in hellos})
    record = ClusterRecord(
        format=RECORD_FORMAT,
        cluster_name=own.cluster_name,
        cluster_id=cluster_id,
        lineage=cluster_id[:16],
        members=members,
        settings=own.settings,
    )
    raft_id = next(member.raft_id for member in members if member.name == own.name)
    return Enrolment(record=record, raft_id=raft_id)


def _differences(own: Hello, other: Hello, *, founders: bool = True) -> list[str]:
    """Why two members disagree, field by field; ``founders`` must agree on the members and the times, too."""
    reasons = []
    if other.protocol != own.protocol:
        reasons.append(f"{other.name} speaks protocol {other.protocol}, this version speaks {own.protocol}")
    if other.cluster_name != own.cluster_name:
        reasons.append(f"cluster.name: this file says {own.cluster_name!r}, {other.name} says {other.cluster_name!r}")
    if not founders:
        return reasons
    if set(own.member_names) != set(other.member_names):
        reasons.append(
            f"raft.peers: this file lists {', '.join(sorted(own.member_names))}, "
            f"{other.name} lists {', '.join(sorted(other.member_names))}"
        )
    for field in own.settings.__struct_fields__:
        mine, theirs = getattr(own.settings, field), getattr(other.settings, field)
        if mine != theirs:
            reasons.append(f"{field}: this file says {mine}, the one of {other.name} says {theirs}")
    return reasons
