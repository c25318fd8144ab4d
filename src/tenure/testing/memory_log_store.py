"""A log store in memory with the manners of a disk: it survives a crash, it can fail, tear a save or rot."""

from __future__ import annotations

import zlib
from typing import Literal, NamedTuple

from tenure.errors import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage import StoredLog


class Record(NamedTuple):
    """One save on the disk: all of it under one checksum, ``whole`` unless the power went while it was written."""

    first: int
    entries: bytes
    hard_state: tuple[int, int, int] | None
    checksum: int
    whole: bool


def _checksum(first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> int:
    return zlib.crc32(entries, zlib.crc32(repr((first, hard_state)).encode()))


class MemoryDisk:
    """What outlives the stores that are opened on it, one after another. A test says here how the next save fails."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self._store: MemoryLogStore | None = None
        self._failure: StorageError | None = None
        self._leaves: Literal["nothing", "torn", "whole"] = "nothing"

    def fail_next(self, error: StorageError, *, leaves: Literal["nothing", "torn", "whole"] = "nothing") -> None:
        """Make the next save raise ``error`` with nothing, a torn record or the whole one on the disk.

        After :class:`tenure.SyncFailed` the open store is unusable; after :class:`tenure.StorageFull` it may go on.
        """
        self._failure, self._leaves = error, leaves

    def fill(self) -> None:
        """Make the next save find the disk full."""
        self.fail_next(StorageFull("the disk in memory is full; free space and start this node again"), leaves="torn")

    def crash(self) -> None:
        """The process is gone: its store takes no further call. What was saved is here, a torn end of it is not."""
        if self._store is not None:
            self._store.close()
        while self.records and not self.records[-1].whole:
            self.records.pop()

    def flip_bit(self, marker: bytes) -> None:
        """Flip one bit in every record whose entries hold ``marker``."""
        for number, record in enumerate(self.records):
            place = record.entries.find(marker)
            if place >= 0:
                damaged = bytearray(record.entries)
                damaged[place] ^= 1
                self.records[number] = record._replace(entries=bytes(damaged))

    def attach(self, store: MemoryLogStore) -> None:
        """A store is opened: the one before it is gone, however it ended."""
        self.crash()
        self._store = store

    def append(self, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        """Write one record, or fail as the test asked."""
        failure, self._failure = self._failure, None
        whole = failure is None or self._leaves == "whole"
        if whole or self._leaves == "torn":
            self.records.append(Record(first, entries, hard_state, _checksum(first, entries, hard_state), whole))
        if failure is not None:
            raise failure


class MemoryLogStore:
    """See :class:`tenure.storage.LogStore`. Open a new one on the same disk to see what a restart would."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = disk if disk is not None else MemoryDisk()
        self.disk.attach(self)
        self._unusable: str | None = None

    def load(self) -> StoredLog:
        """See :meth:`LogStore.load`."""
        self._refuse_if_unusable()
        hard_state = (0, 0, 0)
        batches = []
        for record in self.disk.records:
            if not record.whole:
                continue
            if _checksum(record.first, record.entries, record.hard_state) != record.checksum:
                raise LogCorrupt(
                    f"memory: the batch of log entries from index {record.first} on fails its checksum; it was not "
                    "applied. Replace this member's data directory",
                    path="memory",
                    index=record.first,
                )
            hard_state = record.hard_state or hard_state
            if record.entries:
                batches.append(record.entries)
        term, vote, commit = hard_state
        return StoredLog(term=term, vote=vote, commit=commit, batches=tuple(batches))

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        """See :meth:`LogStore.save`."""
        self._refuse_if_unusable()
        try:
            self.disk.append(first, entries, hard_state)
        except SyncFailed as error:
            self._unusable = str(error)
            raise

    def close(self) -> None:
        """See :meth:`LogStore.close`."""
        self._unusable = "this store was closed, or its process is gone"

    def _refuse_if_unusable(self) -> None:
        if self._unusable is not None:
            raise SyncFailed(f"memory: {self._unusable}; open the store again")
