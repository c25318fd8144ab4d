"""Instants and spans of time, as a holder and as a waiter must count them (R8, R11). Pure: it reads no clock.

A reading is taken from two clocks at once: CLOCK_MONOTONIC_RAW, which no time daemon slews, and CLOCK_BOOTTIME, which
goes on while the machine sleeps. A holder takes the larger elapsed time of the two, so that it stops early; a waiter
takes the smaller, so that it waits long. A clock that went backwards is no clock: for a holder everything has then
expired, for a waiter nothing has passed.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

NS_PER_MS = 1_000_000
NS_PER_SECOND = 1_000_000_000
PPM = 1_000_000


class Reading(NamedTuple):
    """One reading of both clocks, in nanoseconds. Only differences within one boot of one machine mean anything."""

    raw_ns: int
    boottime_ns: int


def elapsed_for_holder(start: Reading, now: Reading) -> int | None:
    """Nanoseconds that a holder must assume have passed, or None if a clock went backwards: then it has expired."""
    raw, boottime = now.raw_ns - start.raw_ns, now.boottime_ns - start.boottime_ns
    if raw < 0 or boottime < 0:
        return None
    return max(raw, boottime)


def elapsed_for_waiter(start: Reading, now: Reading) -> int:
    """Nanoseconds that a waiter may count as passed: never more than either clock says, never below zero."""
    return max(0, min(now.raw_ns - start.raw_ns, now.boottime_ns - start.boottime_ns))


#: From when until before when a lease may be believed, by each clock: (raw from, until, boottime from, until). A plain
#: tuple: it is compared before every write.
Window: TypeAlias = tuple[int, int, int, int]
#: No instant lies in it.
CLOSED: Window = (0, 0, 0, 0)


class LeaseSpan(NamedTuple):
    """A lease as one renewal won it: ``duration_ns`` from ``started``, the clock before the request (R8)."""

    started: Reading
    duration_ns: int

    def window(self, margin_ns: int) -> Window:
        """When its holder may believe in it, the margin taken off, by both clocks (R11)."""
        raw_ns, boottime_ns = self.started
        lasts_ns = self.duration_ns - margin_ns
        return raw_ns, raw_ns + lasts_ns, boottime_ns, boottime_ns + lasts_ns

    def remaining_ns(self, now: Reading) -> int:
        """Nanoseconds left at ``now``; 0 once it is over or the clock cannot be trusted."""
        elapsed = elapsed_for_holder(self.started, now)
        return 0 if elapsed is None else max(0, self.duration_ns - elapsed)


def margin_within(duration_ns: int, margin_ns: int) -> int:
    """The time by which the holder of a lease stops early: the margin of its file, at most half of the lease.

    The lease's length is the cluster's and can change; a file's margin above it would let its member never lead.
    """
    return min(margin_ns, duration_ns // 2)


def wait_out_ns(cover_ns: int, rate_error_ppm: int, epsilon_ns: int) -> int:
    """How long a new leader waits so that every older lease is over: C(1+rho)/(1-rho) + epsilon, rounded up (R9).

    ``cover_ns`` bounds the older leases as their holders' clocks count them. A holder's clock may run slow by rho and
    the waiter's fast by rho, which gives the quotient.
    """
    numerator = cover_ns * (PPM + rate_error_ppm)
    return -(-numerator // (PPM - rate_error_ppm)) + epsilon_ns
