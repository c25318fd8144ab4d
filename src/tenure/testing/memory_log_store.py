"""A log store in memory with the manners of a disk: it survives a crash, it can fail, tear a save or rot."""

from __future__ import annotations

import zlib
from typing import Literal, NamedTuple

from tenure.errors import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage import StoredLog, StoredSnapshot

HardState = tuple[int, int, int]


class Record(NamedTuple):
    """One call on the disk: all of it under one checksum, ``whole`` unless the power went while it was written."""

    first: int = 0
    last: int = 0
    entries: bytes = b""
    hard_state: HardState | None = None
    snapshot: StoredSnapshot | None = None
    #: The snapshot is this member's own and stands for a part of the log; else it replaces all of it.
    compacts: bool = False
    checksum: int = 0
    whole: bool = True

    def total(self) -> int:
        """The checksum that this record should have."""
        return zlib.crc32(repr(self[:6]).encode())


class Replay(NamedTuple):
    """What the records on a disk come to."""

    hard_state: HardState
    snapshot: StoredSnapshot | None
    batches: list[Record]


def replay(records: list[Record]) -> Replay:
    """Go through the whole records in their order."""
    found = Replay((0, 0, 0), None, [])
    for record in records:
        if not record.whole:
            continue
        batches = found.batches
        if record.snapshot is not None:
            batches = _kept(batches, record.snapshot.index) if record.compacts else []
        if record.entries:
            batches = [*batches, record]
        found = Replay(record.hard_state or found.hard_state, record.snapshot or found.snapshot, batches)
    return found


def _kept(batches: list[Record], index: int) -> list[Record]:
    """Those from the newest on that begins at or below ``index + 1``: it drops what the ones before it say above."""
    starts = [place for place, record in enumerate(batches) if record.first <= index + 1]
    kept = batches[starts[-1] :] if starts else batches
    return [] if len(kept) == 1 and 0 < kept[0].last <= index else kept


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

    def flip_bit(self, marker: bytes) -> int:
        """Flip one bit in every record whose entries or snapshot hold ``marker``; their number."""
        flipped = 0
        for number, record in enumerate(self.records):
            if marker in record.entries:
                flipped += 1
                self.records[number] = record._replace(entries=_flipped(record.entries, marker))
            elif record.snapshot is not None and marker in record.snapshot.data:
                flipped += 1
                index, term, data = record.snapshot.index, record.snapshot.term, record.snapshot.data
                damaged = StoredSnapshot(index=index, term=term, data=_flipped(data, marker))
                self.records[number] = record._replace(snapshot=damaged)
        return flipped

    def attach(self, store: MemoryLogStore) -> None:
        """A store is opened: the one before it is gone, however it ended."""
        self.crash()
        self._store = store

    def append(self, record: Record) -> None:
        """Write one record, or fail as the test asked. A snapshot lets go of the records that it stands for."""
        failure, self._failure = self._failure, None
        whole = failure is None or self._leaves == "whole"
        if whole or self._leaves == "torn":
            self.records.append(record._replace(checksum=record.total(), whole=whole))
        if failure is not None:
            raise failure
        if record.snapshot is not None:
            found = replay(self.records)
            newest = record._replace(hard_state=found.hard_state)
            kept = found.batches if record.compacts else []
            self.records = [*kept, newest._replace(checksum=newest.total())]


class MemoryLogStore:
    """See :class:`tenure.storage.LogStore`. Open a new one on the same disk to see what a restart would."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        self.disk = disk if disk is not None else MemoryDisk()
        self.disk.attach(self)
        self._unusable: str | None = None

    def load(self) -> StoredLog:
        """See :meth:`LogStore.load`."""
        self._refuse_if_unusable()
        for record in self.disk.records:
            if record.whole and record.total() != record.checksum:
                what = f"the batch of log entries from index {record.first} on" if record.entries else "the snapshot"
                raise LogCorrupt(
                    f"memory: {what} fails its checksum; it was not applied. Replace this member's data directory",
                    path="memory",
                    index=record.first or None,
                )
        found = replay(self.disk.records)
        term, vote, commit = found.hard_state
        batches = tuple(record.entries for record in found.batches)
        return StoredLog(term=term, vote=vote, commit=commit, batches=batches, snapshot=found.snapshot)

    def save(
        self,
        *,
        first: int,
        last: int,
        entries: bytes,
        hard_state: HardState | None,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        """See :meth:`LogStore.save`."""
        self._append(Record(first, last, entries, hard_state, snapshot))

    def compact(self, snapshot: StoredSnapshot) -> None:
        """See :meth:`LogStore.compact`."""
        stored = replay(self.disk.records).snapshot
        if stored is None or snapshot.index >= stored.index:
            self._append(Record(snapshot=snapshot, compacts=True))

    def close(self) -> None:
        """See :meth:`LogStore.close`."""
        self._unusable = "this store was closed, or its process is gone"

    def _append(self, record: Record) -> None:
        self._refuse_if_unusable()
        try:
            self.disk.append(record)
        except SyncFailed as error:
            self._unusable = str(error)
            raise

    def _refuse_if_unusable(self) -> None:
        if self._unusable is not None:
            raise SyncFailed(f"memory: {self._unusable}; open the store again")


def _flipped(data: bytes, marker: bytes) -> bytes:
    damaged = bytearray(data)
    damaged[data.find(marker)] ^= 1
    return bytes(damaged)
