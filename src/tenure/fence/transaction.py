"""A transaction that only the present leader can commit, for psycopg's asynchronous connections (R18, R26, R30).

The credential is set for this transaction alone and checked by the triggers inside each writing statement, so that
it works at every isolation level, with savepoints, and through a transaction pooler. It must never keep anything on
the connection beyond the transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, LiteralString, TypeAlias

import psycopg
from psycopg import AsyncConnection, AsyncCursor
from psycopg.abc import Params, QueryNoTemplate
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool

from tenure.errors import FenceError, TenureError
from tenure.fence.answers import commit, map_error
from tenure.types import Leadership

#: For a statement that commits by itself: it must reference ``tenure_assertion`` (``FROM …, tenure_assertion``), since
#: PostgreSQL does not run a part of a WITH that nothing asks for.
ASSERT_LEADER_CTE: LiteralString = (
    "WITH tenure_assertion AS MATERIALIZED (SELECT tenure.assert_leader(%(resource)s, %(credential)s) AS asserted)"
)
_ASSERT_LEADER: LiteralString = "SELECT tenure.assert_leader(%(resource)s, %(credential)s)"

Source: TypeAlias = "AsyncConnection[Any] | AsyncConnectionPool[Any]"


class FencedTransaction:
    """The open transaction. ``connection`` is psycopg's own, for cursors, COPY and the rest."""

    def __init__(self, connection: AsyncConnection[Any], leadership: Leadership, resource: str) -> None:
        self.connection = connection
        self._leadership = leadership
        self._resource = resource
        self._refused: FenceError | None = None

    async def execute(self, query: QueryNoTemplate, params: Params | None = None) -> AsyncCursor[Any]:
        """Run one statement.

        Raises:
            StaleToken, FenceMissing, TokenRequired, ServerChanged: the fence refused the write; the transaction is
                dead and the leadership has been told.
            DatabaseUnavailable: the connection is lost, nothing was written.
            psycopg.Error: any other error of the statement.
        """
        try:
            return await self.connection.execute(query, params)
        except psycopg.Error as error:
            mapped = self.note(error)
            if mapped is None:
                raise
            raise mapped from error

    def note(self, error: psycopg.Error) -> TenureError | None:
        """What ``error`` means; a refusal by the fence is remembered and told to the leadership, once."""
        mapped = map_error(error, self._resource)
        if isinstance(mapped, FenceError) and self._refused is None:
            self._refused = mapped
            self._leadership.report_refused(mapped)
        return mapped

    def check_not_refused(self) -> None:
        """Raise the fence's refusal again, for a body that swallowed it: nothing of it may be committed."""
        if self._refused is not None:
            raise self._refused


@contextlib.asynccontextmanager
async def fenced_transaction(
    source: Source, leadership: Leadership, *, resource: str
) -> AsyncIterator[FencedTransaction]:
    """A transaction on ``source`` that commits only while ``leadership`` holds the fence of ``resource``.

    Leaving the block commits; an exception in it rolls back. A cancellation rolls back too; one that arrives while
    COMMIT is on its way leaves the outcome open, as :class:`tenure.OutcomeUnknown` does.

    Raises:
        LeadershipLost: the lease was over before it began; nothing was sent.
        StaleToken, FenceMissing, TokenRequired, ServerChanged: the fence refused; nothing was written, and the
            leadership has been told, so that the member steps down.
        DatabaseUnavailable: the connection was lost before COMMIT; nothing was written.
        OutcomeUnknown: COMMIT was sent and not surely answered: look by key (R29).
        psycopg.Error: any other error of the database; nothing was written. Serialization failures (40001) and
            deadlocks (40P01) may be retried as a whole.
        ValueError: the connection is already in a transaction.
    """
    leadership.check()
    async with _connection_of(source, resource) as connection:
        transaction = FencedTransaction(connection, leadership, resource)
        try:
            if connection.autocommit:
                await connection.execute("BEGIN")
            values = {"resource": resource, "credential": leadership.credential.encode()}
            await transaction.execute(_ASSERT_LEADER, values)
            yield transaction
            transaction.check_not_refused()
            await commit(connection)
        except psycopg.Error as error:
            await _roll_back(connection)
            mapped = transaction.note(error)
            if mapped is None:
                raise
            raise mapped from error
        except BaseException:
            await _roll_back(connection)
            raise


@contextlib.asynccontextmanager
async def _connection_of(source: Source, resource: str) -> AsyncIterator[AsyncConnection[Any]]:
    if isinstance(source, AsyncConnection):
        if source.info.transaction_status not in {TransactionStatus.IDLE, TransactionStatus.UNKNOWN}:
            raise ValueError("the connection is already in a transaction; a fenced one begins and ends by itself")
        yield source
        return
    taken = False
    try:
        async with source.connection() as connection:
            taken = True
            yield connection
    except psycopg.Error as error:
        mapped = None if taken else map_error(error, resource)
        if mapped is None:
            raise
        raise mapped from error


async def _roll_back(connection: AsyncConnection[Any]) -> None:
    try:
        await connection.rollback()
    except psycopg.Error:
        await connection.close()
