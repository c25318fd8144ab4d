"""Keeps and opens the user's part of snapshots: written on the thread of the snapshot files, piece by piece."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Iterator

import msgspec

from tenure.core.manifest import Content, Manifest
from tenure.errors import LogCorrupt, NodeClosed
from tenure.node.driver import Driver
from tenure.storage import SnapshotPoint, SnapshotReader, SnapshotWriter

logger = logging.getLogger("tenure.raft")

#: Pieces that are written in one go, so that a long snapshot lets others use the thread in between.
_PIECES_AT_ONCE = 16


class ContentKeeper:
    """One node's contents. What it writes is announced to the core once it is durable."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def keep(self, taken: Manifest, chunks: Iterable[bytes]) -> None:
        """Write ``chunks`` as the content of ``taken``, then tell the core; a failure ends the snapshot alone."""
        point = SnapshotPoint(index=taken.index, term=taken.term, voters=taken.voters, learners=taken.learners)
        # A node that closes takes no snapshot any more.
        with contextlib.suppress(NodeClosed):
            self._driver.on_files(lambda: self._begin(taken, point, iter(chunks)))

    def _begin(self, taken: Manifest, point: SnapshotPoint, chunks: Iterator[bytes]) -> None:
        try:
            writer = self._driver.stores.snapshots.begin(point)
        except BaseException as error:  # noqa: BLE001 - the snapshot failed; the log is as it was.
            self._failed(taken, error)
            return
        self._write(taken, writer, chunks)

    def _write(self, taken: Manifest, writer: SnapshotWriter, chunks: Iterator[bytes]) -> None:
        try:
            for _ in range(_PIECES_AT_ONCE):
                chunk = next(chunks, None)
                if chunk is None:
                    info = writer.commit()
                    content = Content(id=info.id, size=info.size, sha256=info.sha256)
                    self._driver.content_taken(msgspec.structs.replace(taken, content=content))
                    return
                writer.write(chunk)
        except BaseException as error:  # noqa: BLE001 - the user's generator or the disk failed; the log is as it was.
            writer.abort()
            self._failed(taken, error)
            return
        try:
            self._driver.on_files(lambda: self._write(taken, writer, chunks))
        except NodeClosed:
            writer.abort()

    def _failed(self, taken: Manifest, error: BaseException) -> None:
        logger.error("no snapshot was taken at entry %s: %s", taken.index, error)
        self._driver.content_taken(None)

    async def open(self, content: Content) -> OpenContent:
        """Open the content, verified against its hash as a whole; leaving the context closes it.

        Raises:
            LogCorrupt: it is damaged, or another one than the manifest names.
            StorageError: it is not there.
        """
        return await asyncio.wrap_future(self._driver.on_files(lambda: self._open(content)))

    def _open(self, content: Content) -> OpenContent:
        scope = contextlib.ExitStack()
        reader = scope.enter_context(self._driver.stores.snapshots.open(content.id))
        if reader.info.sha256 != content.sha256:
            scope.close()
            raise LogCorrupt(
                f"snapshot {content.id} is not the one that the log names; replace this member's data directory",
                path=content.id,
            )
        return OpenContent(scope, reader)


class OpenContent:
    """An open content: a context manager that gives its chunks."""

    def __init__(self, scope: contextlib.ExitStack, reader: SnapshotReader) -> None:
        self._scope = scope
        self._reader = reader

    def __enter__(self) -> Iterator[bytes]:
        """The content from its start."""
        return self._reader.chunks()

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._scope.close()
