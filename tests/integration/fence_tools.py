"""What the tests of the fence share: a fenced table, holdings, and waiting for a backend to block."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from tenure import fence
from tenure.errors import LeadershipLost
from tenure.types import Credential, ElectorIdentity, LossReason

RESOURCE = "payments"
ME = ElectorIdentity(elector_id="raft:11aa", generation=0, lineage="lineage-1")


def make_table(dsn: str, name: str = "payment_events", *, resource: str = RESOURCE, group: str | None = None) -> None:
    """A table that every kind of statement can be tried on, fenced for ``resource``."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, fencing_token bigint, note text)")
    fence.install(dsn, resource, tables=[name], group=group)


def credential(token: int) -> Credential:
    return Credential(token=token, nonce=secrets.token_hex(16))


async def raise_to(
    dsn: str, held: Credential, *, identity: ElectorIdentity = ME, holder: str = "node-1", resource: str = RESOURCE
) -> fence.FenceView:
    """Read the fence and raise it, as a member does that wins without a rival."""
    store = fence.FenceStore(dsn, resource)
    try:
        view = await store.read()
        return await store.raise_token(request(view, held, identity=identity, holder=holder))
    finally:
        await store.close()


def request(
    view: fence.FenceView, held: Credential, *, identity: ElectorIdentity = ME, holder: str = "node-1"
) -> fence.RaiseRequest:
    return fence.RaiseRequest(identity=identity, credential=held, holder=holder, expected=view.expected)


class Holding:
    """A leadership made by hand: it believes for ever, so that only the fence can stop it."""

    def __init__(self, held: Credential, *, term: int = 1) -> None:
        self.credential = held
        self.token = held.token
        self.term = term
        self.refusals: list[Exception] = []
        self.over = False

    def remaining(self) -> float:
        return 0.0 if self.over else 3600.0

    def check(self) -> None:
        if self.over:
            raise LeadershipLost(term=self.term, reason=LossReason.LEASE_EXPIRED)

    def report_refused(self, error: Exception) -> None:
        self.refusals.append(error)

    @property
    def lost(self) -> Awaitable[LossReason]:
        return asyncio.get_running_loop().create_future()


def assert_leader(connection: psycopg.Connection[Any], held: Credential, resource: str = RESOURCE) -> None:
    connection.execute("SELECT tenure.assert_leader(%s, %s)", [resource, held.encode()])


def rows(dsn: str, table: str = "payment_events") -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute(f"SELECT id, fencing_token, note FROM {table} ORDER BY id").fetchall()


def ledger(dsn: str, resource: str = RESOURCE) -> list[fence.LedgerRow]:
    return fence.show(dsn, resource, limit=1000)[1]


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)


async def wait_until_async(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    await asyncio.to_thread(wait_until, condition, seconds)


def is_waiting_for_a_lock(dsn: str, pid: int) -> bool:
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT wait_event_type FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone()
    return found == ("Lock",)


def is_alive(dsn: str, pid: int) -> bool:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT FROM pg_stat_activity WHERE pid = %s", [pid]).fetchone() is not None
