"""Durable storage of one member: its log, term and vote, and the identity of its data directory.

Touches the disk, and only the data directory that it was given. It has no opinion on Raft.
"""

from tenure.storage.directory import DataDirectory
from tenure.storage.log_store import LogStore, StoredLog
from tenure.storage.sqlite import SqliteLogStore

__all__ = ["DataDirectory", "LogStore", "SqliteLogStore", "StoredLog"]
