"""The data directory: locked by one process, known by a random id that is durable before the first hello (R7)."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import msgspec

from tenure.core.commands import Settings
from tenure.core.fsm import ClusterRecord, Enrolment
from tenure.errors import DirectoryInUse, LogCorrupt, StorageError, WrongCluster
from tenure.storage.folders import sync_folder
from tenure.storage.log_store import LogStore
from tenure.storage.segments import SegmentLogStore
from tenure.storage.snapshot_files import FileSnapshotStore
from tenure.storage.sqlite import SqliteLogStore

#: What lies in a data directory.
LOCK, DATABASE, LOG, SNAPSHOTS = "lock", "raft.sqlite3", "log", "snapshots"
#: So many openings are told to others; what they saw before that, they judge by the count alone.
OPENINGS_KEPT = 64


class _Identity(msgspec.Struct, frozen=True):
    """Whose directory this is."""

    directory_id: str
    node_name: str
    cluster_name: str


class DataDirectory:
    """An open, locked data directory. Close it to release the lock. Called from one thread only, as its stores."""

    def __init__(
        self,
        lock: IO[str],
        store: SqliteLogStore,
        snapshots: FileSnapshotStore,
        identity: _Identity,
        starts: int,
        *,
        segments: Path,
    ) -> None:
        self._lock = lock
        #: What is kept beside the log; in a directory of an earlier version, the log as well.
        self.store = store
        self.snapshots = snapshots
        self.path = store.path.parent
        self._segments = segments
        self._log: LogStore | None = None
        self.directory_id = identity.directory_id
        self.node_name = identity.node_name
        self.cluster_name = identity.cluster_name
        #: How often this directory was opened, this time included: an old copy of it comes with a count seen before.
        self.starts = starts

    @classmethod
    def open(cls, path: str | Path, *, node_name: str, cluster_name: str) -> DataDirectory:
        """Lock ``path`` (made if absent), read or draw its id, and refuse the directory of another node or cluster.

        The opening is counted, durably, before it returns: nothing is said to anybody under an uncounted one (R7).

        Raises:
            DirectoryInUse: another process holds it.
            WrongCluster: it belongs to another node or cluster; nothing in it was changed.
            LogCorrupt: a record of it is damaged.
            StorageError: it cannot be written.
        """
        folder = Path(path)
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = (folder / LOCK).open("a+", encoding="utf-8")
        except OSError as error:
            raise StorageError(f"node.data_dir {folder} cannot be used: {error}") from error
        store: SqliteLogStore | None = None
        try:
            take_lock(lock, folder)
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            store = SqliteLogStore(folder / DATABASE)
            identity = _read_or_draw(store, folder, node_name, cluster_name)
            starts = _starts(store) + 1
            store.write_meta("starts", b"%d" % starts)
            snapshots = FileSnapshotStore(folder / SNAPSHOTS)
            sync_folder(folder)
        except BaseException:
            if store is not None:
                store.close()
            lock.close()
            raise
        return cls(lock, store, snapshots, identity, starts, segments=folder / LOG)

    @classmethod
    @contextlib.contextmanager
    def inspect(cls, path: str | Path) -> Iterator[DataDirectory]:
        """Read the directory of a stopped node without changing it: the log as a copy, the snapshots in place.

        The lock is held while the log is copied and no longer, so that looking never keeps a node from starting. What
        is written to the copy is gone with it. A copy needs as much room in the folder for temporary files (TMPDIR).

        Raises:
            DirectoryInUse: a node runs on it.
            LogCorrupt: a record of it is damaged.
            StorageError: it is no data directory, or cannot be read.
        """
        folder = Path(path)
        with tempfile.TemporaryDirectory(prefix="tenure-inspect-") as temporary:
            copy = Path(temporary)
            try:
                with (folder / LOCK).open(encoding="utf-8") as lock:
                    take_lock(lock, folder, shared=True)
                    # A node that was killed has left its last transactions in the file beside the database.
                    for name in (DATABASE, f"{DATABASE}-wal"):
                        if name == DATABASE or (folder / name).exists():
                            shutil.copyfile(folder / name, copy / name)
                    if (folder / LOG).exists():
                        shutil.copytree(folder / LOG, copy / LOG)
            except FileNotFoundError as error:
                raise StorageError(
                    f"{folder} is not the data directory of a node: it has no {error.filename}"
                ) from None
            except OSError as error:
                raise StorageError(f"{folder} cannot be read: {error}") from error
            store = SqliteLogStore(copy / DATABASE, known_as=folder / DATABASE)
            try:
                identity = _stored_identity(store)
                if identity is None:
                    raise StorageError(f"{folder} is not the data directory of a node: no node has finished opening it")
                snapshots = FileSnapshotStore(folder / SNAPSHOTS, read_only=True)
                directory = cls(io.StringIO(), store, snapshots, identity, _starts(store), segments=copy / LOG)
                with contextlib.closing(directory):
                    yield directory
            finally:
                store.close()

    @property
    def log(self) -> LogStore:
        """The log, opened by the first call: segments, unless an earlier version has begun it in the database.

        Raises:
            LogCorrupt: it is damaged, gone, an older one, or that of another data directory.
            StorageError: it cannot be opened, or made.
        """
        if self._log is None:
            begun = self.store.beside_segments
            if self.store.holds_log and not begun:
                self._log = self.store
            else:
                least = max(1, int(self.store.read_meta("log_end") or b"0")) if begun else 0
                log = SegmentLogStore(self._segments, owner=self.directory_id, known_as=self.path / LOG, least=least)
                try:
                    if not begun:
                        self._begin(log)
                    self._note_end(log)
                except BaseException:
                    log.close()
                    raise
                self._log = log
        return self._log

    def _begin(self, log: SegmentLogStore) -> None:
        """From now on a log that is not there was lost, and is not a new one."""
        if log.holds_log:
            path = str(self.path / LOG)
            raise LogCorrupt(
                f"{path}: it holds a log that {self.store.path} knows nothing of: that database is an older "
                "copy of the one it was begun with; nothing was applied. Replace this member's data directory",
                path=path,
            )
        self.store.leave_log_to_segments()

    def _note_end(self, log: SegmentLogStore) -> None:
        """Make durable how far the log reaches by now: an older copy of it alone would not tell of votes given (R7)."""
        end = b"%d" % log.end
        if end != self.store.read_meta("log_end"):
            self.store.write_meta("log_end", end)

    @property
    def log_path(self) -> Path:
        """Where the log is, for errors that name it."""
        return self.store.path if self.log is self.store else self.path / LOG

    @property
    def enrolment(self) -> Enrolment | None:
        """What this directory keeps of the cluster that it belongs to, or None while it is new."""
        stored = self.store.read_meta("cluster")
        if stored is None:
            return None
        if "record" in msgspec.json.decode(stored, type=dict[str, msgspec.Raw]):
            return msgspec.json.decode(stored, type=Enrolment)
        # Written by a version in which a directory could only be a founder's.
        return self._founding(msgspec.json.decode(stored, type=ClusterRecord))

    def enrol(self, enrolment: Enrolment) -> None:
        """Make durable to which cluster this directory belongs: once for its life, but for what it heard since.

        Raises:
            WrongCluster: it belongs to another cluster, or has another raft id there.
        """
        known = self.enrolment
        if known is not None and _place(known) != _place(enrolment):
            raise WrongCluster("this data directory has founded or joined a cluster already")
        self.store.write_meta("cluster", msgspec.json.encode(enrolment))

    @property
    def record(self) -> ClusterRecord | None:
        """The founding record of the cluster that this directory is a member of, or None while it is new."""
        enrolment = self.enrolment
        return None if enrolment is None else enrolment.record

    def found(self, record: ClusterRecord) -> None:
        """Make the founding durable. It happens once in the life of a directory; errors as for :meth:`enrol`."""
        if self.record is not None:
            raise WrongCluster("this data directory has founded or joined a cluster already")
        self.enrol(self._founding(record))

    @property
    def settings(self) -> Settings | None:
        """The cluster's times as they were kept last (R4), or None."""
        stored = self.store.read_meta("settings")
        return None if stored is None else msgspec.json.decode(stored, type=Settings)

    def keep_settings(self, settings: Settings) -> None:
        """Make the cluster's times durable, for the next start."""
        if settings != self.settings:
            self.store.write_meta("settings", msgspec.json.encode(settings))

    def note_opening(self, incarnation: int) -> tuple[tuple[int, int], ...]:
        """Make durable who goes on under this opening: the last openings by their count, with their incarnations (R7).

        A copy of this directory comes with other incarnations, however often it is opened, and is never taken for it.
        """
        stored = self.store.read_meta("openings")
        earlier = () if stored is None else msgspec.json.decode(stored, type=tuple[tuple[int, int], ...])
        openings = (*earlier, (self.starts, incarnation))[-OPENINGS_KEPT:]
        self.store.write_meta("openings", msgspec.json.encode(openings))
        return openings

    @property
    def peers_seen(self) -> dict[str, tuple[int, int]]:
        """How often the directories of others had been opened and their incarnation, when last heard of, by id."""
        stored = self.store.read_meta("peers_seen")
        return {} if stored is None else msgspec.json.decode(stored, type=dict[str, tuple[int, int]])

    def note_seen(self, directory_id: str, starts: int, incarnation: int) -> None:
        """Make durable how often another directory had been opened, so that an old copy of it is known (R7)."""
        seen = self.peers_seen
        if seen.get(directory_id) != (starts, incarnation):
            seen[directory_id] = (starts, incarnation)
            self.store.write_meta("peers_seen", msgspec.json.encode(seen))

    def close(self) -> None:
        """Close the stores and release the lock."""
        if isinstance(self._log, SegmentLogStore):
            self._log.close()
            # Without it, less is known of a log that is changed before the next start, and nothing else.
            with contextlib.suppress(StorageError):
                self._note_end(self._log)
        self.store.close()
        self._lock.close()

    def _founding(self, record: ClusterRecord) -> Enrolment:
        """The enrolment of a founding member: its raft id is the one that the record gives its name."""
        raft_id = next((member.raft_id for member in record.members if member.name == self.node_name), None)
        if raft_id is None:
            raise WrongCluster(f"the cluster {record.cluster_id} was founded without {self.node_name}")
        return Enrolment(record=record, raft_id=raft_id)


def take_lock(lock: IO[str], folder: Path, *, shared: bool = False) -> None:
    """Lock the open lock file of ``folder``; :class:`tenure.DirectoryInUse` naming the process that holds it."""
    try:
        fcntl.flock(lock, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        if not shared and _is_only_read(lock):
            raise DirectoryInUse(
                f"node.data_dir {folder} is being read by a command (tenure log, snapshot or recover), which takes a "
                "moment: try again"
            ) from None
        lock.seek(0)
        holder = lock.read().strip() or "unknown"
        what = "its files change while it runs" if shared else "stop it, or name another directory"
        raise DirectoryInUse(f"node.data_dir {folder} is in use by process {holder}: {what}") from None


def _is_only_read(lock: IO[str]) -> bool:
    """Whether nobody who writes has the lock. What the file says of its holder is then of an earlier one."""
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(enrolment: Enrolment) -> tuple[str, int]:
    return enrolment.record.cluster_id, enrolment.raft_id


def _starts(store: SqliteLogStore) -> int:
    return int(store.read_meta("starts") or b"0")


def _stored_identity(store: SqliteLogStore) -> _Identity | None:
    stored = store.read_meta("identity")
    return None if stored is None else msgspec.json.decode(stored, type=_Identity)


def _read_or_draw(store: SqliteLogStore, folder: Path, node_name: str, cluster_name: str) -> _Identity:
    identity = _stored_identity(store)
    if identity is None:
        identity = _Identity(directory_id=secrets.token_hex(16), node_name=node_name, cluster_name=cluster_name)
        store.write_meta("identity", msgspec.json.encode(identity))
        return identity
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
