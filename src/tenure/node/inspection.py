"""What an operator can see of a running member's own disk: its log, its snapshots, and whether they are still whole.

The log store belongs to the node's thread and is locked against every other reader, so it is read there: a bounded
piece at a time, with saves and heartbeats in between. Snapshots are files and are read on the thread of the snapshot
files. Nothing here may change what is stored; damage that is found is told and ends nothing, since what the node works
with was checked when it was read.
"""

from __future__ import annotations

import abc
import asyncio
from collections.abc import AsyncIterator, Iterator

import msgspec

from tenure.core.member import MemberCore
from tenure.errors import LogCorrupt, StorageError
from tenure.node.driver import Driver
from tenure.storage import SnapshotInfo, Verifiable


class LogState(msgspec.Struct, frozen=True):
    """Where this member's log stands; an index of 0 means none."""

    term: int
    commit_index: int
    applied_index: int
    #: The last entry that a snapshot stands for, and the last entry of all, durable or on its way to the disk.
    snapshot_index: int
    last_index: int


class SnapshotState(msgspec.Struct, frozen=True):
    """One stored content of a snapshot, read to its end; ``problem`` says what is wrong with it, or is None."""

    id: str
    index: int | None = None
    term: int | None = None
    voters: tuple[int, ...] = ()
    learners: tuple[int, ...] = ()
    size: int | None = None
    sha256: str | None = None
    problem: str | None = None


class StorageReport(msgspec.Struct, frozen=True):
    """What a check of log and snapshots found: how many records hold, or the first thing that does not."""

    valid: bool
    records: int
    snapshots: tuple[str, ...]
    problem: str | None = None
    path: str | None = None
    index: int | None = None


class Inspection(abc.ABC):
    """The calls. A node derives from it and gives it its driver."""

    _driver: Driver

    @abc.abstractmethod
    def _require_open(self) -> asyncio.AbstractEventLoop:
        """The loop that owns the node; :class:`tenure.NodeClosed` if it is not open."""

    async def log_state(self) -> LogState:
        """Where the log of this member stands now; :class:`tenure.NodeClosed` while it belongs to no cluster."""

        def state(core: MemberCore) -> LogState:
            view = core.view()
            return LogState(
                term=view.term,
                commit_index=view.commit_index,
                applied_index=view.applied_index,
                snapshot_index=view.snapshot_index,
                last_index=core.consensus.engine.last_index,
            )

        self._require_open()
        return await asyncio.wrap_future(self._driver.ask(state))

    async def stored_snapshots(self) -> list[SnapshotState]:
        """The contents of snapshots that this member keeps, newest first, each read to its end against its hash.

        A member without a state machine of the user's has none: its snapshots are small and lie in the log itself.

        Raises:
            NodeClosed: the node is closed or failed.
            StorageError: the folder cannot be read.
        """
        self._require_open()
        ids = await asyncio.wrap_future(self._driver.on_files(self._driver.stores.snapshots.ids))
        return [await self._described(snapshot_id) for snapshot_id in ids]

    async def verify_storage(self) -> StorageReport:
        """Check every record of the log and every snapshot again, while the node goes on.

        The records are those there are at the call; what is compacted meanwhile is left out. Cancelling ends the check.

        Raises:
            NodeClosed: the node is closed or failed.
            StorageError: a log store that was brought along cannot be checked while it is used.
        """
        self._require_open()
        stores = self._driver.stores
        records = 0
        try:
            for store in {id(store): store for store in (stores.directory.store, stores.log)}.values():
                if not isinstance(store, Verifiable):
                    raise StorageError(
                        f"{type(store).__name__} cannot be checked while it is used: stop this node and run 'tenure "
                        "log verify --data-dir DIR'"
                    )
                async for checked in self._steps(store.verify()):
                    records += checked
        except LogCorrupt as error:
            return StorageReport(False, records, (), str(error), error.path, error.index)
        snapshots = await self.stored_snapshots()
        for snapshot in snapshots:
            if snapshot.problem is not None:
                return StorageReport(False, records, (), snapshot.problem, snapshot.id, snapshot.index)
        return StorageReport(True, records, tuple(snapshot.id for snapshot in snapshots))

    async def _steps(self, steps: Iterator[int]) -> AsyncIterator[int]:
        """Take each step on the node's thread, with whatever else is due there in between."""
        while (checked := await asyncio.wrap_future(self._driver.ask_thread(lambda: next(steps, None)))) is not None:
            yield checked

    async def _described(self, snapshot_id: str) -> SnapshotState:
        def read() -> SnapshotInfo:
            with self._driver.stores.snapshots.open(snapshot_id) as reader:
                return reader.info

        try:
            info = await asyncio.wrap_future(self._driver.on_files(read))
        except StorageError as error:
            return SnapshotState(id=snapshot_id, problem=str(error))
        return SnapshotState(
            id=info.id,
            index=info.point.index,
            term=info.point.term,
            voters=info.point.voters,
            learners=info.point.learners,
            size=info.size,
            sha256=info.sha256,
        )
