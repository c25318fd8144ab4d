"""The raise, with real PostgreSQL: who gets the fence, how fast, and whom it leaves alone (R15, R17, R20, R21)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import msgspec
import psycopg
import pytest
import pytest_asyncio
from fence_tools import (
    ME,
    RESOURCE,
    Holding,
    assert_leader,
    credential,
    is_alive,
    ledger,
    make_table,
    raise_to,
    request,
    rows,
    wait_until_async,
)
from psycopg import AsyncConnection
from psycopg.conninfo import make_conninfo

from tenure import fence
from tenure.errors import DatabaseUnavailable, FenceError, FenceMissing, OutcomeUnknown, RaiseRefused
from tenure.fence import raising
from tenure.types import ElectorIdentity


@pytest.fixture
def dsn(any_database: str) -> str:
    make_table(any_database)
    return any_database


@pytest_asyncio.fixture
async def store(dsn: str) -> AsyncIterator[fence.FenceStore]:
    store = fence.FenceStore(dsn, RESOURCE)
    yield store
    await store.close()


@pytest.mark.asyncio
async def test_R15_later_winner_holds_the_fence_when_the_winners_raise_in_either_order(store: fence.FenceStore) -> None:
    """Two winners are paused between win and raise; the higher token ends up with the fence both ways."""
    seen = await store.read()
    first, second = request(seen, credential(5), holder="first"), request(seen, credential(6), holder="second")
    await store.raise_token(first)
    with pytest.raises(RaiseRefused) as moved:
        await store.raise_token(second)
    assert moved.value.reason == fence.Refusal.MOVED
    # The second proves to its elector that it still holds, having read anew, and may keep its token.
    held = await store.raise_token(request(await store.read(), second.credential, holder="second"))
    assert (held.token, held.holder) == (6, "second")

    third, fourth = request(held, credential(7), holder="third"), request(held, credential(8), holder="fourth")
    await store.raise_token(fourth)
    with pytest.raises(RaiseRefused) as late:
        await store.raise_token(third)
    assert late.value.reason == fence.Refusal.TOKEN_NOT_GREATER
    assert (late.value.held, late.value.seen) == (7, 8)
    assert (await store.read()).holder == "fourth"


@pytest.mark.asyncio
async def test_R17_one_of_two_processes_is_refused_when_both_come_with_the_same_token(store: fence.FenceStore) -> None:
    seen = await store.read()
    one, other = request(seen, credential(1), holder="one"), request(seen, credential(1), holder="other")
    await store.raise_token(one)
    with pytest.raises(RaiseRefused) as refused:
        await store.raise_token(other)
    assert refused.value.reason == fence.Refusal.TOKEN_NOT_GREATER
    assert (await store.read()).holder == "one"


@pytest.mark.asyncio
async def test_R17_raise_is_granted_again_when_it_was_mine(store: fence.FenceStore) -> None:
    """After an unknown outcome a member asks again with the same request; the version does not move."""
    mine = request(await store.read(), credential(1))
    first = await store.raise_token(mine)
    assert await store.raise_token(mine) == first
    assert (await store.read()).version == first.version


@pytest.mark.asyncio
async def test_R17_another_elector_is_refused_until_the_operator_rebases(dsn: str, store: fence.FenceStore) -> None:
    """New data directories on an old database: nobody leads; after the rebase every token is above every old one."""
    old = credential(7)
    await raise_to(dsn, old)
    new_cluster = ElectorIdentity(elector_id="raft:22bb", generation=0, lineage="lineage-2")
    view = await store.read()
    assert fence.judge_floor(view, new_cluster, last_count=0) is fence.Refusal.OTHER_ELECTOR
    with pytest.raises(RaiseRefused, match="tenure fence rebase") as refused:
        await store.raise_token(request(view, credential(8), identity=new_cluster))
    assert refused.value.reason == fence.Refusal.OTHER_ELECTOR

    opened = await asyncio.to_thread(fence.rebase, dsn, RESOURCE, who="operator", why="the old cluster is gone")
    assert (opened.token, opened.elector_id, opened.holder, opened.version) == (7, None, None, view.version + 1)
    with psycopg.connect(dsn) as connection:
        assert_leader(connection, old)
        with pytest.raises(psycopg.Error) as stale:
            connection.execute("INSERT INTO payment_events VALUES (1, 7, '')")
    assert stale.value.sqlstate == "TN001"

    assert fence.judge_floor(opened, new_cluster, last_count=0) == 7
    held = await store.raise_token(request(await store.read(), credential(8), identity=new_cluster))
    assert (held.token, held.elector_id) == (8, "raft:22bb")
    # And the old cluster, if it lives after all, is the stranger now.
    assert fence.judge_floor(held, ME, last_count=7) is fence.Refusal.OTHER_ELECTOR
    assert [(line.action, line.from_token, line.to_token) for line in ledger(dsn)][:2] == [
        ("raise", 7, 8),
        ("rebase", 7, 7),
    ]


@pytest.mark.asyncio
async def test_R20_stale_winner_is_refused_when_the_fence_moved_after_it_read(
    dsn: str, store: fence.FenceStore
) -> None:
    """A rebase keeps the token: only the version tells a winner from before that it must prove itself again."""
    await raise_to(dsn, credential(3))
    stale = request(await store.read(), credential(4))
    await asyncio.to_thread(fence.rebase, dsn, RESOURCE, who="operator", why="test")
    with pytest.raises(RaiseRefused) as refused:
        await store.raise_token(stale)
    assert refused.value.reason == fence.Refusal.MOVED
    assert (await store.read()).token == 3


@pytest.mark.asyncio
async def test_R20_raise_takes_less_than_a_second_under_sixteen_overlapping_writers(
    dsn: str, store: fence.FenceStore
) -> None:
    """A zombie with sixteen sessions that always overlap; once the raise is answered nothing of it commits."""
    zombie = Holding(credential(1))
    view = await raise_to(dsn, zombie.credential)
    started = asyncio.Event()
    committed = 0

    async def write_until_refused(number: int) -> None:
        nonlocal committed
        try:
            for count in range(10_000):
                async with (
                    await AsyncConnection.connect(dsn) as connection,
                    fence.fenced_transaction(connection, zombie, resource=RESOURCE) as transaction,
                ):
                    await transaction.execute(f"INSERT INTO payment_events VALUES ({number * 10_000 + count}, 1, '')")
                    await asyncio.sleep(0.1)
                committed += 1
                if committed > 16:
                    started.set()
        except (FenceError, DatabaseUnavailable, OutcomeUnknown, psycopg.OperationalError):
            return

    async with asyncio.TaskGroup() as writers:
        for number in range(16):
            writers.create_task(write_until_refused(number))
        await asyncio.wait_for(started.wait(), 20)
        begun = time.monotonic()
        await store.raise_token(request(view, credential(2)))
        took = time.monotonic() - begun
        landed = len(rows(dsn))
    assert took < 1.0
    assert len(rows(dsn)) == landed, "a row of the old token came after the raise"


@pytest.mark.asyncio
async def test_R20_idle_holder_is_ended_and_named_in_the_ledger(dsn: str, store: fence.FenceStore) -> None:
    view = await raise_to(dsn, old := credential(1))
    async with await AsyncConnection.connect(dsn, application_name="zombie", autocommit=True) as stuck:
        pid = stuck.info.backend_pid
        await stuck.execute("BEGIN")
        await stuck.execute("SELECT tenure.assert_leader(%s, %s)", [RESOURCE, old.encode()])
        await stuck.execute("INSERT INTO payment_events VALUES (1, 1, 'never')")
        begun = time.monotonic()
        await store.raise_token(request(view, credential(2), holder="node-2"))
        assert time.monotonic() - begun < 1.0
        with pytest.raises(psycopg.OperationalError):
            await stuck.execute("COMMIT")
    assert rows(dsn) == []
    [ended] = [line for line in ledger(dsn) if line.action == "terminate"]
    assert ended.who == "node-2"
    assert f"ended session {pid} " in ended.why
    assert "zombie" in ended.why
    assert "idle in transaction" in ended.why


@pytest.mark.asyncio
async def test_R20_writers_of_another_group_are_left_alone(dsn: str, store: fence.FenceStore) -> None:
    await asyncio.to_thread(make_table, dsn, "parcels", resource="parcels")
    await asyncio.to_thread(make_table, dsn, "invoices", resource="invoices", group="parcels")
    view = await raise_to(dsn, old := credential(1))
    await raise_to(dsn, other := credential(1), resource="parcels")
    stuck = await AsyncConnection.connect(dsn)
    async with await AsyncConnection.connect(dsn) as innocent:
        pid = stuck.info.backend_pid
        await stuck.execute("SELECT tenure.assert_leader(%s, %s)", [RESOURCE, old.encode()])
        await stuck.execute("INSERT INTO payment_events VALUES (1, 1, 'never')")
        await innocent.execute("SELECT tenure.assert_leader('parcels', %s)", [other.encode()])
        await innocent.execute("INSERT INTO parcels VALUES (1, 1, 'kept')")
        await store.raise_token(request(view, credential(2)))
        await innocent.execute("INSERT INTO parcels VALUES (2, 1, 'kept')")
        await innocent.commit()
        assert not is_alive(dsn, pid)
    await stuck.close()
    assert len(rows(dsn, "parcels")) == 2


@pytest.mark.asyncio
async def test_R20_writer_is_left_alone_by_a_raise_that_is_refused(dsn: str, store: fence.FenceStore) -> None:
    """A stale winner must not cut the true leader's open transaction before it is told no."""
    before = await store.read()
    await raise_to(dsn, leader := credential(2))
    async with await AsyncConnection.connect(dsn) as connection:
        await connection.execute("SELECT tenure.assert_leader(%s, %s)", [RESOURCE, leader.encode()])
        await connection.execute("INSERT INTO payment_events VALUES (1, 2, 'kept')")
        for late in (credential(1), credential(3)):
            with pytest.raises(RaiseRefused):
                await store.raise_token(request(before, late))
        await connection.commit()
    assert len(rows(dsn)) == 1


@pytest.mark.asyncio
async def test_R20_paused_raiser_cannot_keep_the_fence(dsn: str, store: fence.FenceStore) -> None:
    """A member that stops in the middle of its raise, lock in hand, as SIGSTOP does."""
    view = await store.read()
    paused = await raising.connect(dsn, RESOURCE)
    body = raising.locked(paused, who="paused")
    await body.__aenter__()
    begun = time.monotonic()
    await store.raise_token(request(view, credential(1)))
    assert time.monotonic() - begun < 1.0
    with pytest.raises(OutcomeUnknown):
        await body.__aexit__(None, None, None)
    await paused.aclose()


@pytest.mark.asyncio
async def test_R21_raise_locks_nothing_but_the_fence_and_its_ledger(dsn: str) -> None:
    session = await raising.connect(dsn, RESOURCE)
    try:
        async with raising.locked(session, who="node-1") as held:
            assert held.row is not None
            await raising.write(session, msgspec.structs.replace(held.row, version=2))
            await raising.note(session, "raise", who="node-1", why="test")
            cursor = await session.watcher.execute(
                "SELECT DISTINCT coalesce(i.indrelid, l.relation)::regclass::text FROM pg_locks AS l "
                "LEFT JOIN pg_index AS i ON i.indexrelid = l.relation "
                "JOIN pg_class AS c ON c.oid = l.relation JOIN pg_namespace AS n ON n.oid = c.relnamespace "
                "WHERE l.pid = %s AND l.locktype = 'relation' AND n.nspname <> 'pg_catalog'",
                [session.raiser.info.backend_pid],
            )
            touched = {name for (name,) in await cursor.fetchall()}
        assert touched == {"tenure.fence_payments", "tenure.ledger", "tenure.ledger_id_seq"}
    finally:
        await session.aclose()


@pytest.mark.parametrize("level", ["repeatable read", "serializable"])
@pytest.mark.asyncio
async def test_R21_new_leader_sees_the_payment_that_its_raise_waited_for(
    dsn: str, level: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With that level as everybody's default: the raise is a transaction of its own, and no snapshot of it remains."""
    monkeypatch.setattr(raising, "_GRACE_S", 60.0)
    level_option = "-c default_transaction_isolation=" + level.replace(" ", r"\ ")
    new = make_conninfo(dsn, options=level_option)
    view = await raise_to(dsn, old := credential(1))
    store = fence.FenceStore(new, RESOURCE)
    async with await AsyncConnection.connect(new) as writer:
        await writer.execute("SELECT tenure.assert_leader(%s, %s)", [RESOURCE, old.encode()])
        await writer.execute("INSERT INTO payment_events VALUES (1, 1, 'in flight')")
        raised = asyncio.create_task(store.raise_token(request(view, credential(2))))
        await wait_until_async(lambda: not _fence_is_unlocked(dsn))
        await writer.commit()
        await raised
    async with await AsyncConnection.connect(new) as connection:
        cursor = await connection.execute("SHOW transaction_isolation")
        assert await cursor.fetchone() == (level,)
        cursor = await connection.execute("SELECT note FROM payment_events")
        assert await cursor.fetchall() == [("in flight",)]
    await store.close()


@pytest.mark.asyncio
async def test_R26_raise_is_judged_on_the_row_under_the_lock_when_everybodys_default_is_serializable(
    dsn: str, store: fence.FenceStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another raise commits while this one waits; a snapshot from before the lock would end in 40001."""
    monkeypatch.setattr(raising, "_GRACE_S", 60.0)
    view = await store.read()
    # On connections that were just made, the store does not try again.
    fresh = fence.FenceStore(make_conninfo(dsn, options="-c default_transaction_isolation=serializable"), RESOURCE)
    async with await AsyncConnection.connect(dsn) as rival:
        await rival.execute("LOCK TABLE tenure.fence_payments IN EXCLUSIVE MODE")
        raised = asyncio.create_task(fresh.raise_token(request(view, credential(2))))
        await wait_until_async(lambda: not _fence_is_unlocked(dsn))
        await rival.execute("UPDATE tenure.fence_payments SET token = 1, version = version + 1")
        await rival.commit()
    with pytest.raises(RaiseRefused) as refused:
        await raised
    assert refused.value.reason == fence.Refusal.MOVED
    await fresh.close()


@pytest.mark.asyncio
async def test_store_says_unavailable_when_nobody_listens() -> None:
    store = fence.FenceStore("postgresql://nobody@127.0.0.1:1/none", RESOURCE)
    with pytest.raises(DatabaseUnavailable, match="refused"):
        await store.read()
    await store.note_refused(sent=1, who="node-1", why="best effort raises nothing")


@pytest.mark.asyncio
async def test_store_says_missing_when_there_is_no_fence(any_database: str) -> None:
    store = fence.FenceStore(any_database, RESOURCE)
    with pytest.raises(FenceMissing, match="tenure fence install payments"):
        await store.read()
    await asyncio.to_thread(make_table, any_database, "parcels", resource="parcels")
    with pytest.raises(FenceMissing):
        await store.read()
    await store.close()


@pytest.mark.asyncio
async def test_store_connects_again_when_its_sessions_were_ended(dsn: str, store: fence.FenceStore) -> None:
    await store.read()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = 'tenure-fence' AND datname = current_database()"
        )
    assert (await store.read()).token == 0


@pytest.mark.asyncio
async def test_store_gives_up_in_time_when_the_fence_stays_locked(dsn: str) -> None:
    """A holder that cannot be ended (here: a prepared transaction is out of reach, so a lock of our own name is)."""
    store = fence.FenceStore(dsn, RESOURCE, timeout_ms=500)
    view = await store.read()
    begun = time.monotonic()
    async with await AsyncConnection.connect(dsn) as holder:
        await holder.execute("LOCK TABLE tenure.fence_payments IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailable, match=r"did not answer within 0\.5 s"):
            await store.raise_token(request(view, credential(1)))
        assert time.monotonic() - begun < 1.5
    assert (await store.read()).token == 0
    await store.close()


@pytest.mark.asyncio
async def test_store_raise_leaves_nothing_open_when_it_is_cancelled(dsn: str, store: fence.FenceStore) -> None:
    view = await store.read()
    async with await AsyncConnection.connect(dsn, autocommit=True) as holder:
        await holder.execute("BEGIN; LOCK TABLE tenure.fence_payments IN ACCESS EXCLUSIVE MODE")
        raising_task = asyncio.create_task(store.raise_token(request(view, credential(1))))
        await wait_until_async(lambda: not _fence_is_unlocked(dsn))
        begun = time.monotonic()
        raising_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await raising_task
        assert time.monotonic() - begun < 0.5
    await wait_until_async(lambda: _fence_is_unlocked(dsn))
    assert (await store.read()).token == 0
    assert (await store.raise_token(request(view, credential(1)))).token == 1


@pytest.mark.asyncio
async def test_store_notes_refusals_and_raises_in_the_ledger(dsn: str, store: fence.FenceStore) -> None:
    held = credential(4)
    await store.raise_token(request(await store.read(), held, holder="node-4"))
    await store.note_refused(sent=3, who="node-3", why="stale token")
    with pytest.raises(RaiseRefused):
        await store.raise_token(request(await store.read(), credential(2), holder="node-2"))
    lines = [(line.action, line.from_token, line.to_token, line.who, line.why) for line in ledger(dsn)]
    assert lines[:3] == [
        ("refused", 4, 2, "node-2", "token_not_greater"),
        ("refused", None, 3, "node-3", "stale token"),
        ("raise", 0, 4, "node-4", "elector raft:11aa"),
    ]
    assert held.nonce not in str(ledger(dsn))


def _fence_is_unlocked(dsn: str) -> bool:
    with psycopg.connect(dsn) as connection:
        found = connection.execute(
            "SELECT FROM pg_locks WHERE relation = 'tenure.fence_payments'::regclass AND NOT granted"
        )
        return found.fetchone() is None
