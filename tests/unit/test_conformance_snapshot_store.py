"""The snapshot stores keep the promises of their protocol; files survive every interruption and name every damage."""

from __future__ import annotations

import contextlib
import errno
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import msgspec
import pytest

from tenure import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage import FileSnapshotStore, SnapshotPoint, SnapshotStore
from tenure.storage.snapshot_files import FileLayer
from tenure.testing import MemorySnapshotStore, SnapshotStoreConformance
from tenure.testing.memory_snapshot_store import MemorySnapshotReader

OLD, NEW = SnapshotPoint(index=4, term=1, voters=(1, 2, 3)), SnapshotPoint(index=9, term=2, voters=(1, 2, 3))


class FailingLayer(FileLayer):
    """Does what the real one does, counts it, and stops or fails at one step."""

    def __init__(self) -> None:
        self.steps: list[str] = []
        self.fail_at: Callable[[str, int], None] = lambda name, number: None
        self.files: list[BinaryIO] = []
        self.unsynced: dict[Path, BinaryIO] = {}
        self.renamed: list[tuple[Path, Path]] = []

    def step(self, name: str) -> None:
        self.steps.append(name)
        self.fail_at(name, len(self.steps))

    def create(self, path: Path) -> BinaryIO:
        self.step("create")
        file = super().create(path)
        self.files.append(file)
        self.unsynced[path] = file
        return file

    def write(self, file: BinaryIO, data: bytes) -> None:
        self.step("write")
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        self.step("sync")
        super().sync(file)
        self.unsynced = {path: other for path, other in self.unsynced.items() if other is not file}

    def rename(self, source: Path, target: Path) -> None:
        self.step("rename")
        super().rename(source, target)
        self.renamed.append((source, target))
        if source in self.unsynced:
            self.unsynced[target] = self.unsynced.pop(source)

    def sync_folder(self, folder: Path) -> None:
        self.step("sync_folder")
        super().sync_folder(folder)
        self.renamed.clear()

    def remove(self, path: Path) -> None:
        self.step("remove")
        super().remove(path)

    def cut_the_power(self, *, names_survive: bool) -> None:
        """What was not synced is gone: bytes of files, and names where the folder was not synced either."""
        if not names_survive:
            for source, target in reversed(self.renamed):
                target.rename(source)
                if source in self.unsynced or target in self.unsynced:
                    self.unsynced[source] = self.unsynced.pop(target)
        for path, file in self.unsynced.items():
            file.close()
            path.write_bytes(path.read_bytes()[:10])


class Killed(BaseException):
    """The process ends here."""


def kill_at(step: int) -> Callable[[str, int], None]:
    def fail(name: str, number: int) -> None:
        if number == step:
            raise Killed

    return fail


def write_snapshot(store: SnapshotStore, point: SnapshotPoint, content: bytes) -> str:
    writer = store.begin(point)
    writer.write(content)
    return writer.commit().id


def content_of(store: SnapshotStore, snapshot_id: str) -> bytes:
    with store.open(snapshot_id) as reader:
        return b"".join(reader.chunks())


class TestFileSnapshotStore(SnapshotStoreConformance):
    def open_store(self, folder: Path) -> SnapshotStore:
        return FileSnapshotStore(folder, layer=FailingLayer())

    def fail_next_commit(self, store: SnapshotStore) -> None:
        def fail(name: str, number: int) -> None:
            if name == "sync":
                raise OSError(errno.EIO, "Input/output error")

        store._layer.fail_at = fail


class TestMemorySnapshotStore(SnapshotStoreConformance):
    store_class = MemorySnapshotStore

    def setup_method(self) -> None:
        self.shelves: dict[Path, dict] = {}

    def open_store(self, folder: Path) -> SnapshotStore:
        return self.store_class(self.shelves.setdefault(folder, {}))

    def damage(self, folder: Path, marker: bytes) -> int:
        found = [name for name, stored in self.shelves[folder].items() if marker in stored.content]
        for name in found:
            MemorySnapshotStore(self.shelves[folder]).flip_bit(name)
        return len(found)

    def fail_next_commit(self, store: SnapshotStore) -> None:
        store.fail_next_commit(SyncFailed("no answer from the disk in memory"))


# -- the suite is not blind -------------------------------------------------------------------------------------------


class OrdersBySpelling(MemorySnapshotStore):
    def ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.shelf, reverse=True, key=lambda name: name.lstrip("0")))


class OrdersByCommit(MemorySnapshotStore):
    def ids(self) -> tuple[str, ...]:
        return tuple(reversed(self.shelf))


class PrunesTheNeeded(MemorySnapshotStore):
    def prune(self, *, keep: int = 2, needed: str | None = None) -> tuple[str, ...]:
        return super().prune(keep=keep)


class PrunesTheNewest(MemorySnapshotStore):
    def prune(self, *, keep: int = 2, needed: str | None = None) -> tuple[str, ...]:
        removed = self.ids()[keep:]
        for name in removed:
            del self.shelf[name]
        return removed


class ChecksNothing(MemorySnapshotStore):
    @contextlib.contextmanager
    def open(self, snapshot_id: str):
        stored = self.shelf[snapshot_id]
        yield MemorySnapshotReader(stored.info, stored.content)


class ForgetsTheLearners(MemorySnapshotStore):
    def begin(self, point: SnapshotPoint):
        return super().begin(msgspec.structs.replace(point, learners=()))


class RemovesBeforeItCommits(MemorySnapshotStore):
    def keep(self, info, content: bytes) -> None:
        self.shelf.clear()
        super().keep(info, content)


@pytest.mark.parametrize(
    ("store_class", "promise"),
    [
        (OrdersBySpelling, "store_orders_by_index_and_term_when_there_are_several"),
        (OrdersByCommit, "store_orders_by_index_and_term_when_there_are_several"),
        (PrunesTheNewest, "store_keeps_the_newest_when_it_prunes"),
        (PrunesTheNeeded, "snapshot_that_is_needed_stays_when_newer_ones_are_there"),
        (ChecksNothing, "store_names_the_damage_when_a_bit_has_flipped"),
        (ForgetsTheLearners, "store_gives_back_what_was_committed_when_it_is_opened_again"),
        (RemovesBeforeItCommits, "older_snapshot_stays_when_a_commit_fails"),
    ],
)
def test_suite_catches_a_snapshot_store_when_it_breaks_a_promise(tmp_path: Path, store_class: type, promise: str):
    """Each broken store fails the promise that it breaks: a suite that cannot go red proves nothing."""
    suite = TestMemorySnapshotStore()
    suite.setup_method()
    suite.store_class = store_class
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{promise}")(tmp_path)


# -- interruptions ----------------------------------------------------------------------------------------------------


def steps_of_a_commit(tmp_path: Path) -> list[str]:
    layer = FailingLayer()
    write_snapshot(FileSnapshotStore(tmp_path / "rehearsal", layer=layer), NEW, b"new" * 1000)
    return layer.steps


def test_commit_syncs_the_file_before_its_name_and_the_folder_after_it(tmp_path: Path):
    """The order is the promise: a name that shows is a whole snapshot, and one that was returned stays."""
    assert steps_of_a_commit(tmp_path) == ["create", "write", "write", "write", "sync", "rename", "sync_folder"]


@pytest.mark.parametrize("power", ["kept", "cut, names survive", "cut, names are lost"])
@pytest.mark.parametrize("same_place", [False, True])
def test_kill_at_each_step_of_a_commit_leaves_the_old_or_the_new_snapshot(tmp_path: Path, power: str, same_place: bool):
    """Never a torn one, never none; and the next start clears what was left lying."""
    point = OLD if same_place else NEW
    for step in range(1, len(steps_of_a_commit(tmp_path)) + 2):
        folder, layer = tmp_path / f"step-{step}", FailingLayer()
        store = FileSnapshotStore(folder, layer=layer)
        write_snapshot(store, OLD, b"old" * 1000)
        if same_place and power == "cut, names are lost":
            # A rename over an older file cannot be undone by hand; a file system keeps the older one for us.
            shutil.copytree(folder, folder.with_suffix(".older"))
        layer.steps.clear()
        layer.fail_at = kill_at(step)
        committed = False
        try:
            write_snapshot(store, point, b"new" * 1000)
            committed = True
        except Killed:
            pass
        if power != "kept":
            names_survive = power == "cut, names survive"
            if same_place and layer.renamed and not names_survive:
                layer.cut_the_power(names_survive=True)
                shutil.copytree(folder.with_suffix(".older"), folder, dirs_exist_ok=True)
            else:
                layer.cut_the_power(names_survive=names_survive)
        survivor = FileSnapshotStore(folder)
        latest = survivor.latest()
        assert latest is not None
        content = content_of(survivor, latest.id)
        assert content == (b"new" if committed or content.startswith(b"new") else b"old") * 1000
        assert {path.suffix for path in folder.iterdir()} == {".snapshot"}, "the leftovers are cleared"
        assert all(content_of(survivor, name) for name in survivor.ids())
        for file in layer.files:
            file.close()


@pytest.mark.parametrize(
    ("number", "error"), [(errno.ENOSPC, StorageFull), (errno.EDQUOT, StorageFull), (errno.EIO, SyncFailed)]
)
def test_failure_of_the_disk_at_each_step_is_named_and_keeps_the_old_snapshot(
    tmp_path: Path, number: int, error: type[StorageError]
):
    """The writer is over after it, and leaves nothing but, at the last step, a whole new snapshot."""
    for step in range(1, len(steps_of_a_commit(tmp_path)) + 1):
        folder, layer = tmp_path / f"step-{step}", FailingLayer()
        store = FileSnapshotStore(folder, layer=layer)
        old = write_snapshot(store, OLD, b"old")
        layer.steps.clear()

        def fail(name: str, at: int, step: int = step) -> None:
            if at == step:
                raise OSError(number, "injected")

        layer.fail_at = fail
        with pytest.raises(error, match=str(folder)):
            write_snapshot(store, NEW, b"new")
        assert old in store.ids()
        assert content_of(store, store.ids()[0]) in (b"old", b"new")
        assert {path.suffix for path in folder.iterdir()} == {".snapshot"}


# -- damage -----------------------------------------------------------------------------------------------------------


def test_every_flipped_byte_of_a_file_is_found_and_named(tmp_path: Path):
    """Head, lengths, chunks, end: there is no byte without a checksum."""
    store = FileSnapshotStore(tmp_path / "store")
    snapshot_id = write_snapshot(store, NEW, b"content")
    (path,) = (tmp_path / "store").iterdir()
    sound = path.read_bytes()
    for place in range(len(sound)):
        for bit in (0, 7):
            path.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << bit]) + sound[place + 1 :])
            with pytest.raises(LogCorrupt) as caught:
                content_of(store, snapshot_id)
            assert caught.value.path == str(path)


def test_every_shortened_or_lengthened_file_is_found_and_named(tmp_path: Path):
    """A file that ends early is torn, one that goes on is not ours."""
    store = FileSnapshotStore(tmp_path / "store")
    snapshot_id = write_snapshot(store, NEW, b"content")
    (path,) = (tmp_path / "store").iterdir()
    sound = path.read_bytes()
    for damaged in [sound[:length] for length in range(len(sound))] + [sound + b"x", sound + sound]:
        path.write_bytes(damaged)
        with pytest.raises(LogCorrupt, match="was not loaded"):
            content_of(store, snapshot_id)


def test_latest_names_damage_instead_of_falling_back_to_an_older_one(tmp_path: Path):
    """The log may no longer reach back to it: that is for the caller to decide, by name."""
    store = FileSnapshotStore(tmp_path / "store")
    old, new = write_snapshot(store, OLD, b"old"), write_snapshot(store, NEW, b"new")
    (tmp_path / "store" / f"{new}.snapshot").write_bytes(b"")
    with pytest.raises(LogCorrupt, match=new):
        store.latest()
    assert content_of(store, old) == b"old"


def test_file_under_the_name_of_another_place_is_damage(tmp_path: Path):
    """A copy by hand does not turn an old state into a new one."""
    store = FileSnapshotStore(tmp_path / "store")
    write_snapshot(store, OLD, b"old")
    (path,) = (tmp_path / "store").iterdir()
    path.rename(path.with_name(f"{9:020d}-{2:020d}.snapshot"))
    with pytest.raises(LogCorrupt, match="not the snapshot that its name says"):
        store.latest()


def test_chunk_that_changes_after_the_opening_is_not_handed_out(tmp_path: Path):
    """Verified before use, and once more at its use."""
    store = FileSnapshotStore(tmp_path / "store")
    snapshot_id = write_snapshot(store, NEW, b"content" * 100_000)
    (path,) = (tmp_path / "store").iterdir()
    with store.open(snapshot_id) as reader:
        path.write_bytes(path.read_bytes().replace(b"content", b"c0ntent"))
        with pytest.raises(LogCorrupt, match="fails its checksum"):
            list(reader.chunks())


def test_file_of_a_newer_format_is_refused_with_the_way_on(tmp_path: Path):
    """A rolling upgrade that went back: not damage, and said so."""
    store = FileSnapshotStore(tmp_path / "store")
    snapshot_id = write_snapshot(store, NEW, b"content")
    (path,) = (tmp_path / "store").iterdir()
    data = bytearray(path.read_bytes())
    data[4] = 2
    length = struct.unpack_from(">I", data, 5)[0]
    data[9 + length : 13 + length] = struct.pack(">I", zlib.crc32(bytes(data[: 9 + length])))
    path.write_bytes(bytes(data))
    with pytest.raises(StorageError, match="format 2, this version reads up to 1: use the newer Tenure") as caught:
        content_of(store, snapshot_id)
    assert not isinstance(caught.value, LogCorrupt)


def test_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="file"):
        FileSnapshotStore(tmp_path / "file" / "snapshots")


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path):
    """It removes its own partial files and nothing else."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "README").write_text("mine")
    (folder / ".00000000000000000009-00000000000000000002.1.partial").write_bytes(b"torn")
    store = FileSnapshotStore(folder)
    write_snapshot(store, NEW, b"new")
    store.prune(keep=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "00000000000000000009-00000000000000000002.snapshot",
        "README",
    ]


def test_memory_of_a_large_snapshot_stays_bounded(tmp_path: Path):
    """64 MiB through the store in chunks, with less than 8 MiB of it in memory at any time."""
    store = FileSnapshotStore(tmp_path / "store")
    piece = bytes(1 << 20)
    tracemalloc.start()
    try:
        writer = store.begin(NEW)
        for _ in range(64):
            writer.write(piece)
        info = writer.commit()
        with store.open(info.id) as reader:
            size = sum(len(chunk) for chunk in reader.chunks())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 64 << 20
    assert peak < 8 << 20
