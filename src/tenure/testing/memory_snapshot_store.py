"""A snapshot store in memory. Stores on the same shelf share their snapshots, as restarts share a folder."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

from tenure.errors import LogCorrupt, StorageError
from tenure.storage import SnapshotInfo, SnapshotPoint

_CHUNK_LIMIT = 1 << 20


@dataclass
class _Stored:
    """A committed snapshot: what its end says of it, and what the shelf really holds."""

    info: SnapshotInfo
    content: bytes


class MemorySnapshotStore:
    """See :class:`tenure.storage.SnapshotStore`."""

    def __init__(self, shelf: dict[str, _Stored] | None = None) -> None:
        self.shelf = shelf if shelf is not None else {}
        self._failure: StorageError | None = None

    def fail_next_commit(self, error: StorageError) -> None:
        """Make the next ``commit`` raise ``error`` and leave nothing."""
        self._failure = error

    def flip_bit(self, snapshot_id: str) -> None:
        """Flip one bit in the middle of the content; a snapshot without content has none."""
        stored = self.shelf[snapshot_id]
        damaged = bytearray(stored.content)
        damaged[len(damaged) // 2] ^= 1
        stored.content = bytes(damaged)

    def begin(self, point: SnapshotPoint) -> MemorySnapshotWriter:
        """See :meth:`SnapshotStore.begin`."""
        return MemorySnapshotWriter(self, point)

    def ids(self) -> tuple[str, ...]:
        """See :meth:`SnapshotStore.ids`."""
        return tuple(sorted(self.shelf, reverse=True))

    def latest(self) -> SnapshotInfo | None:
        """See :meth:`SnapshotStore.latest`."""
        ids = self.ids()
        return self.shelf[ids[0]].info if ids else None

    @contextlib.contextmanager
    def open(self, snapshot_id: str) -> Iterator[MemorySnapshotReader]:
        """See :meth:`SnapshotStore.open`."""
        stored = self.shelf.get(snapshot_id)
        if stored is None:
            raise StorageError(f"memory: there is no snapshot {snapshot_id!r}")
        reader = MemorySnapshotReader(stored.info, stored.content)
        reader.verify()
        yield reader

    def prune(self, *, keep: int = 2, needed: str | None = None) -> tuple[str, ...]:
        """See :meth:`SnapshotStore.prune`."""
        removed = tuple(snapshot_id for snapshot_id in self.ids()[max(1, keep) :] if snapshot_id != needed)
        for snapshot_id in removed:
            del self.shelf[snapshot_id]
        return removed

    def keep(self, info: SnapshotInfo, content: bytes) -> None:
        """Put a finished snapshot on the shelf, or fail as the test asked."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        self.shelf[info.id] = _Stored(info, content)


class MemorySnapshotWriter:
    """See :class:`tenure.storage.SnapshotWriter`."""

    def __init__(self, store: MemorySnapshotStore, point: SnapshotPoint) -> None:
        self._store = store
        self._point = point
        self._content: bytearray | None = bytearray()

    def write(self, chunk: bytes) -> None:
        """See :meth:`SnapshotWriter.write`."""
        self._opened().extend(chunk)

    def commit(self) -> SnapshotInfo:
        """See :meth:`SnapshotWriter.commit`."""
        content = bytes(self._opened())
        self._content = None
        snapshot_id = f"{self._point.index:020d}-{self._point.term:020d}"
        info = SnapshotInfo(snapshot_id, self._point, len(content), hashlib.sha256(content).hexdigest())
        self._store.keep(info, content)
        return info

    def abort(self) -> None:
        """See :meth:`SnapshotWriter.abort`."""
        self._content = None

    def _opened(self) -> bytearray:
        if self._content is None:
            raise StorageError("memory: this snapshot was committed, aborted or has failed before")
        return self._content


class MemorySnapshotReader:
    """See :class:`tenure.storage.SnapshotReader`."""

    def __init__(self, info: SnapshotInfo, content: bytes) -> None:
        self.info = info
        self._content = content

    def verify(self) -> None:
        """:class:`tenure.LogCorrupt` if the content is not what was committed."""
        if hashlib.sha256(self._content).hexdigest() != self.info.sha256:
            raise LogCorrupt(
                f"memory: snapshot {self.info.id} fails its checksum; it was not loaded",
                path=f"memory/{self.info.id}",
                index=self.info.point.index,
            )

    def chunks(self) -> Iterator[bytes]:
        """See :meth:`SnapshotReader.chunks`."""
        for start in range(0, len(self._content), _CHUNK_LIMIT):
            yield self._content[start : start + _CHUNK_LIMIT]
