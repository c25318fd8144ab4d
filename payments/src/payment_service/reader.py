"""Reads of payments, from any node: they need no leadership and no fence.

The sessions are read only by their own settings, so nothing here can write past the fence by mistake.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final, LiteralString, Self

import msgspec
import psycopg
from psycopg_pool import AsyncConnectionPool, PoolTimeout

from payment_service.dsn import session_dsn
from payment_service.models import ACCEPTED, Payment, PaymentRequest, payment_from_row
from tenure import DatabaseUnavailable

_COLUMNS: Final[LiteralString] = """
SELECT payment_id, node_id, fencing_token, term, amount, currency, debtor, creditor, reference, "timestamp"
FROM payment_events
"""
_GET: Final[LiteralString] = _COLUMNS + "WHERE payment_id = %s AND type = %s"
# Newest first. event_id is given out in the order in which rows were written, so pages neither overlap nor skip.
_PAGE: Final[LiteralString] = _COLUMNS + "WHERE type = %s AND event_id < %s ORDER BY event_id DESC LIMIT %s"
_CURSOR: Final[LiteralString] = "SELECT event_id FROM payment_events WHERE payment_id = %s AND type = %s"
_EVENT_ID_MAX: Final = 2**63 - 1


class Page(msgspec.Struct, frozen=True):
    """One page of a list of payments, newest first."""

    data: list[Payment]
    has_more: bool


class PaymentReader:
    """A few read-only sessions, opened as they are needed. Use it as an asynchronous context manager."""

    def __init__(self, dsn: str, node: str, *, timeout_ms: int = 2000) -> None:
        settings: dict[str, str | int] = {
            "statement_timeout": timeout_ms,
            "default_transaction_read_only": "on",
        }
        self._pool = AsyncConnectionPool(
            session_dsn(dsn, f"{node} reader", settings),
            kwargs={"autocommit": True},
            min_size=0,
            max_size=4,
            open=False,
            timeout=timeout_ms / 1000,
            check=AsyncConnectionPool.check_connection,
            name="reader",
        )

    async def __aenter__(self) -> Self:
        await self._pool.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._pool.close()

    async def get(self, payment_id: uuid.UUID) -> Payment | None:
        """The payment, or None where there is none; :class:`tenure.DatabaseUnavailable`."""
        async with self._session() as session:
            row = await (await session.execute(_GET, (payment_id, ACCEPTED))).fetchone()
        return None if row is None else _payment(row)

    async def page(self, *, limit: int, starting_after: uuid.UUID | None) -> Page | None:
        """At most ``limit`` payments older than ``starting_after``, newest first; None if that payment does not exist.

        Raises:
            DatabaseUnavailable: the database does not answer.
        """
        async with self._session() as session:
            before = _EVENT_ID_MAX
            if starting_after is not None:
                found = await (await session.execute(_CURSOR, (starting_after, ACCEPTED))).fetchone()
                if found is None:
                    return None
                before = found[0]
            rows = await (await session.execute(_PAGE, (ACCEPTED, before, limit + 1))).fetchall()
        return Page(data=[_payment(row) for row in rows[:limit]], has_more=len(rows) > limit)

    async def ping(self) -> None:
        """Return if the database answers; :class:`tenure.DatabaseUnavailable` if not."""
        async with self._session() as session:
            await session.execute("SELECT 1")

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[psycopg.AsyncConnection[Any]]:
        try:
            async with self._pool.connection() as session:
                yield session
        except (PoolTimeout, psycopg.OperationalError) as error:
            raise DatabaseUnavailable(f"the database does not answer: {error}") from error


def _payment(row: tuple[Any, ...]) -> Payment:
    payment_id, node, token, term, amount, currency, debtor, creditor, reference, created_at = row
    request = PaymentRequest(amount=amount, currency=currency, debtor=debtor, creditor=creditor, reference=reference)
    return payment_from_row(
        payment_id=payment_id, request=request, node=node, fencing_token=token, term=term, created_at=created_at
    )
