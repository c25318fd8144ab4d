"""``tenure snapshot inspect``: the snapshots of a stopped node, each read to its end, from its data directory.

Nothing in the directory is changed. It ends with 2 for wrong use, 4 while a node runs on the directory, 5 where a
snapshot is damaged or missing, 1 where the directory cannot be read.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cyclopts import App

from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text, say
from tenure.cli.stopped import ConfigFile, DataDir, check_content, check_snapshot, read_log, stopped
from tenure.errors import LogCorrupt

if TYPE_CHECKING:
    from tenure.cli.stopped import Log
    from tenure.storage import DataDirectory, SnapshotPoint

app = App(name="snapshot", help="Shows the snapshots of a stopped node.", result_action="return_value")


@app.command
def inspect(*, data_dir: DataDir = None, config: ConfigFile = None, output: Output = "table") -> ExitCode:
    """Print every snapshot with its place, its members, size and hash, and whether it is whole.

    Exit code: 0 all are whole, 5 one is damaged or the one that the log starts with is missing.
    """
    try:
        with stopped(data_dir, config) as directory:
            log = read_log(directory)
            names = _names(directory, log)
            found = [_described(directory, snapshot_id, names) for snapshot_id in directory.snapshots.ids()]
            start = _start(log)
            problems = [snapshot["problem"] for snapshot in found if not snapshot["verified"]]
            if not problems:
                check_content(directory, log)
    except LogCorrupt as error:
        raise CommandError(str(error), code=ExitCode.VERIFICATION_FAILED) from None
    if output == "json":
        emit_json({"log_starts_with": start, "snapshots": found})
    else:
        _show(start, found)
    for problem in problems:
        say(f"tenure: {problem}")
    return ExitCode.VERIFICATION_FAILED if problems else ExitCode.OK


def _start(log: Log) -> dict[str, Any] | None:
    """The snapshot that the log starts with. It has no content where there is no state machine of the user's."""
    manifest = log.manifest
    if manifest is None:
        return None
    content = manifest.content.id if manifest.content is not None else None
    return {"index": manifest.index, "term": manifest.term, "content": content}


def _names(directory: DataDirectory, log: Log) -> dict[int, str]:
    """The members' names by raft id, as far as this directory knows them."""
    enrolment = directory.enrolment
    records = list(enrolment.record.members) if enrolment is not None else []
    if enrolment is not None and enrolment.membership is not None:
        records += enrolment.membership.members
    if log.manifest is not None:
        records += log.manifest.state.members
    return {record.raft_id: record.name for record in records}


def _described(directory: DataDirectory, snapshot_id: str, names: dict[int, str]) -> dict[str, Any]:
    try:
        info = check_snapshot(directory, snapshot_id)
    except LogCorrupt as error:
        return {"id": snapshot_id, "verified": False, "problem": str(error)}
    return {
        "id": info.id,
        "index": info.point.index,
        "term": info.point.term,
        "members": _members(info.point, names),
        "size": info.size,
        "sha256": info.sha256,
        "verified": True,
    }


def _members(point: SnapshotPoint, names: dict[int, str]) -> list[str]:
    voters = [names.get(raft_id, str(raft_id)) for raft_id in point.voters]
    return voters + [f"{names.get(raft_id, str(raft_id))} (learner)" for raft_id in point.learners]


def _show(start: dict[str, Any] | None, found: list[dict[str, Any]]) -> None:
    if start is None:
        emit_text("the log starts at its founding: no snapshot stands for a part of it")
    else:
        content = f"its content is {start['content']}" if start["content"] else "it has no content of a state machine"
        emit_text(f"the log starts with the snapshot of index {start['index']}, term {start['term']}: {content}")
    columns = ("id", "index", "term", "members", "size", "sha256", "verified")
    if found:
        emit_table(columns, [tuple(_cell(snapshot, column) for column in columns) for snapshot in found])


def _cell(snapshot: dict[str, Any], column: str) -> str:
    value = snapshot.get(column, "-")
    if column == "verified":
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
