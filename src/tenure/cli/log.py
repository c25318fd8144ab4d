"""``tenure log verify|inspect``: the log of a node, checked or shown.

That of a stopped node is read from its data directory, that of a running one by the node itself (``--endpoint``).
Nothing in the directory is changed. They end with 2 for wrong use, 4 while a node runs on the directory, 5 where a
record fails its checksum or is missing, 1 where the directory cannot be read; of a running node also with 6 where it
does not answer and 7 without the right token.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from tenure.cli.cluster import NamedNodes, printable
from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text, fail
from tenure.cli.stopped import ConfigFile, DataDir, check_content, check_snapshot, read_log, stopped
from tenure.errors import LogCorrupt

if TYPE_CHECKING:
    from tenure.cli.stopped import Entry, Log
    from tenure.core.commands import RestorePart
    from tenure.storage import DataDirectory

app = App(name="log", help="Checks or shows the log of a node.", result_action="return_value")

#: How long a running node may take to check its log and snapshots.
VERIFY_SECONDS = 600.0
#: What of a user's command is shown.
_SHOWN_BYTES = 40


@app.command
def verify(
    *,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    connection: NamedNodes | None = None,
    output: Output = "table",
) -> ExitCode:
    """Check every checksum of the log, its hard state, its records and the snapshots; name the first that fails.

    With --endpoint each of these nodes checks its own while it runs; no running node is looked for by default. Exit
    code: 0 all is well, 5 a record fails its checksum or is missing, 4 a node runs on the directory.
    """
    if connection is not None and connection.endpoint:
        return _verify_running(connection, output)
    try:
        with stopped(data_dir, config) as directory:
            log = read_log(directory)
            check_content(directory, log)
            snapshots = [check_snapshot(directory, snapshot_id).id for snapshot_id in directory.snapshots.ids()]
            facts = _facts(directory, log)
    except LogCorrupt as error:
        if output == "json":
            emit_json({"valid": False, "problem": str(error), "path": error.path, "index": error.index})
        else:
            fail(str(error), "tenure member replace NODE, once its data directory is moved away")
        return ExitCode.VERIFICATION_FAILED
    if output == "json":
        emit_json({"valid": True, **facts, "snapshots": snapshots})
    else:
        emit_text(
            f"valid: {facts['entries']} entries in {facts['batches']} batches, term and vote, "
            f"{len(snapshots)} snapshots of {facts['node']}"
        )
    return ExitCode.OK


@app.command
def inspect(
    *,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    connection: NamedNodes | None = None,
    from_index: Annotated[int, Parameter(name="--from", help="Show entries from this index on.")] = 0,
    limit: Annotated[int, Parameter(help="How many entries are shown at most.")] = 20,
    output: Output = "table",
) -> None:
    """Print term, vote, commit index and the ends of the log, then its entries with what they say.

    With --endpoint each of these nodes tells where its log stands, without its entries; no running node is looked for
    by default.
    """
    if connection is not None and connection.endpoint:
        _inspect_running(connection, output)
        return
    if limit < 0:
        raise CommandError(f"--limit {limit} is below 0", code=ExitCode.USAGE)
    try:
        with stopped(data_dir, config) as directory:
            log = read_log(directory)
            facts = _facts(directory, log)
    except LogCorrupt as error:
        raise CommandError(str(error), code=ExitCode.VERIFICATION_FAILED) from None
    chosen = [entry for entry in log.entries if entry.index >= from_index]
    shown = [(entry, describe(entry)) for entry in chosen[:limit]]
    if output == "json":
        entries = [{"index": e.index, "term": e.term, "kind": e.kind, "command": command} for e, command in shown]
        emit_json({**facts, "shown": entries, "more": len(chosen) > limit})
        return
    emit_table(("log", "value"), [(name, "-" if value is None else str(value)) for name, value in facts.items()])
    rows = [(str(entry.index), str(entry.term), entry.kind, _as_line(command)) for entry, command in shown]
    if rows:
        emit_table(("index", "term", "kind", "command"), rows)
    if len(chosen) > limit:
        emit_text(f"{len(chosen) - limit} more: --from {chosen[limit].index}, or a larger --limit")


def _verify_running(connection: NamedNodes, output: str) -> ExitCode:
    with connection.open() as cluster:
        reports = [cluster.at(url, "POST", "/v1/log/verify", seconds=VERIFY_SECONDS) for url in cluster.urls]
    valid = all(report["valid"] for report in reports)
    if output == "json":
        emit_json({"valid": valid, "nodes": reports})
    else:
        for report in reports:
            node, count = printable(report["node"]), len(report["snapshots"])
            if report["valid"]:
                emit_text(f"valid: {report['records']} records, {count} snapshots of {node}")
            else:
                fail(f"{node}: {printable(report['problem'])}", f"tenure member replace {node}")
    return ExitCode.OK if valid else ExitCode.VERIFICATION_FAILED


def _inspect_running(connection: NamedNodes, output: str) -> None:
    with connection.open() as cluster:
        states = [cluster.at(url, "GET", "/v1/log") for url in cluster.urls]
    if output == "json":
        emit_json({"nodes": states})
        return
    columns = ("node", "term", "commit_index", "applied_index", "snapshot_index", "last_index")
    emit_table(columns, [tuple(printable(str(state[column])) for column in columns) for state in states])


def _facts(directory: DataDirectory, log: Log) -> dict[str, Any]:
    stored, entries = log.stored, log.entries
    return {
        "data_dir": str(directory.path),
        "node": directory.node_name,
        "cluster": directory.cluster_name,
        "directory_id": directory.directory_id,
        "starts": directory.starts,
        "term": stored.term,
        "vote": stored.vote,
        "commit": stored.commit,
        "snapshot_index": stored.snapshot.index if stored.snapshot is not None else None,
        "snapshot_term": stored.snapshot.term if stored.snapshot is not None else None,
        "first_index": entries[0].index if entries else None,
        "last_index": entries[-1].index if entries else None,
        "entries": len(entries),
        "batches": len(stored.batches),
        "bytes": sum(len(batch) for batch in stored.batches),
    }


def describe(entry: Entry) -> dict[str, Any] | None:
    """What an entry says, as fields; None for the empty first entry of a term. It never raises."""
    from tenure.core import commands

    if entry.kind == "empty":
        return None
    try:
        if entry.kind == "conf_change":
            return _describe_members(entry)
        if commands.is_of_user(entry.data):
            return _describe_payload(commands.user_payload(entry.data, index=entry.index))
        return _fields(commands.decode(entry.data, index=entry.index))
    except (LogCorrupt, ValueError) as error:
        return {"name": "unreadable", "problem": str(error)}


def _describe_payload(payload: bytes | RestorePart | None) -> dict[str, Any]:
    if payload is None:
        return {"name": "barrier"}
    if isinstance(payload, bytes):
        return {"name": "user", "bytes": len(payload), "data": repr(payload[:_SHOWN_BYTES])[2:-1]}
    follows = "nothing, given up" if payload.given_up else "the restore" if payload.last else "another part"
    return {"name": "restore", "part": payload.number, "bytes": len(payload.data), "follows": follows}


def _describe_members(entry: Entry) -> dict[str, Any]:
    import msgspec

    from tenure.core import commands
    from tenure.node.engine import conf_change_in

    changes, context = conf_change_in(entry.data)
    if not changes:
        return {"name": "leave_joint"}
    described: dict[str, Any] = {"name": "members", "changes": [f"{kind} {raft_id}" for kind, raft_id in changes]}
    if context:
        change = commands.decode_members(context, index=entry.index)
        described["added"] = [msgspec.structs.asdict(record) for record in change.added]
        described["removed"] = list(change.removed)
    return described


def _fields(command: Any) -> dict[str, Any]:
    import msgspec

    name = re.sub(r"(?<!^)(?=[A-Z])", "_", type(command).__name__).lower()
    return {"name": name} | {field: msgspec.to_builtins(getattr(command, field)) for field in command.__struct_fields__}


def _as_line(command: dict[str, Any] | None) -> str:
    if command is None:
        return "-"
    return " ".join([command["name"], *(f"{key}={value}" for key, value in command.items() if key != "name")])
