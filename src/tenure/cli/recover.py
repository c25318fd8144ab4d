"""``tenure recover survey``: who is the true leader, who is not, why, and what to do now.

It reads only; the commands that it prints are for the operator to run. It ends with 0 where there is one leader, 3
where there is none, 5 where a split brain was found, 6 where nothing could be reached, 2 on wrong use. What changes
something, ``tenure recover quorum``, is a file of its own.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text

if TYPE_CHECKING:
    from tenure.recovery import Step, Survey

app = App(
    name="recover",
    help="Says which node is the true leader; gives a lost majority up.",
    result_action="return_value",
)
app.command(
    "tenure.cli.quorum:quorum",
    name="quorum",
    # Given here as well as there: the list of commands is printed without importing them.
    help="Make a stopped survivor the only member when a majority is lost.\n\n"
    "Without --the-others-are-dead-for-good it shows what it would do, and changes nothing. Exit code: 0 done or "
    "compared, 4 refused and nothing was changed, 5 the directory is damaged, 2 wrong use.",
)

Endpoints = Annotated[
    list[str] | None,
    Parameter(
        name="--endpoint",
        negative_iterable="",
        consume_multiple=True,
        help="Base URL of a node, http://payment-1b:8080; repeat it for each. Default: TENURE_ENDPOINTS, else a "
        "running demo.",
    ),
]
Dsn = Annotated[str | None, Parameter(help="Connection string of the database. Default: TENURE_DATABASE__DSN.")]
Logs = Annotated[
    list[str] | None,
    Parameter(
        name="--log",
        negative_iterable="",
        consume_multiple=True,
        help="Log file or pattern; repeat it. Default: /var/log/payment-service/*.log",
    ),
]
Demo = Annotated[Path | None, Parameter(help="Data folder of a demo, or its demo.json.")]
Namespace = Annotated[
    str | None,
    Parameter(
        help="Kubernetes namespace of the pods, for the printed commands. Default: payment, where the nodes are called "
        "like pods."
    ),
]
Resource = Annotated[str, Parameter(help="The fenced resource.")]
Timeout = Annotated[float, Parameter(help="Seconds to wait for one answer.")]


@app.command
def survey(
    *,
    endpoint: Endpoints = None,
    dsn: Dsn = None,
    log: Logs = None,
    demo: Demo = None,
    namespace: Namespace = None,
    resource: Resource = "payments",
    timeout: Timeout = 2.0,
    output: Output = "table",
) -> ExitCode:
    """Look at the nodes, the database and the logs; say what each node is, why, and what to do.

    Exit code: 0 one leader, 3 no leader, 5 split brain, 6 nothing reachable, 2 wrong use.
    """
    from tenure.recovery import advise, find_targets
    from tenure.recovery import survey as look
    from tenure.recovery.surveying import as_document

    if not 0 < timeout <= 60:
        raise CommandError(f"--timeout {timeout:g} is outside 0 to 60 seconds", code=ExitCode.USAGE)
    targets = find_targets(endpoints=endpoint or (), dsn=dsn, logs=log or (), demo=demo, environ=os.environ)
    result = asyncio.run(look(targets, resource=resource, timeout_s=timeout))
    steps = advise(result.judgement, namespace=namespace)
    if output == "json":
        import msgspec

        emit_json({**as_document(result), "reached": result.reached, "steps": msgspec.to_builtins(steps)})
    else:
        _show(result, steps)
    return _exit_code(result)


def _exit_code(result: Survey) -> ExitCode:
    from tenure.core.verdict import ClusterVerdict

    if not result.reached:
        return ExitCode.UNREACHABLE
    return {
        ClusterVerdict.ONE_LEADER: ExitCode.OK,
        ClusterVerdict.NO_LEADER: ExitCode.NO_LEADER,
        ClusterVerdict.SPLIT_BRAIN: ExitCode.VERIFICATION_FAILED,
    }[result.judgement.verdict]


def _show(result: Survey, steps: list[Step]) -> None:
    emit_text(_headline(result))
    emit_text("")
    if result.judgement.nodes:
        emit_table(("node", "verdict", "state", "term", "token", "votes", "last write", "URL"), _node_rows(result))
    for node in result.judgement.nodes:
        emit_text(f"\n{node.view.name}: {node.verdict.replace('_', ' ')}")
        for reason in node.reasons:
            emit_text(f"  - {reason}")
    _show_database(result)
    for title, sentences in (("findings", result.judgement.findings), ("not seen", result.missing)):
        if sentences:
            emit_text(f"\n{title}:")
            for sentence in sentences:
                emit_text(f"  - {sentence}")
    emit_text("\nwhat to do (nothing was changed):")
    for number, step in enumerate(steps, 1):
        emit_text(f"\n{number}. {step.title}. {step.why}")
        for command in step.commands:
            emit_text(f"   {command.run}")
            if command.expect:
                emit_text(f"   # should return: {command.expect}")


def _headline(result: Survey) -> str:
    from tenure.core.verdict import ClusterVerdict, NodeVerdict

    judgement = result.judgement
    stale = ", ".join(node.view.name for node in judgement.named(NodeVerdict.STALE_LEADER))
    leader = f"{judgement.true_leader} is the true leader (by: {judgement.basis.replace('_', ' ')})"
    if not result.reached:
        return "NOTHING REACHABLE: no node and no database answered"
    if judgement.verdict is ClusterVerdict.ONE_LEADER:
        return f"ONE LEADER: {leader}"
    if judgement.verdict is ClusterVerdict.NO_LEADER:
        return "NO LEADER: nobody leads at this moment"
    return f"SPLIT BRAIN: {leader if judgement.true_leader else 'no true leader'}; stale: {stale}"


def _node_rows(result: Survey) -> list[tuple[str, ...]]:
    from tenure.core.verdict import instant

    def text(value: object) -> str:
        return "-" if value is None else str(value)

    last = {span.node: instant(span.last_at) for span in sorted(result.evidence.writes, key=lambda span: span.last_at)}
    return [
        (
            node.view.name,
            str(node.verdict),
            text(node.view.state),
            text(node.view.term),
            text(node.view.fencing_token),
            "-" if node.view.votes_needed is None else f"{text(node.view.votes_for_me)} of {node.view.votes_needed}",
            last.get(node.view.name, "-"),
            text(node.view.url),
        )
        for node in result.judgement.nodes
    ]


def _show_database(result: Survey) -> None:
    from tenure.core.verdict import instant
    from tenure.recovery.database import query

    database = result.database
    if database.writers:
        emit_text("\n" + query("who_writes").decode().rstrip())
        emit_table(
            ("node_id", "count", "max"),
            [(row.node_id, str(row.count), instant(row.last_at) if row.last_at else "-") for row in database.writers],
        )
    if database.fence is not None:
        fence = database.fence
        emit_text(f"\nfence of {fence.resource}: token {fence.token}, holder {fence.holder or 'nobody'}")
        for entry in database.ledger:
            tokens = " to ".join(str(token) for token in (entry.from_token, entry.to_token) if token is not None)
            what = f"{entry.action} {tokens}".rstrip()
            emit_text(f"  {entry.at}  {what} by {entry.who}: {entry.why}")
