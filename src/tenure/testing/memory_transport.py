"""A network in memory between members on one event loop: it delays, loses, cuts and resets as a test says.

Seeded: the same calls in the same order lose the same payloads. Like TCP it keeps the order of each pair, whatever the
delays, and like the real transport it drops what a slow or silent peer does not take.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable

#: Bytes that may be on their way from one member to another; more are dropped.
IN_FLIGHT_LIMIT = 16 << 20


class MemoryNetwork:
    """What the transports of a test share. Members are numbers above 0."""

    def __init__(self, *, seed: int = 0, loss: float = 0.0, delay_seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        """``loss`` is the share of payloads that vanish; each waits between the two ``delay_seconds``."""
        self.loss = loss
        self.delay_seconds = delay_seconds
        self._random = random.Random(seed)  # noqa: S311 - replayable on purpose.
        self._members: dict[int, MemoryTransport] = {}
        self._cut: set[tuple[int, int]] = set()

    def transport(self, member: int, on_payload: Callable[[int, bytes], None]) -> MemoryTransport:
        """A transport of ``member``, not started yet. The one that is started last is the member's present life."""
        return MemoryTransport(self, member, on_payload)

    def cut(self, sender: int, to: int) -> None:
        """Let nothing through from ``sender`` to ``to``, silently: both still believe that they are connected."""
        self._cut.add((sender, to))

    def isolate(self, member: int) -> None:
        """Cut both directions between ``member`` and every other one that was started."""
        for other in self._members:
            self._cut |= {(member, other), (other, member)}

    def heal(self) -> None:
        """Undo every cut."""
        self._cut.clear()

    # -- for the transports ------------------------------------------------------------------------------------------

    def enter(self, transport: MemoryTransport) -> None:
        """``transport`` is now the present life of its member."""
        self._members[transport.member] = transport

    def leave(self, transport: MemoryTransport) -> None:
        """``transport`` was closed."""
        if self.is_present(transport):
            del self._members[transport.member]

    def is_present(self, transport: MemoryTransport) -> bool:
        """Whether ``transport`` is started and no newer life of its member is."""
        return self._members.get(transport.member) is transport

    def present(self, member: int) -> MemoryTransport | None:
        """The present life of ``member``."""
        return self._members.get(member)

    def others(self, member: int) -> set[int]:
        """The members that are started, but for ``member``."""
        return set(self._members) - {member}

    def loses(self) -> bool:
        """Whether the next payload vanishes."""
        return self._random.random() < self.loss

    def delay(self) -> float:
        """How many seconds the next payload waits."""
        return self._random.uniform(*self.delay_seconds)

    def is_cut(self, sender: int, to: int) -> bool:
        """Whether nothing gets through from ``sender`` to ``to``."""
        return (sender, to) in self._cut


class MemoryTransport:
    """See :class:`tenure.transport.Transport`."""

    def __init__(self, network: MemoryNetwork, member: int, on_payload: Callable[[int, bytes], None]) -> None:
        self.member = member
        self.dropped_frames = 0
        self._network = network
        self._on_payload = on_payload
        self._closed = False
        self._in_flight: dict[int, deque[tuple[MemoryTransport, bytes]]] = {}
        self._bytes_in_flight: dict[int, int] = {}
        self._last_due: dict[int, float] = {}

    async def start(self) -> int:
        """See :meth:`Transport.start`; the number is the member's."""
        if self._closed:
            raise OSError("this transport was closed: make a new one")
        self._network.enter(self)
        return self.member

    def send(self, peer: int, payload: bytes) -> None:
        """See :meth:`Transport.send`."""
        target = self._network.present(peer)
        room = IN_FLIGHT_LIMIT - self._bytes_in_flight.get(peer, 0)
        if target is None or peer == self.member or not self._network.is_present(self) or len(payload) > room:
            self.dropped_frames += 1
            return
        if self._network.loses():
            return
        loop = asyncio.get_running_loop()
        due = max(loop.time() + self._network.delay(), self._last_due.get(peer, 0.0))
        self._last_due[peer] = due
        self._bytes_in_flight[peer] = self._bytes_in_flight.get(peer, 0) + len(payload)
        self._in_flight.setdefault(peer, deque()).append((target, payload))
        # Timers that are due at one instant run in any order: each takes the oldest payload, so that the order stays.
        loop.call_at(due, self._deliver, peer)

    def connected(self) -> set[int]:
        """See :meth:`Transport.connected`."""
        return self._network.others(self.member) if self._network.is_present(self) else set()

    async def close(self) -> None:
        """See :meth:`Transport.close`."""
        self._closed = True
        self._network.leave(self)

    def _deliver(self, peer: int) -> None:
        target, payload = self._in_flight[peer].popleft()
        self._bytes_in_flight[peer] -= len(payload)
        lives = self._network.is_present(self) and self._network.is_present(target)
        if lives and not self._network.is_cut(self.member, peer):
            target._on_payload(self.member, payload)  # noqa: SLF001 - the other end of one double.
