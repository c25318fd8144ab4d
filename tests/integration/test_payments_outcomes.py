"""What the service says when the database's answer is late, lost or doubtful (R29, R30), and the migrations."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import psycopg
import pytest
from payments_rig import execute, fetch, install, payment_node, payments_in, raise_fence, until

from payment_service.migrations import SchemaMissing, check_schema, migrate, wait_for_database
from tenure import ConfigError, DatabaseUnavailable
from tenure.demo.postgres import EmbeddedPostgres

pytestmark = pytest.mark.asyncio


# -- R29, R30: what is not known is not called known ---------------------------------------------------------------


async def test_R30_outcome_is_unknown_when_the_commit_comes_with_a_warning(database: str, tmp_path: Path):
    await install(database)
    await execute(database, WARNING_TRIGGER)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        answer = await node.pay("k-1")
        assert (answer.status_code, answer.json().get("code")) == (504, "outcome_unknown")
        assert node.committed_lines() == []
        await execute(database, "DROP TRIGGER warn ON payment_events")
        # The row was there after all; the same key tells.
        again = await node.pay("k-1")
        assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
        assert await payments_in(database) == 1


async def test_R30_outcome_is_unknown_when_the_session_is_not_idle_after_the_statement(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        await node.pay("k-1")
        connection = node.session._connection
        assert connection is not None
        await connection.execute("BEGIN")
        answer = await node.pay("k-2")
        assert (answer.status_code, answer.json().get("code")) == (504, "outcome_unknown")
        # The open transaction died with its session: this time the payment was not made, and the key tells that too.
        assert await payments_in(database) == 1
        again = await node.pay("k-2")
        assert (again.status_code, "idempotent-replayed" in again.headers) == (201, False)


async def test_R30_outcome_is_unknown_when_the_tag_does_not_fit_the_rows(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        with monkeypatch.context() as patch:
            patch.setattr(psycopg.AsyncCursor, "statusmessage", "ROLLBACK")
            answer = await node.pay("k-1")
        assert (answer.status_code, answer.json().get("code")) == (504, "outcome_unknown")


async def test_R29_outcome_is_unknown_and_the_key_tells_when_the_session_dies_in_the_statement(
    database: str, tmp_path: Path
):
    await install(database)
    await execute(database, SLOW_TRIGGER)
    async with payment_node(database, await raise_fence(database, 1), tmp_path, lease_ms=30_000) as node:
        paying = asyncio.gather(node.pay("k-1"), node.pay("k-2"))
        await until(lambda: terminate_writer(database))
        answers = await paying
        assert {(answer.status_code, answer.json().get("code")) for answer in answers} == {(504, "outcome_unknown")}
        await execute(database, "DROP TRIGGER slow ON payment_events")
        for key in ("k-1", "k-2"):
            assert (await node.pay(key)).status_code == 201
        assert await payments_in(database) == 2


async def test_R29_outcome_is_unknown_and_the_key_tells_when_the_server_does_not_answer(
    private_postgres: EmbeddedPostgres, tmp_path: Path
):
    """The server's own timeout cannot fire, since the backend is stopped: the writer must not wait for it."""
    dsn = private_postgres.dsn
    await install(dsn)
    async with payment_node(dsn, await raise_fence(dsn, 1), tmp_path, lease_ms=200) as node:
        await node.pay("k-1")
        assert node.session._connection is not None
        backend = node.session._connection.info.backend_pid
        os.kill(backend, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                answer = await node.pay("k-2")
        finally:
            os.kill(backend, signal.SIGCONT)
        assert (answer.status_code, answer.json().get("code")) == (504, "outcome_unknown")
        assert (await node.pay("k-2")).status_code == 201
        assert await payments_in(dsn) == 2


async def test_payment_is_not_made_when_the_statement_takes_longer_than_the_lease(database: str, tmp_path: Path):
    await install(database)
    await execute(database, SLOW_TRIGGER)
    async with payment_node(database, await raise_fence(database, 1), tmp_path, lease_ms=200) as node:
        answer = await node.pay("k-1")
        assert (answer.status_code, answer.json().get("code")) == (503, "database_unavailable")
        assert await payments_in(database) == 0


async def test_payments_go_on_when_the_session_was_lost_between_two_of_them(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        await node.pay("k-1")
        assert await terminate_writer(database, idle=True)
        await until(lambda: no_writer(database))
        # The writer notices before it sends: the caller does not even get an unknown outcome.
        assert (await node.pay("k-2")).status_code == 201


async def test_database_is_called_unavailable_when_no_session_can_be_opened(tmp_path: Path, database: str):
    await install(database)
    leadership = await raise_fence(database, 1)
    async with payment_node("postgresql://127.0.0.1:1/nowhere", leadership, tmp_path) as node:
        answer = await node.pay("k-1")
        assert (answer.status_code, answer.json().get("code")) == (503, "database_unavailable")
        assert (await node.client.get("/readyz")).status_code == 503
        assert (await node.client.get("/v1/payments")).json()["code"] == "database_unavailable"


# -- migrations ----------------------------------------------------------------------------------------------------


async def test_migration_is_done_once_when_several_nodes_start_together(database: str):
    applied = await asyncio.gather(*(asyncio.to_thread(migrate, database, "payments") for _ in range(5)))
    assert sorted(applied) == [[], [], [], [], [1]]
    assert await asyncio.to_thread(migrate, database, "payments") == []


async def test_schema_check_names_the_command_when_the_tables_are_missing(database: str):
    with pytest.raises(SchemaMissing, match="payment-service migrate"):
        await asyncio.to_thread(check_schema, database)
    await install(database)
    await asyncio.to_thread(check_schema, database)


async def test_waiting_for_the_database_ends_with_the_field_named_when_it_does_not_answer():
    with pytest.raises(DatabaseUnavailable, match=r"database\.dsn.*300 ms"):
        await asyncio.to_thread(wait_for_database, "postgresql://127.0.0.1:1/nowhere", timeout_ms=300)
    with pytest.raises(ConfigError, match=r"database\.dsn"):
        await asyncio.to_thread(wait_for_database, "not a dsn", timeout_ms=300)


SLOW_TRIGGER = """
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_sleep(20); RETURN NULL; END $$;
CREATE TRIGGER slow AFTER INSERT ON payment_events FOR EACH STATEMENT EXECUTE FUNCTION slow()
"""
WARNING_TRIGGER = """
CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE WARNING 'not confirmed'; RETURN NULL; END $$;
CREATE TRIGGER warn AFTER INSERT ON payment_events FOR EACH STATEMENT EXECUTE FUNCTION warn()
"""
WRITERS = (
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'payment-service % writer'"
)


async def terminate_writer(dsn: str, *, idle: bool = False) -> bool:
    """End the writer's session in the middle of its statement (or between two); False if it is not there."""
    where = "state = 'idle'" if idle else "wait_event = 'PgSleep'"
    return bool(await fetch(dsn, f"SELECT pg_terminate_backend(pid) {WRITERS} AND {where}"))


async def no_writer(dsn: str) -> bool:
    return not await fetch(dsn, f"SELECT 1 {WRITERS}")
