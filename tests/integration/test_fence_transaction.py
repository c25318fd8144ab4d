"""``fenced_transaction``: what its block promises, with real PostgreSQL (R18, R26, R30)."""

# ruff: noqa: PT012 - what a block raises on its way out is the very subject here.

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import psycopg
import pytest
import pytest_asyncio
from fence_tools import (
    RESOURCE,
    Holding,
    credential,
    make_table,
    raise_to,
    rows,
    wait_until_async,
)
from psycopg import AsyncConnection
from psycopg_pool import AsyncConnectionPool

from tenure import fence
from tenure.errors import (
    DatabaseUnavailable,
    FenceMissing,
    LeadershipLost,
    OutcomeUnknown,
    StaleToken,
    TokenRequired,
)


@pytest.fixture
def dsn(database: str) -> str:
    make_table(database)
    return database


@pytest_asyncio.fixture
async def leader(dsn: str) -> Holding:
    held = credential(1)
    await raise_to(dsn, held)
    return Holding(held)


@pytest_asyncio.fixture(params=["transactional", "autocommit"])
async def connection(dsn: str, request: pytest.FixtureRequest) -> AsyncIterator[AsyncConnection]:
    async with await AsyncConnection.connect(dsn, autocommit=request.param == "autocommit") as connection:
        yield connection


@pytest.mark.asyncio
async def test_block_commits_when_it_is_left(dsn: str, leader: Holding, connection: AsyncConnection) -> None:
    for number in (1, 2):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (%s, 1, '')", [number])
    assert [row[0] for row in rows(dsn)] == [1, 2]
    assert leader.refusals == []


@pytest.mark.asyncio
async def test_block_commits_through_a_pool(dsn: str, leader: Holding) -> None:
    async with AsyncConnectionPool(dsn, min_size=1, max_size=1, open=False) as pool:
        for number in (1, 2):
            async with fence.fenced_transaction(pool, leader, resource=RESOURCE) as transaction:
                await transaction.execute("INSERT INTO payment_events VALUES (%s, 1, '')", [number])
        async with pool.connection() as plain:
            with pytest.raises(psycopg.Error) as refused:
                await plain.execute("DELETE FROM payment_events")
            assert refused.value.sqlstate == "TN003", "nothing stays on the pooled connection"
            await plain.rollback()
    assert len(rows(dsn)) == 2


@pytest.mark.asyncio
async def test_block_rolls_back_when_its_body_fails(dsn: str, leader: Holding, connection: AsyncConnection) -> None:
    with pytest.raises(KeyError):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
            raise KeyError("of the application")
    assert rows(dsn) == []
    async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
        await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
    assert len(rows(dsn)) == 1


@pytest.mark.asyncio
async def test_block_sends_nothing_when_the_lease_is_over(leader: Holding, connection: AsyncConnection) -> None:
    leader.over = True
    with pytest.raises(LeadershipLost):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE):
            raise AssertionError("the body must not run")
    assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


@pytest.mark.asyncio
async def test_refusal_tells_two_holdings_of_one_token_apart_when_the_fence_was_rebased(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    await asyncio.to_thread(fence.rebase, dsn, RESOURCE, who="anna", why="test")
    with pytest.raises(StaleToken, match="of another holding: the fence was rebased"):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")


@pytest.mark.asyncio
async def test_R18_stale_leader_is_told_and_nothing_is_written(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    await raise_to(dsn, credential(2), holder="node-2")
    with pytest.raises(StaleToken) as stale:
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
    assert (stale.value.held, stale.value.seen, stale.value.resource) == (1, 2, RESOURCE)
    assert leader.refusals == [stale.value]
    assert rows(dsn) == []


@pytest.mark.asyncio
async def test_R18_refusal_comes_out_when_the_body_swallows_it(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    """Even out of a savepoint, after which the transaction itself could go on."""
    await raise_to(dsn, credential(2), holder="node-2")
    with pytest.raises(StaleToken):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("SAVEPOINT mine")
            try:
                await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
            except StaleToken:
                await transaction.execute("ROLLBACK TO SAVEPOINT mine")
    assert len(leader.refusals) == 1
    assert rows(dsn) == []


@pytest.mark.asyncio
async def test_R18_refusal_is_mapped_when_the_body_uses_a_cursor_of_its_own(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    await raise_to(dsn, credential(2), holder="node-2")
    with pytest.raises(StaleToken):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            copying = transaction.connection.cursor().copy("COPY payment_events FROM STDIN")
            async with copying as copy:
                await copy.write_row((1, 1, ""))
    assert len(leader.refusals) == 1


@pytest.mark.asyncio
async def test_R18_write_to_a_table_of_another_resource_requires_its_own_credential(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    await asyncio.to_thread(make_table, dsn, "parcels", resource="parcels")
    with pytest.raises(TokenRequired, match="parcels"):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO parcels VALUES (1, 1, '')")


@pytest.mark.asyncio
async def test_R26_serialization_failure_is_left_to_the_caller_and_the_next_try_is_refused(
    dsn: str, leader: Holding
) -> None:
    async with await AsyncConnection.connect(dsn) as connection:
        await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
        with pytest.raises(psycopg.errors.SerializationFailure):
            async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
                await transaction.execute("SELECT count(*) FROM payment_events")
                await raise_to(dsn, credential(2), holder="node-2")
                await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
        assert leader.refusals == []
        with pytest.raises(StaleToken):
            async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
                await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")


@pytest.mark.asyncio
async def test_R30_success_is_not_claimed_when_the_transaction_was_already_dead(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    """COMMIT of a failed transaction is answered ROLLBACK, without an error."""
    with pytest.raises(OutcomeUnknown, match="ROLLBACK"):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
            with pytest.raises(psycopg.errors.DivisionByZero):
                await transaction.execute("SELECT 1/0")
    assert rows(dsn) == []


@pytest.mark.asyncio
async def test_R30_success_is_not_claimed_when_the_commit_comes_with_a_warning(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    with psycopg.connect(dsn) as owner:
        owner.execute(
            "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE WARNING 'the standby may not have it'; RETURN NULL; END $$; "
            "CREATE CONSTRAINT TRIGGER warn AFTER INSERT ON payment_events DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION warn()"
        )
    with pytest.raises(OutcomeUnknown, match="the standby may not have it"):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")


@pytest.mark.asyncio
async def test_R30_outcome_is_unknown_when_the_connection_is_lost_in_commit(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    """The session is ended while its COMMIT runs a slow deferred trigger."""
    with psycopg.connect(dsn) as owner:
        owner.execute(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_sleep(30); RETURN NULL; END $$; "
            "CREATE CONSTRAINT TRIGGER dawdle AFTER INSERT ON payment_events DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION dawdle()"
        )
    pid = connection.info.backend_pid

    async def write() -> None:
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")

    writing = asyncio.create_task(write())
    await wait_until_async(lambda: end_session_in_commit(dsn, pid))
    with pytest.raises(OutcomeUnknown):
        await writing


@pytest.mark.asyncio
async def test_block_says_unavailable_when_the_connection_is_lost_before_commit(
    dsn: str, leader: Holding, connection: AsyncConnection
) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
            with psycopg.connect(dsn, autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", [connection.info.backend_pid])
            await transaction.execute("SELECT 1")
    assert rows(dsn) == []
    assert leader.refusals == []


@pytest.mark.asyncio
async def test_block_says_unavailable_when_the_pool_has_no_connection() -> None:
    pool = AsyncConnectionPool("postgresql://127.0.0.1:1/none", min_size=0, max_size=1, open=False, timeout=0.2)
    async with pool:
        with pytest.raises(DatabaseUnavailable):
            async with fence.fenced_transaction(pool, Holding(credential(1)), resource=RESOURCE):
                raise AssertionError("the body must not run")


@pytest.mark.asyncio
async def test_block_rolls_back_when_it_is_cancelled(dsn: str, leader: Holding, connection: AsyncConnection) -> None:
    inside = asyncio.Event()

    async def write() -> None:
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")
            inside.set()
            await asyncio.Event().wait()

    writing = asyncio.create_task(write())
    await inside.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert rows(dsn) == []
    assert connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE


@pytest.mark.asyncio
async def test_block_refuses_a_connection_that_is_in_a_transaction(
    leader: Holding, connection: AsyncConnection
) -> None:
    await connection.execute("BEGIN")
    with pytest.raises(ValueError, match="already in a transaction"):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE):
            raise AssertionError("the body must not run")
    await connection.rollback()


@pytest.mark.asyncio
async def test_missing_fence_is_named(dsn: str, leader: Holding, connection: AsyncConnection) -> None:
    with psycopg.connect(dsn) as owner:
        owner.execute("ALTER TABLE tenure.fence_payments DISABLE TRIGGER USER; DELETE FROM tenure.fence_payments")
    with pytest.raises(FenceMissing):
        async with fence.fenced_transaction(connection, leader, resource=RESOURCE) as transaction:
            await transaction.execute("INSERT INTO payment_events VALUES (1, 1, '')")


def end_session_in_commit(dsn: str, pid: int) -> bool:
    with psycopg.connect(dsn, autocommit=True) as connection:
        ended = connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid = %s AND query = 'COMMIT' AND wait_event = 'PgSleep'",
            [pid],
        )
        return ended.rowcount == 1
