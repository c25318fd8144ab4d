"""The log store on SQLite: WAL, ``synchronous=FULL``, exactly one connection, one transaction for each Ready.

A batch of entries is one row, whatever it holds, so that the cost is paid per Ready and never per entry. Each row
carries a checksum over its place and its bytes; a bit flipped anywhere is found on load and named, never applied.
Only one connection exists, in exclusive mode: SQLite's WAL-reset fault (3.7.0 to 3.51.2) needs two.
"""

from __future__ import annotations

import sqlite3
import zlib
from pathlib import Path

from tenure.errors import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage.log_store import StoredLog

FORMAT = 1

_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS batch (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT,
    first INTEGER NOT NULL,
    entries BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS hard_state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    term INTEGER NOT NULL,
    vote INTEGER NOT NULL,
    committed INTEGER NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
"""


class SqliteLogStore:
    """See :class:`tenure.storage.LogStore`. It may be used from any one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise _explain(error, path) from error
        try:
            execute = self._connection.execute
            execute("PRAGMA locking_mode = EXCLUSIVE")
            execute("PRAGMA journal_mode = WAL")
            execute("PRAGMA synchronous = FULL")
            self._connection.executescript(_SCHEMA)
            self._refuse_newer_format()
        except BaseException as error:
            # What stays open would lock the file against the next try.
            self._connection.close()
            if isinstance(error, sqlite3.DatabaseError):
                raise _explain(error, path) from error
            raise

    def load(self) -> StoredLog:
        """See :meth:`LogStore.load`."""
        try:
            rows = self._connection.execute(
                "SELECT sequence, first, entries, checksum FROM batch ORDER BY sequence"
            ).fetchall()
            state = self._connection.execute("SELECT term, vote, committed, checksum FROM hard_state").fetchone()
        except sqlite3.DatabaseError as error:
            raise _explain(error, self._path) from error
        for sequence, first, entries, checksum in rows:
            if _checksum(f"batch {first}", entries) != checksum:
                raise self._corrupt(f"the batch {sequence} of log entries from index {first} on", first)
        if state is None:
            term = vote = commit = 0
        else:
            term, vote, commit, checksum = state
            if _checksum("hard_state", _state_bytes(term, vote, commit)) != checksum:
                raise self._corrupt("the record of term and vote", None)
        return StoredLog(term=term, vote=vote, commit=commit, batches=tuple(row[2] for row in rows))

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        """See :meth:`LogStore.save`. One transaction, so one fsync."""
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            if entries:
                execute(
                    "INSERT INTO batch (first, entries, checksum) VALUES (?, ?, ?)",
                    (first, entries, _checksum(f"batch {first}", entries)),
                )
            if hard_state is not None:
                checksum = _checksum("hard_state", _state_bytes(*hard_state))
                execute("INSERT OR REPLACE INTO hard_state VALUES (1, ?, ?, ?, ?)", (*hard_state, checksum))
            execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise _explain(error, self._path) from error

    def read_meta(self, key: str) -> bytes | None:
        """A small durable value beside the log, or None."""
        try:
            row = self._connection.execute("SELECT value, checksum FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _explain(error, self._path) from error
        if row is None:
            return None
        value: bytes = row[0]
        if _checksum(f"meta {key}", value) != row[1]:
            raise self._corrupt(f"the record {key!r}", None)
        return value

    def write_meta(self, key: str, value: bytes) -> None:
        """Make a small value durable before returning; the same errors as ``save``."""
        try:
            self._connection.execute(
                "INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, _checksum(f"meta {key}", value))
            )
        except sqlite3.DatabaseError as error:
            raise _explain(error, self._path) from error

    def close(self) -> None:
        """See :meth:`LogStore.close`."""
        self._connection.close()

    def _refuse_newer_format(self) -> None:
        stored = self.read_meta("format")
        if stored is None:
            self.write_meta("format", str(FORMAT).encode())
        elif int(stored) > FORMAT:
            raise StorageError(
                f"{self._path} has format {int(stored)}, this version reads up to {FORMAT}: use the newer Tenure"
            )

    def _corrupt(self, what: str, index: int | None) -> LogCorrupt:
        return LogCorrupt(
            f"{self._path}: {what} fails its checksum; it was not applied. Replace this member's data directory",
            path=str(self._path),
            index=index,
        )


def _state_bytes(term: int, vote: int, commit: int) -> bytes:
    return b"%d,%d,%d" % (term, vote, commit)


def _checksum(place: str, value: bytes) -> int:
    return zlib.crc32(value, zlib.crc32(place.encode()))


def _explain(error: sqlite3.DatabaseError, path: Path) -> StorageError:
    """The storage error that says what its reader can do."""
    code = getattr(error, "sqlite_errorcode", None)
    if code is not None and code & 0xFF == sqlite3.SQLITE_FULL:
        return StorageFull(f"{path}: the disk is full; free space and start this node again")
    if code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return LogCorrupt(f"{path} is damaged ({error}); replace this member's data directory", path=str(path))
    return SyncFailed(f"{path}: {error}; what is on the disk is no longer known, so this node must stop")
