"""``tenure.run_as_leader``: a whole program in one call, for work that runs wherever this member leads.

It opens the member, runs the function each time the member wins, ends it when leadership is over, hands over in good
order when the process is asked to stop, and tells three ends apart: done, stopped, failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from tenure.config import Config
from tenure.errors import LeadershipLost, ServerChanged, StaleToken
from tenure.leadership import HeldLeadership
from tenure.sync import SyncLeadership
from tenure.types import LossReason

T = TypeVar("T")
logger = logging.getLogger("tenure.leadership")

#: How long a function on a thread may take to return after a signal.
STOP_SECONDS = 10.0
#: What a body hears of the end of its leadership by; anything else that it raises is its own.
_LOSSES = (LeadershipLost, StaleToken, ServerChanged)


def run_as_leader(
    main: Callable[[HeldLeadership], Awaitable[T]] | Callable[[SyncLeadership], T],
    *,
    config: Config,
    dsn: str | None = None,
) -> T | None:
    """Run ``main(leadership)`` each time this process leads, until it returns, fails, or a signal comes. Blocks.

    An ``async def`` runs on an event loop and is cancelled when leadership is over. A plain function runs on a thread
    of its own and has to ask by ``leadership.check()``, or to wait by ``leadership.wait_lost()``.

    * It **returns** while it leads: leadership is handed over, the member closes, the value is returned.
    * It **raises**: the same, and the error goes on. What says that leadership is over (``LeadershipLost``,
      ``StaleToken``, ``ServerChanged``) is no error.
    * **Leadership is lost:** whatever it returns then is dropped, and it runs again when this member leads again.
    * **SIGTERM or SIGINT:** it is ended as by a loss, leadership is handed over, and None is returned. A thread that
      does not return within ten seconds is left behind with a line in the log; nothing is released then (R9).

    Signals are looked at where this is called on the main thread. ``dsn`` is that of :func:`tenure.open`.

    Raises:
        ConfigError, StorageError: the node could not be opened.
        TenureError: the node had to stop (R2); the process should exit.
    """
    outcome: T | None = asyncio.run(_run(main, config, config.database.dsn if dsn is None else dsn))
    return outcome


async def _run(main: Callable[[Any], Any], config: Config, dsn: str) -> Any:
    from tenure.node.member import Member

    on_loop = inspect.iscoroutinefunction(main) or inspect.iscoroutinefunction(type(main).__call__)
    body = _on_loop if on_loop else _on_thread
    stopped = False

    def stop() -> None:
        nonlocal stopped
        stopped = True
        leading.cancel()

    async with Member(config, dsn=dsn, handle=HeldLeadership if on_loop else SyncLeadership) as member:
        leading = asyncio.ensure_future(_lead(member, main, body))
        with _on_signals(stop):
            try:
                return await leading
            except asyncio.CancelledError:
                if stopped:
                    return None
                raise


async def _lead(member: Any, main: Callable[[Any], Any], body: Callable[[Any, Any], Awaitable[Any]]) -> Any:
    async for leadership in member.terms():
        done, value = await body(main, leadership)
        if (task := asyncio.current_task()) is not None and task.cancelling():
            # The signal came, and the work did not let it through.
            raise asyncio.CancelledError
        if done:
            return value
    return None


async def _on_loop(main: Callable[[HeldLeadership], Awaitable[T]], leadership: HeldLeadership) -> tuple[bool, T | None]:
    async with leadership:
        try:
            value = await main(leadership)
        except _LOSSES as error:
            leadership.report_refused(error)
        else:
            return leadership.holds, value
    return False, None


async def _on_thread(main: Callable[[SyncLeadership], T], leadership: SyncLeadership) -> tuple[bool, T | None]:
    leadership.take()
    outcome: Future[tuple[bool, T | None]] = Future()
    threading.Thread(target=_work, args=(main, leadership, outcome), name="tenure-leader", daemon=True).start()
    returned = asyncio.wrap_future(outcome)
    try:
        return await asyncio.shield(returned)
    except asyncio.CancelledError:
        leadership.revoke(LossReason.CLOSED)
        done, _ = await asyncio.wait({returned}, timeout=STOP_SECONDS)
        if not done:
            logger.error("the leader's work did not return in %g s and is left behind", STOP_SECONDS)  # noqa: TRY400
        elif (error := returned.exception()) is not None:
            raise error from None
        raise


def _work(
    main: Callable[[SyncLeadership], T], leadership: SyncLeadership, outcome: Future[tuple[bool, T | None]]
) -> None:
    try:
        result: tuple[bool, T | None] = (False, None)
        with leadership:
            try:
                value = main(leadership)
            except _LOSSES as error:
                leadership.report_refused(error)
            else:
                result = (leadership.holds, value)
        outcome.set_result(result)
    except BaseException as error:  # noqa: BLE001 - whatever it is goes on where the function was called.
        outcome.set_exception(error)


@contextlib.contextmanager
def _on_signals(stop: Callable[[], None]) -> Iterator[None]:
    """Have SIGTERM and SIGINT call ``stop``; where this is no main thread they are somebody else's."""
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    loop = asyncio.get_running_loop()
    for number in numbers:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
