"""The writer's own database session: runs one fenced statement over a batch and says exactly what became of it.

A statement is its own transaction (autocommit), so no session ever stands idle in a transaction that holds the fence.
The write is called done only if the statement's own tag says so, the session is idle after it and no WARNING came
(R30): PostgreSQL reports a commit that a standby never confirmed as success with a warning. An error that the server
reported over a session that stays open means that nothing was written. Everything else is an unknown outcome (R29),
and the session is thrown away. This module must never turn an unknown outcome into success or into failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, LiteralString

import psycopg
from psycopg.pq import TransactionStatus

from payment_service.dsn import session_dsn
from payment_service.models import ACCEPTED, PaymentRequest
from tenure import DatabaseUnavailable, Leadership, OutcomeUnknown
from tenure.fence import ASSERT_LEADER_CTE, map_error

_CONNECT_TIMEOUT: Final = 5.0

# The CTE is referenced, so it runs; it is MATERIALIZED, so it runs once. The trigger of the fence compares it after
# the last row. ORDER BY: two batches with the same keys must take the unique index in the same order (R28).
_INSERT: Final[LiteralString] = (
    ASSERT_LEADER_CTE
    + """
INSERT INTO payment_events (payment_id, node_id, fencing_token, term, type, amount, currency, debtor, creditor,
                            reference, client_id, idempotency_key, request_hash)
SELECT r.payment_id, %(node)s, %(token)s, %(term)s, %(type)s, r.amount, r.currency, r.debtor, r.creditor,
       r.reference, r.client_id, r.idempotency_key, r.request_hash
FROM tenure_assertion,
     unnest(%(payment_ids)s::uuid[], %(amounts)s::bigint[], %(currencies)s::text[], %(debtors)s::text[],
            %(creditors)s::text[], %(references)s::text[], %(client_ids)s::text[], %(keys)s::text[],
            %(hashes)s::bytea[])
     AS r (payment_id, amount, currency, debtor, creditor, reference, client_id, idempotency_key, request_hash)
ORDER BY r.client_id, r.idempotency_key, r.payment_id
ON CONFLICT (client_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING payment_id, "timestamp"
"""
)

# A statement of its own after the insert: only then is the row that the insert has waited for visible (R28).
_LOOK_UP: Final[LiteralString] = """
SELECT e.client_id, e.idempotency_key, e.request_hash, e.payment_id, e.node_id, e.fencing_token, e.term, e."timestamp"
FROM unnest(%(client_ids)s::text[], %(keys)s::text[]) AS k (client_id, idempotency_key)
JOIN payment_events e USING (client_id, idempotency_key)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRow:
    """One payment to write. ``key`` is None only where the service does not require one."""

    payment_id: uuid.UUID
    request: PaymentRequest
    request_hash: bytes
    client_id: str
    key: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredRow:
    """What was found under a key that an earlier request had used."""

    request_hash: bytes
    payment_id: uuid.UUID
    node: str
    fencing_token: int
    term: int
    created_at: datetime


class RowRefused(Exception):
    """The database refuses the content of a row (SQLSTATE class 22 or 23). Nothing was written."""

    def __init__(self, sqlstate: str, field: str | None) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate
        self.field = field


class Transient(Exception):
    """The server gave the statement up for another's sake (40001, 40P01, 55P03). Nothing was written: run it again."""


class WriteSession:
    """One PostgreSQL session for the writer, opened when needed and reopened after a loss. For one task at a time."""

    def __init__(self, dsn: str, resource: str, node: str, *, lease_ms: int) -> None:
        # No wait of a writer outlives a lease (R25), and the statements rely on this isolation level (R28).
        settings: dict[str, str | int] = {
            "statement_timeout": lease_ms,
            "idle_in_transaction_session_timeout": lease_ms,
            "default_transaction_isolation": "read committed",
        }
        self._dsn = session_dsn(dsn, f"{node} writer", settings)
        self._resource = resource
        self._node = node
        # The server ends a statement after one lease. An answer that is not there after two will not come.
        self._answer_timeout = max(1.0, 2 * lease_ms / 1000)
        self._connection: psycopg.AsyncConnection[Any] | None = None
        self._warnings: list[str] = []

    async def ready(self) -> None:
        """Have an open session, so that nothing slow stands between the leadership check and the statement.

        Raises:
            DatabaseUnavailable: no session can be opened. Nothing was sent.
        """
        connection = self._connection
        if connection is not None:
            try:
                # A server that went away while the session was idle has said so by now, and reading the socket finds
                # it: the first read may take its last words, the second then meets the end.
                connection.pgconn.consume_input()
                connection.pgconn.consume_input()
            except psycopg.Error:
                await self.close()
            else:
                return
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT):
                connection = await psycopg.AsyncConnection.connect(self._dsn, autocommit=True)
        except (psycopg.Error, OSError, TimeoutError) as error:
            raise DatabaseUnavailable(f"no session for writing: {error}") from error
        connection.add_notice_handler(self._take_notice)
        self._connection = connection

    async def insert(self, rows: Sequence[NewRow], leadership: Leadership) -> dict[uuid.UUID, datetime]:
        """Write ``rows`` under ``leadership``; the time of each row that is new, by payment id.

        A row that is not in the answer met an earlier row with its key.

        Raises:
            OutcomeUnknown: the rows may or may not be written. The session is closed.
            FenceError: the fence refused the credential. Nothing was written.
            RowRefused, Transient, DatabaseUnavailable: nothing was written.
        """
        parameters: dict[str, Any] = {
            "resource": self._resource,
            "credential": leadership.credential.encode(),
            "node": self._node,
            "token": leadership.token,
            "term": leadership.term,
            "type": ACCEPTED,
            "payment_ids": [row.payment_id for row in rows],
            "amounts": [row.request.amount for row in rows],
            "currencies": [row.request.currency for row in rows],
            "debtors": [row.request.debtor for row in rows],
            "creditors": [row.request.creditor for row in rows],
            "references": [row.request.reference for row in rows],
            "client_ids": [row.client_id for row in rows],
            "keys": [row.key for row in rows],
            "hashes": [row.request_hash for row in rows],
        }
        new, tag = await self._run(_INSERT, parameters)
        connection = self._connection
        idle = connection is not None and connection.info.transaction_status is TransactionStatus.IDLE
        if tag != f"INSERT 0 {len(new)}" or not idle or self._warnings:
            reason = "; ".join(self._warnings) or f"tag {tag!r}, session {'idle' if idle else 'not idle'}"
            await self.close()
            raise OutcomeUnknown(f"the commit was not confirmed: {reason}")
        return dict(new)

    async def look_up(self, rows: Sequence[NewRow]) -> dict[tuple[str, str], StoredRow]:
        """The rows that hold the keys of ``rows``, by client and key.

        Raises:
            OutcomeUnknown: the answer did not come. It says nothing about the rows.
            Transient, DatabaseUnavailable: the server gave up.
        """
        parameters = {"client_ids": [row.client_id for row in rows], "keys": [row.key for row in rows]}
        found, _ = await self._run(_LOOK_UP, parameters)
        return {
            (client_id, key): StoredRow(
                request_hash=request_hash,
                payment_id=payment_id,
                node=node,
                fencing_token=token,
                term=term,
                created_at=created_at,
            )
            for client_id, key, request_hash, payment_id, node, token, term, created_at in found
        }

    async def close(self) -> None:
        """Throw the session away."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _run(self, statement: LiteralString, parameters: Mapping[str, Any]) -> tuple[list[Any], str | None]:
        """Run one statement within its time; its rows and its tag."""
        connection = self._connection
        if connection is None:
            raise DatabaseUnavailable("there is no session for writing")
        self._warnings.clear()
        execution = asyncio.create_task(_execute(connection, statement, parameters))
        try:
            done, _ = await asyncio.wait({execution}, timeout=self._answer_timeout)
        finally:
            if not execution.done():
                # Cancelling would ask the server for leave and wait for its answer. A socket that is shut ends the
                # statement's wait at once, whatever became of the statement.
                _shut(connection)
                await asyncio.wait({execution})
                execution.exception()
                await self.close()
        if not done:
            raise OutcomeUnknown(f"the database did not answer within {self._answer_timeout:.1f} s")
        try:
            return execution.result()
        except psycopg.Error as error:
            raise await self._judge(error, connection) from error

    async def _judge(self, error: psycopg.Error, connection: psycopg.AsyncConnection[Any]) -> Exception:
        """Say what an error means for the rows of the statement that met it."""
        if connection.closed or connection.info.transaction_status is not TransactionStatus.IDLE:
            await self.close()
            return OutcomeUnknown(f"the session was lost while the statement ran: {error}")
        sqlstate = error.sqlstate or ""
        if sqlstate.startswith("TN"):
            return map_error(error, self._resource) or error
        if sqlstate[:2] in {"22", "23"}:
            return RowRefused(sqlstate, error.diag.column_name)
        if sqlstate in {"40001", "40P01", "55P03"}:
            return Transient(f"{sqlstate}: {error.diag.message_primary}")
        problem = error.diag.message_primary or error
        return DatabaseUnavailable(f"the server refused the statement ({sqlstate or 'no SQLSTATE'}): {problem}")

    def _take_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            self._warnings.append(f"{diagnostic.sqlstate} {diagnostic.message_primary}")


async def _execute(
    connection: psycopg.AsyncConnection[Any], statement: LiteralString, parameters: Mapping[str, Any]
) -> tuple[list[Any], str | None]:
    cursor = await connection.execute(statement, parameters)
    return await cursor.fetchall(), cursor.statusmessage


def _shut(connection: psycopg.AsyncConnection[Any]) -> None:
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)
