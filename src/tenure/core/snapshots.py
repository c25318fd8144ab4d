"""When a snapshot is due, and which one is under way. Pure.

The log may grow by a number of entries or bytes before it is compacted, and by as much as half of the last snapshot:
a large state that changes slowly is not written again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenure.instants import NS_PER_SECOND, Reading, elapsed_for_waiter

#: What an entry costs in memory beside its bytes, roughly.
ENTRY_OVERHEAD_BYTES = 64
#: How long after one that failed a snapshot for a member that needs it is tried again.
RETRY_NS = NS_PER_SECOND


@dataclass(frozen=True, slots=True)
class SnapshotLimits:
    """How far the log may grow before a snapshot, and how many entries stay for members that lag a little."""

    entries: int = 50_000
    size_bytes: int = 64 << 20
    keep_entries: int = 10_000


class SnapshotSchedule:
    """Counts what was applied since the last snapshot. At most one snapshot is under way."""

    def __init__(self, limits: SnapshotLimits) -> None:
        self.limits = limits
        self._entries = 0
        self._bytes = 0
        #: The entries that no snapshot covers; those above count from the last try, this from the last that is durable.
        self._uncovered = 0
        self._last_size = 0
        self._asked = False
        #: Who asked for a snapshot, and up to which entry.
        self._tickets: list[tuple[int, object]] = []
        self._failed_at: Reading | None = None
        self._part_index = 0
        #: What of the three the snapshot under way covers; None if there is none.
        self._covered: tuple[int, int, int] | None = None

    def applied(self, size_bytes: int) -> None:
        """One more entry of that size is applied."""
        self._entries += 1
        self._uncovered += 1
        self._bytes += size_bytes + ENTRY_OVERHEAD_BYTES

    def part_applied(self, index: int) -> None:
        """At ``index`` stands a part of a state that a user brought."""
        self._part_index = index

    def kept_behind(self, index: int) -> int:
        """How many entries up to ``index`` stay for members that lag a little.

        None of a restore: its parts would fill the memory for long, and a snapshot is as short as they are.
        """
        return min(self.limits.keep_entries, max(0, index - self._part_index))

    def ask(self, ticket: object, index: int) -> None:
        """The next chance is taken, however little was applied; ``ticket`` waits for a snapshot up to ``index``."""
        self._tickets.append((index, ticket))
        self._asked = True

    def need(self, now: Reading) -> None:
        """A member cannot go on without a new one."""
        if self.under_way or (self._failed_at and elapsed_for_waiter(self._failed_at, now) < RETRY_NS):
            return
        self._asked = True

    @property
    def under_way(self) -> bool:
        """Whether a snapshot was begun and has not ended."""
        return self._covered is not None

    def is_due(self) -> bool:
        """Whether to begin one now."""
        if self._covered is not None or self._uncovered == 0:
            return False
        grown = self._entries >= self.limits.entries or self._bytes >= self.limits.size_bytes
        return self._asked or (grown and 2 * self._bytes >= self._last_size)

    def begin(self) -> None:
        """A snapshot of what is applied now is being taken."""
        self._covered, self._asked = (self._entries, self._bytes, self._uncovered), False

    def end(self, *, size_bytes: int | None) -> None:
        """It is durable and has that size, or failed (None): then it is due again after as much again."""
        if self._covered is None:
            return
        entries, size, uncovered = self._covered
        self._entries -= entries
        self._bytes -= size
        self._covered = None
        if size_bytes is not None:
            self._uncovered -= uncovered
            self._last_size = size_bytes

    def answered(self, index: int) -> list[object]:
        """The tickets that waited for no more than a snapshot up to ``index``; for the others one more is taken."""
        done = [ticket for wanted, ticket in self._tickets if wanted <= index]
        self._tickets = [(wanted, ticket) for wanted, ticket in self._tickets if wanted > index]
        self._asked = self._asked or bool(self._tickets)
        return done

    def failed(self, now: Reading) -> list[object]:
        """The one that is under way came to nothing; the tickets of who waited for it."""
        self.end(size_bytes=None)
        self._failed_at, self._asked = now, False
        tickets, self._tickets = self._tickets, []
        return [ticket for _, ticket in tickets]

    def restored(self, size_bytes: int) -> None:
        """A snapshot of the leader took the place of everything. One that is under way still has to end."""
        self._entries, self._bytes, self._uncovered, self._last_size = 0, 0, 0, size_bytes
        self._covered = (0, 0, 0) if self.under_way else None
