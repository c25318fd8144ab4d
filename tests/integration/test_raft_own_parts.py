"""A cluster on parts that are not ours: a log store, a snapshot store and a transport of the user's own classes."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from support.replicas import Replicas
from tenure.raft import Ports
from tenure.storage import (
    FileSnapshotStore,
    SnapshotInfo,
    SnapshotPoint,
    SnapshotReader,
    SnapshotStore,
    SnapshotWriter,
)
from tenure.transport import TransportHooks

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from own_parts import CountingLogStore, PlainTransport


class OwnSnapshotStore:
    """Keeps the snapshots by the means of another store, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.begun = 0
        self._store: SnapshotStore = FileSnapshotStore(folder / "own-snapshots")

    def begin(self, point: SnapshotPoint) -> SnapshotWriter:
        self.begun += 1
        return self._store.begin(point)

    def ids(self) -> tuple[str, ...]:
        return self._store.ids()

    def latest(self) -> SnapshotInfo | None:
        return self._store.latest()

    def open(self, snapshot_id: str) -> AbstractContextManager[SnapshotReader]:
        return self._store.open(snapshot_id)

    def prune(self, *, keep: int = 2, needed: str | None = None) -> tuple[str, ...]:
        return self._store.prune(keep=keep, needed=needed)


@pytest.mark.asyncio
async def test_cluster_runs_on_parts_of_the_users_own(tmp_path: Path):
    """Founded, compacted, a member that lags and one that joins by a snapshot, the leader handed on, all restarted."""
    logs: dict[str, CountingLogStore] = {}
    snapshots: dict[str, OwnSnapshotStore] = {}
    transports: dict[str, PlainTransport] = {}

    def own_parts(name: str) -> Ports:
        def log_store(folder: Path) -> CountingLogStore:
            logs[name] = CountingLogStore(folder)
            return logs[name]

        def snapshot_store(folder: Path) -> OwnSnapshotStore:
            snapshots[name] = OwnSnapshotStore(folder)
            return snapshots[name]

        def transport(hooks: TransportHooks) -> PlainTransport:
            transports[name] = PlainTransport(f"127.0.0.1:{replicas.ports[name]}", hooks)
            return transports[name]

        return Ports(log_store=log_store, snapshot_store=snapshot_store, transport=transport)

    replicas = Replicas(tmp_path, spare="d", snapshot_entries=50, keep_entries=10)
    replicas.make_ports = own_parts
    try:
        await asyncio.gather(*(replicas.start(name) for name in "abc"))
        leader = await replicas.leader()
        late = next(name for name in "abc" if name != leader.name)
        await replicas.stop(late)
        await asyncio.gather(*(leader.apply(b"%d" % number) for number in range(200)))
        await replicas.until(lambda: leader.stats().snapshot_index > 100)
        await replicas.start(late)
        await replicas.agree()
        assert replicas.machines[late].restored
        new = await replicas.start("d")
        await leader.add_voter("d")
        await replicas.agree()
        assert replicas.machines["d"].restored
        await replicas.until(lambda: new.stats().voters == 4)
        await replicas.until_leads("d")
        for name in "abcd":
            await replicas.stop(name)
        await asyncio.gather(*(replicas.start(name) for name in "abcd"))
        assert await replicas.apply(b"after") == 201
        await replicas.agree()
        assert all(len(transport.connected()) == 3 for transport in transports.values())
        assert all(log.saves > 0 for log in logs.values())
        assert all((tmp_path / name / "own-log").is_dir() for name in "abcd")
        assert all(any((tmp_path / name / "own-snapshots").iterdir()) for name in "abcd")
        assert not [path for name in "abcd" for path in (tmp_path / name / "snapshots").glob("*.snapshot")]
    finally:
        await asyncio.gather(*(replicas.stop(name) for name in list(replicas.nodes)))
