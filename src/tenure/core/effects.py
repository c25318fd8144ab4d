"""What the core asks of its driver, as data. The driver runs them in the order of the list, and nothing else.

The order carries R1: a ``Send`` that stands behind a ``Persist`` leaves only after that ``Persist`` is durable. After
a ``Persist`` the driver must call ``persisted`` before the core hands out another one.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenure.core.fsm import ClusterState
from tenure.instants import LeaseSpan
from tenure.types import Credential, LossReason


@dataclass(frozen=True, slots=True)
class Send:
    """Hand ``payload`` to the transport for the member ``peer``. It may be lost, repeated or reordered."""

    peer: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Persist:
    """Make this durable (fsync) and then call ``persisted``: entries from ``first`` on and the hard state."""

    first: int
    entries: bytes
    hard_state: tuple[int, int, int] | None
    must_sync: bool


@dataclass(frozen=True, slots=True)
class ReadFence:
    """Read the fence and answer with ``fence_read``. Its highest token is the floor (R15)."""

    request: int


@dataclass(frozen=True, slots=True)
class RaiseFence:
    """Raise the fence to ``credential`` if it is still as ``expected`` says (R20); answer with ``fence_raised``."""

    request: int
    credential: Credential
    expected: object
    generation: int


@dataclass(frozen=True, slots=True)
class Grant:
    """The lease is valid and the fence is raised: open the leadership scope."""

    term: int
    credential: Credential
    span: LeaseSpan


@dataclass(frozen=True, slots=True)
class Renewed:
    """The lease of the running scope now runs from ``span.started``."""

    span: LeaseSpan


@dataclass(frozen=True, slots=True)
class Revoke:
    """The scope is over, for good in this term. Answer with ``body_returned`` once its body has returned."""

    term: int
    token: int
    reason: LossReason


@dataclass(frozen=True, slots=True)
class Proposed:
    """The commands behind ``tickets`` stand in the log of ``term`` from index ``first`` on; committed they are not."""

    first: int
    term: int
    tickets: list[object]


@dataclass(frozen=True, slots=True)
class Rejected:
    """The commands or proofs behind ``tickets`` were surely not taken: this member does not lead."""

    tickets: list[object]


@dataclass(frozen=True, slots=True)
class Apply:
    """Committed entries for the user's state machine, in order: index, term, bytes (None for a barrier)."""

    entries: list[tuple[int, int, bytes | None]]


@dataclass(frozen=True, slots=True)
class Proved:
    """A quorum heard this leader after the proof behind ``ticket`` was asked for, and it still leads that term."""

    ticket: object


@dataclass(frozen=True, slots=True)
class StateChanged:
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
    | Apply
    | Proved
    | StateChanged
)
