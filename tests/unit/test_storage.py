"""The log store and the data directory: what survives, what is refused, what is named."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage import DataDirectory, SqliteLogStore, StoredLog, StoredSnapshot
from tenure.storage.sqlite import REMOVE_BYTES_MAX, REMOVE_ROWS_MAX


@pytest.fixture
def store(tmp_path: Path):
    store = SqliteLogStore(tmp_path / "raft.sqlite3")
    yield store
    store.close()


def test_store_gives_back_what_was_saved_in_order(store: SqliteLogStore):
    """Batches replay in the order of their saving, overlapping ones too; the last hard state stands."""
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 2, 0))
    store.save(first=5, last=5, entries=b"two", hard_state=None)
    store.save(first=3, last=3, entries=b"three", hard_state=(2, 0, 4))
    store.save(first=0, last=0, entries=b"", hard_state=(3, 1, 4))
    loaded = store.load()
    assert loaded.batches == (b"one", b"two", b"three")
    assert (loaded.term, loaded.vote, loaded.commit) == (3, 1, 4)


def test_R1_store_is_set_to_sync_every_commit(store: SqliteLogStore):
    """FULL: in WAL mode NORMAL can lose the last vote in a power cut."""
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE batch SET first = 4",
        "UPDATE batch SET entries = CAST('twO' AS BLOB)",
        "UPDATE hard_state SET term = 9",
        "UPDATE hard_state SET vote = 0",
        "UPDATE batch SET last = 7",
        "UPDATE batch SET sequence = 9 WHERE sequence = 2",
        "UPDATE snapshot SET place = 2",
        "UPDATE snapshot SET data = CAST('manifesT' AS BLOB)",
        "UPDATE snapshot SET floor = 3",
    ],
)
def test_store_names_a_record_that_fails_its_checksum(tmp_path: Path, damage: str):
    """Nothing that changed by itself is handed out."""
    path = tmp_path / "raft.sqlite3"
    store = SqliteLogStore(path)
    store.save(first=1, last=1, entries=b"one", hard_state=(1, 2, 0))
    store.save(first=2, last=3, entries=b"two", hard_state=None)
    store.compact(StoredSnapshot(index=1, term=1, data=b"manifest"))
    store._connection.execute(damage)
    with pytest.raises(LogCorrupt, match=r"fails its checksum|is missing"):
        store.load()
    store.close()


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        ("DELETE FROM batch WHERE sequence = 3", "end at 2 instead of 3"),
        ("DELETE FROM batch WHERE sequence = 2", "batch 2 .* is missing"),
        ("DELETE FROM batch", "end at 0 instead of 3"),
        ("DELETE FROM hard_state", "term and vote is missing"),
        ("DELETE FROM snapshot", "snapshot is missing"),
        ("DELETE FROM meta WHERE key = 'identity'", "'identity' is missing"),
        ("UPDATE meta SET key = 'idEntity' WHERE key = 'identity'", "'idEntity' fails its checksum"),
        ("DELETE FROM meta WHERE key = 'keys'", "'keys' is missing"),
        ("DELETE FROM meta WHERE key = 'format'", "'format' is missing"),
        ("DELETE FROM meta", "is missing"),
        ("DROP TABLE meta", "damaged"),
    ],
)
def test_store_names_a_record_when_it_is_missing(tmp_path: Path, damage: str, named: str):
    """A damaged page of SQLite's can lose rows without a word: what is gone is not taken for never written."""
    path = tmp_path / "raft.sqlite3"
    store = SqliteLogStore(path)
    store.write_meta("identity", b"someone")
    for index in (1, 2, 3):
        store.save(first=index, last=index, entries=b"entries", hard_state=(1, 2, 0))
    store._connection.execute(damage)
    store.close()
    with pytest.raises(LogCorrupt, match=named), contextlib.closing(SqliteLogStore(path)) as store:
        store.load()


def test_store_refuses_a_file_of_a_newer_version(tmp_path: Path):
    """It says so, and what to use."""
    path = tmp_path / "raft.sqlite3"
    store = SqliteLogStore(path)
    store.write_meta("format", b"99")
    store.close()
    with pytest.raises(StorageError, match="format 99"):
        SqliteLogStore(path)


def test_store_says_that_the_disk_is_full(store: SqliteLogStore):
    """SQLite's own page limit stands for the disk."""
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(StorageFull, match="disk is full"):
        store.save(first=1, last=1, entries=b"x" * 100_000, hard_state=None)


def test_store_that_cannot_be_written_fails_as_unsynced(tmp_path: Path):
    """Whatever else goes wrong in a write: what is on the disk is not known any more."""
    store = SqliteLogStore(tmp_path / "raft.sqlite3")
    store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(SyncFailed):
        store.save(first=1, last=1, entries=b"x", hard_state=None)
    store.close()


def test_damaged_file_is_named(tmp_path: Path):
    """A file that is no database is damage, not a new directory."""
    path = tmp_path / "raft.sqlite3"
    path.write_bytes(b"this is not a database, it only stands where one was" * 100)
    with pytest.raises(LogCorrupt, match="damaged"):
        SqliteLogStore(path)


FORMAT_1 = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT;
CREATE TABLE batch (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, first INTEGER NOT NULL, entries BLOB NOT NULL, checksum INTEGER NOT NULL
) STRICT;
CREATE TABLE hard_state (
    one INTEGER PRIMARY KEY CHECK (one = 1), term INTEGER NOT NULL, vote INTEGER NOT NULL,
    committed INTEGER NOT NULL, checksum INTEGER NOT NULL
) STRICT;
"""


def write_format_1(path: Path, *, batches: list[tuple[int, bytes]], hard_state: tuple[int, int, int] | None) -> None:
    """A file as version 0.1 wrote it: the statements and the checksums of that version."""

    def checksum(place: str, value: bytes) -> int:
        return zlib.crc32(value, zlib.crc32(place.encode()))

    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(FORMAT_1)
        for key, value in (("format", b"1"), ("identity", b"someone")):
            connection.execute("INSERT INTO meta VALUES (?, ?, ?)", (key, value, checksum(f"meta {key}", value)))
        for first, entries in batches:
            row = (first, entries, checksum(f"batch {first}", entries))
            connection.execute("INSERT INTO batch (first, entries, checksum) VALUES (?, ?, ?)", row)
        if hard_state is not None:
            total = checksum("hard_state", b"%d,%d,%d" % hard_state)
            connection.execute("INSERT INTO hard_state VALUES (1, ?, ?, ?, ?)", (*hard_state, total))


def test_store_brings_up_a_file_when_an_older_version_wrote_it(tmp_path: Path):
    """Log, term, vote and records come through; it is of the new format then, and can be compacted."""
    path = tmp_path / "raft.sqlite3"
    batches = [(1, b"one"), (3, b"two"), (2, b"three")]
    write_format_1(path, batches=batches, hard_state=(3, 1, 4))
    promised = StoredLog(term=3, vote=1, commit=4, batches=(b"one", b"two", b"three"))
    for _ in range(2):
        store = SqliteLogStore(path)
        assert (store.load(), store.read_meta("identity")) == (promised, b"someone")
        store.close()
    store = SqliteLogStore(path)
    snapshot = StoredSnapshot(index=4, term=2, data=b"manifest")
    store.compact(snapshot)
    # Where the last batch ends is not known of an old file: it stays until a later batch shows that it can go.
    assert store.load() == StoredLog(term=3, vote=1, commit=4, batches=(b"three",), snapshot=snapshot)
    store.save(first=9, last=9, entries=b"four", hard_state=None)
    store.compact(StoredSnapshot(index=8, term=3, data=b"manifest"))
    assert store.load().batches == (b"four",)
    store.close()


def test_store_brings_up_a_file_when_it_is_as_good_as_new(tmp_path: Path):
    """Version 0.1 wrote no hard state before the first term."""
    path = tmp_path / "raft.sqlite3"
    write_format_1(path, batches=[], hard_state=None)
    store = SqliteLogStore(path)
    assert store.load() == StoredLog(term=0, vote=0, commit=0, batches=())
    store.close()


@pytest.mark.parametrize("damage", ["UPDATE batch SET first = 2", "UPDATE hard_state SET vote = 0"])
def test_store_changes_nothing_when_the_older_file_is_damaged(tmp_path: Path, damage: str):
    """New checksums over damaged records would make them look whole."""
    path = tmp_path / "raft.sqlite3"
    write_format_1(path, batches=[(1, b"one")], hard_state=(3, 1, 0))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(damage)
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="fails its checksum"):
            SqliteLogStore(path)


def test_store_gives_its_debt_back_in_pieces_when_much_is_compacted(store: SqliteLogStore):
    """A compaction removes a bounded piece; what it still owes is not handed out, and goes with the next saves."""
    store._connection.execute("PRAGMA synchronous = OFF")
    for index in range(1, 3001):
        store.save(first=index, last=index, entries=b"x", hard_state=None)
    store.compact(StoredSnapshot(index=2990, term=1, data=b"manifest"))
    rows = [rows_of(store)]
    assert rows[0] >= 3000 - REMOVE_ROWS_MAX
    assert len(store.load().batches) == 10
    while rows[-1] > 200:
        index += 1
        store.save(first=index, last=index, entries=b"x", hard_state=None)
        rows.append(rows_of(store))
    assert max(before - after for before, after in itertools.pairwise(rows)) <= REMOVE_ROWS_MAX
    assert len(rows) < 120


def test_store_remembers_its_debt_when_it_is_opened_again(tmp_path: Path):
    """Nothing that was compacted comes back, and its room is given back all the same."""
    path = tmp_path / "raft.sqlite3"
    store = SqliteLogStore(path)
    for index in range(1, 301):
        store.save(first=index, last=index, entries=b"x", hard_state=None)
    store.compact(StoredSnapshot(index=299, term=1, data=b"manifest"))
    store.close()
    store = SqliteLogStore(path)
    assert store.load().batches == (b"x",)
    for index in range(301, 321):
        store.save(first=index, last=index, entries=b"y", hard_state=None)
    assert rows_of(store) == len(store.load().batches) == 21
    store.close()


def test_store_removes_bounded_bytes_when_batches_are_large(store: SqliteLogStore):
    """Of rows of half a megabyte one call removes two, not thirty-two."""
    for index in range(1, 11):
        store.save(first=index, last=index, entries=b"x" * (REMOVE_BYTES_MAX // 2), hard_state=None)
    store.compact(StoredSnapshot(index=9, term=1, data=b"manifest"))
    assert rows_of(store) == 8


def test_compaction_asks_the_checksum_when_it_goes_by_the_word_of_a_batch(store: SqliteLogStore):
    """A first index that damage made small would let everything before it go."""
    for index in range(1, 41):
        store.save(first=index, last=index, entries=b"x", hard_state=None)
    store._connection.execute("UPDATE batch SET first = 1 WHERE sequence = 21")
    with pytest.raises(LogCorrupt, match="batch 21"):
        store.compact(StoredSnapshot(index=5, term=1, data=b"manifest"))
    assert rows_of(store) == 40


def rows_of(store: SqliteLogStore) -> int:
    count: int = store._connection.execute("SELECT count(*) FROM batch").fetchone()[0]
    return count


# -- a bit flipped anywhere -------------------------------------------------------------------------------------------

#: Prime, so that over many bytes every place of a bit is met. The whole file was tried once, bit by bit.
EVERY_BIT = 149
PAGE = 4096


def telling_bits(whole: bytes) -> Iterator[int]:
    """Of each page all bits of its head (how many rows it has, and where), of a page with little on it all bits that
    are not free space, of the others a sample.
    """
    for start in range(0, len(whole), PAGE):
        used = [place for place in range(start, start + PAGE) if whole[place] or place < start + 12]
        step = 1 if len(used) < 100 else EVERY_BIT
        bits = {8 * place + bit for place in used for bit in range(8)}
        yield from (bit for bit in sorted(bits) if bit // 8 < start + 12 or bit % step == 0)


def fill(path: Path) -> tuple[StoredLog, dict[str, bytes]]:
    """A store with something in each table, left as after a kill; what must be found in it."""
    store = SqliteLogStore(path.with_name("living.sqlite3"))
    for key, value in (("identity", b"0123456789abcdef"), ("starts", b"3"), ("cluster", b"{}" * 50)):
        store.write_meta(key, value)
    for term in range(1, 13):
        store.save(first=3 * term, last=3 * term + 2, entries=b"batch %d" % term * 40, hard_state=(term, 1, 3 * term))
    store.compact(StoredSnapshot(index=17, term=3, data=b"manifest" * 40))
    store.save(first=39, last=40, entries=b"large" * 1200, hard_state=(13, 2, 38))
    store.save(first=41, last=41, entries=b"last", hard_state=(14, 2, 38))
    found = everything_in(store)
    for suffix in ("", "-wal"):
        shutil.copyfile(path.with_name(f"living.sqlite3{suffix}"), path.with_name(f"{path.name}{suffix}"))
    store.close()
    return found


def everything_in(store: SqliteLogStore) -> tuple[StoredLog, dict[str, bytes]]:
    return store.load(), dict(store._meta)


def test_R2_bit_flipped_anywhere_is_named_or_harmless_when_the_store_was_closed(tmp_path: Path):
    """The node's whole file: tables, SQLite's own pages and headers. Never a wrong value, never another error."""
    path = tmp_path / "raft.sqlite3"
    promised = fill(path)
    SqliteLogStore(path).close()
    whole = path.read_bytes()
    named: list[str] = []
    for bit in telling_bits(whole):
        path.write_bytes(flipped(whole, bit))
        try:
            with contextlib.closing(SqliteLogStore(path)) as store:
                assert everything_in(store) == promised, f"bit {bit}"
        except LogCorrupt as error:
            named.append(str(error))
    assert len(named) > 300
    assert all(str(path) in text for text in named)


def test_R1_bit_flipped_in_the_write_ahead_log_is_named_when_the_process_was_killed(tmp_path: Path):
    """SQLite takes a bad frame for the end of its log: it would take back every vote and entry behind it."""
    path = tmp_path / "raft.sqlite3"
    promised = fill(path)
    database, wal = path.read_bytes(), path.with_name("raft.sqlite3-wal")
    whole = wal.read_bytes()
    last = whole.rfind(b"last")
    assert 0 < last < len(whole)
    frame = 24 + PAGE
    for bit in range(0, 8 * (len(whole) - 6 * frame), 16 * EVERY_BIT + 1):
        path.write_bytes(database)
        wal.write_bytes(flipped(whole, bit))
        with pytest.raises(LogCorrupt, match="write-ahead log"):
            SqliteLogStore(path)
        assert wal.read_bytes() == flipped(whole, bit), "what was found damaged is left as it is"
    path.write_bytes(database)
    wal.write_bytes(whole)
    with contextlib.closing(SqliteLogStore(path)) as store:
        assert everything_in(store) == promised


def test_store_opens_when_its_last_transaction_is_torn_after_a_restart(tmp_path: Path):
    """Two power cuts, one after another: what the first left torn is not taken for damage after the second."""
    path = tmp_path / "raft.sqlite3"
    fill(path)
    wal = path.with_name("raft.sqlite3-wal")
    wal.write_bytes(flipped(wal.read_bytes(), 8 * (len(wal.read_bytes()) - 3000)))
    store = SqliteLogStore(path)
    assert store.load().term == 13
    assert not wal.exists() or wal.stat().st_size == 0
    store.close()


def flipped(data: bytes, bit: int) -> bytes:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return bytes(damaged)


# -- the data directory -----------------------------------------------------------------------------------------------


def test_R7_directory_keeps_its_random_id(tmp_path: Path):
    """Drawn once, durable before anything else is done with it."""
    ids = set()
    for _ in range(2):
        directory = DataDirectory.open(tmp_path / "d", node_name="a", cluster_name="c")
        ids.add(directory.directory_id)
        directory.close()
    other = DataDirectory.open(tmp_path / "other", node_name="a", cluster_name="c")
    other.close()
    assert len(ids) == 1
    assert other.directory_id not in ids
    with sqlite3.connect(tmp_path / "d" / "raft.sqlite3") as connection:
        stored = connection.execute("SELECT value FROM meta WHERE key = 'identity'").fetchone()[0]
    connection.close()
    assert next(iter(ids)).encode() in stored


def test_directory_that_cannot_be_made_is_named(tmp_path: Path):
    """The setting's name and the system's reason."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"node\.data_dir .* cannot be used"):
        DataDirectory.open(tmp_path / "file" / "d", node_name="a", cluster_name="c")
