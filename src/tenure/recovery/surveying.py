"""One look at everything: the nodes, the database and the logs, at the same time, and the verdict over it.

A survey is no snapshot: its parts are read within a second or two, and a takeover in between can look like two
leaders. So a split brain is believed only when a second look sees it too. Nothing is changed by looking.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from tenure.core.verdict import ClusterVerdict, Evidence, Judgement, LogWrite, NodeView, judge
from tenure.recovery.database import DatabaseFacts, read_database
from tenure.recovery.logs import read_logs
from tenure.recovery.nodes import ask_nodes
from tenure.recovery.targets import Targets

SECOND_LOOK_AFTER_SECONDS = 0.5


class Survey(msgspec.Struct, frozen=True):
    """What was seen and what follows from it. ``missing`` names each source that gave nothing, and why."""

    judgement: Judgement
    evidence: Evidence
    database: DatabaseFacts
    missing: tuple[str, ...]
    reached: bool
    looks: int = 1


async def survey(targets: Targets, *, resource: str, timeout_s: float) -> Survey:
    """Look at ``targets`` and judge. ``timeout_s`` (seconds) bounds each wait for one answer.

    Never raises for what a source does or lacks. Cancelling it drops the answers; a database query that runs in
    its thread ends by its own timeout.
    """
    first = await _look(targets, resource, timeout_s)
    if first.judgement.verdict is not ClusterVerdict.SPLIT_BRAIN:
        return first
    await asyncio.sleep(SECOND_LOOK_AFTER_SECONDS)
    second = msgspec.structs.replace(await _look(targets, resource, timeout_s), looks=2)
    if second.judgement.verdict is ClusterVerdict.SPLIT_BRAIN:
        return second
    gone = "a first look saw more than one leader, a second did not: a takeover was under way"
    judgement = msgspec.structs.replace(second.judgement, findings=(*second.judgement.findings, gone))
    return msgspec.structs.replace(second, judgement=judgement)


async def _look(targets: Targets, resource: str, timeout_s: float) -> Survey:
    views, database, (logs, missing) = await asyncio.gather(
        ask_nodes(targets.endpoints, timeout_s=timeout_s),
        asyncio.to_thread(_database, targets.dsn, resource, timeout_s),
        asyncio.to_thread(read_logs, targets.logs),
    )
    missing = [*_silent(targets, views), *database.missing, *missing]
    evidence = Evidence(nodes=tuple(views), writes=tuple(database.spans), logs=tuple(logs), fence=database.fence)
    return Survey(
        judgement=judge(evidence),
        evidence=evidence,
        database=database,
        missing=tuple(missing),
        reached=database.reached or any(view.state for view in views) or _only_logs(targets, logs),
    )


def _database(dsn: str | None, resource: str, timeout_s: float) -> DatabaseFacts:
    if dsn is None:
        return DatabaseFacts(missing=["database: not asked, no --dsn was given"])
    return read_database(dsn, resource, timeout_s=timeout_s)


def _silent(targets: Targets, views: list[NodeView]) -> list[str]:
    if not targets.endpoints:
        return ["nodes: not asked, no --endpoint was given"]
    return [f"nodes: {view.url} {view.problem}" for view in views if view.state is None]


def _only_logs(targets: Targets, logs: list[LogWrite]) -> bool:
    return bool(logs) and not targets.endpoints and targets.dsn is None


def as_document(result: Survey) -> dict[str, Any]:
    """The survey as plain values for JSON: times are RFC 3339 text. It holds no DSN and no credential."""
    judgement, database = result.judgement, result.database
    document = {
        "verdict": judgement.verdict,
        "true_leader": judgement.true_leader,
        "basis": judgement.basis,
        "nodes": [
            {
                "name": node.view.name,
                "verdict": node.verdict,
                "reasons": node.reasons,
                **{key: value for key, value in msgspec.structs.asdict(node.view).items() if key in _SHOWN},
                "writes": [
                    {key: value for key, value in msgspec.structs.asdict(span).items() if key != "node"}
                    for span in sorted(result.evidence.writes, key=lambda span: span.last_at)
                    if span.node == node.view.name
                ],
                "log": next((log for log in result.evidence.logs if log.node == node.view.name), None),
            }
            for node in judgement.nodes
        ],
        "who_writes": database.writers,
        "fence": database.fence,
        "ledger": database.ledger,
        "findings": judgement.findings,
        "missing": result.missing,
        "looks": result.looks,
    }
    plain: dict[str, Any] = msgspec.to_builtins(document)
    return plain


_SHOWN = frozenset(
    {
        "url",
        "pid",
        "state",
        "term",
        "fencing_token",
        "lease_remaining_ms",
        "votes_for_me",
        "votes_needed",
        "leader_name",
        "problem",
    }
)
