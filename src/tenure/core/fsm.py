"""The replicated state machine: who holds the lease, the last token, the members, the settings. Pure.

It is fed with committed entries in order and is the same on every member. It mints tokens: ``generation * 2**32 +
count``, where the count is one above the larger of its own last count and the floor's (R15), so that a token never
goes back (G4), not even when new data directories meet an old database.
"""

from __future__ import annotations

import msgspec

from tenure.core import commands
from tenure.core.commands import (
    Acquire,
    ChangeSettings,
    MemberRecord,
    MembersChange,
    Recover,
    Release,
    Settings,
    Settled,
)
from tenure.invariants import invariant
from tenure.types import GENERATION_SHIFT, TOKEN_LIMIT, FencingToken

COUNT_MASK = (1 << GENERATION_SHIFT) - 1


class ClusterRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What founding fixed: the same on every founding member, kept beside the log (R7)."""

    format: int
    cluster_name: str
    cluster_id: str
    lineage: str
    members: tuple[MemberRecord, ...]
    settings: Settings


class Membership(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who belongs to the cluster after log entry ``index``, and under which generation and lineage (R16)."""

    index: int
    members: tuple[MemberRecord, ...]
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    generation: int = 0
    lineage: str = ""


class Enrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a data directory keeps of the cluster that it belongs to, from its founding or its joining on (R7)."""

    record: ClusterRecord
    raft_id: int
    #: The members as they were when this one was welcomed; None for a founding member.
    membership: Membership | None = None
    #: True once this member was removed and most voters refuse it: the directory is of no use any more.
    removed: bool = False


class Holding(msgspec.Struct, frozen=True):
    """The last ACQUIRE: who took the lease in which term, the token it won, and what its lease covers."""

    holder: int
    term: int
    incarnation: int
    token: int
    duration_ns: int
    rate_error_ppm: int
    cover_ns: int
    cover_rate_error_ppm: int


class ClusterState(msgspec.Struct, frozen=True):
    """The state machine's whole state after some log index."""

    settings: Settings
    lineage: str
    generation: int = 0
    last_count: int = 0
    holding: Holding | None = None
    #: True while RELEASE is the very last entry of the log: only then may a new leader skip the wait (R9).
    released: bool = False
    members: tuple[MemberRecord, ...] = ()
    #: The highest raft id that was ever given: none is used twice (R7).
    last_raft_id: int = 0
    #: Those that still vote in a joint configuration and go with its end.
    leaving: tuple[int, ...] = ()


def initial_state(record: ClusterRecord) -> ClusterState:
    """The state before the first log entry of a founded cluster."""
    return ClusterState(
        settings=record.settings,
        lineage=record.lineage,
        members=record.members,
        last_raft_id=max((member.raft_id for member in record.members), default=0),
    )


def founding_membership(record: ClusterRecord) -> Membership:
    """The members before the first log entry."""
    voters = tuple(member.raft_id for member in record.members)
    return Membership(index=0, members=record.members, voters=voters, lineage=record.lineage)


def mint(state: ClusterState, floor: int) -> tuple[FencingToken, int, int]:
    """The next token above both the own record and the floor, with its generation and count (R15).

    A floor of a higher generation can only come from a fence that an operator has rebased (the reading member refuses
    any other one before it proposes): its generation is adopted, or no token of ours would ever exceed it.
    """
    invariant(has_room(state, floor), "the fencing token left the range that JSON keeps")
    generation, count = _next(state, floor)
    token = (generation << GENERATION_SHIFT) + count
    invariant(token > floor, "R15: a minted token must lie above the floor")
    return FencingToken(token), generation, count


def has_room(state: ClusterState, floor: int) -> bool:
    """Whether ``mint`` can give a token above ``floor``: asked before an ACQUIRE is proposed."""
    generation, count = _next(state, floor)
    return count <= COUNT_MASK and (generation << GENERATION_SHIFT) + count < TOKEN_LIMIT


def _next(state: ClusterState, floor: int) -> tuple[int, int]:
    generation = max(state.generation, floor >> GENERATION_SHIFT)
    last_count = state.last_count if generation == state.generation else 0
    floor_count = floor & COUNT_MASK if floor >> GENERATION_SHIFT == generation else 0
    return generation, max(last_count, floor_count) + 1


def apply_entry(state: ClusterState, data: bytes, *, index: int) -> ClusterState:
    """The state after one committed entry; an empty entry (a new leader's own) only ends ``released``."""
    if not data:
        return msgspec.structs.replace(state, released=False)
    command = commands.decode(data, index=index)
    if isinstance(command, Acquire):
        return _acquire(state, command)
    if isinstance(command, ChangeSettings):
        return msgspec.structs.replace(state, settings=command.settings, released=False)
    if isinstance(command, Recover):
        # The holding stays: its cover is what the next leader waits out, since the old one may still be alive (R16).
        return msgspec.structs.replace(
            state, generation=command.generation, lineage=command.lineage, last_count=0, released=False
        )
    holding = state.holding
    is_holder = holding is not None and (holding.holder, holding.term, holding.incarnation) == (
        command.holder,
        command.term,
        command.incarnation,
    )
    if isinstance(command, Release):
        return msgspec.structs.replace(state, released=is_holder)
    if isinstance(command, Settled) and holding is not None and is_holder:
        settled = msgspec.structs.replace(
            holding, cover_ns=holding.duration_ns, cover_rate_error_ppm=holding.rate_error_ppm
        )
        return msgspec.structs.replace(state, holding=settled, released=False)
    return msgspec.structs.replace(state, released=False)


def apply_members(state: ClusterState, context: bytes, *, joint: bool, index: int) -> ClusterState:
    """The state after a change of the members that carried ``context``; the end of a joint one carries nothing.

    Who is removed by a change that enters a ``joint`` configuration votes in it: such a member goes with its end.
    """
    change = commands.decode_members(context, index=index) if context else MembersChange(removed=state.leaving)
    added = {record.raft_id: record for record in change.added}
    gone = () if joint else change.removed
    kept = [record for record in state.members if record.raft_id not in added and record.raft_id not in gone]
    return msgspec.structs.replace(
        state,
        members=tuple(sorted([*kept, *added.values()], key=lambda record: record.raft_id)),
        last_raft_id=max([state.last_raft_id, *added]),
        leaving=change.removed if joint else (),
        released=False,
    )


def _acquire(state: ClusterState, command: Acquire) -> ClusterState:
    token, generation, count = mint(state, command.floor)
    holding = Holding(
        holder=command.holder,
        term=command.term,
        incarnation=command.incarnation,
        token=token,
        duration_ns=command.duration_ns,
        rate_error_ppm=command.rate_error_ppm,
        cover_ns=command.cover_ns,
        cover_rate_error_ppm=command.cover_rate_error_ppm,
    )
    return msgspec.structs.replace(state, generation=generation, last_count=count, holding=holding, released=False)
