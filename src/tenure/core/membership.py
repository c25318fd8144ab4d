"""Changes of the members: what may be asked for, and what the engine and the log are told. Pure.

A change is judged on what this leader has applied; the engine refuses it while another one is under way, so no two
changes can mint the same raft id (R7). Several at once pass through a joint configuration by themselves.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec

from tenure.core.commands import MemberRecord, MembersChange, encode_members
from tenure.core.fsm import ClusterState
from tenure.errors import MembershipRefused, NotCaughtUp

#: A learner that lacks no more entries than this may be promoted: it has them a moment later.
CAUGHT_UP_ENTRIES = 1000


class MemberRole(enum.StrEnum):
    """A voter counts towards the quorum, a learner only receives the log."""

    VOTER = "voter"
    LEARNER = "learner"


class Add(msgspec.Struct, frozen=True):
    """A new directory comes as a learner; ``raft_id`` of ``record`` is given by the leader."""

    record: MemberRecord


class Promote(msgspec.Struct, frozen=True):
    """The learner ``name`` becomes a voter, if it has caught up."""

    name: str


class Demote(msgspec.Struct, frozen=True):
    """The voter ``name`` becomes a learner."""

    name: str


class Remove(msgspec.Struct, frozen=True):
    """``name`` leaves the cluster for good; its raft id is never used again."""

    name: str


Change = Add | Promote | Demote | Remove


class MemberState(msgspec.Struct, frozen=True):
    """One member as this one sees it; what a leader alone knows is None elsewhere."""

    name: str
    raft_id: int
    role: MemberRole
    address: str
    url: str
    leads: bool
    #: The last log entry that it acknowledged to this leader, and whether it answered within an election timeout.
    acknowledged_index: int | None = None
    active: bool | None = None


class Standing(msgspec.Struct, frozen=True):
    """What the engine knows at the moment of a change: who votes and who learns, the commit index, the progress."""

    voters: Sequence[int]
    learners: Sequence[int]
    commit: int
    #: Of each member: id, acknowledged index, next index, recently active.
    progress: Sequence[tuple[int, int, int, bool]]


def plan(changes: Sequence[Change], state: ClusterState, standing: Standing) -> tuple[list[tuple[str, int]], bytes]:
    """The engine's changes and the context that says what they mean.

    Raises:
        MembershipRefused: a change is not possible; nothing was proposed.
        NotCaughtUp: a learner lacks too much of the log to vote.
    """
    if not changes:
        raise MembershipRefused("no change was named")
    by_name = {record.name: record for record in state.members}
    voters = set(standing.voters)
    added: list[MemberRecord] = []
    removed: list[int] = []
    taken: set[str] = set()
    steps: list[tuple[str, int]] = []
    next_id = state.last_raft_id + 1
    for change in changes:
        if isinstance(change, Add):
            record = msgspec.structs.replace(change.record, raft_id=next_id)
            next_id += 1
            if any(other.directory_id == record.directory_id for other in by_name.values()):
                raise MembershipRefused(f"{record.name}: its data directory is a member already")
            if record.name in taken:
                raise MembershipRefused(f"{record.name} cannot be removed and added by one change: remove it first")
            if record.name in by_name:
                raise MembershipRefused(
                    f"{record.name} is a member already, with another data directory: "
                    f"run 'tenure member replace {record.name}'"
                )
            by_name[record.name] = record
            added.append(record)
            steps.append(("add_learner", record.raft_id))
            continue
        known = by_name.get(change.name)
        if known is None:
            raise MembershipRefused(f"{change.name} is no member; the members are {', '.join(sorted(by_name))}")
        if isinstance(change, Remove):
            del by_name[change.name]
            taken.add(change.name)
            voters.discard(known.raft_id)
            removed.append(known.raft_id)
            steps.append(("remove", known.raft_id))
        elif isinstance(change, Promote):
            _check_caught_up(known, standing)
            voters.add(known.raft_id)
            steps.append(("add_voter", known.raft_id))
        else:
            if known.raft_id not in voters:
                raise MembershipRefused(f"{known.name} is a learner already")
            voters.discard(known.raft_id)
            steps.append(("add_learner", known.raft_id))
    if not voters:
        raise MembershipRefused("no voter would be left: a cluster needs at least one")
    return steps, encode_members(MembersChange(added=tuple(added), removed=tuple(removed)))


def _check_caught_up(record: MemberRecord, standing: Standing) -> None:
    if record.raft_id in standing.voters:
        raise MembershipRefused(f"{record.name} is a voter already")
    found = next((entry for entry in standing.progress if entry[0] == record.raft_id), None)
    # The engine takes a new member for active before it has spoken, and a young log is never far behind.
    if found is None or not found[3] or found[1] == 0:
        raise NotCaughtUp(
            f"{record.name} has not answered lately: is it running, and does it reach this node?", name=record.name
        )
    behind = standing.commit - found[1]
    if behind > CAUGHT_UP_ENTRIES:
        raise NotCaughtUp(
            f"{record.name} is {behind} entries behind, {CAUGHT_UP_ENTRIES} are allowed: promote it later",
            name=record.name,
            behind=behind,
        )


def member_states(state: ClusterState, standing: Standing, *, leader: int, own: int) -> list[MemberState]:
    """Every member in the eyes of the member ``own``, while ``leader`` leads (0: nobody it knows of)."""
    voters, progress = set(standing.voters), {entry[0]: entry for entry in standing.progress}
    states = []
    for record in state.members:
        known = progress.get(record.raft_id)
        states.append(
            MemberState(
                name=record.name,
                raft_id=record.raft_id,
                role=MemberRole.VOTER if record.raft_id in voters else MemberRole.LEARNER,
                address=record.address,
                url=record.url,
                leads=record.raft_id == leader,
                acknowledged_index=known[1] if known else None,
                # A leader's own entry is never marked: it is active as long as it leads.
                active=(known[3] or record.raft_id == own) if known else None,
            )
        )
    return states


def even_warning(voters: int) -> str | None:
    """What to say of an even number of voters, or None."""
    if voters % 2 or voters == 0:
        return None
    return (
        f"{voters} voters survive the loss of no more members than {voters - 1} would, and need one answer more: "
        "use an odd number"
    )
