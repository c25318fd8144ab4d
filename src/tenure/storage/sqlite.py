"""The log store on SQLite: WAL, ``synchronous=FULL``, exactly one connection, one transaction for each Ready.

A batch of entries is one row, whatever it holds, so that the cost is paid per Ready and never per entry. Batches are
numbered; compaction only moves the number of the first one that counts (``floor``), and the rows below it are removed
a few at a time by whatever call comes next. A bit flipped anywhere is found on load and named, never applied.
Only one connection exists, in exclusive mode: SQLite's WAL-reset fault (3.7.0 to 3.51.2) needs two.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenure.errors import LogCorrupt, SyncFailed
from tenure.storage.log_store import StoredLog, StoredSnapshot
from tenure.storage.sqlite_file import (
    FORMAT_BESIDE_SEGMENTS,
    FORMAT_KEY,
    KEYS_KEY,
    Execute,
    checksum,
    corrupt,
    explain,
    prepare,
    put_batch,
    put_hard_state,
    put_meta,
    put_snapshot,
    read_meta,
)
from tenure.storage.wal import is_damaged

#: What one call removes of compacted batches at most: rows, and bytes once it has removed one row. A save adds one
#: row, so a debt of n rows is paid after n / 31 saves, and each of them stays cheap.
REMOVE_ROWS_MAX = 32
REMOVE_BYTES_MAX = 1 << 20
#: What one step of ``verify`` reads at most: rows, and bytes once it has read one row.
VERIFY_ROWS_MAX = 256
VERIFY_BYTES_MAX = 1 << 20
_BATCHES = "SELECT sequence, first, last, entries, checksum FROM batch WHERE sequence >= ?"


class SqliteLogStore:
    """See :class:`tenure.storage.LogStore`. It may be used from any one thread at a time."""

    def __init__(self, path: Path, *, known_as: Path | None = None) -> None:
        """Open the file, made if absent; a file of an older format is brought up in place.

        ``known_as`` is the path that errors name instead, where ``path`` is a copy.

        Raises:
            LogCorrupt: it is damaged; the record that fails is named where one can be.
            StorageError: it is of a newer format, or cannot be opened.
        """
        self.path = known_as if known_as is not None else path
        self._unusable: str | None = None
        if is_damaged(path.with_name(f"{path.name}-wal")):
            raise self._corrupt("a transaction in its write-ahead log fails its checksum", None)
        with self._explained(reading=True):
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            with self._explained(reading=True):
                execute = self._connection.execute
                execute("PRAGMA locking_mode = EXCLUSIVE")
                execute("PRAGMA journal_mode = WAL")
                execute("PRAGMA synchronous = FULL")
                # What a crash left at the end of the write-ahead log must not stand behind later transactions.
                execute("PRAGMA wal_checkpoint(TRUNCATE)")
                prepare(self._connection, self.path)
                self._meta = read_meta(self._connection, self.path)
                del self._meta[KEYS_KEY]
                #: Whether the log is kept in segments beside this file, which has only what is kept beside a log.
                self.beside_segments = int(self._meta.pop(FORMAT_KEY)) == FORMAT_BESIDE_SEGMENTS
                self._hard_state, self._newest = self._read_hard_state()
                self._snapshot_index, self._floor = self._read_snapshot()[1:]
                oldest = execute("SELECT min(sequence) FROM batch").fetchone()[0]
                #: The oldest batch that is still in the file; below ``_floor`` it is owed to be removed.
                self._oldest: int = self._newest + 1 if oldest is None else oldest
        except BaseException:
            # What stays open would lock the file against the next try.
            self._connection.close()
            raise

    @property
    def holds_log(self) -> bool:
        """Whether anything was ever saved in it."""
        return self._newest > 0 or self._snapshot_index > 0 or self._hard_state != (0, 0, 0)

    def load(self) -> StoredLog:
        """See :meth:`LogStore.load`."""
        with self._explained(reading=True):
            (term, vote, commit), newest = self._read_hard_state()
            snapshot, _, floor = self._read_snapshot()
            rows = self._connection.execute(f"{_BATCHES} ORDER BY sequence", (floor,)).fetchall()
        for expected, row in enumerate(rows, start=floor):
            self._check_batch(expected, row)
        if len(rows) != newest + 1 - floor:
            raise self._corrupt(f"the batches of log entries end at {floor + len(rows) - 1} instead of {newest}", None)
        return StoredLog(term=term, vote=vote, commit=commit, batches=tuple(row[3] for row in rows), snapshot=snapshot)

    def save(
        self,
        *,
        first: int,
        entries: bytes,
        hard_state: tuple[int, int, int] | None,
        last: int = 0,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        """See :meth:`LogStore.save`. One transaction, so one fsync."""
        state = self._hard_state if hard_state is None else hard_state
        newest, floor, place = self._newest, self._floor, self._snapshot_index
        with self._transaction() as execute:
            if snapshot is not None:
                floor, place = newest + 1, snapshot.index
                put_snapshot(execute, snapshot.index, snapshot.term, floor, snapshot.data)
            if entries:
                newest += 1
                put_batch(execute, newest, first, last, entries)
            put_hard_state(execute, state, newest)
            oldest = self._remove_some(execute, floor)
        self._hard_state, self._newest = state, newest
        self._floor, self._snapshot_index, self._oldest = floor, place, oldest

    def compact(self, snapshot: StoredSnapshot) -> None:
        """See :meth:`LogStore.compact`."""
        if snapshot.index < self._snapshot_index:
            return
        with self._explained(reading=True):
            floor = self._floor_for(snapshot.index)
        with self._transaction() as execute:
            put_snapshot(execute, snapshot.index, snapshot.term, floor, snapshot.data)
            oldest = self._remove_some(execute, floor)
        self._floor, self._snapshot_index, self._oldest = floor, snapshot.index, oldest

    def verify(self) -> Iterator[int]:
        """See :meth:`Verifiable.verify`."""
        with self._explained(reading=True):
            meta = read_meta(self._connection, self.path)
            self._read_hard_state()
            self._read_snapshot()
        place, end = self._floor, self._newest
        yield len(meta) + 2
        while (place := max(place, self._floor)) <= end:
            begin = place
            with self._explained(reading=True), contextlib.closing(self._connection.cursor()) as cursor:
                cursor.execute(f"{_BATCHES} AND sequence <= ? ORDER BY sequence LIMIT ?", (place, end, VERIFY_ROWS_MAX))
                size = 0
                while size < VERIFY_BYTES_MAX and (row := cursor.fetchone()) is not None:
                    self._check_batch(place, row)
                    place, size = place + 1, size + len(row[3])
            if place == begin:
                raise self._corrupt(f"the batches of log entries end at {place - 1} instead of {end}", None)
            yield place - begin

    def read_meta(self, key: str) -> bytes | None:
        """A small durable value beside the log, or None."""
        return self._meta.get(key)

    def write_meta(self, key: str, value: bytes) -> None:
        """Make a small value durable before returning; the same errors as ``save``."""
        with self._transaction() as execute:
            put_meta(execute, key, value)
            if key not in self._meta:
                put_meta(execute, KEYS_KEY, json.dumps(sorted({*self._meta, key})).encode())
        self._meta[key] = value

    def leave_log_to_segments(self) -> None:
        """Make durable that the log is kept in segments from now on; the same errors as ``save``.

        Versions that know no segments do not open the file any more.
        """
        with self._transaction() as execute:
            put_meta(execute, FORMAT_KEY, b"%d" % FORMAT_BESIDE_SEGMENTS)
        self.beside_segments = True

    def close(self) -> None:
        """See :meth:`LogStore.close`."""
        self._connection.close()

    def _read_hard_state(self) -> tuple[tuple[int, int, int], int]:
        row = self._connection.execute("SELECT term, vote, committed, newest, checksum FROM hard_state").fetchone()
        if row is None:
            raise self._corrupt("the record of term and vote is missing", None)
        term, vote, committed, newest, stored = row
        if checksum(f"hard_state {term} {vote} {committed} {newest}", b"") != stored:
            raise self._corrupt("the record of term and vote fails its checksum", None)
        return (term, vote, committed), newest

    def _read_snapshot(self) -> tuple[StoredSnapshot | None, int, int]:
        """The snapshot, its index (0 for none) and the number of the first batch that counts."""
        row = self._connection.execute("SELECT place, term, floor, data, checksum FROM snapshot").fetchone()
        if row is None:
            raise self._corrupt("the record of the snapshot is missing", None)
        index, term, floor, data, stored = row
        if checksum(f"snapshot {index} {term} {floor}", data) != stored:
            raise self._corrupt("the record of the snapshot fails its checksum", None)
        return (StoredSnapshot(index=index, term=term, data=data) if index else None), index, floor

    def _floor_for(self, index: int) -> int:
        """The first batch that must stay when a snapshot stands for everything up to ``index``.

        Whatever was saved before a batch that begins at or below ``index + 1`` replays to nothing above ``index``: that
        batch drops it. So any such batch will do, and the newest of them, as far as a binary search finds it, is best.
        """
        low, high = self._floor, self._newest + 1
        if low == high or self._first_of(low) > index + 1:
            return low
        while high - low > 1:
            middle = (low + high) // 2
            if self._first_of(middle) <= index + 1:
                low = middle
            else:
                high = middle
        # Everything before it goes by its word, so its checksum is asked first.
        first, last, entries, stored = self._row("SELECT first, last, entries, checksum FROM batch", low)
        if checksum(f"batch {low} {first} {last}", entries) != stored:
            raise self._corrupt(f"the batch {low} of log entries from index {first} on fails its checksum", first)
        return low + 1 if low == self._newest and 0 < last <= index else low

    def _check_batch(self, expected: int, row: tuple[Any, ...]) -> None:
        sequence, first, last, entries, stored = row
        if sequence != expected:
            raise self._corrupt(f"the batch {expected} of log entries, before index {first}, is missing", None)
        if checksum(f"batch {sequence} {first} {last}", entries) != stored:
            what = f"the batch {sequence} of log entries from index {first} on fails its checksum"
            raise self._corrupt(what, first if isinstance(first, int) else None)

    def _first_of(self, sequence: int) -> int:
        first: int = self._row("SELECT first FROM batch", sequence)[0]
        return first

    def _row(self, select: str, sequence: int) -> tuple[Any, ...]:
        row: tuple[Any, ...] | None = self._connection.execute(f"{select} WHERE sequence = ?", (sequence,)).fetchone()
        if row is None:
            raise self._corrupt(f"the batch {sequence} of log entries is missing", None)
        return row

    def _remove_some(self, execute: Execute, floor: int) -> int:
        """Remove a bounded piece of what lies below ``floor``; the oldest batch that is left."""
        if self._oldest >= floor:
            return self._oldest
        sizes = execute(
            "SELECT sequence, length(entries) FROM batch WHERE sequence < ? ORDER BY sequence LIMIT ?",
            (floor, REMOVE_ROWS_MAX),
        ).fetchall()
        end, total = floor - 1, 0
        for sequence, size in sizes:
            end, total = sequence, total + size
            if total >= REMOVE_BYTES_MAX:
                break
        execute("DELETE FROM batch WHERE sequence <= ?", (end,))
        return end + 1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Execute]:
        """One durable step. After any failure the store takes no further one: what it left is not known (R2)."""
        if self._unusable is not None:
            raise SyncFailed(f"{self.path}: an earlier write failed ({self._unusable}); open the store again")
        try:
            with self._explained(reading=False):
                self._connection.execute("BEGIN IMMEDIATE")
                yield self._connection.execute
                self._connection.execute("COMMIT")
        except BaseException as error:
            self._unusable = str(error)
            raise

    @contextlib.contextmanager
    def _explained(self, *, reading: bool) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise explain(error, self.path, reading=reading) from error
        except UnicodeDecodeError as error:
            # SQLite quotes damaged text in what it says, and Python cannot read that.
            raise explain(sqlite3.DatabaseError("its text is damaged"), self.path, reading=reading) from error

    def _corrupt(self, what: str, index: int | None) -> LogCorrupt:
        return corrupt(self.path, what, index)
