"""The file behind the log store: its tables, its checksums, how it is made, and how an older format is brought up.

::

    meta         key, value                                small values beside the log; "keys" lists those there must be
    batch        sequence, first, last, entries            one row per Ready, numbered without a gap
    hard_state   term, vote, committed, newest             one row; ``newest`` is the number of the last batch
    snapshot     place, term, floor, data                  one row; batches below the number ``floor`` do not count

Each row carries a checksum over all of it, its key included. A row that vanishes is found as well: the single rows
and the listed keys must be there, and the batches must run from ``floor`` to ``newest`` without a gap. SQLite itself
would hand out what is left of a damaged page. It must never bring up a file whose old checksums do not hold.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path

from tenure.errors import LogCorrupt, StorageError, StorageFull, SyncFailed

FORMAT = 2
#: That of a file beside which the log is kept in segments: an older version would begin another log in it, and with it
#: vote a second time in terms in which this member has voted, so it must not take the file for one of its own (R7).
FORMAT_BESIDE_SEGMENTS = 3
#: Keys of ``meta`` that the store itself keeps.
FORMAT_KEY, KEYS_KEY = "format", "keys"

_BATCH = """CREATE TABLE batch (
    sequence INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL, entries BLOB NOT NULL,
    checksum INTEGER NOT NULL
) STRICT"""
_HARD_STATE = """CREATE TABLE hard_state (
    one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER NOT NULL, vote INTEGER NOT NULL, committed INTEGER NOT NULL,
    newest INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT"""
_SNAPSHOT = """CREATE TABLE snapshot (
    one INTEGER PRIMARY KEY CHECK (one = 1), place INTEGER NOT NULL, term INTEGER NOT NULL, floor INTEGER NOT NULL,
    data BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT"""
_META = "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT"

Execute = Callable[..., sqlite3.Cursor]


def checksum(place: str, value: object) -> int:
    """Over a record's place and its bytes. Damage can change the type of a value: that never matches, either."""
    return zlib.crc32(value, zlib.crc32(place.encode())) if isinstance(value, bytes) else -1


def put_meta(execute: Execute, key: str, value: bytes) -> None:
    """Write one row of ``meta``."""
    execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, value, checksum(f"meta {key}", value)))


def put_batch(execute: Execute, sequence: int, first: int, last: int, entries: bytes) -> None:
    """Write one batch. ``last`` is 0 where it is not known."""
    place = f"batch {sequence} {first} {last}"
    execute("INSERT INTO batch VALUES (?, ?, ?, ?, ?)", (sequence, first, last, entries, checksum(place, entries)))


def put_hard_state(execute: Execute, state: tuple[int, int, int], newest: int) -> None:
    """Write term, vote and commit index, with the number of the last batch."""
    term, vote, committed = state
    total = checksum(f"hard_state {term} {vote} {committed} {newest}", b"")
    execute("INSERT OR REPLACE INTO hard_state VALUES (1, ?, ?, ?, ?, ?)", (term, vote, committed, newest, total))


def put_snapshot(execute: Execute, index: int, term: int, floor: int, data: bytes) -> None:
    """Write the snapshot record and the number of the first batch that counts. Index 0 stands for no snapshot."""
    total = checksum(f"snapshot {index} {term} {floor}", data)
    execute("INSERT OR REPLACE INTO snapshot VALUES (1, ?, ?, ?, ?, ?)", (index, term, floor, data, total))


def prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new file, or bring a file of format 1 up in place; each in one transaction.

    Raises:
        StorageError: the file is of a newer format.
        LogCorrupt: it has no format, or a record of it fails its checksum; nothing was changed.
        sqlite3.Error: SQLite does not read or write it.
    """
    execute = connection.execute
    tables = execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if not tables and execute("PRAGMA page_count").fetchone()[0] <= 1:
        execute("BEGIN IMMEDIATE")
        for table in (_META, _BATCH, _HARD_STATE, _SNAPSHOT):
            execute(table)
        _finish(execute, newest=0, state=(0, 0, 0), keys=[])
        return
    found = read_meta(connection, path).get(FORMAT_KEY, b"")
    if not found.isdigit():
        raise corrupt(path, f"the record {FORMAT_KEY!r} is missing", None)
    newest = FORMAT_BESIDE_SEGMENTS
    if int(found) > newest:
        raise StorageError(f"{path} has format {int(found)}, this version reads up to {newest}: use the newer Tenure")
    if int(found) == 1:
        _bring_up(connection, path)


def read_meta(connection: sqlite3.Connection, path: Path) -> dict[str, bytes]:
    """Every row of ``meta``, checked; :class:`tenure.LogCorrupt` naming the first that is damaged or missing."""
    meta: dict[str, bytes] = {}
    for key, value, stored in connection.execute("SELECT key, value, checksum FROM meta").fetchall():
        if checksum(f"meta {key}", value) != stored:
            raise corrupt(path, f"the record {key!r} fails its checksum", None)
        meta[key] = value
    for key in json.loads(meta.get(KEYS_KEY, b"[]")):
        if key not in meta:
            raise corrupt(path, f"the record {key!r} is missing", None)
    if meta.get(FORMAT_KEY) != b"1" and KEYS_KEY not in meta:
        raise corrupt(path, f"the record {KEYS_KEY!r} is missing", None)
    return meta


def _bring_up(connection: sqlite3.Connection, path: Path) -> None:
    """From format 1: its batches had neither a last index nor a snapshot, and their checksums covered less."""
    execute = connection.execute
    keys = [key for key in read_meta(connection, path) if key != FORMAT_KEY]
    execute("BEGIN IMMEDIATE")
    for table, replacement in (("batch", _BATCH), ("hard_state", _HARD_STATE)):
        execute(f"ALTER TABLE {table} RENAME TO {table}_1")
        execute(replacement)
    execute(_SNAPSHOT)
    newest = 0
    rows = execute("SELECT first, entries, checksum FROM batch_1 ORDER BY sequence")
    for newest, (first, entries, stored) in enumerate(rows, start=1):
        if checksum(f"batch {first}", entries) != stored:
            raise corrupt(path, f"the batch {newest} of log entries from index {first} on fails its checksum", first)
        put_batch(execute, newest, first, 0, entries)
    state = (0, 0, 0)
    row = execute("SELECT term, vote, committed, checksum FROM hard_state_1").fetchone()
    if row is not None:
        state = row[:3]
        if checksum("hard_state", ",".join(map(str, state)).encode()) != row[3]:
            raise corrupt(path, "the record of term and vote fails its checksum", None)
    execute("DROP TABLE batch_1")
    execute("DROP TABLE hard_state_1")
    _finish(execute, newest=newest, state=state, keys=keys)


def _finish(execute: Execute, *, newest: int, state: tuple[int, int, int], keys: list[str]) -> None:
    put_hard_state(execute, state, newest)
    put_snapshot(execute, 0, 0, 1, b"")
    put_meta(execute, KEYS_KEY, json.dumps(sorted(keys)).encode())
    put_meta(execute, FORMAT_KEY, str(FORMAT).encode())
    execute("COMMIT")


def corrupt(path: Path, what: str, index: int | None) -> LogCorrupt:
    """The error that names a damaged record and says what its reader can do."""
    return LogCorrupt(
        f"{path}: {what}; it was not applied. Replace this member's data directory", path=str(path), index=index
    )


def explain(error: sqlite3.Error, path: Path, *, reading: bool) -> StorageError:
    """The storage error that says what its reader can do.

    While it only reads, what SQLite does not understand is damage; while it writes, nobody knows what it left.
    """
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StorageFull(f"{path}: the disk is full; free space and start this node again")
    damaged = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
    if code in damaged or (reading and code in {sqlite3.SQLITE_ERROR, sqlite3.SQLITE_FORMAT, sqlite3.SQLITE_TOOBIG}):
        return LogCorrupt(f"{path} is damaged ({error}); replace this member's data directory", path=str(path))
    return SyncFailed(f"{path}: {error}; what is on the disk is no longer known, so this node must stop")
