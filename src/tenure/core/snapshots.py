"""When a snapshot is due, and which one is under way. Pure.

The log may grow by a number of entries or bytes before it is compacted, and by as much as half of the last snapshot:
a large state that changes slowly is not written again and again.
"""

from __future__ import annotations

from dataclasses import dataclass

#: What an entry costs in memory beside its bytes, roughly.
ENTRY_OVERHEAD_BYTES = 64


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
        self._last_size = 0
        self._asked = False
        self._part_index = 0
        #: The entries and bytes that the snapshot under way covers; None if there is none.
        self._covered: tuple[int, int] | None = None

    def applied(self, size_bytes: int) -> None:
        """One more entry of that size is applied."""
        self._entries += 1
        self._bytes += size_bytes + ENTRY_OVERHEAD_BYTES

    def part_applied(self, index: int) -> None:
        """At ``index`` stands a part of a state that a user brought."""
        self._part_index = index

    def kept_behind(self, index: int) -> int:
        """How many entries up to ``index`` stay for members that lag a little.

        None of a restore: its parts would fill the memory for long, and a snapshot is as short as they are.
        """
        return min(self.limits.keep_entries, max(0, index - self._part_index))

    def ask(self) -> None:
        """The next chance is taken, however little was applied."""
        self._asked = True

    @property
    def under_way(self) -> bool:
        """Whether a snapshot was begun and has not ended."""
        return self._covered is not None

    def is_due(self) -> bool:
        """Whether to begin one now."""
        if self.under_way or self._entries == 0:
            return False
        grown = self._entries >= self.limits.entries or self._bytes >= self.limits.size_bytes
        return self._asked or (grown and 2 * self._bytes >= self._last_size)

    def begin(self) -> None:
        """A snapshot of what is applied now is being taken."""
        self._covered, self._asked = (self._entries, self._bytes), False

    def end(self, *, size_bytes: int | None) -> None:
        """It is durable and has that size, or failed (None): then it is due again after as much again."""
        if self._covered is None:
            return
        entries, covered = self._covered
        self._entries -= entries
        self._bytes -= covered
        self._covered = None
        if size_bytes is not None:
            self._last_size = size_bytes

    def restored(self, size_bytes: int) -> None:
        """A snapshot of the leader took the place of everything."""
        self._entries, self._bytes, self._last_size, self._covered = 0, 0, size_bytes, None
