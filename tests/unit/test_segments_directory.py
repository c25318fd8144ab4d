"""The log in segments in its data directory: begun, found again, gone, exchanged, looked at."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tenure import LogCorrupt, StorageError
from tenure.storage import DataDirectory, SegmentLogStore, SqliteLogStore, sqlite_file
from tenure.storage.segment_records import MARK, SECTOR


def image_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def directory_at(folder: Path) -> DataDirectory:
    return DataDirectory.open(folder, node_name="a", cluster_name="payments")


def test_directory_keeps_its_log_in_segments_when_it_is_new(tmp_path: Path):
    directory = directory_at(tmp_path)
    directory.log.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.close()
    directory = directory_at(tmp_path)
    assert isinstance(directory.log, SegmentLogStore)
    assert directory.log.load().batches == (b"one",)
    assert not directory.store.holds_log
    directory.close()


@pytest.mark.parametrize("step", [(SegmentLogStore, "_begin"), (SqliteLogStore, "leave_log_to_segments")])
def test_directory_begins_its_log_again_when_it_was_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: tuple[type, str]
):
    """The segments come first: the other way round, a crash in between would look like a log that is gone."""
    directory = directory_at(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(*step, lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            assert directory.log
    directory.close()
    assert begun_at(tmp_path) == directory.directory_id


def test_directory_keeps_its_log_in_the_database_when_an_earlier_version_began_it_there(tmp_path: Path):
    directory = directory_at(tmp_path)
    directory.store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.close()
    directory = directory_at(tmp_path)
    assert directory.log is directory.store
    assert directory.log_path == tmp_path / "raft.sqlite3"
    assert not (tmp_path / "log").exists()
    directory.close()


def test_R7_log_that_is_gone_is_damage_and_not_a_new_one(tmp_path: Path):
    """With an empty log under its old name a member would vote again in terms in which it has voted."""
    directory = directory_at(tmp_path)
    directory.log.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.close()
    shutil.rmtree(tmp_path / "log")
    directory = directory_at(tmp_path)
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="is missing"):
            assert directory.log
    directory.close()


@pytest.mark.parametrize("left", [0, 100, SECTOR])
def test_R7_log_whose_only_segment_lost_its_content_is_damage_and_not_a_new_one(tmp_path: Path, left: int):
    """A file system may bring a file back empty, or without what was in it."""
    directory = directory_at(tmp_path)
    directory.log.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.close()
    path = next((tmp_path / "log").iterdir())
    path.write_bytes(bytes(left))
    directory = directory_at(tmp_path)
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="its first record is missing") as caught:
            assert directory.log
        assert caught.value.path == str(path)
    directory.close()


def begun_at(folder: Path) -> str:
    """A directory with an entry in its log, and its id."""
    directory = directory_at(folder)
    directory.log.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.close()
    return directory.directory_id


@pytest.mark.parametrize("is_new", [False, True])
def test_R7_log_of_another_directory_is_refused_with_both_ids(tmp_path: Path, is_new: bool):
    """Also by a directory that is new, and would come with the entries and the votes of another life."""
    theirs = begun_at(tmp_path / "theirs")
    if is_new:
        directory_at(tmp_path / "ours").close()
    else:
        begun_at(tmp_path / "ours")
        shutil.rmtree(tmp_path / "ours" / "log")
    shutil.copytree(tmp_path / "theirs" / "log", tmp_path / "ours" / "log")
    before = image_of(tmp_path / "ours" / "log")
    directory = directory_at(tmp_path / "ours")
    for _ in range(2):
        with pytest.raises(LogCorrupt, match=f"'{theirs}', and this is '{directory.directory_id}'") as caught:
            assert directory.log
        assert caught.value.path.startswith(str(tmp_path / "ours" / "log"))
    directory.close()
    with DataDirectory.inspect(tmp_path / "ours") as inspected, pytest.raises(LogCorrupt, match=theirs):
        assert inspected.log
    assert image_of(tmp_path / "ours" / "log") == before


def test_R7_log_that_an_older_copy_of_the_database_does_not_know_is_refused(tmp_path: Path):
    """It was taken before the log was begun, and has forgotten to which cluster the directory belongs."""
    directory_at(tmp_path / "d").close()
    older = (tmp_path / "d" / "raft.sqlite3").read_bytes()
    begun_at(tmp_path / "d")
    for path in (tmp_path / "d").glob("raft.sqlite3*"):
        path.unlink()
    (tmp_path / "d" / "raft.sqlite3").write_bytes(older)
    directory = directory_at(tmp_path / "d")
    for _ in range(2):
        with pytest.raises(LogCorrupt, match="knows nothing of"):
            assert directory.log
    directory.close()


def test_R7_directory_is_refused_by_a_version_that_knows_no_segments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It would begin an empty log in the database. Until there are segments, and with the log there, it may read it."""
    for name in ("segments", "new", "database"):
        directory_at(tmp_path / name).close()
    begun_at(tmp_path / "segments")
    directory = directory_at(tmp_path / "database")
    directory.store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    assert directory.log is directory.store
    directory.close()
    with monkeypatch.context() as patched:
        patched.setattr(sqlite_file, "FORMAT_BESIDE_SEGMENTS", 2)
        with pytest.raises(StorageError, match="has format 3, this version reads up to 2"):
            directory_at(tmp_path / "segments")
        for name in ("new", "database"):
            directory_at(tmp_path / name).close()
    directory = directory_at(tmp_path / "segments")
    assert directory.log.load().batches == (b"one",)
    directory.close()


def test_directory_that_is_inspected_shows_its_log_and_stays_as_it_is(tmp_path: Path):
    directory = directory_at(tmp_path)
    directory.log.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.close()
    before = image_of(tmp_path / "log")
    with DataDirectory.inspect(tmp_path) as inspected:
        assert inspected.log.load().batches == (b"one",)
        assert inspected.log_path == tmp_path / "log"
        inspected.log.save(first=2, last=2, entries=b"two", hard_state=None)
    assert image_of(tmp_path / "log") == before


def test_damage_is_named_by_the_path_of_the_original_when_a_copy_is_inspected(tmp_path: Path):
    directory = directory_at(tmp_path)
    directory.log.save(first=1, last=1, entries=b"marker" * 20, hard_state=(1, 1, 0))
    directory.close()
    path = next((tmp_path / "log").iterdir())
    path.write_bytes(path.read_bytes().replace(b"marker", b"barker", 1))
    with DataDirectory.inspect(tmp_path) as inspected, pytest.raises(LogCorrupt) as caught:
        assert inspected.log
    assert caught.value.path == str(path)


def test_R7_older_copy_of_the_log_alone_is_refused_when_the_directory_was_opened_or_closed_since(tmp_path: Path):
    """Also one that only lacks its last record: what the end held may have been a vote."""
    begun_at(tmp_path / "d")
    older = image_of(tmp_path / "d" / "log")
    for is_closed in (True, False):
        directory = directory_at(tmp_path / "d")
        directory.log.save(first=2, last=2, entries=b"two", hard_state=(2, 1, 0))
        if is_closed:
            directory.close()
        else:
            # Killed, and opened and killed again.
            killed = shutil.copytree(tmp_path / "d", tmp_path / "killed")
            directory.close()
            directory = directory_at(killed)
            assert len(directory.log.load().batches) == 3
            shutil.copytree(killed, tmp_path / "killed-again")
            directory.close()
    for name in ("d", "killed-again"):
        for file, data in older.items():
            (tmp_path / name / "log" / file).write_bytes(data)
        directory = directory_at(tmp_path / name)
        for _ in range(2):
            with pytest.raises(LogCorrupt, match=r"ends with the record 2, and it had 4: it is an older copy"):
                assert directory.log
        directory.close()
        assert image_of(tmp_path / name / "log") == older


def test_R7_end_of_the_log_that_turned_to_zeros_after_a_stop_in_good_order_is_damage(tmp_path: Path):
    """By itself it would look like a record that a crash cut."""
    begun_at(tmp_path)
    path = next((tmp_path / "log").iterdir())
    data = path.read_bytes()
    start = data.rindex(MARK)
    path.write_bytes(data[:start] + bytes(len(data) - start))
    directory = directory_at(tmp_path)
    with pytest.raises(LogCorrupt, match="its end is gone"):
        assert directory.log
    directory.close()


def test_directory_is_closed_when_it_cannot_note_the_end_of_its_log(tmp_path: Path):
    """The disk may be what it is closed for."""
    directory = directory_at(tmp_path)
    directory.log.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    directory.store._connection.execute("PRAGMA query_only = ON")
    directory.close()
    directory = directory_at(tmp_path)
    assert directory.log.load().batches == (b"one",)
    directory.close()
