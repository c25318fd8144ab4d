"""Who reaches the database, as a leader knows it, and to whom it hands over if it alone does not. Pure.

A leader without its database serves nobody, however healthy its cluster is: it cannot write, and nobody else may. If
another voter reaches the database, that one is to lead. If nobody does, a hand-over would mend nothing, and the office
stays where it is.
"""

from __future__ import annotations

from collections.abc import Iterable

from tenure.instants import Reading, elapsed_for_holder, elapsed_for_waiter


class DatabaseSights:
    """What this member and the others have seen of the database. Instants are this member's own."""

    def __init__(self, *, timeout_ns: int, started: Reading) -> None:
        self._timeout_ns = timeout_ns
        self._answered_at = started
        self._has_answered = False
        self._unanswered_since: Reading | None = None
        self._others: dict[int, Reading] = {}

    def answered(self, at: Reading) -> None:
        """The database answered this member; ``at`` was read before it was asked."""
        self._answered_at, self._has_answered = at, True

    def unanswered(self, since: Reading | None) -> None:
        """``since`` is when the first question was put that the database has not answered; None if it owes nothing."""
        self._unanswered_since = since

    def told_ns(self, now: Reading) -> int | None:
        """What this member tells its leader: for how long the database has not answered; None before its first answer.

        A member that has only just started would seem to have had an answer later than all others.
        """
        return self.silent_ns(now) if self._has_answered else None

    def silent_ns(self, now: Reading) -> int:
        """For how long the database has not answered this member, its start counted as an answer."""
        elapsed = elapsed_for_holder(self._answered_at, now)
        return self._timeout_ns if elapsed is None else elapsed

    def heard(self, peer: int, *, silent_ns: int, now: Reading) -> None:
        """The member ``peer`` says for how long the database has not answered it."""
        self._others[peer] = Reading(now.raw_ns - silent_ns, now.boottime_ns - silent_ns)

    def heir(self, voters: Iterable[int], now: Reading) -> int | None:
        """The voter to hand over to: it has an answer to a question that it put long after the one that is owed here.

        Half of the timeout lies between the two questions, so that a database that is lost to all at once, whom it
        answered last being chance, moves nobody; nor does one that is slow for all: it answers here first.
        """
        since = self._unanswered_since
        if since is None or self.silent_ns(now) < self._timeout_ns:
            return None
        answered = [
            (at, peer)
            for peer, at in self._others.items()
            if peer in set(voters)
            and elapsed_for_waiter(since, at) >= self._timeout_ns // 2
            and elapsed_for_waiter(at, now) < self._timeout_ns
        ]
        return max(answered)[1] if answered else None
