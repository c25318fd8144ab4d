"""The promises of :class:`tenure.storage.LogStore`, as a suite that any store can be run through.

Subclass it in a test file and override ``open_store``. A store whose files a plain copy or a cut of the end does not
describe (one in memory, one that compresses) overrides the hooks below it as well.
"""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

from tenure.errors import LogCorrupt, StorageError, SyncFailed
from tenure.storage import LogStore, StoredLog, StoredSnapshot
from tenure.testing.damage import copied, flip_bit, torn_copies
from tenure.testing.expectations import expect, expect_equal, expect_raises

_MARKER = b"a batch whose bytes are looked for on the disk, and then changed"
_MODEL_SEEDS = 3
_MODEL_STEPS = 60


class LogStoreConformance:
    """Each ``test_`` method is one promise. ``tmp_path`` is an empty folder of the test's own."""

    # -- what a subclass says about its store ----------------------------------------------------------------------

    def open_store(self, folder: Path) -> LogStore:
        """The store in ``folder``: a new one, or the one that lived there before."""
        raise NotImplementedError

    def image(self, store: LogStore, folder: Path) -> Path:
        """A folder with what a kill of the process would leave of ``store`` now; the store itself lives on."""
        return copied(folder, "killed")

    def torn(self, before: Path, after: Path) -> Iterator[Path]:
        """Folders as a power cut in the middle of a save leaves them, between ``before`` it and ``after`` it."""
        return torn_copies(before, after)

    def damage(self, folder: Path, marker: bytes) -> int:
        """Change the bytes ``marker`` wherever the closed store keeps them; the number of places."""
        return flip_bit(folder, marker)

    def stored_bytes(self, folder: Path) -> int:
        """How much room the open store takes."""
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def fail_next_sync(self, store: LogStore) -> None:
        """Make the next save fail as a disk does. Without it the tests of failures are skipped."""
        raise SkipTest("fail_next_sync is not overridden")

    def _kill(self, store: LogStore, folder: Path) -> Path:
        survived = self.image(store, folder)
        store.close()
        return survived

    # -- what a store keeps ----------------------------------------------------------------------------------------

    def test_store_is_empty_when_it_is_new(self, tmp_path: Path) -> None:
        """Term 0, no vote, nothing committed, no batches."""
        store = self.open_store(tmp_path / "store")
        expect_equal(store.load(), StoredLog(term=0, vote=0, commit=0, batches=()), "a new store is empty")
        store.close()

    def test_store_gives_back_what_was_saved_when_it_is_loaded(self, tmp_path: Path) -> None:
        """Batches in the order of their saving, those that overlap too; the last hard state stands."""
        store = self.open_store(tmp_path / "store")
        _save_several(store)
        expect_equal(store.load(), _SEVERAL, "a store gives back what was saved")
        store.close()

    def test_store_gives_back_what_was_saved_when_it_is_opened_again(self, tmp_path: Path) -> None:
        """Closing loses nothing, and loading changes nothing."""
        store = self.open_store(tmp_path / "store")
        _save_several(store)
        store.close()
        for _ in range(2):
            store = self.open_store(tmp_path / "store")
            expect_equal(store.load(), _SEVERAL, "a store that was closed keeps what was saved")
            store.close()

    def test_store_gives_back_what_was_saved_when_the_process_is_killed(self, tmp_path: Path) -> None:
        """What a returned ``save`` took is there without a ``close``: that is all that ``save`` is for (R1)."""
        store = self.open_store(tmp_path / "store")
        _save_several(store)
        survivor = self.open_store(self._kill(store, tmp_path / "store"))
        expect_equal(survivor.load(), _SEVERAL, "a save that returned survives a kill")
        survivor.close()

    def test_store_keeps_the_hard_state_when_only_entries_are_saved(self, tmp_path: Path) -> None:
        """``hard_state=None`` means unchanged."""
        store = self.open_store(tmp_path / "store")
        store.save(first=0, last=0, entries=b"", hard_state=(7, 3, 2))
        store.save(first=1, last=2, entries=b"entries", hard_state=None)
        promised = StoredLog(term=7, vote=3, commit=2, batches=(b"entries",))
        expect_equal(store.load(), promised, "hard_state=None leaves term and vote as they were")
        store.close()

    def test_store_keeps_every_byte_when_a_batch_is_large(self, tmp_path: Path) -> None:
        """4 MiB, every value of a byte: no text, no limit below what the engine hands out."""
        batch = bytes(range(256)) * (4 << 12)
        store = self.open_store(tmp_path / "store")
        store.save(first=1, last=9, entries=batch, hard_state=(2**62, 2**62, 2**62))
        survivor = self.open_store(self._kill(store, tmp_path / "store"))
        promised = StoredLog(term=2**62, vote=2**62, commit=2**62, batches=(batch,))
        expect_equal(survivor.load(), promised, "a large batch and large numbers come back as they were")
        survivor.close()

    def test_store_works_when_its_thread_is_not_the_one_that_opened_it(self, tmp_path: Path) -> None:
        """A node opens its store on one thread and then gives it to another one."""
        store = self.open_store(tmp_path / "store")
        problems: list[BaseException] = []

        def work() -> None:
            try:
                _save_several(store)
                expect_equal(store.load(), _SEVERAL, "a store may change its thread")
            except BaseException as error:  # noqa: BLE001 - it is raised again on the thread of the test.
                problems.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        store.close()
        if problems:
            raise problems[0]

    def test_store_agrees_with_a_simple_model_when_saves_and_ends_are_random(self, tmp_path: Path) -> None:
        """Seeded: saves, snapshots, kills and closings of all shapes, and after each the same as a list would hold."""
        for seed in range(_MODEL_SEEDS):
            self._walk(random.Random(seed), seed, tmp_path / f"seed-{seed}" / "store")  # noqa: S311 - replayable.

    def _walk(self, source: random.Random, seed: int, folder: Path) -> None:
        folder.parent.mkdir()
        store, model = self.open_store(folder), _Model()
        for step in range(_MODEL_STEPS):
            model.step(store, source, step)
            if source.random() < 0.1:
                store.close()
                store = self.open_store(folder)
            elif source.random() < 0.05:
                folder = self._kill(store, folder)
                store = self.open_store(folder)
            else:
                continue
            model.compare(store.load(), f"seed {seed}, step {step}")
        store.close()

    # -- what becomes of the log when a snapshot stands for a part of it ----------------------------------------------

    def test_store_keeps_a_compaction_when_the_process_is_killed(self, tmp_path: Path) -> None:
        """The snapshot is there, hard state and later entries as well; what it stands for is not handed out as new."""
        store = self.open_store(tmp_path / "store")
        model = _Model()
        for first in range(1, 91, 3):
            model.save(store, first, first + 2, (first, 1, first - 1))
        model.compact(store, 60)
        model.save(store, 91, 93, None)
        survivor = self.open_store(self._kill(store, tmp_path / "store"))
        model.compare(survivor.load(), "a compaction that returned survives a kill")
        survivor.close()

    def test_store_keeps_a_batch_when_it_reaches_beyond_the_snapshot(self, tmp_path: Path) -> None:
        """A batch is one record: the half of it that is still needed keeps all of it."""
        store = self.open_store(tmp_path / "store")
        model = _Model()
        for first, last in ((1, 4), (5, 9), (10, 10)):
            model.save(store, first, last, None)
        for index in (4, 6):
            model.compact(store, index)
            model.compare(store.load(), f"a snapshot at {index} leaves the entries above it")
        store.close()

    def test_store_brings_nothing_back_when_replaced_entries_are_compacted(self, tmp_path: Path) -> None:
        """A batch that replaced the end of an older one may not go before it: the older end would be back."""
        store = self.open_store(tmp_path / "store")
        model = _Model()
        for first, last in ((1, 10), (5, 7)):
            model.save(store, first, last, None)
        model.compact(store, 7)
        model.compare(store.load(), "entries that were replaced stay replaced")
        model.save(store, 8, 12, (3, 1, 7))
        model.compact(store, 9)
        model.compare(store.load(), "entries that were replaced stay replaced in a later compaction")
        store.close()

    def test_store_goes_on_when_its_whole_log_is_compacted(self, tmp_path: Path) -> None:
        """The log is empty then, not lost: the next batch follows the snapshot."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        model = _Model()
        model.save(store, 1, 5, (2, 1, 5))
        model.compact(store, 5)
        model.compare(store.load(), "the whole log is compacted")
        store.close()
        store = self.open_store(folder)
        model.save(store, 6, 6, (2, 1, 6))
        model.compare(store.load(), "a batch follows the snapshot")
        store.close()

    def test_store_holds_nothing_older_when_a_snapshot_is_saved(self, tmp_path: Path) -> None:
        """A snapshot of the leader's replaces every batch and the older snapshot, however far they reached."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        model = _Model()
        model.save(store, 1, 40, (4, 2, 3))
        model.compact(store, 3)
        model.replace(store, 20, None)
        expect_equal(store.load().batches, (), "a snapshot that is saved leaves no batch")
        model.compare(store.load(), "term and vote stay as they were")
        model.replace(store, 50, (5, 0, 50), last=52)
        survivor = self.open_store(self._kill(store, folder))
        model.compare(survivor.load(), "snapshot, hard state and the batch behind it come together")
        survivor.close()

    def test_store_keeps_its_snapshot_when_an_older_one_comes_late(self, tmp_path: Path) -> None:
        """A member was still writing its own when the leader's overtook it."""
        store = self.open_store(tmp_path / "store")
        model = _Model()
        model.save(store, 1, 9, None)
        model.replace(store, 30, None)
        store.compact(StoredSnapshot(index=7, term=1, data=b"late"))
        model.compare(store.load(), "an older snapshot changes nothing")
        store.close()

    def test_store_stays_small_when_it_is_compacted_again_and_again(self, tmp_path: Path) -> None:
        """What a snapshot stands for gives its room back: the store does not grow with the life of the cluster."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        sizes: list[int] = []
        for start in range(1, 6001, 300):
            for index in range(start, start + 300):
                store.save(first=index, last=index, entries=b"%08d" % index * 250, hard_state=(1, 1, index))
            store.compact(StoredSnapshot(index=start + 290, term=1, data=b"s" * 5000))
            sizes.append(self.stored_bytes(folder))
        bound = 2 * max(sizes[:5])
        expect(max(sizes) <= bound, f"a store under a steady load stays below {bound} bytes: it took {sizes}")
        store.close()

    # -- what a store does when the world is bad ---------------------------------------------------------------------

    def test_store_has_all_of_a_save_or_nothing_when_the_power_goes_in_its_middle(self, tmp_path: Path) -> None:
        """Entries and hard state stand or fall together, and an unfinished save does not count as damage."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, last=8, entries=b"before" * 100, hard_state=(1, 1, 0))
        before, old = self.image(store, folder), store.load()
        store.save(first=9, last=12, entries=b"after" * 1000, hard_state=(2, 3, 1))
        after = self.image(store, folder)
        store.close()
        new = StoredLog(term=2, vote=3, commit=1, batches=(*old.batches, b"after" * 1000))
        for torn in self.torn(before, after):
            survivor = self.open_store(torn)
            found = survivor.load()
            survivor.close()
            expect(found in (old, new), "a save that a power cut tore is there as a whole, or not at all")

    def test_store_has_all_of_a_snapshot_or_nothing_when_the_power_goes_in_its_middle(self, tmp_path: Path) -> None:
        """Neither a snapshot beside the old log nor the new log without it."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, last=8, entries=b"before" * 100, hard_state=(1, 1, 0))
        before, old = self.image(store, folder), store.load()
        snapshot = StoredSnapshot(index=20, term=2, data=b"snapshot" * 2000)
        store.save(first=21, last=22, entries=b"after" * 1000, hard_state=(2, 3, 20), snapshot=snapshot)
        after, new = self.image(store, folder), store.load()
        store.close()
        expect(new.snapshot == snapshot and len(new.batches) == 1, "a saved snapshot replaces the log")
        for torn in self.torn(before, after):
            survivor = self.open_store(torn)
            found = survivor.load()
            survivor.close()
            expect(found in (old, new), "a snapshot that a power cut tore is there as a whole, or not at all")

    def test_store_loses_nothing_when_the_power_goes_in_the_middle_of_a_compaction(self, tmp_path: Path) -> None:
        """The log with the snapshot or without it: both come to the same."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        before = _Model()
        for last in (20, 40):
            before.save(store, last - 19, last, (2, 1, last - 5))
        before_files, after = self.image(store, folder), copy.copy(before)
        after.compact(store, 30)
        after_files = self.image(store, folder)
        store.close()
        for torn in self.torn(before_files, after_files):
            survivor = self.open_store(torn)
            found = survivor.load()
            survivor.close()
            model = before if found.snapshot is None else after
            model.compare(found, "a compaction that a power cut tore is there as a whole, or not at all")

    def test_store_loses_nothing_when_the_sync_of_a_compaction_has_failed(self, tmp_path: Path) -> None:
        """The store is unusable afterwards (R2); opened again, it is as before the compaction or as after it."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, last=6, entries=b"kept", hard_state=(1, 1, 5))
        without, snapshot = store.load(), StoredSnapshot(index=4, term=1, data=b"manifest")
        self.fail_next_sync(store)
        with expect_raises(SyncFailed, "a compaction that was not synced raises SyncFailed"):
            store.compact(snapshot)
        with expect_raises(StorageError, "after SyncFailed no save succeeds again"):
            store.save(first=7, last=7, entries=b"later", hard_state=None)
        survivor = self.open_store(self._kill(store, folder))
        found = survivor.load()
        survivor.close()
        whole = StoredLog(term=1, vote=1, commit=5, batches=(b"kept",), snapshot=snapshot)
        expect(found in (without, whole), "a failed compaction is there as a whole, or not at all")

    def test_store_names_the_damage_when_a_bit_of_a_batch_has_flipped(self, tmp_path: Path) -> None:
        """LogCorrupt with the path of the file: nothing that changed by itself is handed out."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, last=1, entries=b"x" * 50 + _MARKER, hard_state=(1, 1, 0))
        store.save(first=2, last=3, entries=b"y" * 50, hard_state=None)
        store.close()
        self._expect_damage_found(folder)

    def test_store_names_the_damage_when_a_bit_of_the_snapshot_has_flipped(self, tmp_path: Path) -> None:
        """Its record is under a checksum like any other."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, last=3, entries=b"x" * 50, hard_state=(1, 1, 3))
        store.compact(StoredSnapshot(index=2, term=1, data=b"s" * 50 + _MARKER))
        store.close()
        self._expect_damage_found(folder)

    def _expect_damage_found(self, folder: Path) -> None:
        expect(self.damage(folder, _MARKER) > 0, "the record was not found on the disk: override damage()")
        try:
            store = self.open_store(folder)
            try:
                store.load()
            finally:
                store.close()
        except LogCorrupt as error:
            expect(bool(error.path), "LogCorrupt names the file")
        else:
            raise AssertionError("a flipped bit is found and named, never handed out")

    def test_store_takes_no_further_save_when_a_sync_has_failed(self, tmp_path: Path) -> None:
        """After a failed fsync nobody knows what is on the disk: the store must not seem to go on (R2)."""
        store = self.open_store(tmp_path / "store")
        store.save(first=1, last=1, entries=b"kept", hard_state=(1, 1, 0))
        self.fail_next_sync(store)
        with expect_raises(SyncFailed, "a save that was not synced raises SyncFailed"):
            store.save(first=2, last=2, entries=b"lost", hard_state=(2, 2, 1))
        with expect_raises(StorageError, "after SyncFailed no save succeeds again"):
            store.save(first=2, last=2, entries=b"later", hard_state=(3, 3, 1))

    def test_store_keeps_earlier_saves_when_a_sync_has_failed(self, tmp_path: Path) -> None:
        """Opened again, it holds all that was acknowledged, and of the failed save all or nothing."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, last=1, entries=b"kept", hard_state=(1, 1, 0))
        self.fail_next_sync(store)
        with expect_raises(SyncFailed, "a save that was not synced raises SyncFailed"):
            store.save(first=2, last=2, entries=b"perhaps", hard_state=(2, 2, 1))
        survivor = self.open_store(self._kill(store, folder))
        found = survivor.load()
        survivor.close()
        without = StoredLog(term=1, vote=1, commit=0, batches=(b"kept",))
        whole = StoredLog(term=2, vote=2, commit=1, batches=(b"kept", b"perhaps"))
        expect(found in (without, whole), "a failed save is there as a whole, or not at all")


class _Model:
    """What a store should come to: each entry by its index, as the batch that it was saved with last."""

    def __init__(self) -> None:
        self.hard_state = (0, 0, 0)
        self.snapshot: StoredSnapshot | None = None
        self.log: dict[int, bytes] = {}
        self.spans: dict[bytes, tuple[int, int]] = {}

    @property
    def end(self) -> int:
        return max(self.log, default=self.snapshot.index if self.snapshot is not None else 0)

    def save(self, store: LogStore, first: int, last: int, hard_state: tuple[int, int, int] | None) -> None:
        batch = self._batch(first, last)
        store.save(first=first, last=last, entries=batch, hard_state=hard_state)
        self._append(batch)
        self.hard_state = hard_state or self.hard_state

    def compact(self, store: LogStore, index: int) -> None:
        snapshot = StoredSnapshot(index=index, term=1 + index // 7, data=b"own %d" % index)
        store.compact(snapshot)
        self.snapshot = snapshot
        self.log = {place: batch for place, batch in self.log.items() if place > index}

    def replace(
        self, store: LogStore, index: int, hard_state: tuple[int, int, int] | None, *, last: int | None = None
    ) -> None:
        """A snapshot of the leader's, with a batch behind it up to ``last``."""
        snapshot = StoredSnapshot(index=index, term=1 + index // 7, data=b"the leader's %d" % index)
        first, last, batch = (0, 0, b"") if last is None else (index + 1, last, self._batch(index + 1, last))
        store.save(first=first, last=last, entries=batch, hard_state=hard_state, snapshot=snapshot)
        self.snapshot, self.log = snapshot, {}
        self.hard_state = hard_state or self.hard_state
        if batch:
            self._append(batch)

    def step(self, store: LogStore, source: random.Random, step: int) -> None:
        """One call of any shape that a member could make."""
        hard_state = source.choice((None, (step + 1, source.randrange(4), step)))
        base = self.snapshot.index if self.snapshot is not None else 0
        kind = source.random()
        if kind < 0.1:
            self.replace(store, self.end + source.randrange(1, 9), hard_state)
        elif kind < 0.3 and self.log:
            self.compact(store, source.randrange(base + 1, self.end + 1))
        elif kind < 0.4:
            store.save(first=0, last=0, entries=b"", hard_state=hard_state)
            self.hard_state = hard_state or self.hard_state
        else:
            first = self.end + 1 if source.random() < 0.7 else source.randrange(base + 1, self.end + 2)
            self.save(store, first, first + source.choice((0, 1, 20)), hard_state)

    def compare(self, loaded: StoredLog, where: str) -> None:
        """What was loaded replays to the same; what the snapshot stands for may be there or not."""
        expect_equal((loaded.term, loaded.vote, loaded.commit), self.hard_state, f"{where}: term, vote and commit")
        expect_equal(loaded.snapshot, self.snapshot, f"{where}: the snapshot")
        base = loaded.snapshot.index if loaded.snapshot is not None else 0
        end, log = base, dict[int, bytes]()
        for batch in loaded.batches:
            first, last = self.spans[batch]
            expect(first <= end + 1, f"{where}: no gap between {end} and the batch from {first} on")
            log = {index: other for index, other in log.items() if index < first}
            log |= {index: batch for index in range(first, last + 1) if index > base}
            end = max(base, last)
        expect_equal(log, self.log, f"{where}: the entries above the snapshot")

    def _batch(self, first: int, last: int) -> bytes:
        batch = b"batch %d of entries %d to %d " % (len(self.spans), first, last) * (1 + last - first) * 20
        self.spans[batch] = (first, last)
        return batch

    def _append(self, batch: bytes) -> None:
        first, last = self.spans[batch]
        self.log = {index: other for index, other in self.log.items() if index < first}
        self.log |= dict.fromkeys(range(first, last + 1), batch)


_SEVERAL = StoredLog(term=3, vote=1, commit=4, batches=(b"one", b"two", b"three"))


def _save_several(store: LogStore) -> None:
    store.save(first=1, last=4, entries=b"one", hard_state=(1, 2, 0))
    store.save(first=5, last=6, entries=b"two", hard_state=None)
    store.save(first=3, last=7, entries=b"three", hard_state=(2, 0, 4))
    store.save(first=0, last=0, entries=b"", hard_state=(3, 1, 4))
