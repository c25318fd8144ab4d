"""The log store in segments: what a crash leaves at any instant, what rots, what is missing."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from tenure import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage import SegmentLogStore, StoredLog, StoredSnapshot
from tenure.storage import segments as segments_module
from tenure.storage.segment_records import FORMAT, MARK, SECTOR, Kind, Scan

SEGMENT_BYTES = 4096
OWNER = "0" * 32
Image = dict[str, bytes]


def image_of(folder: Path) -> Image:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def put(folder: Path, image: Image) -> Path:
    folder.mkdir()
    for name, data in image.items():
        (folder / name).write_bytes(data)
    return folder


def opened(folder: Path, owner: str = OWNER) -> SegmentLogStore:
    return SegmentLogStore(folder, owner=owner, segment_bytes=SEGMENT_BYTES)


def loaded(folder: Path) -> StoredLog:
    store = opened(folder)
    found = store.load()
    store.close()
    return found


def run_some(store: SegmentLogStore) -> Iterator[None]:
    """Calls of every shape, over many segments; a step ends where a call has returned."""
    index = 0
    for step in range(40):
        size = (60, 700, 1500)[step % 3]
        entries = bytes(size) if step % 5 == 4 else random.Random(step).randbytes(size)
        snapshot = StoredSnapshot(index=index + 10, term=2, data=b"the leader's" * 20) if step == 25 else None
        index = index + 10 if snapshot is not None else index
        first, index = (index, index + 1) if step % 7 == 6 else (index + 1, index + 2)
        store.save(first=first, last=index, entries=entries, hard_state=(step, 1, index - 1), snapshot=snapshot)
        yield
        if step % 6 == 5:
            store.compact(StoredSnapshot(index=index - 3, term=1, data=b"own" * 50))
            yield
        if step % 11 == 10:
            store.save(first=0, last=0, entries=b"", hard_state=(step, 2, index - 1))
            yield


@pytest.fixture
def filled(tmp_path: Path) -> tuple[Image, StoredLog]:
    """Several segments as a closed store leaves them, and what they hold."""
    store = opened(tmp_path / "filled")
    for _ in run_some(store):
        pass
    found = store.load()
    store.close()
    return image_of(tmp_path / "filled"), found


def test_R1_segment_is_written_through_to_the_disk(tmp_path: Path):
    """O_DSYNC: the write returns once the record is on the disk, and the file had its length before."""
    store = opened(tmp_path)
    assert fcntl.fcntl(store._descriptor, fcntl.F_GETFL) & os.O_DSYNC
    size = os.fstat(store._descriptor).st_size
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    assert os.fstat(store._descriptor).st_size == size == SEGMENT_BYTES
    store.close()


def test_R13_sign_of_life_is_written_through_and_takes_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An idle leader asks for one each lease, for years: the log must not grow by it, and must be the same after it."""
    store = opened(tmp_path)
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    written: list[int] = []
    write = os.pwrite

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        assert descriptor == store._descriptor
        written.append(len(data))
        return write(descriptor, data, offset)

    with monkeypatch.context() as watched:
        watched.setattr(os, "pwrite", pwrite)
        for hard_state in [(1, 1, 0)] * 200 + [None]:
            store.save(first=0, last=0, entries=b"", hard_state=hard_state)
    assert len(written) == 201
    assert len(list(tmp_path.glob("*.segment"))) == 1
    store.save(first=2, last=2, entries=b"two", hard_state=(1, 1, 1))
    store.close()
    assert loaded(tmp_path) == StoredLog(term=1, vote=1, commit=1, batches=(b"one", b"two"), snapshot=None)


def test_R2_R13_store_is_unusable_when_a_sign_of_life_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A disk that fails is no better for having been asked for nothing."""
    store = opened(tmp_path)
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))

    def pwrite(*_: object) -> NoReturn:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken:
        broken.setattr(os, "pwrite", pwrite)
        with pytest.raises(SyncFailed):
            store.save(first=0, last=0, entries=b"", hard_state=None)
    with pytest.raises(SyncFailed):
        store.save(first=2, last=2, entries=b"two", hard_state=None)
    store.close()


class Watched(SegmentLogStore):
    """Keeps what was on the disk before and after each of its writes."""

    writes: list[tuple[Image, Image]]

    def _write(self, descriptor: int, data: bytes, offset: int) -> None:
        before = image_of(self._folder)
        super()._write(descriptor, data, offset)
        self.writes.append((before, image_of(self._folder)))


def cut_between(before: Image, after: Image, source: random.Random) -> Iterator[Image]:
    """What a power cut in the middle of one write can leave: any of the sectors that it changes."""
    yield before
    for name, new in after.items():
        old = before[name]
        changed = [at for at in range(0, len(new), SECTOR) if old[at : at + SECTOR] != new[at : at + SECTOR]]
        choices = [changed[:1], changed[1:], changed[:-1], changed[-1:]]
        choices += [[at for at in changed if source.random() < 0.5] for _ in range(3)]
        for written in {tuple(choice) for choice in choices}:
            data = bytearray(old)
            for at in written:
                data[at : at + SECTOR] = new[at : at + SECTOR]
            yield before | {name: bytes(data)}
    yield after


def test_R1_store_has_all_of_each_call_or_nothing_wherever_the_power_goes(tmp_path: Path):
    """At every write and at any sector of it, those of a new segment included; and it goes on after that."""
    Watched.writes = writes = []
    source, count = random.Random(7), 0
    store = Watched(tmp_path / "store", owner=OWNER, segment_bytes=SEGMENT_BYTES)
    before, done = store.load(), len(writes)
    for _ in run_some(store):
        after = store.load()
        for image in (image for pair in writes[done:] for image in cut_between(*pair, source)):
            count += 1
            folder = put(tmp_path / f"cut-{count}", image)
            survivor = opened(folder)
            found = survivor.load()
            assert found in (before, after)
            survivor.save(first=900, last=900, entries=b"goes on", hard_state=None)
            survivor.close()
            assert loaded(folder).batches == (*found.batches, b"goes on")
        before, done = after, len(writes)
    store.close()
    assert max(len(pair[1]) for pair in writes) > 3
    assert count > 300


def test_store_finds_every_flipped_bit_or_takes_no_harm(tmp_path: Path, filled: tuple[Image, StoredLog]):
    """Everywhere in every segment: in what counts, in the last record, in the space that is not used yet."""
    image, whole = filled
    source = random.Random(3)
    found_damage = 0
    for number, (name, data) in enumerate(image.items()):
        for place in range(number % 5, len(data), 5):
            flipped = bytearray(data)
            flipped[place] ^= 1 << source.randrange(8)
            folder = put(tmp_path / f"{name}-{place}", image | {name: bytes(flipped)})
            try:
                found = loaded(folder)
            except StorageError as error:
                found_damage += 1
                named = error.path if isinstance(error, LogCorrupt) else str(error)
                assert name in named, named
            else:
                assert found == whole
            shutil.rmtree(folder)
    assert found_damage > 500


def test_store_names_the_segment_that_is_missing(tmp_path: Path, filled: tuple[Image, StoredLog]):
    """The last one as well: the one before it says that it exists."""
    image, _ = filled
    assert len(image) >= 3
    for name in image:
        folder = put(tmp_path / name, {other: data for other, data in image.items() if other != name})
        with pytest.raises(LogCorrupt, match="missing") as caught:
            opened(folder)
        assert caught.value.path == str(folder / name)
        assert len(image_of(folder)) == len(image) - 1


def test_store_removes_no_segment_that_still_counts_and_keeps_few(tmp_path: Path):
    """What is compacted goes whole segment by whole segment."""
    store = opened(tmp_path)
    for index in range(1, 400):
        store.save(first=index, last=index, entries=b"e" * 300, hard_state=(1, 1, index))
        if index % 20 == 0:
            store.compact(StoredSnapshot(index=index - 5, term=1, data=b"s"))
            assert len(image_of(tmp_path)) <= 4
    assert len(store.load().batches) == 399 - 375
    store.close()


def test_store_takes_a_segment_that_came_back_for_removed(tmp_path: Path):
    """A removal need not be durable: an old segment that a power cut brings back changes nothing."""
    store = opened(tmp_path / "store")
    older: Image = {}
    for index in range(1, 200):
        store.save(first=index, last=index, entries=b"e" * 300, hard_state=(1, 1, index))
        older |= image_of(tmp_path / "store")
        if index % 20 == 0:
            store.compact(StoredSnapshot(index=index - 5, term=1, data=b"s"))
    whole = store.load()
    store.close()
    image = image_of(tmp_path / "store")
    gone = sorted(set(older) - set(image))
    assert len(gone) > 3
    for number, back in enumerate((gone[:1], gone[-1:], gone[-3:], gone)):
        folder = put(tmp_path / f"back-{number}", image | {name: older[name] for name in back})
        assert loaded(folder) == whole


@pytest.mark.parametrize("other", [FORMAT - 1, FORMAT + 1])
def test_store_refuses_a_segment_of_another_format(tmp_path: Path, other: int):
    opened(tmp_path).close()
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes().replace(MARK, MARK[:6] + b"%02d" % other))
    with pytest.raises(StorageError, match=f"has format {other}, and this version reads {FORMAT}"):
        opened(tmp_path)


def test_R7_segment_of_another_owner_is_refused_and_stays(tmp_path: Path, filled: tuple[Image, StoredLog]):
    """Each of them for itself, and all together; a store without an owner takes none that has one."""
    image, whole = filled
    other = opened(tmp_path / "other", "1" * 32)
    for _ in run_some(other):
        pass
    other.close()
    foreign = image_of(tmp_path / "other")
    assert set(foreign) == set(image)
    for number, replaced in enumerate([*([name] for name in image), list(image)]):
        mixed = image | {name: foreign[name] for name in replaced}
        folder = put(tmp_path / f"mixed-{number}", mixed)
        with pytest.raises(
            LogCorrupt, match=f"belongs to the data directory '{'1' * 32}'.* this is '{OWNER}'"
        ) as caught:
            opened(folder)
        assert caught.value.path == str(folder / min(replaced))
        assert image_of(folder) == mixed
    folder = put(tmp_path / "whole", image)
    with pytest.raises(LogCorrupt, match="and this is ''"):
        opened(folder, "")
    assert loaded(folder) == whole


def test_store_reads_each_segment_once_when_it_is_opened_and_loaded(
    tmp_path: Path, filled: tuple[Image, StoredLog], monkeypatch: pytest.MonkeyPatch
):
    """And again once it was written: what opening read is neither kept nor given back for the new."""
    image, whole = filled
    read = []
    read_whole = SegmentLogStore._content
    monkeypatch.setattr(
        SegmentLogStore, "_content", lambda store, number: (read.append(number), read_whole(store, number))[1]
    )
    store = opened(put(tmp_path / "store", image))
    assert store.load() == whole
    assert len(read) == len(set(read)) == len(image)
    assert store.load() == whole
    store.close()
    store = opened(tmp_path / "store")
    store.save(first=900, last=900, entries=b"new", hard_state=None)
    assert store.load().batches == (*whole.batches, b"new")
    store.close()


def test_replay_lets_go_what_a_snapshot_stands_for(tmp_path: Path):
    """At once, and not when all is read: a long log that was compacted often must not fill the memory."""
    store = SegmentLogStore(tmp_path, segment_bytes=1 << 20)
    for index in range(1, 400):
        store.save(first=index, last=index, entries=b"e" * 100, hard_state=(1, 1, index))
        if index % 50 == 0:
            store.compact(StoredSnapshot(index=index - 5, term=1, data=b"s"))
    store.close()
    replay, most = segments_module._Replay(), 0
    for record in Scan(1).records(next(tmp_path.iterdir()).read_bytes()):
        assert replay.take(1, record, is_first=record.kind is Kind.HEAD)
        most = max(most, len(replay._batches))
    assert most == 55
    assert len(replay.stored().batches) == 399 - 345


def test_store_says_that_the_disk_is_full_when_there_is_no_room_for_a_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = opened(tmp_path)
    store.save(first=1, last=1, entries=b"kept", hard_state=(1, 1, 0))

    def full(*_: object) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(segments_module.os, "posix_fallocate", full)
        with pytest.raises(StorageFull, match="free space"):
            store.save(first=2, last=2, entries=bytes(SEGMENT_BYTES), hard_state=None)
        with pytest.raises(SyncFailed, match="an earlier write failed"):
            store.save(first=2, last=2, entries=b"small", hard_state=None)
    store.close()
    assert loaded(tmp_path).batches == (b"kept",)


def test_store_fails_as_unsynced_when_a_write_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Half of a record is no record, whatever the system call says."""
    store = opened(tmp_path)
    monkeypatch.setattr(segments_module.os, "pwrite", lambda _, data, __: len(data) - 1)
    with pytest.raises(SyncFailed, match="bytes were written"):
        store.save(first=1, last=1, entries=b"one", hard_state=None)
    store.close()


def test_store_finds_a_last_segment_that_was_cut_short(tmp_path: Path, filled: tuple[Image, StoredLog]):
    """Also where it ends with a whole record: what followed was acknowledged."""
    image, _ = filled
    name = max(image)
    count = len(image[name])
    for length in (0, *range(8, count, 8)):
        folder = put(tmp_path / f"short-{length}", image | {name: image[name][:length]})
        with pytest.raises(LogCorrupt) as caught:
            loaded(folder)
        assert caught.value.path == str(folder / name)


def test_store_finds_a_lost_sector_in_which_one_record_ended_and_the_last_one_began(tmp_path: Path):
    """The end of the last record is left: the one before it had been acknowledged, and was not cut."""
    store = opened(tmp_path / "store")
    for index in (1, 2):
        store.save(first=index, last=index, entries=b"e" * 900, hard_state=(index, 1, 0))
    store.close()
    image = image_of(tmp_path / "store")
    name, data = next(iter(image.items()))
    border = (data.index(MARK, data.index(MARK, 1) + 1) // SECTOR) * SECTOR
    folder = put(tmp_path / "lost", {name: data[:border] + bytes(SECTOR) + data[border + SECTOR :]})
    with pytest.raises(LogCorrupt, match="fails its checksum"):
        loaded(folder)


@pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EINVAL])
def test_store_writes_zeros_where_the_file_system_cannot_allocate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int
):
    def refuse(*_: object) -> NoReturn:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(segments_module.os, "posix_fallocate", refuse)
    store = SegmentLogStore(tmp_path, segment_bytes=(2 << 20) + SECTOR)
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    status = next(tmp_path.iterdir()).stat()
    assert status.st_size == (2 << 20) + SECTOR <= 512 * status.st_blocks
    assert store.load().batches == (b"one",)
    store.close()
