"""One member's disk: what is durable, how long a write takes, and every way in which it fails.

What it keeps is the log store in memory of ``tenure.testing``, which obeys the same conformance suite as the real ones.
A write takes time, and until it has ended nothing of it is promised: a crash meanwhile leaves nothing of it, a torn end
or all of it.
"""

from __future__ import annotations

import contextlib
import random
from dataclasses import dataclass
from typing import Literal

from tenure.core.effects import Persist
from tenure.errors import SyncFailed
from tenure.instants import NS_PER_MS
from tenure.storage import StoredSnapshot
from tenure.testing.memory_log_store import MemoryDisk, MemoryLogStore


@dataclass(slots=True)
class Condition:
    """How a disk is at present."""

    fsync_ns: tuple[int, int] = (NS_PER_MS // 10, 2 * NS_PER_MS)
    full: bool = False
    failing: bool = False


class Disk:
    """The disk of one member through all its lives, and its settings file beside the log."""

    def __init__(self, chance: random.Random) -> None:
        self.condition = Condition()
        self.crashes = 0
        self.torn = 0
        self._chance = chance
        self._disk = MemoryDisk()
        self._store: MemoryLogStore | None = None
        self._writing: Persist | None = None
        #: Term and vote that are durable.
        self.term = self.vote = 0

    def open(self) -> MemoryLogStore:
        """The store of a new life."""
        self._writing = None
        self._store = MemoryLogStore(self._disk)
        stored = self._store.load()
        self.term, self.vote = stored.term, stored.vote
        return self._store

    def begin(self, effect: Persist) -> int:
        """A save begins; how long it will take, in nanoseconds."""
        self._writing = effect
        shortest, longest = self.condition.fsync_ns
        return shortest + int(self._chance.random() * (longest - shortest))

    def finish(self) -> None:
        """The save has ended.

        Raises:
            StorageFull, SyncFailed: it has failed; the process must not go on with this store (R2).
        """
        effect, self._writing = self._writing, None
        self._fail_if_in_trouble()
        if effect is not None:
            self._write(effect)

    def keep_commit(self, hard_state: tuple[int, int, int]) -> None:
        """Make the hard state alone durable, as the driver does at a change of the members; it fails as a save does."""
        self._fail_if_in_trouble()
        self._write(Persist(first=0, last=0, entries=b"", hard_state=hard_state, must_sync=True))

    def compact(self, snapshot: StoredSnapshot) -> None:
        """Let ``snapshot`` stand for the log up to its index, durably; it fails as a save does."""
        self._fail_if_in_trouble()
        if self._store is not None:
            self._store.compact(snapshot)

    def crash(self) -> None:
        """The process or the power is gone. A save that was under way has left nothing, a torn end, or everything."""
        effect, self._writing = self._writing, None
        self.crashes += 1
        if effect is not None:
            left = self._chance.randrange(3)
            if left == 2:
                self._write(effect)
            elif left == 1:
                self.torn += 1
                self._disk.fail_next(SyncFailed("the power went"), leaves="torn")
                with contextlib.suppress(SyncFailed):
                    self._write(effect)
        self._disk.crash()
        self._store = None

    def _fail_if_in_trouble(self) -> None:
        """Let the next call of the store fail if the disk is full or broken."""
        if self.condition.full:
            self._disk.fill()
        elif self.condition.failing:
            leaves: Literal["nothing", "torn", "whole"] = self._chance.choice(("nothing", "torn", "whole"))
            self._disk.fail_next(SyncFailed("the disk of the simulation fails"), leaves=leaves)

    def _write(self, effect: Persist) -> None:
        if self._store is None:
            return
        self._store.save(
            first=effect.first,
            last=effect.last,
            entries=effect.entries,
            hard_state=effect.hard_state,
            snapshot=None if effect.snapshot is None else StoredSnapshot(*effect.snapshot),
        )
        if effect.hard_state is not None:
            self.term, self.vote = effect.hard_state[0], effect.hard_state[1]
