"""The promises of :class:`tenure.storage.LogStore`, as a suite that any store can be run through.

Subclass it in a test file and override ``open_store``. A store whose files a plain copy or a cut of the end does not
describe (one in memory, one that compresses) overrides the hooks below it as well.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from unittest import SkipTest

from tenure.errors import LogCorrupt, StorageError, SyncFailed
from tenure.storage import LogStore, StoredLog
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
        store.save(first=0, entries=b"", hard_state=(7, 3, 2))
        store.save(first=1, entries=b"entries", hard_state=None)
        promised = StoredLog(term=7, vote=3, commit=2, batches=(b"entries",))
        expect_equal(store.load(), promised, "hard_state=None leaves term and vote as they were")
        store.close()

    def test_store_keeps_every_byte_when_a_batch_is_large(self, tmp_path: Path) -> None:
        """4 MiB, every value of a byte: no text, no limit below what the engine hands out."""
        batch = bytes(range(256)) * (4 << 12)
        store = self.open_store(tmp_path / "store")
        store.save(first=1, entries=batch, hard_state=(2**62, 2**62, 2**62))
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
        """Seeded: saves of all shapes, kills and closings, and after each of them the same as a list would hold."""
        for seed in range(_MODEL_SEEDS):
            self._walk(random.Random(seed), seed, tmp_path / f"seed-{seed}" / "store")  # noqa: S311 - replayable.

    def _walk(self, source: random.Random, seed: int, folder: Path) -> None:
        folder.parent.mkdir()
        store, model, batches = self.open_store(folder), (0, 0, 0), []
        for step in range(_MODEL_STEPS):
            entries = source.randbytes(source.choice((0, 1, 100, 5000)))
            hard_state = source.choice((None, (step + 1, source.randrange(4), step)))
            store.save(first=source.randrange(1, 50), entries=entries, hard_state=hard_state)
            model = hard_state or model
            batches += [entries] if entries else []
            if source.random() < 0.1:
                store.close()
                store = self.open_store(folder)
            elif source.random() < 0.05:
                folder = self._kill(store, folder)
                store = self.open_store(folder)
            else:
                continue
            promised = StoredLog(term=model[0], vote=model[1], commit=model[2], batches=tuple(batches))
            expect_equal(store.load(), promised, f"seed {seed}, step {step}: the store differs from the model")
        store.close()

    # -- what a store does when the world is bad ---------------------------------------------------------------------

    def test_store_has_all_of_a_save_or_nothing_when_the_power_goes_in_its_middle(self, tmp_path: Path) -> None:
        """Entries and hard state stand or fall together, and an unfinished save does not count as damage."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, entries=b"before" * 100, hard_state=(1, 1, 0))
        before, old = self.image(store, folder), store.load()
        store.save(first=9, entries=b"after" * 1000, hard_state=(2, 3, 1))
        after = self.image(store, folder)
        store.close()
        new = StoredLog(term=2, vote=3, commit=1, batches=(*old.batches, b"after" * 1000))
        for torn in self.torn(before, after):
            survivor = self.open_store(torn)
            found = survivor.load()
            survivor.close()
            expect(found in (old, new), "a save that a power cut tore is there as a whole, or not at all")

    def test_store_names_the_damage_when_a_bit_of_a_batch_has_flipped(self, tmp_path: Path) -> None:
        """LogCorrupt with the path of the file: nothing that changed by itself is handed out."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, entries=b"x" * 50 + _MARKER, hard_state=(1, 1, 0))
        store.save(first=2, entries=b"y" * 50, hard_state=None)
        store.close()
        expect(self.damage(folder, _MARKER) > 0, "the batch was not found on the disk: override damage()")
        try:
            store = self.open_store(folder)
            store.load()
        except LogCorrupt as error:
            expect(bool(error.path), "LogCorrupt names the file")
        else:
            raise AssertionError("a flipped bit is found and named, never handed out")

    def test_store_takes_no_further_save_when_a_sync_has_failed(self, tmp_path: Path) -> None:
        """After a failed fsync nobody knows what is on the disk: the store must not seem to go on (R2)."""
        store = self.open_store(tmp_path / "store")
        store.save(first=1, entries=b"kept", hard_state=(1, 1, 0))
        self.fail_next_sync(store)
        with expect_raises(SyncFailed, "a save that was not synced raises SyncFailed"):
            store.save(first=2, entries=b"lost", hard_state=(2, 2, 1))
        with expect_raises(StorageError, "after SyncFailed no save succeeds again"):
            store.save(first=2, entries=b"later", hard_state=(3, 3, 1))

    def test_store_keeps_earlier_saves_when_a_sync_has_failed(self, tmp_path: Path) -> None:
        """Opened again, it holds all that was acknowledged, and of the failed save all or nothing."""
        folder = tmp_path / "store"
        store = self.open_store(folder)
        store.save(first=1, entries=b"kept", hard_state=(1, 1, 0))
        self.fail_next_sync(store)
        with expect_raises(SyncFailed, "a save that was not synced raises SyncFailed"):
            store.save(first=2, entries=b"perhaps", hard_state=(2, 2, 1))
        survivor = self.open_store(self._kill(store, folder))
        found = survivor.load()
        survivor.close()
        without = StoredLog(term=1, vote=1, commit=0, batches=(b"kept",))
        whole = StoredLog(term=2, vote=2, commit=1, batches=(b"kept", b"perhaps"))
        expect(found in (without, whole), "a failed save is there as a whole, or not at all")


_SEVERAL = StoredLog(term=3, vote=1, commit=4, batches=(b"one", b"two", b"three"))


def _save_several(store: LogStore) -> None:
    store.save(first=1, entries=b"one", hard_state=(1, 2, 0))
    store.save(first=5, entries=b"two", hard_state=None)
    store.save(first=3, entries=b"three", hard_state=(2, 0, 4))
    store.save(first=0, entries=b"", hard_state=(3, 1, 4))
