"""What callers wait for: each call's future, its place in the log once it has one, and its deadline.

One event loop owns it. A fate is told once and never guessed: done, surely not done, or unknown at the deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import Any

import msgspec

from tenure.core.effects import (
    Apply,
    Declined,
    Effect,
    MembersChanged,
    Proposed,
    Proved,
    Rejected,
    RestoreSnapshot,
    SettingsChanged,
)
from tenure.errors import InvariantViolated, OutcomeUnknown, ProposalDropped, TenureError

_SWEEP_SECONDS = 0.05


class Pending(msgspec.Struct):
    """One call on its way: its future, and where it stands in the log once it does."""

    future: asyncio.Future[Any]
    term: int = 0
    index: int = 0
    ended: bool = False


class Requests:
    """The calls of one node that wait. ``start`` and ``end`` frame its life."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._in_log: dict[int, Pending] = {}
        #: Changes that have entered a joint configuration and wait for its end.
        self._joint: list[Pending] = []
        #: The calls of each timeout in the order of their deadlines.
        self._deadlines: dict[int, deque[tuple[float, Pending]]] = {}
        self._sweeper: asyncio.TimerHandle | None = None
        self.waiting = 0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to watch the deadlines."""
        self._loop = loop
        self._sweeper = loop.call_later(_SWEEP_SECONDS, self._sweep)

    def track(self, timeout_ms: int) -> Pending:
        """A new call that ends with :class:`tenure.OutcomeUnknown` after ``timeout_ms``."""
        if self._loop is None:
            raise InvariantViolated("a call was tracked before the node was opened")
        pending = Pending(self._loop.create_future())
        self.waiting += 1
        deadlines = self._deadlines.get(timeout_ms)
        if deadlines is None:
            deadlines = self._deadlines[timeout_ms] = deque()
        deadlines.append((time.monotonic() + timeout_ms / 1000, pending))
        return pending

    def take(self, fate: Effect, *, not_leader: TenureError) -> None:
        """The node's thread told something; ``not_leader`` is what a rejected call ends with."""
        match fate:
            case Proposed(first, term, tickets):
                self.enter_in_log(first, term, tickets)
            case Rejected(tickets):
                for ticket in tickets:
                    self.settle(ticket, error=not_leader)
            case Declined(ticket, error):
                self.settle(ticket, error=error)
            case Proved(ticket):
                self.settle(ticket)
            case MembersChanged(_, joint, entries):
                self._members_changed(entries, joint=joint)
            case SettingsChanged(_, index, term):
                self.applied(index, term, None)
            case Apply(entries, through):
                for index, term, _ in entries:
                    self.applied(index, term, None)
                self.overtaken_through(through)
            case RestoreSnapshot(restored):
                self._unknown_through(restored.index)
            case _:
                pass

    def applied(self, index: int, term: int, result: Any) -> None:
        """The entry at ``index`` is applied, with that result for whoever proposed it in that term."""
        pending = self._in_log.pop(index, None)
        if pending is None:
            return
        if pending.term != term:
            self.settle(pending, error=_overtaken())
        elif not pending.ended:
            pending.ended = True
            self.waiting -= 1
            if not pending.future.done():
                pending.future.set_result(result)

    def overtaken_through(self, index: int) -> None:
        """Everything up to ``index`` is applied: who still waits there was overtaken by another leader's entry."""
        in_log = self._in_log
        while in_log:
            first = next(iter(in_log))
            if first > index:
                return
            self.settle(in_log.pop(first), error=_overtaken())

    def _unknown_through(self, index: int) -> None:
        """A leader's snapshot stands for everything up to ``index``: whose entries stood there nobody can tell here."""
        for place in [place for place in self._in_log if place <= index]:
            error = OutcomeUnknown("a snapshot took the place of the log there: it may or may not be applied")
            self.settle(self._in_log.pop(place), error=error)

    def is_idle(self) -> bool:
        """Whether nobody waits."""
        return self.waiting == 0

    def settle(self, ticket: object, *, result: Any = None, error: Exception | None = None) -> None:
        """End a call, if it has not ended before."""
        if not isinstance(ticket, Pending) or ticket.ended:
            return
        ticket.ended = True
        self.waiting -= 1
        if ticket.future.done():
            return
        if error is None:
            ticket.future.set_result(result)
        else:
            ticket.future.set_exception(error)

    def end(self, error: Exception) -> None:
        """End every call: the node is closed or has failed."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        self._loop = None
        for deadlines in self._deadlines.values():
            for _, pending in deadlines:
                self.settle(pending, error=error)
        self._deadlines.clear()
        self._in_log.clear()
        self._joint.clear()

    def enter_in_log(self, first: int, term: int, tickets: list[object]) -> None:
        """The commands behind ``tickets`` stand in the log of ``term`` from ``first`` on."""
        in_log = self._in_log
        for index, ticket in enumerate(tickets, start=first):
            if not isinstance(ticket, Pending):
                raise InvariantViolated("a ticket of ours came back as something else")
            ticket.term, ticket.index = term, index
            older = in_log.pop(index, None)
            if older is not None:
                self.settle(older, error=_overtaken())
            in_log[index] = ticket

    def _members_changed(self, entries: tuple[tuple[int, int], ...], *, joint: bool) -> None:
        for index, term in entries:
            pending = self._in_log.get(index)
            if joint and pending is not None and pending.term == term:
                self._joint.append(self._in_log.pop(index))
            else:
                self.applied(index, term, None)
        if not joint:
            for pending in self._joint:
                self.settle(pending)
            self._joint.clear()

    def _sweep(self) -> None:
        """End what waited too long. A coarse clock: one timer for all calls instead of one for each."""
        now = time.monotonic()
        for timeout_ms, deadlines in list(self._deadlines.items()):
            # One that its caller has cancelled ends as well: nobody waits for it.
            while deadlines and (deadlines[0][0] <= now or deadlines[0][1].future.done()):
                _, pending = deadlines.popleft()
                if pending.ended:
                    continue
                self._in_log.pop(pending.index, None)
                self.settle(pending, error=OutcomeUnknown("no answer in time: it may or may not be applied"))
            if not deadlines:
                del self._deadlines[timeout_ms]
        if self._loop is not None:
            self._sweeper = self._loop.call_later(_SWEEP_SECONDS, self._sweep)


def _overtaken() -> ProposalDropped:
    """Another leader's entry stands where ours stood: ours is gone for good."""
    return ProposalDropped("another leader's entry took its place in the log")
