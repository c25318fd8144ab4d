"""The raise: one short transaction that gives the fence to a new holder (R15, R20, R21, R22, R23).

::

    raiser    BEGIN, settings ── LOCK TABLE fence IN EXCLUSIVE MODE ── read row and server ── judge ── UPDATE, COMMIT
    watcher                      └ 20 ms later, every 10 ms: end the sessions that the raiser waits for

The table lock queues fairly behind writers that hold the row ``FOR SHARE``; an UPDATE of the row alone would starve
behind them for ever. A writer that keeps its transaction open is a leader of before, or a stranger: its session is
ended and named in the ledger. The lock of one group never touches the writers of another.

The transaction reads and writes nothing but the fence and its ledger (R21), is durable whatever the server's default
(R22), and counts as done only if COMMIT says so without a warning. Rules live in :mod:`tenure.fence.judge` alone.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection, sql
from psycopg.rows import dict_row

from tenure.errors import DatabaseUnavailable, RaiseRefused
from tenure.fence.answers import commit, missing
from tenure.fence.judge import FenceRow, FenceView, LiveServer, RaiseRequest, Refusal, Verdict, judge_raise
from tenure.fence.queries import fence_relation, query

#: The name that raisers show in pg_stat_activity.
APPLICATION_NAME = "tenure-fence"
_GROUP_OF = "SELECT fence_group FROM tenure.resource WHERE name = %s"
_ATTEMPTS_MAX = 20
_GRACE_S = 0.020
_POLL_S = 0.010


class Session(msgspec.Struct, frozen=True):
    """Two connections in autocommit mode and the relation they work on. The second exists before it is needed."""

    resource: str
    fence: sql.Identifier
    raiser: AsyncConnection[Any]
    watcher: AsyncConnection[Any]

    async def aclose(self) -> None:
        """Close both connections; what is open on them is rolled back by the server."""
        await self.raiser.close()
        await self.watcher.close()


class Held(msgspec.Struct, frozen=True):
    """The fence as the raiser found it: its row (None if there is none) and the server that is live."""

    row: FenceRow | None
    live: LiveServer


async def connect(dsn: str, resource: str) -> Session:
    """Open both connections and find the relation of ``resource``.

    Raises:
        FenceMissing: there is no fence for ``resource``.
        psycopg.Error: the database did not answer, or has no fence at all.
    """
    async with contextlib.AsyncExitStack() as opened:
        connections = []
        for _ in range(2):
            # Nothing is prepared on the server, so that a transaction pooler may stand in between (R25).
            connection = await AsyncConnection.connect(
                dsn, autocommit=True, prepare_threshold=None, application_name=APPLICATION_NAME
            )
            opened.push_async_callback(connection.close)
            connections.append(connection)
        cursor = await connections[0].execute(_GROUP_OF, [resource])
        found = await cursor.fetchone()
        if found is None:
            raise missing(resource)
        opened.pop_all()
        return Session(resource, fence_relation(found[0]), *connections)


async def read_view(connection: AsyncConnection[Any], fence: sql.Identifier, resource: str) -> FenceView | None:
    """The fence as it is now, or None if ``resource`` has no row."""
    found = await _read(connection, fence, resource, nonce=sql.SQL("''"))
    return None if found is None else msgspec.convert(found, FenceView)


async def raise_token(session: Session, request: RaiseRequest) -> FenceView:
    """Raise the fence to the request's credential, or find that this was done before.

    Raises:
        RaiseRefused: the fence does not take it; nothing changed but the ledger.
        DatabaseUnavailable: nothing changed.
        OutcomeUnknown: the raise may have happened; ask again with the same request.
        psycopg.Error: nothing changed.
    """
    held = await _look(session)
    verdict = judge_raise(held.row, held.live, request)
    # A raise that cannot succeed must end nobody's session: only one that may goes for the lock.
    if not isinstance(verdict, Refusal):
        async with locked(session, who=request.holder) as held:
            verdict = judge_raise(held.row, held.live, request)
            await _carry_out(session, held, verdict, request)
    else:
        await _carry_out(session, held, verdict, request)
    if isinstance(verdict, Refusal):
        raise RaiseRefused(
            f"the fence of {session.resource!r} does not take token {request.credential.token}: {verdict.advice}",
            resource=session.resource,
            reason=verdict.value,
            held=request.credential.token,
            seen=None if held.row is None else held.row.token,
        )
    return view_of(verdict, held.live)


async def _carry_out(session: Session, held: Held, verdict: Verdict, request: RaiseRequest) -> None:
    """Write what was decided, the ledger's line in any case.

    A raise that was done before writes its line, too: its COMMIT then waits for all that came before it to be as safe
    as a raise must be, which an earlier COMMIT of unknown outcome may not have been.
    """
    tokens = {
        "from_token": None if held.row is None else held.row.token,
        "to_token": request.credential.token,
    }
    if isinstance(verdict, Refusal):
        await note(session, "refused", who=request.holder, why=verdict.value, **tokens)
        return
    if verdict is not held.row:
        await write(session, verdict)
    action = "confirm" if verdict is held.row else "raise"
    await note(session, action, who=request.holder, why=f"elector {verdict.elector_id}", **tokens)


@contextlib.asynccontextmanager
async def locked(session: Session, *, who: str) -> AsyncIterator[Held]:
    """One durable transaction with the fence locked, its holders ended; committed at the end of the body.

    Raises:
        DatabaseUnavailable: the lock could not be had; nothing changed.
        OutcomeUnknown: the body's changes may have been committed.
    """
    ended: dict[int, str] = {}
    raiser = session.raiser
    try:
        problem: str | None = "it was never tried"
        for attempt in range(_ATTEMPTS_MAX):
            problem = await _try_to_lock(session, ended, spare_raisers=attempt == 0)
            if problem is None:
                break
        else:
            raise DatabaseUnavailable(f"the fence of {session.resource!r} stays locked by others: {problem}")
        for text in ended.values():
            await note(session, "terminate", who=who, why=text)
        yield await _look(session)
        await commit(raiser)
    except BaseException:
        # A connection that is lost, or whose task was cancelled, is not worth a word more: the server rolls back.
        if not raiser.closed and raiser.info.transaction_status == psycopg.pq.TransactionStatus.ACTIVE:
            await raiser.close()
        with contextlib.suppress(psycopg.Error):
            await raiser.rollback()
        raise


async def write(session: Session, row: FenceRow) -> None:
    """Write the row that the judge returned; timeline and server start are the live ones by themselves."""
    await session.raiser.execute(query("write", fence=session.fence), msgspec.structs.asdict(row))


async def note(
    session: Session,
    action: str,
    *,
    who: str,
    why: str,
    from_token: int | None = None,
    to_token: int | None = None,
) -> None:
    """Append one line to the ledger: ``from_token`` is what the fence held, ``to_token`` what was asked for."""
    values = {"resource": session.resource, "action": action, "from_token": from_token, "to_token": to_token}
    await session.raiser.execute(query("note"), values | {"who": who, "why": why})


async def _try_to_lock(session: Session, ended: dict[int, str], *, spare_raisers: bool) -> str | None:
    """Begin, and wait for the lock as long as lock_timeout allows; else roll back and return what is in the way."""
    raiser = session.raiser
    await raiser.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE")
    [(*_, pid)] = await (await raiser.execute(query("begin"))).fetchall()
    done = asyncio.Event()
    clearing = asyncio.create_task(_clear_the_way(session, pid, ended, done, spare_raisers=spare_raisers))
    try:
        await raiser.execute(sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(session.fence))
    except (psycopg.errors.LockNotAvailable, psycopg.errors.DeadlockDetected) as error:
        await raiser.rollback()
        done.set()
        return await clearing or str(error)
    finally:
        done.set()
        await asyncio.wait({clearing})
    return None


async def _clear_the_way(
    session: Session, pid: int, ended: dict[int, str], done: asyncio.Event, *, spare_raisers: bool
) -> str | None:
    """End the sessions that backend ``pid`` waits for, until it waits no more. Polls: there is no event for it.

    Returns what kept it from doing so, most likely a right that the role lacks (pg_signal_backend).
    """
    values = {"raiser": pid, "spare_raisers": spare_raisers, "raisers": APPLICATION_NAME}
    pause = _GRACE_S
    while not await _is_set_within(done, pause):
        try:
            cursor = session.watcher.cursor(row_factory=dict_row)
            await cursor.execute(query("terminate"), values)
        except psycopg.Error as error:
            return str(error)
        for found in await cursor.fetchall():
            ended[found["pid"]] = (
                f"ended session {found['pid']} of {found['usename']} ({found['application_name']}, "
                f"{found['address'] or 'local'}, {found['state']}), which held the fence"
            )
        pause = _POLL_S
    return None


async def _is_set_within(event: asyncio.Event, seconds: float) -> bool:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)
    return event.is_set()


async def _read(
    connection: AsyncConnection[Any], fence: sql.Identifier, resource: str, *, nonce: sql.SQL
) -> dict[str, Any] | None:
    cursor = connection.cursor(row_factory=dict_row)
    await cursor.execute(query("read", fence=fence, nonce=nonce), {"resource": resource})
    return await cursor.fetchone()


async def _look(session: Session) -> Held:
    found = await _read(session.raiser, session.fence, session.resource, nonce=sql.SQL("f.nonce"))
    if found is None:
        return Held(row=None, live=LiveServer(timeline="", server_start=""))
    live = LiveServer(found["live_timeline"], found["live_server_start"], found["live_fsync"])
    return Held(row=msgspec.convert(found, FenceRow), live=live)


def view_of(row: FenceRow, live: LiveServer) -> FenceView:
    """What may be shown of a row: all but its nonce."""
    fields = msgspec.structs.asdict(row)
    fields |= {"live_timeline": live.timeline, "live_server_start": live.server_start}
    return msgspec.convert(fields, FenceView)
