"""The protocol of a snapshot store: images of a state machine, written in chunks, believed only when whole.

A snapshot exists from its ``commit`` on, durably, or not at all. What fails its checksum is named and never handed out
(:class:`tenure.LogCorrupt`). The store has no opinion on what the chunks mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import msgspec


class SnapshotPoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The place in the log that a snapshot stands for, and the members there."""

    index: int
    term: int
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()


class SnapshotInfo(msgspec.Struct, frozen=True):
    """A committed snapshot: its name in the store, its place, and the size (bytes) and SHA-256 of its content."""

    id: str
    point: SnapshotPoint
    size: int
    sha256: str


class SnapshotWriter(Protocol):
    """One snapshot on its way into the store. Leaving it by ``abort``, or never committing it, leaves no trace."""

    def write(self, chunk: bytes) -> None:
        """Append ``chunk``, of any length; :class:`tenure.StorageFull` or :class:`tenure.SyncFailed` on failure.

        After a failure the writer only takes ``abort``.
        """
        ...

    def commit(self) -> SnapshotInfo:
        """Make the snapshot durable and known, both or neither. The same errors as ``write``.

        When it raises, the snapshot may exist or not; one that exists is whole.
        """
        ...

    def abort(self) -> None:
        """Drop what was written. Idempotent, and without effect after ``commit``; raises nothing."""
        ...


class SnapshotReader(Protocol):
    """An open snapshot that has passed its checksum as a whole. It stays readable when the store prunes it."""

    @property
    def info(self) -> SnapshotInfo:
        """Which snapshot this is."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """The content from its start, in order, no chunk larger than 1 MiB.

        :class:`tenure.LogCorrupt` if it changed since it was opened: a chunk that fails its checksum is not handed out.
        """
        ...


class SnapshotStore(Protocol):
    """Keeps snapshots. One thread at a time; several writers and readers may be open."""

    def begin(self, point: SnapshotPoint) -> SnapshotWriter:
        """Start a snapshot of ``point``; the same errors as :meth:`SnapshotWriter.write`."""
        ...

    def ids(self) -> tuple[str, ...]:
        """The committed snapshots, newest first: by index, then by term. Damage is found by ``open``, not here."""
        ...

    def latest(self) -> SnapshotInfo | None:
        """The newest committed snapshot, or None.

        Raises:
            LogCorrupt: its head or its end is damaged. An older one is never taken in its place by itself: the log may
                no longer reach back to it.
            StorageError: it is of a newer format, or cannot be read.
        """
        ...

    def open(self, snapshot_id: str) -> AbstractContextManager[SnapshotReader]:
        """Read the whole snapshot once against its checksum, then open it for reading; leaving closes it.

        Raises:
            LogCorrupt: it is torn or a bit of it has flipped; ``path`` names it.
            StorageError: there is none of that name, it is of a newer format, or it cannot be read.
        """
        ...

    def prune(self, *, keep: int = 2, needed: str | None = None) -> tuple[str, ...]:
        """Remove all but the newest ``keep`` (at least 1) and return the ids removed; errors as for ``open``.

        The snapshot ``needed`` stays in any case: it is the one that the log starts with, and newer ones may be there
        that were fetched and never used.
        """
        ...
