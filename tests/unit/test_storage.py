"""The log store and the data directory: what survives, what is refused, what is named."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from tenure import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage import DataDirectory, SqliteLogStore


@pytest.fixture
def store(tmp_path: Path):
    store = SqliteLogStore(tmp_path / "raft.sqlite3")
    yield store
    store.close()


def test_store_gives_back_what_was_saved_in_order(store: SqliteLogStore):
    """Batches replay in the order of their saving, overlapping ones too; the last hard state stands."""
    store.save(first=1, entries=b"one", hard_state=(1, 2, 0))
    store.save(first=5, entries=b"two", hard_state=None)
    store.save(first=3, entries=b"three", hard_state=(2, 0, 4))
    store.save(first=0, entries=b"", hard_state=(3, 1, 4))
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
        "UPDATE batch SET first = 2",
        "UPDATE batch SET entries = CAST('onE' AS BLOB)",
        "UPDATE hard_state SET term = 9",
        "UPDATE hard_state SET vote = 0",
    ],
)
def test_store_names_a_record_that_fails_its_checksum(tmp_path: Path, damage: str):
    """Nothing that changed by itself is handed out."""
    path = tmp_path / "raft.sqlite3"
    store = SqliteLogStore(path)
    store.save(first=1, entries=b"one", hard_state=(1, 2, 0))
    store._connection.execute(damage)
    with pytest.raises(LogCorrupt, match="fails its checksum"):
        store.load()
    store.close()


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
        store.save(first=1, entries=b"x" * 100_000, hard_state=None)


def test_store_that_cannot_be_written_fails_as_unsynced(tmp_path: Path):
    """Whatever else goes wrong in a write: what is on the disk is not known any more."""
    store = SqliteLogStore(tmp_path / "raft.sqlite3")
    store._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(SyncFailed):
        store.save(first=1, entries=b"x", hard_state=None)
    store.close()


def test_damaged_file_is_named(tmp_path: Path):
    """A file that is no database is damage, not a new directory."""
    path = tmp_path / "raft.sqlite3"
    path.write_bytes(b"this is not a database, it only stands where one was" * 100)
    with pytest.raises(LogCorrupt, match="damaged"):
        SqliteLogStore(path)


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
