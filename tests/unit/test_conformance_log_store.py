"""The log stores keep the promises of their protocol, and the suite catches stores that do not."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tenure import LogCorrupt, StorageFull, SyncFailed
from tenure.storage import LogStore, SegmentLogStore, SqliteLogStore, StoredLog, StoredSnapshot
from tenure.testing import LogStoreConformance, MemoryDisk, MemoryLogStore
from tenure.testing.damage import copied
from tenure.testing.memory_log_store import Record


class TestSqliteLogStore(LogStoreConformance):
    def open_store(self, folder: Path) -> LogStore:
        folder.mkdir(exist_ok=True)
        return SqliteLogStore(folder / "raft.sqlite3")

    def fail_next_sync(self, store: LogStore) -> None:
        store._connection.execute("PRAGMA query_only = ON")


class TestSegmentLogStore(LogStoreConformance):
    """With small segments, so that every test goes through many of them."""

    segment_bytes = 8 << 10

    def open_store(self, folder: Path) -> LogStore:
        return SegmentLogStore(folder, segment_bytes=self.segment_bytes)

    def torn(self, before: Path, after: Path) -> Iterator[Path]:
        return unfinished_copies(before, after)

    def fail_next_sync(self, store: LogStore) -> None:
        with Path(os.devnull).open("rb") as no_disk:
            os.dup2(no_disk.fileno(), store._descriptor)


class TestSegmentLogStoreWithOneSegment(TestSegmentLogStore):
    segment_bytes = 1 << 20


def unfinished_copies(before: Path, after: Path) -> Iterator[Path]:
    """Copies of ``after`` in which some of the sectors of its last write were not written.

    Where a new segment was begun, more than one write lies between the two: test_segments.py cuts each of those.
    """
    yield copied(before, "torn")
    yield copied(after, "torn")
    name = max(path.name for path in after.iterdir())
    if not (before / name).exists():
        return
    source, old, new = random.Random(1), (before / name).read_bytes(), (after / name).read_bytes()
    sectors = [place for place in range(0, len(new), 512) if old[place : place + 512] != new[place : place + 512]]
    missing = [sectors[count:] for count in range(len(sectors))] + [sectors[:count] for count in range(len(sectors))]
    missing += [[place for place in sectors if source.random() < 0.5] for _ in range(8)]
    for places in missing:
        torn = copied(after, "torn")
        data = bytearray(new)
        for place in places:
            data[place : place + 512] = old[place : place + 512]
        (torn / name).write_bytes(data)
        yield torn


class TestMemoryLogStore(LogStoreConformance):
    store_class = MemoryLogStore

    def setup_method(self) -> None:
        self.disks: dict[Path, MemoryDisk] = {}

    def open_store(self, folder: Path) -> LogStore:
        return self.store_class(self.disks.setdefault(folder, MemoryDisk()))

    def image(self, store: LogStore, folder: Path) -> Path:
        image = folder.with_name(f"{folder.name}-{len(self.disks)}")
        self.disks[image] = MemoryDisk()
        self.disks[image].records = list(self.disks[folder].records)
        return image

    def torn(self, before: Path, after: Path) -> Iterator[Path]:
        for whole in (True, False):
            torn = after.with_name(f"torn-{whole}")
            self.disks[torn] = MemoryDisk()
            last = self.disks[after].records[-1]
            self.disks[torn].records = [*self.disks[before].records, last._replace(whole=whole)]
            yield torn

    def damage(self, folder: Path, marker: bytes) -> int:
        return self.disks[folder].flip_bit(marker)

    def stored_bytes(self, folder: Path) -> int:
        return sum(len(record.entries) for record in self.disks[folder].records)

    def fail_next_sync(self, store: LogStore) -> None:
        store.disk.fail_next(SyncFailed("no answer from the disk in memory"), leaves="whole")


# -- the suite is not blind -------------------------------------------------------------------------------------------


class LosesTheHardState(MemoryLogStore):
    """Keeps the entries and forgets the vote: a second vote in one term."""

    def save(self, **call) -> None:
        super().save(**call | {"hard_state": None})


class SavesOnClose(MemoryLogStore):
    """Says that it is done before it is."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        super().__init__(disk)
        self.waiting: list[Record] = []

    def _append(self, record: Record) -> None:
        self.waiting.append(record)

    def load(self) -> StoredLog:
        self.flush()
        return super().load()

    def close(self) -> None:
        self.flush()
        super().close()

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for record in waiting:
            self.disk.append(record)


class SortsBatches(MemoryLogStore):
    """Replays by index instead of by the order of saving: overlapping batches come out wrong."""

    def load(self) -> StoredLog:
        self.disk.records.sort(key=lambda record: record.first)
        return super().load()


class ForgetsTheHardState(MemoryLogStore):
    """Takes None for zero."""

    def save(self, *, hard_state: tuple[int, int, int] | None, **call) -> None:
        super().save(hard_state=hard_state or (0, 0, 0), **call)


class SavesInTwoSteps(MemoryLogStore):
    """First the entries and the snapshot, then the hard state: a power cut comes between them."""

    def save(self, *, hard_state: tuple[int, int, int] | None, **call) -> None:
        super().save(hard_state=None, **call)
        super().save(first=0, last=0, entries=b"", hard_state=hard_state)


class ChecksNothing(MemoryLogStore):
    """Hands out whatever the disk says."""

    def load(self) -> StoredLog:
        try:
            return super().load()
        except LogCorrupt:
            return StoredLog(term=0, vote=0, commit=0, batches=tuple(r.entries for r in self.disk.records))


class GoesOnAfterAFailedSync(MemoryLogStore):
    """PostgreSQL before 2018: the next fsync succeeds, so all is well."""

    def _refuse_if_unusable(self) -> None:
        pass


class LivesOnOneThread(MemoryLogStore):
    """As sqlite3 does by default."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        super().__init__(disk)
        self.connection = sqlite3.connect(":memory:")

    def save(self, **call) -> None:
        self.connection.execute("SELECT 1")
        super().save(**call)

    def close(self) -> None:
        self.connection.close()
        super().close()


class TruncatesLargeBatches(MemoryLogStore):
    """A limit that nobody wrote down."""

    def save(self, *, entries: bytes, **call) -> None:
        super().save(entries=entries[: 1 << 20], **call)


class CompactsOnlyWhatItHandsOut(MemoryLogStore):
    """Keeps the snapshot in the process and not on the disk."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        super().__init__(disk)
        self.snapshot: StoredSnapshot | None = None

    def compact(self, snapshot: StoredSnapshot) -> None:
        self.snapshot = snapshot

    def load(self) -> StoredLog:
        return msgspec.structs.replace(super().load(), snapshot=self.snapshot)


class ForgetsBatches(MemoryLogStore):
    """Base of stores that choose by themselves what a compaction removes."""

    def compact(self, snapshot: StoredSnapshot) -> None:
        kept = [record for record in self.disk.records if not record.entries or self.keeps(record, snapshot.index)]
        self._append(Record(snapshot=snapshot))
        self.disk.records = [self.disk.records[-1], *kept]

    def keeps(self, record: Record, index: int) -> bool:
        raise NotImplementedError


class DropsAllThatBeginBelow(ForgetsBatches):
    """Loses the upper half of a batch that straddles the snapshot."""

    def keeps(self, record: Record, index: int) -> bool:
        return record.first > index


class DropsAllThatEndBelow(ForgetsBatches):
    """By the word of the promise, and wrong: the batch that goes had replaced the end of one that stays."""

    def keeps(self, record: Record, index: int) -> bool:
        return record.last > index


class KeepsTheLogBesideASnapshot(MemoryLogStore):
    """Takes a snapshot of the leader's for one of its own."""

    def save(self, *, snapshot: StoredSnapshot | None = None, **call) -> None:
        super().save(**call)
        if snapshot is not None:
            self.compact(snapshot)


class CompactsInTwoSteps(MemoryLogStore):
    """Removes what the snapshot will stand for, and then writes the snapshot."""

    def compact(self, snapshot: StoredSnapshot) -> None:
        self._append(Record(snapshot=StoredSnapshot(index=0, term=0, data=b"")))
        self._append(Record(snapshot=snapshot, compacts=True))


class TakesAnOlderSnapshot(MemoryLogStore):
    """The last one that came counts."""

    def compact(self, snapshot: StoredSnapshot) -> None:
        self._append(Record(snapshot=snapshot, compacts=True))


class NeverRemoves(MemoryLogStore):
    """Remembers where the log starts, and keeps what lies before it."""

    def _append(self, record: Record) -> None:
        self.disk.records.append(record._replace(checksum=record.total()))


@pytest.mark.parametrize(
    ("store_class", "promise"),
    [
        (LosesTheHardState, "gives_back_what_was_saved_when_it_is_loaded"),
        (SavesOnClose, "gives_back_what_was_saved_when_the_process_is_killed"),
        (SavesOnClose, "agrees_with_a_simple_model_when_saves_and_ends_are_random"),
        (SortsBatches, "gives_back_what_was_saved_when_it_is_loaded"),
        (ForgetsTheHardState, "keeps_the_hard_state_when_only_entries_are_saved"),
        (SavesInTwoSteps, "has_all_of_a_save_or_nothing_when_the_power_goes_in_its_middle"),
        (ChecksNothing, "names_the_damage_when_a_bit_of_a_batch_has_flipped"),
        (GoesOnAfterAFailedSync, "takes_no_further_save_when_a_sync_has_failed"),
        (LivesOnOneThread, "works_when_its_thread_is_not_the_one_that_opened_it"),
        (TruncatesLargeBatches, "keeps_every_byte_when_a_batch_is_large"),
        (SavesInTwoSteps, "has_all_of_a_snapshot_or_nothing_when_the_power_goes_in_its_middle"),
        (ChecksNothing, "names_the_damage_when_a_bit_of_the_snapshot_has_flipped"),
        (CompactsOnlyWhatItHandsOut, "keeps_a_compaction_when_the_process_is_killed"),
        (SavesOnClose, "keeps_a_compaction_when_the_process_is_killed"),
        (DropsAllThatBeginBelow, "keeps_a_batch_when_it_reaches_beyond_the_snapshot"),
        (DropsAllThatEndBelow, "brings_nothing_back_when_replaced_entries_are_compacted"),
        (KeepsTheLogBesideASnapshot, "holds_nothing_older_when_a_snapshot_is_saved"),
        (CompactsInTwoSteps, "loses_nothing_when_the_sync_of_a_compaction_has_failed"),
        (GoesOnAfterAFailedSync, "loses_nothing_when_the_sync_of_a_compaction_has_failed"),
        (DropsAllThatBeginBelow, "loses_nothing_when_the_power_goes_in_the_middle_of_a_compaction"),
        (TakesAnOlderSnapshot, "keeps_its_snapshot_when_an_older_one_comes_late"),
        (NeverRemoves, "stays_small_when_it_is_compacted_again_and_again"),
    ],
)
def test_suite_catches_a_log_store_when_it_breaks_a_promise(tmp_path: Path, store_class: type, promise: str):
    """Each broken store fails the promise that it breaks: a suite that cannot go red proves nothing."""
    suite = TestMemoryLogStore()
    suite.setup_method()
    suite.store_class = store_class
    with pytest.raises((AssertionError, sqlite3.ProgrammingError)):
        getattr(suite, f"test_store_{promise}")(tmp_path)


# -- the double itself ------------------------------------------------------------------------------------------------


def test_memory_disk_leaves_what_the_test_asked_when_a_save_fails():
    """Nothing, a torn record or the whole one: a failed fsync may be any of them."""
    for leaves, survived in (("nothing", ()), ("torn", ()), ("whole", (b"x",))):
        disk = MemoryDisk()
        store = MemoryLogStore(disk)
        disk.fail_next(SyncFailed("no answer"), leaves=leaves)
        with pytest.raises(SyncFailed):
            store.save(first=1, last=1, entries=b"x", hard_state=None)
        disk.crash()
        assert MemoryLogStore(disk).load().batches == survived


def test_memory_log_store_goes_on_when_the_disk_was_full_for_a_moment():
    """StorageFull promises nothing of that save, and takes nothing else away."""
    store = MemoryLogStore()
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    store.disk.fill()
    with pytest.raises(StorageFull):
        store.save(first=2, last=2, entries=b"two", hard_state=(2, 1, 0))
    store.save(first=2, last=2, entries=b"three", hard_state=None)
    assert store.load() == StoredLog(term=1, vote=1, commit=0, batches=(b"one", b"three"))


def test_memory_log_store_takes_no_call_when_its_process_crashed():
    """The successor opens a store of its own on the same disk."""
    store = MemoryLogStore()
    store.save(first=1, last=1, entries=b"one", hard_state=None)
    store.disk.crash()
    with pytest.raises(SyncFailed, match="process is gone"):
        store.save(first=2, last=2, entries=b"two", hard_state=None)
    assert MemoryLogStore(store.disk).load().batches == (b"one",)
