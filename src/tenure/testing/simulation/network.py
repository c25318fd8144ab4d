"""The network: frames and statements in flight, which are delayed, lost, repeated, overtaken, cut off and late.

Ends of a link are raft ids, and ``DATABASE`` for the database. A cut is silent: what is sent into it is gone, and
nobody is told. Frames belong to a connection between two lives: what was sent to an earlier life of its receiver, or
by a life that another one has replaced, arrives nowhere, as the transport's greeting sees to it (R3). Everything else
that a network can do to frames it does, more of it than TCP would.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tenure.instants import NS_PER_MS
from tenure.testing.simulation.world import World

#: The end of a link that is no member.
DATABASE: Final = 0


@dataclass(frozen=True, slots=True)
class Weather:
    """How a network treats what it carries. Times in nanoseconds; shares from 0 to 1."""

    delay_ns: tuple[int, int] = (NS_PER_MS // 5, 2 * NS_PER_MS)
    #: The share of frames that take ``slow_ns`` at most instead.
    slow: float = 0.0
    slow_ns: int = 0
    loss: float = 0.0
    duplicate: float = 0.0
    #: The share of frames of which a copy arrives again, up to ``late_ns`` later.
    late: float = 0.0
    late_ns: int = 0
    #: Whether frames of one link overtake one another.
    reorder: bool = False
    #: Frames that arrive at one member within this time are taken together, as one turn of its loop would.
    quantum_ns: int = NS_PER_MS // 4


CALM = Weather()

Deliver = Callable[[int, int, bytes, int, int], None]


class Network:
    """Every link between members, and between members and the database."""

    def __init__(self, world: World, weather: Weather, deliver: Callable[[int, list[Frame]], None]) -> None:
        """``deliver`` gets the frames that arrive at one member together."""
        self._world = world
        self._deliver = deliver
        self._chance: random.Random = world.random("network")
        self.weather = weather
        #: Directed: from whom to whom nothing passes.
        self.cuts: set[tuple[int, int]] = set()
        #: Directed: how much longer everything takes.
        self.slow_links: dict[tuple[int, int], int] = {}
        self.carried = self.lost = self.repeated = 0
        self._last_due: dict[tuple[int, int], int] = {}
        self._arriving: dict[tuple[int, int], list[Frame]] = {}

    def cut(self, *pairs: tuple[int, int]) -> None:
        """Let nothing pass any more from the first to the second of each pair."""
        self.cuts.update(pairs)

    def heal(self) -> None:
        """Undo every cut."""
        self.cuts.clear()
        self.slow_links.clear()

    def passes(self, sender: int, to: int) -> bool:
        """Whether what ``sender`` sends now may reach ``to``."""
        return (sender, to) not in self.cuts

    def send(self, frame: Frame) -> None:
        """Carry ``frame``, or lose it."""
        weather, chance = self.weather, self._chance
        self._world.mix(frame.payload)
        self.carried += 1
        if (frame.sender, frame.to) in self.cuts or (weather.loss and chance.random() < weather.loss):
            self.lost += 1
            return
        self._carry(frame, self._delay())
        if weather.duplicate and chance.random() < weather.duplicate:
            self.repeated += 1
            self._carry(frame, self._delay())
        if weather.late and chance.random() < weather.late:
            self.repeated += 1
            self._carry(frame, int(chance.random() * weather.late_ns), in_order=False)

    def travel(self, sender: int, to: int, arrive: Callable[[], None]) -> None:
        """Carry something that is no frame, such as a statement: once, or never."""
        if (sender, to) in self.cuts or (self.weather.loss and self._chance.random() < self.weather.loss):
            self.lost += 1
            return
        self._world.after(self._delay(), arrive)

    def _delay(self) -> int:
        weather, chance = self.weather, self._chance
        shortest, longest = weather.delay_ns
        if weather.slow and chance.random() < weather.slow:
            longest = weather.slow_ns
        return shortest + int(chance.random() * (longest - shortest))

    def _carry(self, frame: Frame, delay_ns: int, *, in_order: bool = True) -> None:
        weather = self.weather
        due = self._world.now + delay_ns
        if self.slow_links:
            due += self.slow_links.get((frame.sender, frame.to), 0)
        if in_order and not weather.reorder:
            link = (frame.sender, frame.to)
            due = self._last_due[link] = max(due, self._last_due.get(link, 0))
        due = -(-due // weather.quantum_ns) * weather.quantum_ns
        key = (due, frame.to)
        waiting = self._arriving.get(key)
        if waiting is not None:
            waiting.append(frame)
            return
        self._arriving[key] = [frame]
        self._world.at(due, lambda: self._deliver(frame.to, self._arriving.pop(key)))


@dataclass(frozen=True, slots=True)
class Frame:
    """One payload on its way between two lives."""

    sender: int
    to: int
    payload: bytes
    sender_life: int
    to_life: int
