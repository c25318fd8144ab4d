"""Founding a cluster: only when all configured members answer that they are new (R7). Pure.

Every data directory has a random id, durable before the first hello. The cluster's id is a hash of all (name,
directory id) pairs, so that members which decide at different times, or crash in the middle, found the same cluster.
A member that lost its disk comes with another directory id: it can neither join by itself nor found a second cluster.
"""

from __future__ import annotations

import hashlib

import msgspec

from tenure.core.commands import Settings
from tenure.core.fsm import ClusterRecord, MemberRecord

RECORD_FORMAT = 1
PROTOCOL_VERSION = 1


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What each side of a connection says first. ``cluster_id`` is empty while the directory is new."""

    protocol: int
    cluster_name: str
    cluster_id: str
    name: str
    directory_id: str
    incarnation: int
    #: The configured members and times: two founders must agree on them.
    member_names: tuple[str, ...]
    settings: Settings


class Wait(msgspec.Struct, frozen=True):
    """These members have not answered yet."""

    missing: tuple[str, ...]


class Refuse(msgspec.Struct, frozen=True):
    """This directory may not found or join, with every reason."""

    reasons: tuple[str, ...]


def cluster_id_of(cluster_name: str, pairs: dict[str, str]) -> str:
    """The id of the cluster that these members (name to directory id) found: 32 hexadecimal digits."""
    lines = [cluster_name] + [f"{name}={pairs[name]}" for name in sorted(pairs)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def decide(own: Hello, answers: dict[str, Hello]) -> ClusterRecord | Wait | Refuse:
    """What a new directory does with the answers so far (by member name, the own one not among them)."""
    reasons: list[str] = []
    pairs = {own.name: own.directory_id} | {name: hello.directory_id for name, hello in answers.items()}
    missing = tuple(name for name in own.member_names if name not in pairs)
    founded_by_all = cluster_id_of(own.cluster_name, pairs)
    for name in sorted(answers):
        hello = answers[name]
        if hello.cluster_id and (missing or hello.cluster_id != founded_by_all):
            if missing:
                continue
            reasons.append(
                f"{name} already belongs to cluster {hello.cluster_id}, of which this data directory is no member: "
                "it was replaced, wiped or belongs elsewhere. Start the lost directory again, or remove this member "
                "from the cluster and add it anew; to found a new cluster, give every member a new data directory"
            )
        reasons += _differences(own, hello)
    if reasons:
        return Refuse(tuple(reasons))
    if missing:
        return Wait(missing)
    members = tuple(
        MemberRecord(raft_id=position, name=name, directory_id=pairs[name])
        for position, name in enumerate(sorted(pairs), start=1)
    )
    return ClusterRecord(
        format=RECORD_FORMAT,
        cluster_name=own.cluster_name,
        cluster_id=founded_by_all,
        lineage=founded_by_all[:16],
        members=members,
        settings=own.settings,
    )


def _differences(own: Hello, other: Hello) -> list[str]:
    """Why two founders disagree, field by field."""
    reasons = []
    if other.protocol != own.protocol:
        reasons.append(f"{other.name} speaks protocol {other.protocol}, this version speaks {own.protocol}")
    if other.cluster_name != own.cluster_name:
        reasons.append(f"cluster.name: this file says {own.cluster_name!r}, {other.name} says {other.cluster_name!r}")
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


def admit(own: Hello, other: Hello, record: ClusterRecord | None, *, expected_name: str | None = None) -> str | None:
    """Why a connection with ``other`` is refused, or None if its frames may be taken (R3, R7)."""
    if other.protocol != PROTOCOL_VERSION:
        return f"{other.name} speaks protocol {other.protocol}, this version speaks {PROTOCOL_VERSION}"
    if other.cluster_name != own.cluster_name:
        return f"{other.name} is of cluster {other.cluster_name!r}, this node is of {own.cluster_name!r} (cluster.name)"
    if expected_name is not None and other.name != expected_name:
        return f"the address of {expected_name} is answered by {other.name} (check raft.peers)"
    if record is None or not other.cluster_id:
        return "not founded yet"
    if other.cluster_id != record.cluster_id:
        return f"{other.name} belongs to cluster {other.cluster_id}, this node to {record.cluster_id}"
    for member in record.members:
        if member.name == other.name:
            if member.directory_id != other.directory_id:
                return f"the data directory of {other.name} is not the one that is a member: it was replaced"
            return None
    return f"{other.name} is not a member of this cluster"
