"""One machine's clocks: the two of R11, which run at a rate of their own, and a wall clock that nobody may read.

::

    true time      ----------------------------------------------->
    RAW            runs at the machine's rate, stops while the machine is suspended
    BOOTTIME       runs at the same rate, goes on while it is suspended
    both           stop while a hypervisor pauses the machine: no rule bounds that, only the fence does

They start at numbers of their own, so that a reading of one machine means nothing on another.
"""

from __future__ import annotations

import enum
import random

from tenure.instants import PPM, LeaseSpan, Reading


class Power(enum.Enum):
    """What runs on a machine."""

    ON = enum.auto()
    SUSPENDED = enum.auto()
    STOPPED = enum.auto()


class Clocks:
    """The clocks of one machine; they go on through the lives of its process. Every instant is a true one, in ns."""

    def __init__(self, now: int, rate_ppm: int, chance: random.Random) -> None:
        """``rate_ppm``: how much faster than true time they run, in millionths; negative: slower."""
        self.rate_ppm = rate_ppm
        self.power = Power.ON
        #: Nothing but the steps that people and daemons make; the product reads no wall clock.
        self.wall_offset_ns = chance.randrange(-(10**18), 10**18)
        self._since = now
        self._raw = chance.randrange(10**15)
        self._boottime = self._raw + chance.randrange(10**15)

    def read(self, now: int) -> Reading:
        """Both clocks at the true instant ``now``."""
        passed = (now - self._since) * (PPM + self.rate_ppm) // PPM
        if self.power is Power.ON:
            return Reading(self._raw + passed, self._boottime + passed)
        if self.power is Power.SUSPENDED:
            return Reading(self._raw, self._boottime + passed)
        return Reading(self._raw, self._boottime)

    def change(self, now: int, *, rate_ppm: int | None = None, power: Power | None = None) -> None:
        """From ``now`` on they run at another rate, or the machine sleeps, stops or wakes."""
        self._raw, self._boottime = self.read(now)
        self._since = now
        self.rate_ppm = self.rate_ppm if rate_ppm is None else rate_ppm
        self.power = self.power if power is None else power

    def true_ns(self, own_ns: int) -> int:
        """How long ``own_ns`` of these clocks take in true time at the present rate, rounded up."""
        return -(-own_ns * PPM // (PPM + self.rate_ppm))

    def end_of(self, span: LeaseSpan, now: int) -> int | None:
        """The true instant at which ``span`` ends by these clocks if nothing changes them; None: never."""
        remaining = span.remaining_ns(self.read(now))
        if remaining == 0:
            return now
        return None if self.power is Power.STOPPED else now + self.true_ns(remaining)
