"""The data directory: locked by one process, known by a random id that is durable before the first hello (R7)."""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from typing import IO

import msgspec

from tenure.core.fsm import ClusterRecord
from tenure.errors import DirectoryInUse, StorageError, WrongCluster
from tenure.storage.sqlite import SqliteLogStore


class _Identity(msgspec.Struct, frozen=True):
    """Whose directory this is."""

    directory_id: str
    node_name: str
    cluster_name: str


class DataDirectory:
    """An open, locked data directory. Close it to release the lock."""

    def __init__(self, lock: IO[str], store: SqliteLogStore, identity: _Identity) -> None:
        self._lock = lock
        self.store = store
        self.directory_id = identity.directory_id

    @classmethod
    def open(cls, path: str | Path, *, node_name: str, cluster_name: str) -> DataDirectory:
        """Lock ``path`` (made if absent), read or draw its id, and refuse the directory of another node or cluster.

        Raises:
            DirectoryInUse: another process holds it.
            WrongCluster: it belongs to another node or cluster; nothing in it was changed.
            StorageError: it cannot be written.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (folder / "lock").open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"node.data_dir {folder} cannot be used: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.seek(0)
            holder = lock.read().strip() or "unknown"
            lock.close()
            raise DirectoryInUse(
                f"node.data_dir {folder} is in use by process {holder}: stop it, or name another directory"
            ) from None
        store: SqliteLogStore | None = None
        try:
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            store = SqliteLogStore(folder / "raft.sqlite3")
            identity = _read_or_draw(store, folder, node_name, cluster_name)
            _sync_folder(folder)
        except BaseException:
            if store is not None:
                store.close()
            lock.close()
            raise
        return cls(lock, store, identity)

    @property
    def record(self) -> ClusterRecord | None:
        """The cluster that this directory is a member of, or None while it is new."""
        stored = self.store.read_meta("cluster")
        return None if stored is None else msgspec.json.decode(stored, type=ClusterRecord)

    def found(self, record: ClusterRecord) -> None:
        """Make the founding durable. It happens once in the life of a directory."""
        if self.record is not None:
            raise WrongCluster("this data directory has founded or joined a cluster already")
        self.store.write_meta("cluster", msgspec.json.encode(record))

    def close(self) -> None:
        """Close the store and release the lock."""
        self.store.close()
        self._lock.close()


def _read_or_draw(store: SqliteLogStore, folder: Path, node_name: str, cluster_name: str) -> _Identity:
    stored = store.read_meta("identity")
    if stored is None:
        identity = _Identity(directory_id=secrets.token_hex(16), node_name=node_name, cluster_name=cluster_name)
        store.write_meta("identity", msgspec.json.encode(identity))
        return identity
    identity = msgspec.json.decode(stored, type=_Identity)
    if identity.cluster_name != cluster_name:
        raise WrongCluster(
            f"node.data_dir {folder} belongs to cluster {identity.cluster_name!r}, this node is configured for "
            f"{cluster_name!r} (cluster.name): name the right directory or an empty one"
        )
    if identity.node_name != node_name:
        raise WrongCluster(
            f"node.data_dir {folder} belongs to node {identity.node_name!r}, this node is {node_name!r} (node.name): "
            "name the right directory or an empty one"
        )
    return identity


def _sync_folder(folder: Path) -> None:
    """The names of new files are durable only once their folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
