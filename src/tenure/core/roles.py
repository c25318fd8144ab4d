"""The phases of one member's way into and out of office, as a table. Everything about transitions is here. Pure.

::

    FOLLOWING --elected--> ELECTED --own_entry_applied--> READING --floor_read--> ACQUIRING
        ^                                                                            | acquired
        |                                                                            v
        |   YIELDING <--released-- RELEASING <--body_returned-- STOPPING <--ended-- LEADING <--prepared-- PREPARING
        |      | ^                                                                     ^ prepared             |
        |      | +------------------------------- ended ----------------------------- FENCED <---fence_open---+
        +------+  deposed (from every phase)

FENCED is passed under ``wait_out = "fenced-only"`` alone: the body runs, and the older leases are not over yet.
A phase is what the member knows of its own term; what it shows outside follows from it (``SHOWN``): *leader* only
while it leads with a valid lease over a raised fence, *candidate* on the way there, *follower* otherwise.
"""

from __future__ import annotations

import enum

from tenure.invariants import invariant
from tenure.types import State


class Phase(enum.StrEnum):
    """Where a member stands in the term that it knows."""

    FOLLOWING = "following"
    ELECTED = "elected"
    READING = "reading_floor"
    ACQUIRING = "acquiring"
    PREPARING = "preparing"
    FENCED = "fenced"
    LEADING = "leading"
    STOPPING = "stopping"
    RELEASING = "releasing"
    YIELDING = "yielding"


class Step(enum.StrEnum):
    """What moves a member from one phase to another."""

    ELECTED = "elected"
    OWN_ENTRY_APPLIED = "own_entry_applied"
    FLOOR_READ = "floor_read"
    ACQUIRED = "acquired"
    FENCE_OPEN = "fence_open"
    PREPARED = "prepared"
    ENDED = "ended"
    BODY_RETURNED = "body_returned"
    RELEASED = "released"
    DEPOSED = "deposed"


TRANSITIONS: dict[tuple[Phase, Step], Phase] = {
    (Phase.FOLLOWING, Step.ELECTED): Phase.ELECTED,
    (Phase.ELECTED, Step.OWN_ENTRY_APPLIED): Phase.READING,
    (Phase.ELECTED, Step.ENDED): Phase.YIELDING,
    (Phase.READING, Step.FLOOR_READ): Phase.ACQUIRING,
    (Phase.READING, Step.ENDED): Phase.YIELDING,
    (Phase.ACQUIRING, Step.ACQUIRED): Phase.PREPARING,
    (Phase.ACQUIRING, Step.ENDED): Phase.YIELDING,
    (Phase.PREPARING, Step.PREPARED): Phase.LEADING,
    (Phase.PREPARING, Step.ENDED): Phase.YIELDING,
    (Phase.PREPARING, Step.FENCE_OPEN): Phase.FENCED,
    (Phase.FENCED, Step.PREPARED): Phase.LEADING,
    # R9: the own wait is not over, so nothing may be released.
    (Phase.FENCED, Step.ENDED): Phase.YIELDING,
    (Phase.LEADING, Step.ENDED): Phase.STOPPING,
    (Phase.STOPPING, Step.BODY_RETURNED): Phase.RELEASING,
    (Phase.RELEASING, Step.RELEASED): Phase.YIELDING,
    **{(phase, Step.DEPOSED): Phase.FOLLOWING for phase in Phase},
}

SHOWN: dict[Phase, State] = {
    Phase.FOLLOWING: State.FOLLOWER,
    Phase.ELECTED: State.CANDIDATE,
    Phase.READING: State.CANDIDATE,
    Phase.ACQUIRING: State.CANDIDATE,
    Phase.PREPARING: State.CANDIDATE,
    Phase.FENCED: State.LEADER,
    Phase.LEADING: State.LEADER,
    Phase.STOPPING: State.FOLLOWER,
    Phase.RELEASING: State.FOLLOWER,
    Phase.YIELDING: State.FOLLOWER,
}

#: In these phases the member proves its leadership again and again, so that a lease runs or can start.
RENEWING = frozenset({Phase.READING, Phase.ACQUIRING, Phase.PREPARING, Phase.FENCED, Phase.LEADING})
#: In these phases a body runs under the credential; only in the second one under a lease.
GRANTED = frozenset({Phase.FENCED, Phase.LEADING})
#: In these phases it still leads the Raft group but may not lead in this term any more (R10).
LEAVING = frozenset({Phase.STOPPING, Phase.RELEASING, Phase.YIELDING})


def advance(phase: Phase, step: Step) -> Phase:
    """The phase after ``step``; a step that the table does not know is a bug of ours and changes nothing."""
    target = TRANSITIONS.get((phase, step))
    invariant(target is not None, f"no transition from {phase} by {step}")
    return target if target is not None else phase
