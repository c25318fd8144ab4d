"""What became of each payment, and what its payer was told: the judge of G3 and G5. It changes nothing.

Every attempt to write has a number of its own, so that an answer can be held against what the database did with just
that attempt, also when its commit comes later than the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tenure.testing.simulation.invariants import (
    ACKNOWLEDGED_EXACTLY_ONCE,
    NO_STALE_WRITE,
    OUTCOME_HONEST,
    Broken,
    require,
)


@dataclass(frozen=True, slots=True)
class Payment:
    """What somebody wants to have paid once, and the key under which every try of it is sent."""

    number: int
    key: str


@dataclass(frozen=True, slots=True)
class Write:
    """One attempt of one member to write a payment, under the token that it leads with."""

    attempt: int
    payment: Payment
    token: int
    node: str


class Ledger:
    """The memory of all attempts, commits and answers."""

    def __init__(self) -> None:
        self._attempts = 0
        #: Who wrote the row of each key, as the database has it now.
        self.rows: dict[str, Write] = {}
        self._paid: dict[int, str] = {}
        self._acknowledged: dict[str, Payment] = {}
        self._denied: set[int] = set()
        self._excused: set[str] = set()
        self.stale_offered = self.stale_refused = self.acknowledged = self.unknown = 0

    def attempt(self, payment: Payment, token: int, node: str) -> Write:
        """A write that is about to be sent."""
        self._attempts += 1
        return Write(self._attempts, payment, token, node)

    # -- what the database did ----------------------------------------------------------------------------------------

    def offered(self, *, stale: bool) -> None:
        """A write has arrived; ``stale``: a later holding has the fence, or another server."""
        self.stale_offered += stale

    def refused(self, *, stale: bool) -> None:
        """It was refused."""
        self.stale_refused += stale

    def committed(self, write: Write, *, highest_raised: int) -> None:
        """G3: a row is committed at this instant."""
        require(
            write.token >= highest_raised,
            NO_STALE_WRITE,
            f"{write.node} wrote {write.payment.key} with token {write.token} after {highest_raised} was raised",
        )
        require(
            write.attempt not in self._denied,
            OUTCOME_HONEST,
            f"{write.payment.key} was called surely not written, and now its attempt {write.attempt} is committed",
        )
        number, key = write.payment.number, write.payment.key
        other = self._paid.setdefault(number, key)
        require(other == key, ACKNOWLEDGED_EXACTLY_ONCE, f"payment {number} is made twice, under {other} and {key}")
        self.rows[key] = write

    def lost(self, write: Write) -> None:
        """An asynchronous failover has lost a committed row: the stated non-guarantee, of which G5 speaks."""
        if self.rows.pop(write.payment.key, None) is not None:
            self._paid.pop(write.payment.number, None)
            self._excused.add(write.payment.key)

    # -- what was told ------------------------------------------------------------------------------------------------

    def told_written(self, payment: Payment) -> None:
        """The payer was told that it is made."""
        known = payment.key in self.rows or payment.key in self._excused
        require(known, OUTCOME_HONEST, f"{payment.key} was acknowledged and is not in the database")
        if payment.key not in self._acknowledged:
            self.acknowledged += 1
            self._acknowledged[payment.key] = payment

    def told_not_written(self, write: Write) -> None:
        """The payer was told that this attempt has surely written nothing, and never will."""
        row = self.rows.get(write.payment.key)
        require(
            row is None or row.attempt != write.attempt,
            OUTCOME_HONEST,
            f"{write.payment.key} was called surely not written, and its attempt {write.attempt} is committed",
        )
        self._denied.add(write.attempt)

    def judge_end(self) -> None:
        """G5: every acknowledged payment is there, but for those that a failover is known to have lost."""
        missing = [key for key in self._acknowledged if key not in self.rows and key not in self._excused]
        if missing:
            raise Broken(ACKNOWLEDGED_EXACTLY_ONCE, f"{', '.join(missing[:5])} were acknowledged and are gone")


#: How the answer to a payment reaches who asked for it.
Answer = Callable[[str], None]
