"""Durable storage of one member: its log, term and vote, its snapshots, and the identity of its data directory.

Touches the disk, and only the data directory that it was given. It has no opinion on Raft.
"""

from tenure.storage.directory import DataDirectory
from tenure.storage.log_store import LogStore, StoredLog, StoredSnapshot, Verifiable
from tenure.storage.segments import SegmentLogStore
from tenure.storage.snapshot_files import FileSnapshotStore
from tenure.storage.snapshot_store import SnapshotInfo, SnapshotPoint, SnapshotReader, SnapshotStore, SnapshotWriter
from tenure.storage.sqlite import SqliteLogStore

__all__ = [
    "DataDirectory",
    "FileSnapshotStore",
    "LogStore",
    "SegmentLogStore",
    "SnapshotInfo",
    "SnapshotPoint",
    "SnapshotReader",
    "SnapshotStore",
    "SnapshotWriter",
    "SqliteLogStore",
    "StoredLog",
    "StoredSnapshot",
    "Verifiable",
]
