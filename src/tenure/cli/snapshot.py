"""``tenure snapshot take|inspect``: has running nodes take a snapshot, and shows those of a node, each read to its end.

Those of a stopped node are read from its data directory, those of a running one by the node itself (``--endpoint``).
Looking changes nothing. They end with 2 for wrong use, 4 while a node runs on the directory or where none could be
taken, 5 where a snapshot is damaged or missing, 1 where the directory cannot be read; of a running node also with 6
where it does not answer and 7 without the right token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cyclopts import App

from tenure.cli.cluster import Connection, NamedNodes, printable
from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text, fail, say
from tenure.cli.stopped import ConfigFile, DataDir, check_content, check_snapshot, read_log, stopped
from tenure.errors import LogCorrupt

if TYPE_CHECKING:
    from tenure.cli.stopped import Log
    from tenure.storage import DataDirectory, SnapshotPoint

app = App(name="snapshot", help="Takes or shows the snapshots of a node.", result_action="return_value")

#: How long a running node may take over its snapshots.
TAKE_SECONDS = 600.0


@app.command
def take(*, connection: Connection | None = None, output: Output = "table") -> ExitCode:
    """Have each of the nodes take a snapshot now and compact its log; by default all that are found.

    A node whose last snapshot has everything takes none, and that is well: exit code 0.
    """
    asked: list[dict[str, Any]] = []
    code = ExitCode.OK
    with (connection or Connection()).open() as cluster:
        for url in cluster.urls:
            try:
                asked.append(cluster.at(url, "POST", "/v1/snapshots", seconds=TAKE_SECONDS))
            except CommandError as error:
                # One that cannot, or is away, keeps nobody else from it.
                fail(error.message, error.next_step)
                code = error.code
    if output == "json":
        emit_json({"nodes": asked})
        return code
    for answer in asked:
        done = "taken" if answer["taken"] else "nothing was applied since the last one, which stands"
        emit_text(f"{printable(answer['node'])}: {done}, up to log entry {answer['index']}")
    return code


@app.command
def inspect(
    *,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    connection: NamedNodes | None = None,
    output: Output = "table",
) -> ExitCode:
    """Print every snapshot with its place, its members, size and hash, and whether it is whole.

    With --endpoint each of these nodes tells its own while it runs; no running node is looked for by default.
    Exit code: 0 all are whole, 5 one is damaged or the one that the log starts with is missing.
    """
    if connection is not None and connection.endpoint:
        return _inspect_running(connection, output)
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


def _inspect_running(connection: NamedNodes, output: str) -> ExitCode:
    with connection.open() as cluster:
        nodes = [cluster.at(url, "GET", "/v1/snapshots", seconds=TAKE_SECONDS) for url in cluster.urls]
    problems = [snapshot["problem"] for node in nodes for snapshot in node["snapshots"] if not snapshot["verified"]]
    if output == "json":
        emit_json({"nodes": nodes})
    else:
        for node in nodes:
            start = node["log_starts_with"]
            begins = f"behind the snapshot of index {start['index']}" if start else "at its founding"
            emit_text(f"{printable(node['node'])}: its log starts {begins}")
            _show_found(node["snapshots"])
    for problem in problems:
        say(f"tenure: {printable(problem)}")
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
    _show_found(found)


def _show_found(found: list[dict[str, Any]]) -> None:
    columns = ("id", "index", "term", "members", "size", "sha256", "verified")
    if found:
        emit_table(columns, [tuple(_cell(snapshot, column) for column in columns) for snapshot in found])


def _cell(snapshot: dict[str, Any], column: str) -> str:
    value = snapshot.get(column, "-")
    if column == "verified":
        return "yes" if value else "no"
    return ", ".join(value) if isinstance(value, list) else str(value)
