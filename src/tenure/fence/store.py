"""The fence as a member sees it: read it, raise it, note a refusal. Asynchronous, for one event loop.

It owns two connections, made when first needed and made again when they break. Every call is bounded: at the
deadline, or when the caller is cancelled, the sockets are shut, so that a server that answers nothing cannot hold the
caller. It must never report a raise that may not have happened as done, nor the other way round (R22, R30).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import psycopg
from psycopg import AsyncConnection

from tenure.errors import DatabaseUnavailable, TenureError
from tenure.fence import raising
from tenure.fence.answers import explain, missing
from tenure.fence.judge import FenceView, RaiseRequest
from tenure.fence.raising import Session

_Result = TypeVar("_Result")


class FenceStore:
    """The fence of one resource in the database at ``dsn``.

    Every call takes at most ``timeout_ms``, connecting included. Cancelling a call is safe: it ends at once, its
    transaction is rolled back by the server, and only a raise whose COMMIT was already on its way may still happen.
    """

    def __init__(self, dsn: str, resource: str, *, timeout_ms: int = 2000) -> None:
        self._dsn = dsn
        self._resource = resource
        self._timeout_s = timeout_ms / 1000
        self._turn = asyncio.Lock()
        self._session: Session | None = None

    async def read(self) -> FenceView:
        """The fence and the server that answers, as they are now.

        Raises:
            FenceMissing: there is none for this resource.
            DatabaseUnavailable: the database did not answer, or not in time.
        """
        return await self._call(self._read)

    async def raise_token(self, request: RaiseRequest) -> FenceView:
        """Raise the fence to the request's credential; asking again with the same request is safe.

        Raises:
            RaiseRefused: the fence does not take it; ``reason`` is a :class:`Refusal`, the message says what to do.
            FenceMissing: there is no fence for this resource.
            DatabaseUnavailable: nothing was raised.
            OutcomeUnknown: it may have been raised: ask again, or read.
        """
        return await self._call(lambda session: raising.raise_token(session, request))

    async def note_refused(self, *, sent: int, who: str, why: str) -> None:
        """Append a refused write of token ``sent`` to the ledger, as well as it can be done; raises nothing."""
        with contextlib.suppress(TenureError):
            await self._call(lambda session: raising.note(session, "refused", who=who, why=why, to_token=sent))

    async def close(self) -> None:
        """Close the connections. The store can be used again afterwards."""
        async with self._turn:
            await self._drop()

    async def _read(self, session: Session) -> FenceView:
        view = await raising.read_view(session.raiser, session.fence, self._resource)
        if view is None:
            raise missing(self._resource)
        return view

    async def _call(self, work: Callable[[Session], Awaitable[_Result]]) -> _Result:
        """Do ``work`` within the deadline; once more on new connections if the old ones turn out to be dead.

        That is safe, since DatabaseUnavailable means that nothing was written.
        """
        async with self._turn:
            deadline = asyncio.get_running_loop().time() + self._timeout_s
            reused = self._session is not None
            try:
                return await self._attempt(work, deadline)
            except DatabaseUnavailable:
                if not reused or asyncio.get_running_loop().time() >= deadline:
                    raise
            return await self._attempt(work, deadline)

    async def _attempt(self, work: Callable[[Session], Awaitable[_Result]], deadline: float) -> _Result:
        try:
            if self._session is None:
                async with asyncio.timeout_at(deadline):
                    self._session = await raising.connect(self._dsn, self._resource)
            return await _until(deadline, work(self._session), self._session)
        except TimeoutError:
            await self._drop()
            raise DatabaseUnavailable(
                f"the database did not answer within {self._timeout_s:g} s, or others kept the fence locked"
            ) from None
        except psycopg.Error as error:
            await self._drop()
            raise explain(error, self._resource) from error
        except BaseException:
            if self._session is not None and self._session.raiser.closed:
                await self._drop()
            raise

    async def _drop(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.aclose()


async def _until(deadline: float, work: Awaitable[_Result], session: Session) -> _Result:
    """Await ``work``; at the deadline or at a cancellation shut its sockets, upon which it ends by itself.

    Cancelling psycopg instead would ask the server for leave and wait for its answer.

    Raises:
        TimeoutError: the deadline passed, and the work did not end in an answer of its own.
    """
    task = asyncio.ensure_future(work)
    # A caller that was cancelled never asks for the error that the shut sockets cause.
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    severed = False
    try:
        await asyncio.wait({task}, timeout=deadline - asyncio.get_running_loop().time())
    finally:
        if not task.done():
            severed = True
            _sever(session.raiser)
            _sever(session.watcher)
            await asyncio.wait({task})
    if severed and isinstance(task.exception(), psycopg.Error):
        raise TimeoutError
    return task.result()


def _sever(connection: AsyncConnection[Any]) -> None:
    with contextlib.suppress(psycopg.Error, OSError), socket.socket(fileno=os.dup(connection.fileno())) as shared:
        shared.shutdown(socket.SHUT_RDWR)
