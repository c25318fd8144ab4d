"""Asks the database who wrote and who holds the fence. It reads, in one read-only snapshot, and changes nothing.

Every part may be absent: a table without tokens, a database without a fence, no table at all. What is absent is
said in a sentence and does not hide the rest. The DSN never appears in any of them.
"""

from __future__ import annotations

import math
import threading
from datetime import UTC, datetime
from importlib import resources
from typing import Any

import msgspec
import psycopg
from psycopg.conninfo import make_conninfo

from tenure import fence
from tenure.core.verdict import FenceFacts, WriteSpan
from tenure.errors import TenureError

LEDGER_ROWS = 5


class WriterRow(msgspec.Struct, frozen=True):
    """One row of the question *who writes?*: a node, the number of its rows, its newest row."""

    node_id: str
    count: int
    last_at: datetime | None


class DatabaseFacts(msgspec.Struct):
    """What the database told. ``reached`` is False where no session could be had."""

    reached: bool = False
    writers: list[WriterRow] = []
    spans: list[WriteSpan] = []
    ledger: list[fence.LedgerRow] = []
    fence: FenceFacts | None = None
    missing: list[str] = []


def query(name: str) -> bytes:
    """The text of one of our own ``.sql`` files, as the driver takes it."""
    return resources.files("tenure.recovery").joinpath("sql", f"{name}.sql").read_bytes()


def read_database(dsn: str, resource: str, *, timeout_s: float) -> DatabaseFacts:
    """Read writers, spans, fence and ledger. No statement runs longer than ``timeout_s``; blocks for a few times that.

    Never raises for what the database does or lacks: that is in ``missing``.
    """
    connect_s = max(2, math.ceil(timeout_s))  # libpq takes whole seconds, and no fewer than two
    facts = DatabaseFacts()
    try:
        bounded = make_conninfo(dsn, connect_timeout=connect_s, application_name="tenure recover")
    except psycopg.Error:
        facts.missing.append("database: the DSN cannot be read; write it as postgresql://USER@HOST/DATABASE")
        return facts
    # A server that is paused or cut off in mid-session answers neither a statement nor its timeout: then the thread
    # is left to itself, and what it has read so far counts.
    worker = threading.Thread(target=_read, args=(bounded, resource, timeout_s, facts), daemon=True)
    worker.start()
    worker.join(connect_s + 3 * timeout_s)
    if worker.is_alive():
        facts.missing.append("database: it stopped answering")
        return msgspec.structs.replace(facts)
    return facts


def _read(dsn: str, resource: str, timeout_s: float, facts: DatabaseFacts) -> None:
    try:
        with psycopg.connect(dsn) as connection:
            facts.reached = True
            connection.read_only = True
            connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            connection.execute("SELECT set_config('statement_timeout', %s, true)", [f"{timeout_s * 1000:.0f}"])
            _read_writers(connection, facts)
            connection.rollback()
    except psycopg.Error as error:
        facts.missing.append(f"database: {_first_line(error)}")
    # A session that was lost in the middle of its questions says nothing about the next one.
    if facts.reached:
        _read_fence(dsn, resource, facts)


def _read_writers(connection: psycopg.Connection, facts: DatabaseFacts) -> None:
    rows = _ask(connection, facts, "rows", "who_writes")
    facts.writers = [WriterRow(_name(node), count, _aware(last)) for node, count, last in rows]
    rows = _ask(connection, facts, "tokens", "write_spans")
    facts.spans = [
        WriteSpan(node=_name(node), token=token, rows=count, first_at=_aware(first), last_at=_aware(last))
        for node, token, count, first, last in rows
    ]
    if not facts.spans:
        facts.spans = [
            WriteSpan(node=row.node_id, token=None, rows=row.count, first_at=row.last_at, last_at=row.last_at)
            for row in facts.writers
            if row.last_at is not None
        ]


def _read_fence(dsn: str, resource: str, facts: DatabaseFacts) -> None:
    try:
        view, ledger = fence.show(dsn, resource, limit=LEDGER_ROWS)
    except TenureError as error:
        facts.missing.append(f"fence: {error}")
        return
    facts.ledger = ledger
    facts.fence = FenceFacts(
        resource=view.resource,
        token=view.token,
        holder=view.holder,
        server_changed=(view.timeline, view.server_start) != (view.live_timeline, view.live_server_start),
    )


def _ask(connection: psycopg.Connection, facts: DatabaseFacts, part: str, question: str) -> list[tuple[Any, ...]]:
    """One question in a savepoint, so that its failure is noted and the next can still be asked."""
    try:
        with connection.transaction():
            return connection.execute(query(question)).fetchall()
    except psycopg.Error as error:
        if connection.closed:
            raise
        facts.missing.append(f"{part}: {_first_line(error)}")
        return []


def _first_line(error: psycopg.Error) -> str:
    return (error.diag.message_primary or str(error).partition("\n")[0] or type(error).__name__).strip()


def _name(value: object) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in str(value)[:200])


def _aware(value: datetime | None) -> Any:
    """A column without a time zone is read as UTC."""
    return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value
