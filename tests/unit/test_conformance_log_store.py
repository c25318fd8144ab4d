"""The log stores keep the promises of their protocol, and the suite catches stores that do not."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import LogCorrupt, StorageFull, SyncFailed
from tenure.storage import LogStore, SqliteLogStore, StoredLog
from tenure.testing import LogStoreConformance, MemoryDisk, MemoryLogStore


class TestSqliteLogStore(LogStoreConformance):
    def open_store(self, folder: Path) -> LogStore:
        folder.mkdir(exist_ok=True)
        return SqliteLogStore(folder / "raft.sqlite3")

    def fail_next_sync(self, store: LogStore) -> None:
        store._connection.execute("PRAGMA query_only = ON")


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
            *older, last = self.disks[after].records
            self.disks[torn].records = [*older, last._replace(whole=whole)]
            yield torn

    def damage(self, folder: Path, marker: bytes) -> int:
        self.disks[folder].flip_bit(marker)
        return 1

    def fail_next_sync(self, store: LogStore) -> None:
        store.disk.fail_next(SyncFailed("no answer from the disk in memory"), leaves="whole")


# -- the suite is not blind -------------------------------------------------------------------------------------------


class LosesTheHardState(MemoryLogStore):
    """Keeps the entries and forgets the vote: a second vote in one term."""

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        super().save(first=first, entries=entries, hard_state=None)


class SavesOnClose(MemoryLogStore):
    """Says that it is done before it is."""

    def __init__(self, disk: MemoryDisk | None = None) -> None:
        super().__init__(disk)
        self.waiting: list[tuple] = []

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        self.waiting.append((first, entries, hard_state))

    def load(self) -> StoredLog:
        self.flush()
        return super().load()

    def close(self) -> None:
        self.flush()
        super().close()

    def flush(self) -> None:
        waiting, self.waiting = self.waiting, []
        for record in waiting:
            self.disk.append(*record)


class SortsBatches(MemoryLogStore):
    """Replays by index instead of by the order of saving: overlapping batches come out wrong."""

    def load(self) -> StoredLog:
        self.disk.records.sort(key=lambda record: record.first)
        return super().load()


class ForgetsTheHardState(MemoryLogStore):
    """Takes None for zero."""

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        super().save(first=first, entries=entries, hard_state=hard_state or (0, 0, 0))


class SavesInTwoSteps(MemoryLogStore):
    """First the entries, then the hard state: a power cut comes between them."""

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        super().save(first=first, entries=entries, hard_state=None)
        super().save(first=first, entries=b"", hard_state=hard_state)


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

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        self.connection.execute("SELECT 1")
        super().save(first=first, entries=entries, hard_state=hard_state)

    def close(self) -> None:
        self.connection.close()
        super().close()


class TruncatesLargeBatches(MemoryLogStore):
    """A limit that nobody wrote down."""

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        super().save(first=first, entries=entries[: 1 << 20], hard_state=hard_state)


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
            store.save(first=1, entries=b"x", hard_state=None)
        disk.crash()
        assert MemoryLogStore(disk).load().batches == survived


def test_memory_log_store_goes_on_when_the_disk_was_full_for_a_moment():
    """StorageFull promises nothing of that save, and takes nothing else away."""
    store = MemoryLogStore()
    store.save(first=1, entries=b"one", hard_state=(1, 1, 0))
    store.disk.fill()
    with pytest.raises(StorageFull):
        store.save(first=2, entries=b"two", hard_state=(2, 1, 0))
    store.save(first=2, entries=b"three", hard_state=None)
    assert store.load() == StoredLog(term=1, vote=1, commit=0, batches=(b"one", b"three"))


def test_memory_log_store_takes_no_call_when_its_process_crashed():
    """The successor opens a store of its own on the same disk."""
    store = MemoryLogStore()
    store.save(first=1, entries=b"one", hard_state=None)
    store.disk.crash()
    with pytest.raises(SyncFailed, match="process is gone"):
        store.save(first=2, entries=b"two", hard_state=None)
    assert MemoryLogStore(store.disk).load().batches == (b"one",)
