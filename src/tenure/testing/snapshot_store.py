"""The promises of :class:`tenure.storage.SnapshotStore`, as a suite that any store can be run through."""

from __future__ import annotations

import hashlib
from pathlib import Path
from unittest import SkipTest

from tenure.errors import LogCorrupt, StorageError
from tenure.storage import SnapshotInfo, SnapshotPoint, SnapshotStore
from tenure.testing.damage import flip_bit
from tenure.testing.expectations import expect, expect_equal, expect_raises

_MARKER = b"a chunk whose bytes are looked for on the disk, and then changed"
CHUNK_MAX = 1 << 20


class SnapshotStoreConformance:
    """Each ``test_`` method is one promise. ``tmp_path`` is an empty folder of the test's own."""

    # -- what a subclass says about its store ----------------------------------------------------------------------

    def open_store(self, folder: Path) -> SnapshotStore:
        """The store in ``folder``: a new one, or the one that lived there before (its process may be gone)."""
        raise NotImplementedError

    def damage(self, folder: Path, marker: bytes) -> int:
        """Change the bytes ``marker`` wherever the store keeps them; the number of places."""
        return flip_bit(folder, marker)

    def fail_next_commit(self, store: SnapshotStore) -> None:
        """Make the next ``commit`` fail before anything of it can be seen. Without it that test is skipped."""
        raise SkipTest("fail_next_commit is not overridden")

    # -- what a store keeps ----------------------------------------------------------------------------------------

    def test_store_is_empty_when_it_is_new(self, tmp_path: Path) -> None:
        """No snapshot, and nothing to prune."""
        store = self.open_store(tmp_path / "store")
        expect_equal((store.ids(), store.latest(), store.prune()), ((), None, ()), "a new store is empty")

    def test_store_gives_back_what_was_committed_when_it_is_opened_again(self, tmp_path: Path) -> None:
        """Content, place, members, size and hash, whatever the sizes of the chunks were."""
        pieces = [b"", b"x", bytes(range(256)) * 30, b"y" * (CHUNK_MAX + 5), b"z" * CHUNK_MAX]
        content = b"".join(pieces)
        info = _commit(self.open_store(tmp_path / "store"), 7, *pieces)
        expect_equal(info.point, _point(7), "commit says which place the snapshot stands for")
        expect_equal(info.size, len(content), "commit says how long the content is")
        expect_equal(info.sha256, hashlib.sha256(content).hexdigest(), "commit says the hash of the content")
        store = self.open_store(tmp_path / "store")
        expect_equal(store.latest(), info, "a store that is opened again knows the snapshot as it was committed")
        with store.open(info.id) as reader:
            chunks = list(reader.chunks())
            expect_equal(reader.info, info, "a reader knows what it reads")
            expect(b"".join(reader.chunks()) == content, "chunks() begins anew each time")
        expect(b"".join(chunks) == content, "the content comes back as it was written")
        expect(all(0 < len(chunk) <= CHUNK_MAX for chunk in chunks), "no chunk is empty or larger than 1 MiB")

    def test_store_keeps_a_snapshot_when_it_has_no_content(self, tmp_path: Path) -> None:
        """An empty state machine is a state."""
        store = self.open_store(tmp_path / "store")
        info = _commit(store, 1)
        with store.open(info.id) as reader:
            expect_equal((info.size, list(reader.chunks())), (0, []), "an empty snapshot is one")

    def test_store_orders_by_index_and_term_when_there_are_several(self, tmp_path: Path) -> None:
        """Newest first, by number and not by spelling; the order of commits does not matter."""
        store = self.open_store(tmp_path / "store")
        infos = {at: _commit(store, at[0], b"x", term=at[1]) for at in ((9, 1), (10, 1), (2**62, 3), (10, 2))}
        promised = tuple(infos[at].id for at in ((2**62, 3), (10, 2), (10, 1), (9, 1)))
        expect_equal(store.ids(), promised, "ids() is ordered from the newest")
        expect_equal(store.latest(), infos[2**62, 3], "latest() is the first of ids()")

    def test_store_keeps_the_newest_when_it_prunes(self, tmp_path: Path) -> None:
        """Never fewer than one, whatever it is told."""
        store = self.open_store(tmp_path / "store")
        ids = [_commit(store, index, b"x").id for index in range(1, 6)]
        expect_equal(store.prune(), (ids[2], ids[1], ids[0]), "prune() removes all but the newest two")
        expect_equal(self.open_store(tmp_path / "store").ids(), (ids[4], ids[3]), "what was pruned stays away")
        expect_equal(store.prune(keep=0), (ids[3],), "prune() always leaves the newest")
        with expect_raises(StorageError, "what was pruned cannot be opened"), store.open(ids[0]):
            pass

    def test_snapshot_that_is_needed_stays_when_newer_ones_are_there(self, tmp_path: Path) -> None:
        """The log starts with it: fetched ones that were never used must not push it out."""
        store = self.open_store(tmp_path / "store")
        ids = [_commit(store, index, b"x").id for index in range(1, 6)]
        expect_equal(store.prune(needed=ids[1]), (ids[2], ids[0]), "prune() leaves the one that is needed")
        with store.open(ids[1]) as reader:
            expect(b"".join(reader.chunks()) == b"x", "it can be read")

    def test_reader_goes_on_when_its_snapshot_is_pruned(self, tmp_path: Path) -> None:
        """A member that is being sent a snapshot does not lose it to a newer one."""
        store = self.open_store(tmp_path / "store")
        pieces = [b"a" * CHUNK_MAX, b"b" * CHUNK_MAX, b"c"]
        info = _commit(store, 1, *pieces)
        with store.open(info.id) as reader:
            chunks = reader.chunks()
            first = next(chunks)
            _commit(store, 2, b"newer")
            store.prune(keep=1)
            expect(b"".join([first, *chunks]) == b"".join(pieces), "an open reader reads to the end")

    def test_store_takes_the_later_one_when_a_snapshot_is_taken_again(self, tmp_path: Path) -> None:
        """The same place twice is one snapshot."""
        store = self.open_store(tmp_path / "store")
        _commit(store, 1, b"once")
        info = _commit(store, 1, b"again")
        with store.open(info.id) as reader:
            expect_equal((store.ids(), list(reader.chunks())), ((info.id,), [b"again"]), "one place, one snapshot")

    # -- what never becomes a snapshot -------------------------------------------------------------------------------

    def test_snapshot_does_not_exist_when_it_is_aborted_or_left(self, tmp_path: Path) -> None:
        """Only ``commit`` makes one; what was left lying is gone when the store is opened again."""
        store = self.open_store(tmp_path / "store")
        kept = _commit(store, 1, b"kept")
        aborted, left = store.begin(_point(2)), store.begin(_point(3))
        aborted.write(b"x")
        left.write(b"y" * 3_000_000)
        aborted.abort()
        aborted.abort()
        expect_equal(store.ids(), (kept.id,), "a snapshot that was not committed does not exist")
        expect_equal(self.open_store(tmp_path / "store").ids(), (kept.id,), "nor after a restart")
        with expect_raises(StorageError, "an aborted writer takes nothing"):
            aborted.write(b"z")
        with expect_raises(StorageError, "an aborted writer commits nothing"):
            aborted.commit()
        left.abort()

    def test_abort_changes_nothing_when_the_snapshot_is_committed(self, tmp_path: Path) -> None:
        """So that a caller may always end with it."""
        store = self.open_store(tmp_path / "store")
        writer = store.begin(_point(1))
        info = writer.commit()
        writer.abort()
        expect_equal(store.latest(), info, "abort() after commit() is without effect")

    def test_writers_do_not_disturb_each_other_when_their_place_is_the_same(self, tmp_path: Path) -> None:
        """A snapshot of one's own and one that the leader sends may meet."""
        store = self.open_store(tmp_path / "store")
        first, second = store.begin(_point(1)), store.begin(_point(1))
        first.write(b"first")
        second.write(b"second")
        second.commit()
        first.abort()
        (snapshot_id,) = store.ids()
        with store.open(snapshot_id) as reader:
            expect_equal(list(reader.chunks()), [b"second"], "each writer has a content of its own")

    def test_older_snapshot_stays_when_a_commit_fails(self, tmp_path: Path) -> None:
        """A full or failing disk takes nothing that was there."""
        store = self.open_store(tmp_path / "store")
        kept = _commit(store, 1, b"kept")
        writer = store.begin(_point(2))
        writer.write(b"lost")
        self.fail_next_commit(store)
        with expect_raises(StorageError, "a commit that fails says so"):
            writer.commit()
        writer.abort()
        expect_equal(store.latest(), kept, "the older snapshot is still the newest")
        with store.open(kept.id) as reader:
            expect_equal(list(reader.chunks()), [b"kept"], "the older snapshot is whole")

    def test_store_names_the_damage_when_a_bit_has_flipped(self, tmp_path: Path) -> None:
        """LogCorrupt with its path, before the first chunk; the others are not touched by it."""
        store = self.open_store(tmp_path / "store")
        sound = _commit(store, 1, b"sound")
        damaged = _commit(store, 2, b"x" * 100, b"y" * CHUNK_MAX, _MARKER)
        expect(self.damage(tmp_path / "store", _MARKER) > 0, "the chunk was not found on the disk: override damage()")
        store = self.open_store(tmp_path / "store")
        try:
            with store.open(damaged.id) as reader:
                next(reader.chunks())
        except LogCorrupt as error:
            expect(damaged.id in error.path, "LogCorrupt names the snapshot")
        else:
            raise AssertionError("a flipped bit is found before anything is handed out")
        with store.open(sound.id) as reader:
            expect_equal(list(reader.chunks()), [b"sound"], "an older snapshot can still be opened by its name")

    def test_open_says_what_is_missing_when_there_is_no_such_snapshot(self, tmp_path: Path) -> None:
        """A name from elsewhere is a StorageError, not a path to anything."""
        store = self.open_store(tmp_path / "store")
        for name in ("", "nothing", "../outside", f"{5:020d}-{1:020d}"):
            with expect_raises(StorageError, f"there is no snapshot {name!r}"), store.open(name):
                pass


def _point(index: int, term: int = 1) -> SnapshotPoint:
    return SnapshotPoint(index=index, term=term, voters=(1, 2, 3), learners=(4,))


def _commit(store: SnapshotStore, index: int, *pieces: bytes, term: int = 1) -> SnapshotInfo:
    writer = store.begin(_point(index, term))
    for piece in pieces:
        writer.write(piece)
    return writer.commit()
