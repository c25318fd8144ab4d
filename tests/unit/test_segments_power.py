"""The log store in segments through many lives: cut, killed and refused by its disk at any call of the system."""

from __future__ import annotations

import errno
import random
import shutil
from pathlib import Path

import pytest

from support.power_cut import SECTOR, Disk, Image, Killed, contents, laid_out, under
from tenure import LogCorrupt, StorageError
from tenure.storage import SegmentLogStore, StoredLog, StoredSnapshot

SEGMENT_BYTES = 4096
OWNER, STRANGER = "0" * 32, "1" * 32
EMPTY = StoredLog(term=0, vote=0, commit=0, batches=())


def opened(root: Path, owner: str = OWNER, least: int = 0) -> SegmentLogStore:
    return SegmentLogStore(root / "log", owner=owner, segment_bytes=SEGMENT_BYTES, least=least)


def entries_in(log: StoredLog) -> StoredLog:
    """The same with what its batches replay to: which superfluous ones are left is the store's affair."""
    entries: dict[int, bytes] = {}
    for batch in log.batches:
        first, last = (int(number) for number in batch.split(b" ", 2)[:2])
        entries = {index: data for index, data in entries.items() if index < first}
        entries |= {index: b"%d " % index + batch for index in range(first, last + 1)}
    base = log.snapshot.index if log.snapshot is not None else 0
    kept = {index: data for index, data in sorted(entries.items()) if index > base}
    assert not kept or list(kept) == list(range(base + 1, max(kept) + 1)), f"a gap: {list(kept)} above {base}"
    return StoredLog(log.term, log.vote, log.commit, tuple(kept.values()), log.snapshot)


class Life:
    """Random calls on one store, with what must be there after each of them and what may be there meanwhile."""

    def __init__(self, source: random.Random) -> None:
        self.source = source
        self.before = self.after = EMPTY
        self.log: list[bytes] = []
        self.number = 0

    def batch(self, first: int, last: int) -> bytes:
        self.number += 1
        size = self.source.choice((0, 10, 10, 60, 400, 700, 1500, 3000, 9000))
        body = bytes(size) if self.source.random() < 0.2 else self.source.randbytes(size)
        return b"%d %d %d " % (first, last, self.number) + body

    def call(self, store: SegmentLogStore) -> None:
        """One call; ``after`` is what it leads to, and ``before`` follows when it has returned."""
        source, old = self.source, self.before
        base = old.snapshot.index if old.snapshot is not None else 0
        end = base + len(entries_in(old).batches)
        state = (old.term + 1, source.randint(1, 3), min(end, old.commit + 1))
        kind = source.random()
        if kind < 0.12 and end > base:
            snapshot = StoredSnapshot(source.randint(base + 1, end), 1, source.randbytes(source.choice((0, 50, 800))))
            self.after = StoredLog(old.term, old.vote, old.commit, old.batches, snapshot)
            store.compact(snapshot)
        elif kind < 0.2:
            self.after = StoredLog(*state, old.batches, old.snapshot)
            store.save(first=0, last=0, entries=b"", hard_state=state)
        elif kind < 0.27:
            snapshot = StoredSnapshot(end + source.randint(1, 5), 2, b"the leader's" * source.randint(1, 60))
            first, last = snapshot.index + 1, snapshot.index + source.randint(1, 3)
            batch = self.batch(first, last) if source.random() < 0.5 else b""
            self.after = StoredLog(*state, (batch,) if batch else (), snapshot)
            store.save(first=first, last=last, entries=batch, hard_state=state, snapshot=snapshot)
        else:
            first = source.randint(max(base + 1, end - 3), end + 1)
            last = first + source.randint(0, 2)
            batch, given = self.batch(first, last), state if source.random() < 0.5 else None
            self.after = StoredLog(*(given or (old.term, old.vote, old.commit)), (*old.batches, batch), old.snapshot)
            store.save(first=first, last=last, entries=batch, hard_state=given)
        self.before = self.after

    def check(self, found: StoredLog) -> None:
        """What is found is what was acknowledged, or that and the call that was under way, as a whole."""
        entries = entries_in(found)
        assert entries in (entries_in(self.before), entries_in(self.after))
        self.before = self.after = found


def loaded(root: Path, least: int) -> StoredLog:
    store = opened(root, least=least)
    try:
        return store.load()
    finally:
        store.close()


class Trial:
    """Lives of one store, and what every power cut meanwhile would leave of it, opened by a store of its own."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, seed: int, *, sector: int = 512) -> None:
        self.source = random.Random(seed)
        self.life = Life(self.source)
        #: The last record of which anybody was told. No life may find less.
        self.least = 0
        self.images = self.calls = self.refused = self.kept_from_strangers = 0
        self._folder = folder
        self._patch = patch
        self._sector = sector
        self._lives = 0
        self.disk = self._disk_of({})

    def _disk_of(self, image: Image) -> Disk:
        self._lives += 1
        return Disk(laid_out(image, self._folder / f"disk-{self._lives}"), self._at_call, sector=self._sector)

    def live(self, calls: int, ending: BaseException | None = None) -> None:
        """Open it and call it; ``ending`` is what one of the calls of the system ends with, if it comes to that."""
        self._ending, self._left = ending, self.source.randint(1, 12)
        with under(self.disk, self._patch):
            store = None
            try:
                store = opened(self.disk.root, least=self.least)
                self.least = store.end
                self.life.check(store.load())
                for _ in range(calls):
                    self.life.call(store)
                    self.least = store.end
            except (StorageError, Killed):
                if ending is None or self._ending is not None:
                    raise
                if store is not None and isinstance(ending, OSError):
                    # The node ends, and notes it when it closes its directory.
                    self.least = store.end
                    self._expect_no_further_step(store)
            self.disk.forget_descriptors()

    def cut(self) -> None:
        """The power goes, and comes back."""
        self.disk = self._disk_of(self.disk.image(self.source))

    def _expect_no_further_step(self, store: SegmentLogStore) -> None:
        calls = self.calls
        for _ in range(2):
            with pytest.raises(StorageError, match="an earlier write failed"):
                store.save(first=0, last=0, entries=b"", hard_state=(99, 9, 9))
        assert calls == self.calls

    def _at_call(self, _: str) -> None:
        self.calls += 1
        for source in (None, self.source, self.source):
            self._look_at(self.disk.image(source))
        self._left -= 1
        if self._left <= 0 and self._ending is not None:
            ending, self._ending = self._ending, None
            raise ending

    def _try_as_a_stranger(self, image: Image, root: Path) -> None:
        """Whatever a cut leaves, another owner is refused and changes nothing; or there was never a log."""
        if self.images % 4:
            return
        try:
            opened(root, STRANGER).close()
        except LogCorrupt:
            self.kept_from_strangers += 1
            assert contents(root) == image
        else:
            assert EMPTY in (self.life.before, self.life.after)
            shutil.rmtree(root)
            laid_out(image, root)

    def _look_at(self, image: Image) -> None:
        self.images += 1
        root = laid_out(image, self._folder / f"cut-{self.images}")
        probe = Life(self.source)
        probe.before, probe.after = self.life.before, self.life.after
        try:
            self._try_as_a_stranger(image, root)
            probe.check(loaded(root, self.least))
        except LogCorrupt:
            if self._sector == SECTOR:
                raise
            self.refused += 1
        shutil.rmtree(root)


@pytest.mark.parametrize("seed", range(4))
def test_R1_power_cut_leaves_what_was_acknowledged_at_every_call_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    """Opening, rolling over and removing included, whatever of the names, lengths and sectors under way is there."""
    trial = Trial(tmp_path, monkeypatch, seed)
    for _ in range(8):
        trial.live(trial.source.randint(1, 12))
        trial.cut()
    assert trial.calls > 60
    assert trial.kept_from_strangers > 20


@pytest.mark.parametrize("seed", range(6))
def test_R2_nothing_that_a_failed_call_left_in_memory_is_believed_to_be_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
):
    """The disk fails or the process is killed at any call, and the next life reads what the system has in memory."""
    trial = Trial(tmp_path, monkeypatch, seed)
    endings = (OSError(errno.EIO, "i/o"), OSError(errno.ENOSPC, "full"), Killed(), None)
    for _ in range(24):
        trial.live(trial.source.randint(0, 12), trial.source.choice(endings))
        if trial.source.random() < 0.15:
            trial.cut()
    assert trial.calls > 100


def test_cut_in_the_middle_of_a_sector_leaves_what_was_acknowledged_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """No disk is expected to do that. It is taken for damage, and never for another log."""
    trial = Trial(tmp_path, monkeypatch, 1, sector=1)
    trial.live(25)
    assert trial.images > trial.refused > 0
