"""The commands that look into a stopped node's directory: what they show and find, and that they change nothing."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenure.cli import main
from tenure.cli.log import describe
from tenure.cli.output import ExitCode
from tenure.cli.stopped import Entry
from tenure.core import commands, manifest
from tenure.core.commands import Acquire, MemberRecord, MembersChange, Recover, RestorePart, Settings, encode_part
from tenure.core.fsm import ClusterRecord, initial_state
from tenure.core.manifest import Content, Manifest
from tenure.node.engine import batch_of, conf_change_of
from tenure.storage import DataDirectory, SnapshotPoint, StoredSnapshot

SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)
MEMBERS = tuple(MemberRecord(raft_id=n, name=name, directory_id=name * 32) for n, name in ((1, "a"), (2, "b")))
RECORD = ClusterRecord(
    format=1, cluster_name="c", cluster_id="e" * 32, lineage="e" * 16, members=MEMBERS, settings=SETTINGS
)
ACQUIRE = Acquire(
    holder=2, term=3, incarnation=77, floor=5, duration_ns=1, rate_error_ppm=2, cover_ns=3, cover_rate_error_ppm=4
)
ADDED = MembersChange(added=(MemberRecord(raft_id=4, name="d", directory_id="d" * 32, address="d:9080"),))
MARKER = b"the content of the user's own state machine"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENURE_NODE__DATA_DIR", raising=False)


@pytest.fixture(params=["segments", "database"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A node's directory with a log from its founding on: entries 1 to 6, the last two of them replaced once.

    With its log in segments, and where an earlier version began it in the database.
    """
    folder = tmp_path / "data"
    directory = DataDirectory.open(folder, node_name="b", cluster_name="c")
    directory.found(RECORD)
    store = directory.log if request.param == "segments" else directory.store
    user = bytes([commands.USER]) + b"key=value"
    first = batch_of([(1, 1, "empty", b""), (2, 1, "command", user), (3, 1, "command", user), (4, 1, "command", user)])
    store.save(first=1, last=4, entries=first, hard_state=(1, 1, 2))
    replacing = batch_of([(3, 3, "empty", b""), (4, 3, "command", commands.encode(ACQUIRE))])
    store.save(first=3, last=4, entries=replacing, hard_state=(3, 2, 4))
    change = conf_change_of([("add_learner", 4)], commands.encode_members(ADDED))
    barrier = bytes([commands.BARRIER])
    store.save(
        first=5, last=6, entries=batch_of([(5, 3, "conf_change", change), (6, 3, "command", barrier)]), hard_state=None
    )
    directory.close()
    return folder


@pytest.fixture
def compacted(folder: Path) -> Path:
    """The same with a snapshot of entry 4, whose content lies in the snapshot store."""
    directory = DataDirectory.open(folder, node_name="b", cluster_name="c")
    writer = directory.snapshots.begin(SnapshotPoint(index=4, term=3, voters=(1, 2), learners=(9,)))
    writer.write(MARKER)
    info = writer.commit()
    content = Content(id=info.id, size=info.size, sha256=info.sha256)
    state = Manifest(index=4, term=3, state=initial_state(RECORD), voters=(1, 2), content=content)
    directory.log.compact(StoredSnapshot(index=4, term=3, data=manifest.encode(state)))
    directory.close()
    return folder


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict]:
    code, out, _ = run(capsys, *arguments, "-o", "json")
    return code, json.loads(out)


def flip(path: Path, marker: bytes) -> None:
    data = bytearray(path.read_bytes())
    place = data.find(marker)
    assert place >= 0
    data[place] ^= 1
    path.write_bytes(data)


def states_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    paths: Iterator[Path] = folder.rglob("*")
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths if path.is_file()}


# -- log inspect ------------------------------------------------------------------------------------------------------


def test_log_inspect_shows_what_the_log_comes_to_when_a_part_of_it_was_replaced(folder: Path, capsys):
    """The entries as they would be applied, each with what it says."""
    code, found = document(capsys, "log", "inspect", "--data-dir", folder)
    assert code == ExitCode.OK
    assert found["schema"] == 1
    assert {name: found[name] for name in ("node", "cluster", "term", "vote", "commit", "starts")} == {
        "node": "b", "cluster": "c", "term": 3, "vote": 2, "commit": 4, "starts": 1,
    }  # fmt: skip
    assert [found[name] for name in ("first_index", "last_index", "entries", "batches")] == [1, 6, 6, 3]
    assert found["snapshot_index"] is None
    assert [(entry["index"], entry["term"], entry["kind"]) for entry in found["shown"]] == [
        (1, 1, "empty"), (2, 1, "command"), (3, 3, "empty"),
        (4, 3, "command"), (5, 3, "conf_change"), (6, 3, "command"),
    ]  # fmt: skip
    said = [entry["command"] for entry in found["shown"]]
    assert said[0] is None
    assert said[1] == {"name": "user", "bytes": 9, "data": "key=value"}
    assert (said[3]["name"], said[3]["holder"], said[3]["floor"]) == ("acquire", 2, 5)
    assert said[4]["changes"] == ["add_learner 4"]
    assert said[4]["added"][0]["name"] == "d"
    assert said[5] == {"name": "barrier"}


def test_log_inspect_shows_a_part_when_it_is_asked_for_one(folder: Path, capsys):
    """And says how to go on."""
    code, found = document(capsys, "log", "inspect", "--data-dir", folder, "--from", 3, "--limit", 2)
    assert (code, [entry["index"] for entry in found["shown"]], found["more"]) == (ExitCode.OK, [3, 4], True)
    code, out, _ = run(capsys, "log", "inspect", "--data-dir", folder, "--from", 3, "--limit", 2)
    assert "2 more: --from 5" in out
    assert "4\t3\tcommand\tacquire holder=2" in out
    assert run(capsys, "log", "inspect", "--data-dir", folder, "--limit", "-1")[0] == ExitCode.USAGE


def test_log_inspect_begins_behind_the_snapshot_when_the_log_is_compacted(compacted: Path, capsys):
    """A batch that reaches below it is stored, but not shown."""
    _, found = document(capsys, "log", "inspect", "--data-dir", compacted)
    facts = [found[name] for name in ("snapshot_index", "snapshot_term", "first_index", "last_index")]
    assert facts == [4, 3, 5, 6]


def test_log_inspect_shows_the_other_entries_when_one_is_of_a_newer_version(folder: Path, capsys):
    """It is unreadable here, which is what the operator looks for."""
    directory = DataDirectory.open(folder, node_name="b", cluster_name="c")
    entries = [(7, 3, "command", b"\x63?"), (8, 3, "command", commands.encode(Recover(generation=1, lineage="f")))]
    directory.log.save(first=7, last=8, entries=batch_of(entries), hard_state=None)
    directory.close()
    _, found = document(capsys, "log", "inspect", "--data-dir", folder, "--from", 7)
    newer, known = (entry["command"] for entry in found["shown"])
    assert newer["name"] == "unreadable"
    assert "format 99" in newer["problem"]
    assert known == {"name": "recover", "generation": 1, "lineage": "f"}


# -- log verify -------------------------------------------------------------------------------------------------------


def test_log_verify_passes_and_changes_nothing_when_all_is_well(compacted: Path, capsys):
    """No opening is counted, no file made; the file of settings leads to the directory as well."""
    before = states_of(compacted)
    code, found = document(capsys, "log", "verify", "--data-dir", compacted)
    assert (code, found["valid"], found["node"]) == (ExitCode.OK, True, "b")
    assert len(found["snapshots"]) == 1
    config = compacted.with_name("node.toml")
    config.write_text(
        f"[node]\nname = 'b'\ndata_dir = '{compacted}'\n[raft]\n"
        "peers = { b = { raft = '127.0.0.1:9080', url = 'http://127.0.0.1:8080' } }\n"
        "[database]\ndsn = 'postgresql://app@127.0.0.1/payments'\n"
    )
    code, out, err = run(capsys, "log", "verify", "--config", config)
    assert (code, err) == (ExitCode.OK, "")
    assert out.startswith("valid: 2 entries in ")
    assert states_of(compacted) == before


@pytest.mark.parametrize(
    ("folder", "place"),
    [
        *(("database", table) for table in ("batch", "hard_state", "snapshot", "meta")),
        # Beside the log, in an entry, in the record of the snapshot, in the first record.
        *(("segments", place) for place in ("meta", b"key=value", b"eeeeeeee", b"TNREND")),
    ],
    indirect=["folder"],
)
def test_log_verify_names_the_record_when_its_checksum_fails(compacted: Path, capsys, place: str | bytes):
    """With the exit code that means it, on stderr for people and on stdout for machines."""
    if isinstance(place, str):
        path = compacted / "raft.sqlite3"
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute(f"UPDATE {place} SET checksum = checksum + 1")
    else:
        (path,) = (compacted / "log").iterdir()
        flip(path, place)
    code, found = document(capsys, "log", "verify", "--data-dir", compacted)
    assert (code, found["valid"]) == (ExitCode.VERIFICATION_FAILED, False)
    assert "fails its checksum" in found["problem"]
    assert found["path"] == str(path)
    code, out, err = run(capsys, "log", "verify", "--data-dir", compacted)
    assert (code, out) == (ExitCode.VERIFICATION_FAILED, "")
    assert "fails its checksum" in err
    assert "Traceback" not in err
    for command in ("log", "snapshot"):
        code, _, err = run(capsys, command, "inspect", "--data-dir", compacted)
        assert (code, "fails its checksum" in err) == (ExitCode.VERIFICATION_FAILED, True)


def test_log_verify_names_the_snapshot_when_it_is_damaged_or_gone(compacted: Path, capsys):
    """The content belongs to the log that starts with it."""
    (path,) = (compacted / "snapshots").iterdir()
    whole = path.read_bytes()
    flip(path, MARKER)
    code, found = document(capsys, "log", "verify", "--data-dir", compacted)
    assert (code, found["path"]) == (ExitCode.VERIFICATION_FAILED, str(path))
    path.unlink()
    code, found = document(capsys, "log", "verify", "--data-dir", compacted)
    assert code == ExitCode.VERIFICATION_FAILED
    assert "is not there" in found["problem"]
    path.write_bytes(whole)
    assert run(capsys, "log", "verify", "--data-dir", compacted)[0] == ExitCode.OK


def test_log_verify_names_the_snapshot_when_it_is_another_of_that_name(compacted: Path, capsys):
    """Whole in itself, but not the one that the log was compacted with."""
    directory = DataDirectory.open(compacted, node_name="b", cluster_name="c")
    writer = directory.snapshots.begin(SnapshotPoint(index=4, term=3, voters=(1, 2)))
    writer.write(b"another state")
    writer.commit()
    directory.close()
    code, found = document(capsys, "log", "verify", "--data-dir", compacted)
    assert (code, "another snapshot" in found["problem"]) == (ExitCode.VERIFICATION_FAILED, True)


@pytest.mark.parametrize(
    ("first", "entries", "hard_state", "named"),
    [
        (9, [(9, 3, "empty", b"")], None, "entries between 6 and 9 are missing"),
        (7, [(7, 3, "empty", b"")], (3, 2, 8), "the log ends at 7, and 8 was committed"),
        (7, None, None, "malformed"),
    ],
)
def test_log_verify_names_the_contradiction_when_every_checksum_holds(
    folder: Path, capsys, first: int, entries: list | None, hard_state: tuple | None, named: str
):
    """A store that was written wrong is as useless as one that was damaged."""
    directory = DataDirectory.open(folder, node_name="b", cluster_name="c")
    batch = b"nothing that the engine wrote" if entries is None else batch_of(entries)
    directory.log.save(first=first, last=first, entries=batch, hard_state=hard_state)
    directory.close()
    code, found = document(capsys, "log", "verify", "--data-dir", folder)
    assert code == ExitCode.VERIFICATION_FAILED
    assert named in found["problem"]


# -- snapshot inspect -------------------------------------------------------------------------------------------------


def test_snapshot_inspect_lists_what_there_is_when_all_is_whole(compacted: Path, capsys):
    """With the members by name where the directory knows them."""
    code, found = document(capsys, "snapshot", "inspect", "--data-dir", compacted)
    assert code == ExitCode.OK
    (snapshot,) = found["snapshots"]
    assert found["log_starts_with"] == {"index": 4, "term": 3, "content": snapshot["id"]}
    assert (snapshot["index"], snapshot["size"], snapshot["verified"]) == (4, len(MARKER), True)
    assert snapshot["members"] == ["a", "b", "9 (learner)"]
    code, out, err = run(capsys, "snapshot", "inspect", "--data-dir", compacted)
    assert (code, err) == (ExitCode.OK, "")
    assert "a, b, 9 (learner)" in out


def test_snapshot_inspect_says_so_when_there_is_none(folder: Path, capsys):
    """The log alone is the state."""
    code, out, _ = run(capsys, "snapshot", "inspect", "--data-dir", folder)
    assert (code, out) == (ExitCode.OK, "the log starts at its founding: no snapshot stands for a part of it\n")
    assert document(capsys, "snapshot", "inspect", "--data-dir", folder)[1]["snapshots"] == []


def test_snapshot_inspect_shows_the_others_when_one_is_damaged(compacted: Path, capsys):
    """Which one can still be used is the question then."""
    directory = DataDirectory.open(compacted, node_name="b", cluster_name="c")
    writer = directory.snapshots.begin(SnapshotPoint(index=5, term=3, voters=(1, 2)))
    writer.write(b"newer state")
    newer = writer.commit()
    directory.close()
    flip(compacted / "snapshots" / f"{newer.id}.snapshot", b"newer state")
    code, found = document(capsys, "snapshot", "inspect", "--data-dir", compacted)
    assert code == ExitCode.VERIFICATION_FAILED
    assert [snapshot["verified"] for snapshot in found["snapshots"]] == [False, True]
    code, out, err = run(capsys, "snapshot", "inspect", "--data-dir", compacted)
    assert (code, newer.id in err) == (ExitCode.VERIFICATION_FAILED, True)
    assert "\tno" in out


# -- which directory --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("log", "verify"), ("log", "inspect"), ("snapshot", "inspect")])
def test_commands_refuse_with_the_next_step_when_a_node_runs_on_the_directory(folder: Path, capsys, command):
    """Its files change while they are read."""
    directory = DataDirectory.open(folder, node_name="b", cluster_name="c")
    code, out, err = run(capsys, *command, "--data-dir", folder)
    directory.close()
    assert (code, out) == (ExitCode.REFUSED, "")
    assert "in use by process" in err
    assert "--endpoint" in err


def test_commands_name_the_mistake_when_the_directory_is_not_given_or_none(folder: Path, capsys, monkeypatch):
    """No option, or a folder of something else; the environment may name it as well."""
    assert run(capsys, "log", "verify")[0] == ExitCode.USAGE
    code, _, err = run(capsys, "log", "inspect", "--data-dir", folder.parent)
    assert (code, "not the data directory" in err) == (ExitCode.FAILED, True)
    monkeypatch.setenv("TENURE_NODE__DATA_DIR", str(folder))
    assert run(capsys, "log", "verify")[0] == ExitCode.OK


@pytest.mark.parametrize(
    ("part", "follows"),
    [
        (RestorePart(b"id", 0, b"state"), "another part"),
        (RestorePart(b"id", 1, b"state", last=True), "the restore"),
        (RestorePart(b"id", 0, b"state", given_up=True), "nothing, given up"),
    ],
)
def test_part_of_a_restore_is_described_by_what_follows_it(part: RestorePart, follows: str):
    said = describe(Entry(7, 2, "command", encode_part(part)))
    assert said == {"name": "restore", "part": part.number, "bytes": 5, "follows": follows}


def test_part_of_a_restore_is_unreadable_when_a_newer_version_wrote_it():
    data = bytearray(encode_part(RestorePart(b"id", 0, b"state")))
    data[1] += 1
    assert "a newer Tenure wrote it" in (describe(Entry(7, 2, "command", bytes(data))) or {})["problem"]
