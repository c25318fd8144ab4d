"""What observers of a member are told: the present first, then every change, each in order and none left out.

The node's thread notes, the application's loop tells. An observer begins with what the loop has told last, not with
what the thread has noted last: the news in between follow, once each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from tenure.core.view import View


class RaftEvent(msgspec.Struct, frozen=True):
    """What an observer is told: the present role, term and leader. Level-triggered: each holds until the next one.

    ``members_index`` moves with each change of the members that is applied here, and with a leader's snapshot: then ask
    ``members()``.
    """

    role: str
    term: int
    leader_name: str | None
    members_index: int = 0


class Observers:
    """Any number of them. ``on_loop`` runs a call on the application's loop."""

    def __init__(self, on_loop: Callable[[Callable[[], None]], None], name_of: Callable[[View], str | None]) -> None:
        self._on_loop = on_loop
        self._name_of = name_of
        self._noted = self._told = RaftEvent("follower", 0, None)
        self._standing = ("follower", 0, 0, 0)
        self._queues: list[asyncio.Queue[RaftEvent | None]] = []
        self._ended = False

    def note(self, view: View) -> None:
        """The core was stepped. On the node's thread, at every step: most change nothing."""
        standing = (view.raft_role, view.term, view.leader_id, view.members_index)
        if standing == self._standing and self._noted.leader_name is not None:
            return
        # A leader that this member has not heard of by name yet gets one later, although nothing else changes.
        self._standing = standing
        event = RaftEvent(view.raft_role, view.term, self._name_of(view), view.members_index)
        if event != self._noted:
            self._noted = event
            self._on_loop(lambda: self._tell(event))

    async def observe(self) -> AsyncIterator[RaftEvent]:
        """The present, then every change of it; ends when the node does."""
        queue: asyncio.Queue[RaftEvent | None] = asyncio.Queue()
        queue.put_nowait(self._told)
        if self._ended:
            queue.put_nowait(None)
        self._queues.append(queue)
        try:
            while (event := await queue.get()) is not None:
                yield event
        finally:
            self._queues.remove(queue)

    def end(self) -> None:
        """The node is closed or has failed: everybody has heard everything. Idempotent. On the loop."""
        if not self._ended:
            self._ended = True
            for queue in self._queues:
                queue.put_nowait(None)

    def _tell(self, event: RaftEvent) -> None:
        self._told = event
        for queue in self._queues:
            queue.put_nowait(event)
