"""What the core asks of its driver, as data. The driver runs them in the order of the list, and nothing else.

The order carries R1: a ``Send`` that stands behind a ``Persist`` leaves only after that ``Persist`` is durable. After
a ``Persist`` the driver must call ``persisted`` before the core hands out another one.
"""

from __future__ import annotations

import msgspec

from tenure.core.commands import RestorePart, Settings
from tenure.core.fsm import ClusterState, Membership
from tenure.core.manifest import Manifest
from tenure.errors import TenureError
from tenure.instants import LeaseSpan
from tenure.types import Credential, LossReason


class Send(msgspec.Struct, frozen=True):
    """Hand ``payload`` to the transport for the member ``peer``. It may be lost, repeated or reordered."""

    peer: int
    payload: bytes


class Persist(msgspec.Struct, frozen=True):
    """Make this durable (fsync) and then call ``persisted``: entries from ``first`` to ``last`` and the hard state.

    A ``snapshot`` (index, term, manifest) replaces everything that was stored before, in the same durable step.
    """

    first: int
    last: int
    entries: bytes
    hard_state: tuple[int, int, int] | None
    must_sync: bool
    snapshot: tuple[int, int, bytes] | None = None


class ReadFence(msgspec.Struct, frozen=True):
    """Read the fence and answer with ``fence_read``. Its highest token is the floor (R15)."""

    request: int


class RaiseFence(msgspec.Struct, frozen=True):
    """Raise the fence to ``credential`` if it is still as ``expected`` says (R20); answer with ``fence_raised``."""

    request: int
    credential: Credential
    expected: object
    generation: int


class Grant(msgspec.Struct, frozen=True):
    """The fence is raised: open the leadership scope. A lease runs with it unless it is not ``leased`` yet.

    ``span`` is what was proved last in either case: the scope may go on until it ends.
    """

    term: int
    credential: Credential
    span: LeaseSpan
    leased: bool = True


class Renewed(msgspec.Struct, frozen=True):
    """The running scope was proved again: it counts from ``span.started``, and so does its lease once ``leased``."""

    span: LeaseSpan
    leased: bool = True


class Revoke(msgspec.Struct, frozen=True):
    """The scope is over, for good in this term. Answer with ``body_returned`` once its body has returned."""

    term: int
    token: int
    reason: LossReason


class Proposed(msgspec.Struct, frozen=True):
    """The commands behind ``tickets`` stand in the log of ``term`` from index ``first`` on; committed they are not."""

    first: int
    term: int
    tickets: list[object]


class Rejected(msgspec.Struct, frozen=True):
    """The commands or proofs behind ``tickets`` were surely not taken: this member does not lead."""

    tickets: list[object]


class Declined(msgspec.Struct, frozen=True):
    """What was asked for under ``ticket`` was surely not done, and why."""

    ticket: object
    error: TenureError


class Apply(msgspec.Struct, frozen=True):
    """Committed entries for the user's state machine, in order: index, term, and what they bring (a barrier: None).

    Whatever stood up to ``through`` in the log is applied now: a ticket at or below it that is not among the entries
    was overtaken by another leader's entry.
    """

    entries: list[tuple[int, int, bytes | RestorePart | None]]
    through: int


class Proved(msgspec.Struct, frozen=True):
    """A quorum heard this leader after the proof behind ``ticket`` was asked for, and it still leads that term."""

    ticket: object


class MembersChanged(msgspec.Struct, frozen=True):
    """The configuration changes at ``entries`` (index, term) are applied. One more follows by itself if ``joint``."""

    membership: Membership
    joint: bool
    entries: tuple[tuple[int, int], ...]


class SettingsChanged(msgspec.Struct, frozen=True):
    """The cluster's times are these from now on (R4); those of ticks count from this member's next start."""

    settings: Settings
    index: int
    term: int


class TakeSnapshot(msgspec.Struct, frozen=True):
    """The state machines stand right behind the last Apply: take the user's part, then call ``snapshot_taken``."""

    manifest: Manifest


class RestoreSnapshot(msgspec.Struct, frozen=True):
    """Replace the user's state machine by the content that ``manifest`` names, before anything that follows."""

    manifest: Manifest


class Compact(msgspec.Struct, frozen=True):
    """Let ``manifest`` stand durably for everything up to its index, then call ``compacted``."""

    manifest: Manifest


class StateChanged(msgspec.Struct, frozen=True):
    """Something that the status shows has changed; ``state`` is the state machine's present state."""

    state: ClusterState


Effect = (
    Send
    | Persist
    | ReadFence
    | RaiseFence
    | Grant
    | Renewed
    | Revoke
    | Proposed
    | Rejected
    | Declined
    | Apply
    | Proved
    | MembersChanged
    | SettingsChanged
    | TakeSnapshot
    | RestoreSnapshot
    | Compact
    | StateChanged
)
