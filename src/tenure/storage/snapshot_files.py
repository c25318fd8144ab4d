"""Snapshots as files: written aside, synced, renamed, and the folder synced. A name that shows is a whole snapshot.

::

    <index>-<term>.snapshot:   head    "TNSS" | format u8 | length u32 | point (MessagePack) | crc32 u32
                               chunk   length u32 > 0 | crc32 u32 | bytes, at most 1 MiB      (any number of them)
                               end     length u32 = 0 | size u64 | sha256 of the content | crc32 u32

    begin -> .<id>.<n>.partial -> write ... -> end -> fsync file -> rename -> fsync folder -> committed

Every byte is under a checksum. Never loaded: a partial file, one that ends early or goes on too long, one that fails a
checksum, one of a newer format. Opening reads the whole file against the hash; each chunk is checked again as it is
handed out. The layout of the head is for ever, so that a newer format is told from damage.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from tenure.errors import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage.folders import sync_folder
from tenure.storage.snapshot_store import SnapshotInfo, SnapshotPoint

FORMAT = 1
CHUNK_LIMIT = 1 << 20
#: A point names members by number: far above what any cluster has, far below what could hurt.
POINT_LIMIT = 64 << 10
_MAGIC = b"TNSS"
_HEAD = struct.Struct(">4sBI")
_CHUNK = struct.Struct(">II")
_END = struct.Struct(">IQ32s")
_CHECKSUM = struct.Struct(">I")
_NAME = re.compile(r"(\d{20})-(\d{20})\.snapshot")
_point_decoder = msgspec.msgpack.Decoder(SnapshotPoint)


class FileLayer:
    """The calls that change the disk, in one place, so that a test can fail or stop each of them."""

    def create(self, path: Path) -> BinaryIO:
        """A new file, readable by its owner alone."""
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb")

    def write(self, file: BinaryIO, data: bytes) -> None:
        """Append ``data``."""
        file.write(data)

    def sync(self, file: BinaryIO) -> None:
        """Return once every byte of the file is on the disk."""
        file.flush()
        os.fsync(file.fileno())

    def rename(self, source: Path, target: Path) -> None:
        """Give the file its name, in place of an older one of that name."""
        source.rename(target)

    def sync_folder(self, folder: Path) -> None:
        """Return once the names in the folder are on the disk."""
        sync_folder(folder)

    def remove(self, path: Path) -> None:
        """Remove the file if it is there."""
        path.unlink(missing_ok=True)


class FileSnapshotStore:
    """See :class:`tenure.storage.SnapshotStore`. It owns ``folder``, which it makes if absent."""

    def __init__(self, folder: Path, *, layer: FileLayer | None = None, read_only: bool = False) -> None:
        """Open the store and remove what an earlier life left unfinished; :class:`tenure.StorageError` if it cannot.

        With ``read_only`` opening changes nothing, and a folder that is not there holds no snapshots.
        """
        self._folder = folder
        self._layer = layer if layer is not None else FileLayer()
        self._started = 0
        self._read_only = read_only
        if read_only:
            return
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for leftover in folder.glob(".*.partial"):
                self._layer.remove(leftover)

    def begin(self, point: SnapshotPoint) -> FileSnapshotWriter:
        """See :meth:`SnapshotStore.begin`."""
        snapshot_id = _id_of(point)
        self._started += 1
        partial = self._folder / f".{snapshot_id}.{self._started}.partial"
        return FileSnapshotWriter(self._layer, partial, self._path(snapshot_id), point)

    def ids(self) -> tuple[str, ...]:
        """See :meth:`SnapshotStore.ids`."""
        if self._read_only and not self._folder.exists():
            return ()
        with _explained(self._folder):
            names = sorted((path.name for path in self._folder.iterdir() if _NAME.fullmatch(path.name)), reverse=True)
        return tuple(name.removesuffix(".snapshot") for name in names)

    def latest(self) -> SnapshotInfo | None:
        """See :meth:`SnapshotStore.latest`."""
        ids = self.ids()
        if not ids:
            return None
        path = self._path(ids[0])
        with _explained(path), path.open("rb") as file:
            return FileSnapshotReader(path, file).info

    @contextlib.contextmanager
    def open(self, snapshot_id: str) -> Iterator[FileSnapshotReader]:
        """See :meth:`SnapshotStore.open`."""
        path = self._path(snapshot_id)
        with _explained(path):
            file = path.open("rb")
        with file:
            reader = FileSnapshotReader(path, file)
            reader.verify()
            yield reader

    def prune(self, *, keep: int = 2, needed: str | None = None) -> tuple[str, ...]:
        """See :meth:`SnapshotStore.prune`."""
        removed = tuple(snapshot_id for snapshot_id in self.ids()[max(1, keep) :] if snapshot_id != needed)
        with _explained(self._folder):
            for snapshot_id in removed:
                self._layer.remove(self._path(snapshot_id))
            if removed:
                self._layer.sync_folder(self._folder)
        return removed

    def _path(self, snapshot_id: str) -> Path:
        name = f"{snapshot_id}.snapshot"
        if not _NAME.fullmatch(name):
            raise StorageError(f"{snapshot_id!r} is not the name of a snapshot; {self._folder} lists those there are")
        return self._folder / name


class FileSnapshotWriter:
    """See :class:`tenure.storage.SnapshotWriter`."""

    def __init__(self, layer: FileLayer, partial: Path, target: Path, point: SnapshotPoint) -> None:
        self._layer = layer
        self._partial = partial
        self._target = target
        self._point = point
        self._digest = hashlib.sha256()
        self._size = 0
        self._file: BinaryIO | None = None
        body = msgspec.msgpack.encode(point)
        with self._failing_for_good():
            self._file = layer.create(partial)
            self._put(_sealed(_HEAD.pack(_MAGIC, FORMAT, len(body)) + body))

    def write(self, chunk: bytes) -> None:
        """See :meth:`SnapshotWriter.write`."""
        with self._failing_for_good():
            for start in range(0, len(chunk), CHUNK_LIMIT):
                piece = chunk[start : start + CHUNK_LIMIT]
                self._put(_CHUNK.pack(len(piece), zlib.crc32(piece)) + piece)
                self._digest.update(piece)
                self._size += len(piece)

    def commit(self) -> SnapshotInfo:
        """See :meth:`SnapshotWriter.commit`."""
        with self._failing_for_good():
            self._put(_sealed(_END.pack(0, self._size, self._digest.digest())))
            file = self._opened()
            self._layer.sync(file)
            file.close()
            self._layer.rename(self._partial, self._target)
            self._layer.sync_folder(self._target.parent)
            self._file = None
        return SnapshotInfo(self._target.stem, self._point, self._size, self._digest.hexdigest())

    def abort(self) -> None:
        """See :meth:`SnapshotWriter.abort`."""
        file, self._file = self._file, None
        if file is not None:
            # What cannot be removed now is removed when the store is opened again.
            with contextlib.suppress(OSError):
                file.close()
            with contextlib.suppress(OSError):
                self._layer.remove(self._partial)

    def _put(self, data: bytes) -> None:
        self._layer.write(self._opened(), data)

    def _opened(self) -> BinaryIO:
        if self._file is None:
            raise StorageError(f"{self._target}: this snapshot was committed, aborted or has failed before")
        return self._file

    @contextlib.contextmanager
    def _failing_for_good(self) -> Iterator[None]:
        try:
            with _explained(self._partial):
                yield
        except StorageError:
            self.abort()
            raise


class FileSnapshotReader:
    """See :class:`tenure.storage.SnapshotReader`."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        """Read head and end; :class:`tenure.LogCorrupt` if one of them is damaged. ``verify`` reads the rest."""
        self._path = path
        self._file = file
        point = self._read_head()
        self._content_start = file.tell()
        self._end = max(self._content_start, file.seek(0, os.SEEK_END) - _END.size - _CHECKSUM.size)
        mark, size, digest = _END.unpack(self._sealed(self._end, _END.size, "its end"))
        if mark != 0 or path.stem != _id_of(point):
            raise self._corrupt("it is not the snapshot that its name says")
        self.info = SnapshotInfo(path.stem, point, size, digest.hex())

    def verify(self) -> None:
        """Read all of it against the hash; :class:`tenure.LogCorrupt` if anything differs."""
        digest, size = hashlib.sha256(), 0
        for chunk in self.chunks():
            digest.update(chunk)
            size += len(chunk)
        if (size, digest.hexdigest()) != (self.info.size, self.info.sha256):
            raise self._corrupt("it fails its checksum")

    def chunks(self) -> Iterator[bytes]:
        """See :meth:`SnapshotReader.chunks`."""
        place = self._content_start
        while place < self._end:
            length, checksum = _CHUNK.unpack(self._exactly(place, _CHUNK.size, "a chunk"))
            if not 0 < length <= min(CHUNK_LIMIT, self._end - place - _CHUNK.size):
                raise self._corrupt(f"the chunk at byte {place} has an impossible length")
            chunk = self._exactly(place + _CHUNK.size, length, "a chunk")
            if zlib.crc32(chunk) != checksum:
                raise self._corrupt(f"the chunk at byte {place} fails its checksum")
            yield chunk
            place += _CHUNK.size + length

    def _read_head(self) -> SnapshotPoint:
        magic, version, length = _HEAD.unpack(self._exactly(0, _HEAD.size, "its head"))
        if magic != _MAGIC or length > POINT_LIMIT:
            raise self._corrupt("its head is not that of a snapshot")
        body = self._sealed(0, _HEAD.size + length, "its head")[_HEAD.size :]
        if version > FORMAT:
            raise StorageError(
                f"{self._path} has format {version}, this version reads up to {FORMAT}: use the newer Tenure"
            )
        try:
            return _point_decoder.decode(body)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise self._corrupt(f"its head is malformed ({error})") from None

    def _sealed(self, place: int, length: int, what: str) -> bytes:
        """Bytes that are followed by their checksum, once they have matched it."""
        data = self._exactly(place, length, what)
        if _sealed(data) != data + self._exactly(place + length, _CHECKSUM.size, what):
            raise self._corrupt(f"{what} fails its checksum")
        return data

    def _exactly(self, place: int, length: int, what: str) -> bytes:
        with _explained(self._path):
            self._file.seek(place)
            data = self._file.read(length)
        if len(data) != length:
            raise self._corrupt(f"it ends within {what}")
        return data

    def _corrupt(self, what: str) -> LogCorrupt:
        return LogCorrupt(
            f"{self._path}: {what}; it was not loaded. Replace this member's data directory",
            path=str(self._path),
            index=int(self._path.stem.partition("-")[0]),
        )


def _id_of(point: SnapshotPoint) -> str:
    return f"{point.index:020d}-{point.term:020d}"


def _sealed(data: bytes) -> bytes:
    return data + _CHECKSUM.pack(zlib.crc32(data))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn what the system says into the storage error that tells its reader what to do."""
    try:
        yield
    except FileNotFoundError:
        raise StorageError(f"{path} is not there") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"{path}: the disk is full; free space and start this node again") from error
        raise SyncFailed(f"{path}: {error}; what is on the disk is no longer known, so this node must stop") from error
