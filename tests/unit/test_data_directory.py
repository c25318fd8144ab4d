"""The data directory: what it keeps of the cluster and of others, how it counts, how it is looked at from outside."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tenure import DirectoryInUse, LogCorrupt, StorageError, WrongCluster
from tenure.core.commands import MemberRecord, Settings
from tenure.core.fsm import ClusterRecord, Enrolment, Membership
from tenure.storage import DataDirectory, SnapshotPoint, StoredSnapshot

SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)
MEMBERS = tuple(
    MemberRecord(raft_id=raft_id, name=name, directory_id=name * 32) for raft_id, name in ((1, "a"), (2, "b"))
)
RECORD = ClusterRecord(
    format=1, cluster_name="c", cluster_id="e" * 32, lineage="e" * 16, members=MEMBERS, settings=SETTINGS
)
JOINED = Membership(
    index=9, members=(*MEMBERS, MemberRecord(raft_id=7, name="n", directory_id="n" * 32)), voters=(1, 2), learners=(7,)
)


def opened(path: Path, *, name: str = "b", cluster: str = "c") -> DataDirectory:
    return DataDirectory.open(path, node_name=name, cluster_name=cluster)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[DataDirectory]:
    directory = opened(tmp_path / "d")
    yield directory
    directory.close()


def files_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with the time of its last change."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [folder, *folder.rglob("*")]
    }


# -- what it keeps ----------------------------------------------------------------------------------------------------


def test_R7_directory_counts_its_openings_before_anything_is_said(tmp_path: Path):
    """Durable when ``open`` returns: a copy of the directory as it is now will come with a count seen before."""
    for expected in (1, 2, 3):
        directory = opened(tmp_path / "d")
        shutil.copytree(tmp_path / "d", tmp_path / f"killed-{expected}")
        assert directory.starts == expected
        directory.close()
        survivor = opened(tmp_path / f"killed-{expected}")
        assert survivor.starts == expected + 1
        survivor.close()


@pytest.mark.parametrize(("name", "cluster"), [("other", "c"), ("b", "other")])
def test_directory_does_not_count_when_it_is_refused(tmp_path: Path, name: str, cluster: str):
    """It belongs to another node or cluster: nothing in it was changed."""
    opened(tmp_path / "d").close()
    with pytest.raises(WrongCluster, match="other"):
        opened(tmp_path / "d", name=name, cluster=cluster)
    directory = opened(tmp_path / "d")
    assert directory.starts == 2
    directory.close()


def test_directory_keeps_the_founding_when_it_is_opened_again(tmp_path: Path):
    """The raft id of a founder is the one that the record gives its name."""
    directory = opened(tmp_path / "d")
    assert directory.record is None
    assert directory.enrolment is None
    directory.found(RECORD)
    directory.close()
    directory = opened(tmp_path / "d")
    assert directory.record == RECORD
    assert directory.enrolment == Enrolment(record=RECORD, raft_id=2)
    with pytest.raises(WrongCluster, match="already"):
        directory.found(RECORD)
    directory.close()


def test_directory_is_not_founded_when_the_record_lacks_its_node(tmp_path: Path):
    """A record of others cannot be meant for it."""
    directory = opened(tmp_path / "d", name="z")
    with pytest.raises(WrongCluster, match="without z"):
        directory.found(RECORD)
    assert directory.record is None
    directory.close()


def test_directory_reads_the_founding_when_an_older_version_wrote_it(directory: DataDirectory):
    """Version 0.1 kept the bare record."""
    directory.store.write_meta("cluster", msgspec.json.encode(RECORD))
    assert directory.enrolment == Enrolment(record=RECORD, raft_id=2)


def test_directory_keeps_its_enrolment_when_it_joined_later(tmp_path: Path):
    """What it heard when it was welcomed may be replaced by what it heard since."""
    directory = opened(tmp_path / "d", name="n")
    directory.enrol(Enrolment(record=RECORD, raft_id=7, membership=JOINED))
    newer = Enrolment(record=RECORD, raft_id=7, membership=msgspec.structs.replace(JOINED, index=12))
    directory.enrol(newer)
    directory.close()
    directory = opened(tmp_path / "d", name="n")
    assert directory.enrolment == newer
    directory.close()


def test_directory_refuses_an_enrolment_when_it_belongs_elsewhere(directory: DataDirectory):
    """Neither another cluster nor another raft id: the log that it holds is that of one member."""
    directory.found(RECORD)
    for other in (
        Enrolment(record=RECORD, raft_id=1),
        Enrolment(record=msgspec.structs.replace(RECORD, cluster_id="f" * 32), raft_id=2),
    ):
        with pytest.raises(WrongCluster, match="already"):
            directory.enrol(other)
    assert directory.enrolment == Enrolment(record=RECORD, raft_id=2)


def test_directory_keeps_settings_and_what_it_saw_of_others_when_it_is_opened_again(tmp_path: Path):
    """A member that restarts still knows an old copy of another's disk."""
    directory = opened(tmp_path / "d")
    assert (directory.settings, directory.peers_seen) == (None, {})
    directory.keep_settings(SETTINGS)
    for starts, incarnation in ((1, 11), (2, 22), (2, 22)):
        directory.note_seen("a" * 32, starts, incarnation)
    directory.note_seen("z" * 32, 5, 2**63 - 1)
    directory.close()
    directory = opened(tmp_path / "d")
    assert directory.settings == SETTINGS
    assert directory.peers_seen == {"a" * 32: (2, 22), "z" * 32: (5, 2**63 - 1)}
    directory.close()


def test_directory_keeps_snapshots_beside_the_log(directory: DataDirectory, tmp_path: Path):
    """In a folder of their own, and nothing that was left unfinished."""
    writer = directory.snapshots.begin(SnapshotPoint(index=5, term=1, voters=(1, 2)))
    writer.write(b"state")
    info = writer.commit()
    assert [path.name for path in (tmp_path / "d" / "snapshots").iterdir()] == [f"{info.id}.snapshot"]


# -- looking at it from outside ---------------------------------------------------------------------------------------


def leave_killed(folder: Path, kept_in: str = "segments") -> None:
    """A directory as a killed node leaves it: a hot write-ahead log, an unfinished snapshot, a lock file."""
    living = opened(folder.with_name("living"))
    living.found(RECORD)
    log = living.log if kept_in == "segments" else living.store
    log.save(first=1, last=4, entries=b"entries", hard_state=(3, 1, 4))
    log.compact(StoredSnapshot(index=2, term=1, data=b"manifest"))
    writer = living.snapshots.begin(SnapshotPoint(index=2, term=1, voters=(1, 2)))
    writer.commit()
    unfinished = living.snapshots.begin(SnapshotPoint(index=4, term=3, voters=(1, 2)))
    unfinished.write(b"x" * 2_000_000)
    shutil.copytree(folder.with_name("living"), folder)
    unfinished.abort()
    living.close()


@pytest.mark.parametrize("kept_in", ["segments", "database"])
def test_inspection_reads_everything_and_changes_nothing_when_the_node_was_killed(tmp_path: Path, kept_in: str):
    """No start is counted, no file is made or removed, the write-ahead log stays as the kill left it."""
    folder = tmp_path / "d"
    leave_killed(folder, kept_in)
    before = files_of(folder)
    assert before["raft.sqlite3-wal"][1]
    for _ in range(2):
        with DataDirectory.inspect(folder) as directory:
            loaded = directory.log.load()
            assert (loaded.term, loaded.batches) == (3, (b"entries",))
            assert loaded.snapshot == StoredSnapshot(index=2, term=1, data=b"manifest")
            assert (directory.node_name, directory.starts, directory.record) == ("b", 1, RECORD)
            (snapshot,) = directory.snapshots.ids()
            with directory.snapshots.open(snapshot) as reader:
                assert reader.info.point.index == 2
    assert files_of(folder) == before


def test_inspection_keeps_no_node_from_starting_when_it_is_under_way(tmp_path: Path):
    """The lock is given back before the reading begins."""
    leave_killed(tmp_path / "d")
    with DataDirectory.inspect(tmp_path / "d") as inspected:
        directory = opened(tmp_path / "d")
        directory.log.save(first=5, last=5, entries=b"more", hard_state=None)
        assert inspected.log.load().batches == (b"entries",)
        directory.close()


def test_inspection_is_refused_when_a_node_runs_on_the_directory(directory: DataDirectory, tmp_path: Path):
    """It names the process: what the files hold while they are written is nobody's state."""
    with (
        pytest.raises(DirectoryInUse, match=f"in use by process {os.getpid()}"),
        DataDirectory.inspect(tmp_path / "d"),
    ):
        pass


def test_node_is_told_to_try_again_when_its_directory_is_being_read(tmp_path: Path):
    """And not that some process of long ago has it; the lock is free for it right after."""
    leave_killed(tmp_path / "d")
    with (tmp_path / "d" / "lock").open(encoding="utf-8") as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        with pytest.raises(DirectoryInUse, match=r"is being read by a command .* try again"):
            opened(tmp_path / "d")
        with DataDirectory.inspect(tmp_path / "d") as inspected:
            assert inspected.node_name == "b"
    opened(tmp_path / "d").close()


def test_inspection_names_what_is_missing_when_it_is_no_data_directory(tmp_path: Path):
    """An empty folder, or none, stays as it is."""
    (tmp_path / "empty").mkdir()
    for name in ("empty", "none"):
        with pytest.raises(StorageError, match="not the data directory"), DataDirectory.inspect(tmp_path / name):
            pass
    assert list((tmp_path / "empty").iterdir()) == []
    assert not (tmp_path / "none").exists()


def test_inspection_names_the_file_of_the_node_when_it_is_damaged(tmp_path: Path):
    """Not the copy that was read: nobody could find it."""
    opened(tmp_path / "d").close()
    path = tmp_path / "d" / "raft.sqlite3"
    path.write_bytes(b"this is not a database, it only stands where one was" * 100)
    with pytest.raises(LogCorrupt) as caught, DataDirectory.inspect(tmp_path / "d"):
        pass
    assert caught.value.path == str(path)
