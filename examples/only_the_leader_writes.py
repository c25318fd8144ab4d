r"""Three processes, one table: only the leader writes it, whatever happens to any of them.

Once, on a PostgreSQL of yours (DSN names it):

    psql "$DSN" -c 'CREATE TABLE beats (at timestamptz DEFAULT now(), node text, fencing_token bigint)'
    tenure fence install heart --table beats --dsn "$DSN"

Then one process for each of a, b and c, with only_the_leader_writes.toml beside this file:

    TENURE_DATABASE__DSN=$DSN TENURE_NODE__NAME=a TENURE_NODE__DATA_DIR=/tmp/heart-a \
        TENURE_RAFT__LISTEN=127.0.0.1:9181 python only_the_leader_writes.py     # b: 9182, c: 9183

Stop one with Ctrl-C, kill it or pause it: another goes on under a higher token, and no row of the old one follows.
"""

import asyncio
import contextlib
from pathlib import Path

from psycopg_pool import AsyncConnectionPool

import tenure
from tenure.config import load
from tenure.fence import fenced_transaction


async def serve(pool: AsyncConnectionPool, leadership: tenure.Leadership, node: str) -> None:
    """Write a row each second, for as long as this process leads."""
    while True:
        async with fenced_transaction(pool, leadership, resource="heart") as tx:
            await tx.execute("INSERT INTO beats (node, fencing_token) VALUES (%s, %s)", (node, leadership.token))
        await asyncio.sleep(1)


async def main() -> None:
    """Take part in the election, and serve each time it is won."""
    config = load(Path(__file__).with_suffix(".toml")).config
    async with AsyncConnectionPool(config.database.dsn, open=False) as pool, tenure.open(config) as member:
        async for leadership in member.terms():  # one item each time this member wins
            with contextlib.suppress(tenure.LeadershipLost, tenure.FenceError):  # over: wait for the next term
                async with leadership:  # its body is cancelled before the lease runs out
                    await serve(pool, leadership, member.name)


with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C: the successor need not wait
    asyncio.run(main())
