"""The fence over crashes and restarts of the server itself (R22, R23, G4)."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psycopg
import pytest
from fence_tools import RESOURCE, Holding, assert_leader, credential, make_table, raise_to, request, rows
from psycopg import AsyncConnection

from tenure import fence
from tenure.demo.postgres import EmbeddedPostgres
from tenure.errors import DatabaseUnavailable, OutcomeUnknown, RaiseRefused, ServerChanged


def write(dsn: str, held: fence.RaiseRequest) -> None:
    with psycopg.connect(dsn) as connection:
        assert_leader(connection, held.credential)
        connection.execute("INSERT INTO payment_events VALUES (%s, %s, '')", [held.credential.token] * 2)


def configure(server: EmbeddedPostgres, *settings: str) -> None:
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for setting in settings:
            connection.execute(f"ALTER SYSTEM SET {setting}")
        connection.execute("SELECT pg_reload_conf()")


@pytest.mark.asyncio
async def test_R22_acknowledged_raise_survives_a_crash_when_commits_are_asynchronous_by_default(
    private_postgres: EmbeddedPostgres,
) -> None:
    """The control in the same crash, an ordinary commit of just before, is lost."""
    dsn = private_postgres.dsn
    make_table(dsn)
    # Nothing but the commit itself may write the log to the disk.
    configure(private_postgres, "synchronous_commit = off", "wal_writer_delay = '10s'", "autovacuum = off")
    await asyncio.to_thread(private_postgres.restart)
    store = fence.FenceStore(dsn, RESOURCE)
    held = request(await store.read(), credential(1))
    await store.raise_token(held)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SHOW synchronous_commit").fetchone() == ("off",)
        connection.execute("CREATE TABLE lost_in_the_crash ()")
    await asyncio.to_thread(private_postgres.restart, immediate=True)
    view = await store.read()
    await store.close()
    assert (view.token, view.holder) == (1, "node-1")
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT to_regclass('lost_in_the_crash')").fetchone() == (None,)


@pytest.mark.asyncio
async def test_R22_raise_is_refused_when_the_server_does_not_sync(private_postgres: EmbeddedPostgres) -> None:
    dsn = private_postgres.dsn
    make_table(dsn)
    view = await raise_to(dsn, credential(1))
    # The server's own command line says fsync=on, and outranks ALTER SYSTEM.
    private_postgres._settings["fsync"] = "off"
    await asyncio.to_thread(private_postgres.restart)
    store = fence.FenceStore(dsn, RESOURCE)
    with pytest.raises(RaiseRefused, match="fsync") as refused:
        await store.raise_token(request(await store.read(), credential(2)))
    assert refused.value.reason == fence.Refusal.FSYNC_OFF
    assert (await store.read()).token == view.token
    await store.close()


@pytest.mark.asyncio
async def test_R22_raise_is_not_reported_as_done_when_the_wait_for_the_standby_is_cancelled(
    private_postgres: EmbeddedPostgres,
) -> None:
    """PostgreSQL then answers COMMIT, with a warning: it may be lost in a failover."""
    dsn = private_postgres.dsn
    make_table(dsn)
    configure(private_postgres, "synchronous_standby_names = 'absent'")
    store = fence.FenceStore(dsn, RESOURCE, timeout_ms=20_000)
    asked = request(await store.read(), credential(1))
    raised = asyncio.create_task(store.raise_token(asked))
    await asyncio.to_thread(cancel_sync_wait, dsn)
    with pytest.raises(OutcomeUnknown, match="warning"):
        await raised
    # Asking again must wait for the standby, too, though the row is visible by now.
    assert (await store.read()).token == 1
    raised = asyncio.create_task(store.raise_token(asked))
    await asyncio.to_thread(cancel_sync_wait, dsn)
    with pytest.raises(OutcomeUnknown, match="warning"):
        await raised
    configure(private_postgres, "synchronous_standby_names = ''")
    assert (await store.raise_token(asked)).token == 1
    await store.close()


def cancel_sync_wait(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(2000):
            cancelled = connection.execute(
                "SELECT pg_cancel_backend(pid), pg_sleep(0.005) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
            )
            if cancelled.rowcount:
                return
            connection.execute("SELECT pg_sleep(0.005)")
    raise AssertionError("nobody waited for the standby")


@pytest.mark.parametrize("immediate", [False, True], ids=["restart", "crash"])
@pytest.mark.asyncio
async def test_R23_nobody_writes_when_the_server_started_anew_until_the_fence_is_raised_again(
    private_postgres: EmbeddedPostgres, immediate: bool
) -> None:
    dsn = private_postgres.dsn
    make_table(dsn)
    store = fence.FenceStore(dsn, RESOURCE)
    before = await store.read()
    first = request(before, credential(1))
    await store.raise_token(first)
    stale_winner = request(await store.read(), credential(2), holder="paused since then")
    write(dsn, first)

    await asyncio.to_thread(private_postgres.restart, immediate=immediate)
    for sent in (first.credential, None):
        with psycopg.connect(dsn) as connection:
            if sent:
                assert_leader(connection, sent)
            with pytest.raises(psycopg.Error) as refused:
                connection.execute("DELETE FROM payment_events")
        assert refused.value.sqlstate == "TN004", "before the credential is looked at"
    leadership = Holding(first.credential)
    async with await AsyncConnection.connect(dsn) as connection:
        with pytest.raises(ServerChanged):
            async with fence.fenced_transaction(connection, leadership, resource=RESOURCE) as transaction:
                await transaction.execute("DELETE FROM payment_events")
    assert isinstance(leadership.refusals[0], ServerChanged)

    # The same token is not enough any more, nor is a win from before; a new win after a new reading is.
    for late, reason in ((first, "token_not_greater"), (stale_winner, "moved")):
        with pytest.raises(RaiseRefused) as no:
            await store.raise_token(late)
        assert no.value.reason == reason
    again = request(await store.read(), credential(3))
    view = await store.raise_token(again)
    assert view.server_start == view.live_server_start != before.server_start
    write(dsn, again)
    assert [row[0] for row in rows(dsn)] == [1, 3]
    await store.close()


@pytest.mark.asyncio
async def test_R22_raise_is_unknown_in_time_when_its_commit_is_not_answered(private_postgres: EmbeddedPostgres) -> None:
    """The standby is absent, and nobody cancels the wait: the store itself gives up."""
    dsn = private_postgres.dsn
    make_table(dsn)
    configure(private_postgres, "synchronous_standby_names = 'absent'")
    store = fence.FenceStore(dsn, RESOURCE, timeout_ms=500)
    view = await store.read()
    begun = time.monotonic()
    with pytest.raises(OutcomeUnknown, match="lost in COMMIT"):
        await store.raise_token(request(view, credential(1)))
    assert time.monotonic() - begun < 1.5
    await store.close()


@pytest.mark.asyncio
async def test_store_gives_up_in_time_when_the_server_is_frozen(private_postgres: EmbeddedPostgres) -> None:
    """At the deadline, and at a cancellation: no answer of the server is needed for either."""
    dsn = private_postgres.dsn
    make_table(dsn)
    store = fence.FenceStore(dsn, RESOURCE, timeout_ms=500)
    await store.read()
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenure-fence'"
        ).fetchall()
    backends = [pid for (pid,) in found]
    assert len(backends) == 2
    try:
        for pid in (*backends, private_postgres.pid):
            os.kill(pid, signal.SIGSTOP)
        begun = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await store.read()
        with pytest.raises(DatabaseUnavailable):
            await store.read()
        reading = asyncio.create_task(store.read())
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert time.monotonic() - begun < 3
    finally:
        for pid in (*backends, private_postgres.pid):
            os.kill(pid, signal.SIGCONT)
    assert (await store.read()).token == 0
    await store.close()


@pytest.mark.asyncio
async def test_store_says_unavailable_when_the_server_is_down_and_works_when_it_is_back(
    private_postgres: EmbeddedPostgres,
) -> None:
    make_table(private_postgres.dsn)
    store = fence.FenceStore(private_postgres.dsn, RESOURCE)
    view = await store.read()
    await asyncio.to_thread(private_postgres.halt)
    with pytest.raises(DatabaseUnavailable):
        await store.read()
    with pytest.raises(DatabaseUnavailable):
        await store.raise_token(request(view, credential(1)))
    await asyncio.to_thread(private_postgres.run)
    assert (await store.read()).token == 0
    await store.close()


@pytest.mark.asyncio
async def test_R23_nobody_writes_after_a_promotion_until_the_fence_is_raised_on_the_new_timeline(
    private_postgres: EmbeddedPostgres,
) -> None:
    dsn = private_postgres.dsn
    make_table(dsn)
    store = fence.FenceStore(dsn, RESOURCE)
    first = request(await store.read(), credential(1))
    await store.raise_token(first)
    await asyncio.to_thread(private_postgres.halt)
    (private_postgres.home / "pgdata" / "standby.signal").touch()
    await asyncio.to_thread(private_postgres.run)
    with pytest.raises(DatabaseUnavailable, match="recovery"):
        await store.read()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_promote()")
    view = await store.read()
    assert (view.timeline, view.live_timeline) == ("00000001", "00000002")
    with pytest.raises(psycopg.Error) as refused:
        write(dsn, first)
    assert refused.value.sqlstate == "TN004"
    again = request(view, credential(2))
    assert (await store.raise_token(again)).timeline == "00000002"
    write(dsn, again)
    await store.close()


def test_R23_timeline_alone_is_enough_to_refuse(database: str) -> None:
    """A storage snapshot can come back with the very start time; the clauses are tested one by one."""
    make_table(database)
    for change in ("timeline = '00000009'", "timeline = '00000001', server_start = server_start - interval '1 us'"):
        with psycopg.connect(database) as connection:
            connection.execute(f"UPDATE tenure.fence_payments SET version = version + 1, {change}")
        with psycopg.connect(database) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute("INSERT INTO payment_events VALUES (1, 1, '')")
        assert refused.value.sqlstate == "TN004"
