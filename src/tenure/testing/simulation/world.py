"""True time, the queue of events, chance and the fingerprint of a run. It must never read a clock of this machine.

Everything that happens in a simulation is an event in one queue, ordered by its true instant and then by the order in
which it was asked for. Chance comes from one stream for each concern, all of them from the seed: a fault more does not
change what the network draws. The fingerprint takes in every event and every frame, so that two runs of one seed that
differ anywhere differ in it.
"""

from __future__ import annotations

import heapq
import random
import zlib
from collections.abc import Callable

from tenure.testing.simulation.trace import Trace

_FINGERPRINT_PRIME = 0x100000001B3
_FINGERPRINT_MASK = (1 << 64) - 1
#: Where the true time begins; no clock of a machine shows it.
START_NS = 1_000_000_000


class Timer:
    """One event that was asked for. ``cancel`` takes it back; it may be called at any time."""

    __slots__ = ("call", "due", "order")

    def __init__(self, due: int, order: int, call: Callable[[], None]) -> None:
        self.due = due
        self.order = order
        self.call: Callable[[], None] | None = call

    def __lt__(self, other: Timer) -> bool:
        return self.due < other.due if self.due != other.due else self.order < other.order

    def cancel(self) -> None:
        """It will not happen."""
        self.call = None


class World:
    """True time in nanoseconds (``now``), and what is going to happen."""

    def __init__(self, seed: int, *, trace: Trace | None = None) -> None:
        self.seed = seed
        self.now = START_NS
        self.events = 0
        self.trace = trace
        self._queue: list[tuple[int, int, Timer]] = []
        self._order = 0
        self._fingerprint = seed
        self._streams: dict[str, random.Random] = {}

    @property
    def event_hash(self) -> str:
        """The fingerprint of everything that has happened so far."""
        return f"{self._fingerprint:016x}"

    @property
    def elapsed_ns(self) -> int:
        """True nanoseconds since the simulation began."""
        return self.now - START_NS

    @property
    def elapsed_seconds(self) -> float:
        """True seconds since the simulation began."""
        return self.elapsed_ns / 1e9

    def random(self, concern: str) -> random.Random:
        """The stream of chance of one concern: the same object each time."""
        stream = self._streams.get(concern)
        if stream is None:
            # A text seeds by its bytes, not by its hash, which differs from process to process.
            stream = self._streams[concern] = random.Random(f"{self.seed}/{concern}")  # noqa: S311 - replayable on purpose.
        return stream

    def at(self, due: int, call: Callable[[], None]) -> Timer:
        """Let ``call`` happen at the true instant ``due``, or now if that has passed."""
        self._order += 1
        order = self._order
        timer = Timer(max(due, self.now), order, call)
        heapq.heappush(self._queue, (timer.due, order, timer))
        return timer

    def after(self, ns: int, call: Callable[[], None]) -> Timer:
        """Let ``call`` happen in ``ns`` nanoseconds of true time."""
        return self.at(self.now + ns, call)

    def mix(self, data: bytes) -> None:
        """Take ``data`` into the fingerprint."""
        self._fingerprint = (self._fingerprint * _FINGERPRINT_PRIME ^ zlib.crc32(data)) & _FINGERPRINT_MASK

    def note(self, who: str, what: str) -> None:
        """A line of the trace. Where building ``what`` costs, ask first whether there is a ``trace``."""
        if self.trace is not None:
            self.trace.add(self.now - START_NS, who, what)

    def step(self, until: int) -> bool:
        """Let the next event happen if it is due by ``until``; False if there is none."""
        queue = self._queue
        while queue:
            due, order, timer = queue[0]
            if due > until:
                return False
            heapq.heappop(queue)
            call = timer.call
            if call is None:
                continue
            timer.call = None
            self.now = due
            self.events += 1
            self._fingerprint = (self._fingerprint * _FINGERPRINT_PRIME ^ due ^ order) & _FINGERPRINT_MASK
            call()
            return True
        return False

    def advance(self, ns: int) -> None:
        """Let everything happen that is due within ``ns``; then it is that much later."""
        until = self.now + ns
        step = self.step
        while step(until):
            pass
        self.now = until
