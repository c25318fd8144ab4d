"""What a member shows of itself: published by the node's thread at every step, read by any thread. Pure.

It must never show a leader by the phase alone: the lease must be valid at the instant of the question (R14).
"""

from __future__ import annotations

import msgspec

from tenure.core.roles import GRANTED, SHOWN, Phase
from tenure.instants import LeaseSpan, Reading
from tenure.types import State


class View(msgspec.Struct, frozen=True):
    """What the status of a member is made of, at the instant at which the core was last stepped."""

    phase: Phase = Phase.FOLLOWING
    raft_role: str = "follower"
    term: int = 0
    leader_id: int = 0
    span: LeaseSpan | None = None
    token: int | None = None
    votes_for_me: int = 0
    voters: int = 0
    commit_index: int = 0
    applied_index: int = 0
    elections_observed: int = 0
    snapshot_index: int = 0
    members_index: int = 0
    reason: str | None = None

    def shown_state(self, now: Reading) -> State:
        """The state that the outside may see at ``now``: leader only with a valid lease over a raised fence."""
        if self.phase in GRANTED:
            valid = self.span is not None and self.span.remaining_ns(now) > 0
            return State.LEADER if valid else State.FOLLOWER
        if self.phase is Phase.FOLLOWING and self.raft_role in ("candidate", "pre_candidate"):
            return State.CANDIDATE
        return SHOWN[self.phase]
