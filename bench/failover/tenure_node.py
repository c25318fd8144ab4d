"""One member of Tenure with an application that writes through the fence for as long as it leads.

    python -m bench.failover.tenure_node CONFIG-AS-JSON

It uses public names alone. Each leadership is told by ``lease`` (its lease is valid), ``wrote`` (its first write is
committed) and ``lost``, which carries when the last write was committed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.failover.speech import listen, report
from psycopg_pool import AsyncConnectionPool

import tenure
from tenure.config import from_mapping
from tenure.fence import fenced_transaction

#: Between two writes, so that the database is never what is measured.
PAUSE_SECONDS = 0.002


async def run(values: dict[str, Any], resource: str, table: str, writers: int) -> None:
    """One member until the input ends."""
    config = from_mapping(values)
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    pool = AsyncConnectionPool[Any](config.database.dsn, min_size=writers, max_size=writers, open=False)
    member = tenure.open(config)

    def on_request(request: dict[str, Any] | None) -> None:
        if request is None:
            loop.call_soon_threadsafe(ended.set)
        else:
            asyncio.run_coroutine_threadsafe(member.step_down(), loop)

    async with pool, member:
        listen(on_request)
        report("ready")
        leading = asyncio.create_task(_lead(member, pool, Table(resource, table), writers))
        waiting = asyncio.create_task(ended.wait())
        await asyncio.wait({leading, waiting}, return_when=asyncio.FIRST_COMPLETED)
        leading.cancel()


@dataclass(frozen=True)
class Table:
    """What is written to, and under which resource's fence."""

    resource: str
    name: str


@dataclass
class Written:
    """When the last write of a leadership was committed, and how many there were."""

    last: float = 0.0
    count: int = 0


async def _lead(member: Any, pool: AsyncConnectionPool[Any], table: Table, writers: int) -> None:
    async for leadership in member.terms():
        written = Written()
        leased = asyncio.create_task(_tell_lease(leadership))
        try:
            async with leadership, asyncio.TaskGroup() as tasks:
                for _ in range(writers):
                    tasks.create_task(_write(leadership, pool, table, written, 0.0 if writers > 1 else PAUSE_SECONDS))
        finally:
            leased.cancel()
            report("lost", last_write=written.last, writes=written.count, reason=str(leadership.reason))


async def _write(
    leadership: Any, pool: AsyncConnectionPool[Any], table: Table, written: Written, pause_seconds: float
) -> None:
    """Write for as long as the leadership lasts."""
    # The table is the benchmark's own.
    statement = f"INSERT INTO {table.name} (token) VALUES ({leadership.token})"
    while True:
        try:
            async with fenced_transaction(pool, leadership, resource=table.resource) as transaction:
                await transaction.execute(statement)
        except tenure.TenureError:
            await asyncio.sleep(PAUSE_SECONDS)
            continue
        written.last, written.count = time.monotonic(), written.count + 1
        if written.count == 1:
            report("wrote", at=written.last, token=leadership.token)
        await asyncio.sleep(pause_seconds)


async def _tell_lease(leadership: Any) -> None:
    """At once where a leadership begins with its lease; later where fenced writes may begin before it."""
    with contextlib.suppress(tenure.LeadershipLost):
        if leadership.remaining() <= 0.0 and hasattr(leadership, "leased"):
            await leadership.leased()
        report("lease")


def main() -> None:
    """Run one member on uvloop, as the extra installs it."""
    import uvloop

    given = json.loads(sys.argv[1])
    uvloop.run(run(given["config"], given["resource"], given["table"], given["writers"]))


if __name__ == "__main__":
    main()
