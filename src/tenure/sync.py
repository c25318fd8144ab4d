"""Leadership for threads: the same member and the same scope, for programs that have no event loop.

::

    with tenure.open_sync(config) as member:
        for leadership in member.terms():       # waits until this member leads
            with leadership:                    # the body runs on this thread
                while work():
                    leadership.check()          # raises LeadershipLost, and the with statement ends quietly

A thread cannot be cancelled. The body asks by ``check()``, waits by ``wait_lost()``, or is called back by
``on_lost()``; as long as it has not returned no RELEASE is written (R9), its member does not stand for election (R10),
and after a second it is reported with the line where it stands.

The member runs on a loop of its own, on the thread ``tenure-application``. That this thread gets to run is all that it
can prove of the application (R13): a body that computes for long is honest work. A body that wants to be held to more
calls ``leadership.heartbeat()``.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast

from tenure.config import Config
from tenure.errors import LeadershipLost, NodeClosed
from tenure.leadership import Scope, Standing, frame_of_thread, place_of
from tenure.types import LossReason, Status

if TYPE_CHECKING:
    from tenure.node.member import Member, RoleChange

T = TypeVar("T")


class SyncLeadership(Scope):
    """One won leadership, for a thread. Made by the member, never by hand.

    ``with`` may be entered once, by the thread that runs the body. When the body ends, the leadership is given up:
    RELEASE is written and another member can lead at once. A :class:`tenure.LeadershipLost` of this very leadership
    ends the ``with`` statement quietly.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._lost: Future[LossReason] = Future()
        self._news = threading.Event()
        if self._leased:
            self._news.set()
        self.watch()

    @property
    def lost(self) -> Future[LossReason]:
        """Resolves with the reason once this leadership is over. Nothing cancels it."""
        return self._lost

    def wait_lost(self, timeout: float | None = None) -> LossReason | None:
        """Wait until this leadership is over; the reason, or None after ``timeout`` seconds."""
        done, _ = concurrent.futures.wait({self._lost}, timeout)
        return self._lost.result() if done else None

    def on_lost(self, call: Callable[[LossReason], object]) -> None:
        """Have ``call`` called once with the reason, on another thread, or at once if it is over already.

        It must be quick and must not wait for this member: the member's own thread makes the call.
        """
        self._lost.add_done_callback(lambda lost: call(lost.result()))

    def wait_leased(self, timeout: float | None = None) -> bool:
        """Wait until the lease runs: not at all, unless ``lease.wait_out`` lets fenced transactions begin before it.

        False after ``timeout`` seconds.

        Raises:
            LeadershipLost: it ended before.
        """
        told = self._news.wait(timeout)
        self.check()
        return told

    def __enter__(self) -> SyncLeadership:
        """Enter the scope; :class:`tenure.LeadershipLost` if it was entered before."""
        with self._lock:
            if self._state not in (Standing.OFFERED, Standing.TAKEN):
                raise LeadershipLost(term=self._term, reason=self._reason or LossReason.STEPPED_DOWN)
            self._thread_id = threading.get_ident()
            self._state = Standing.ENTERED
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Leave the scope. Only the error by which the body heard of its own loss is swallowed."""
        forked = self._reason is LossReason.FORKED
        self.leave()
        return isinstance(error, LeadershipLost) and error.term == self._term and not forked

    def take(self) -> None:
        """On the member's loop: it is being handed to a thread. From here on only that thread gives it back."""
        with self._lock:
            if self._state is Standing.OFFERED:
                self._state = Standing.TAKEN

    def void_after_fork(self) -> None:
        """See :class:`Forkable`. Whoever would tell the child of the end is in the parent."""
        super().void_after_fork()
        self._lost, self._news = Future(), threading.Event()
        self._lost.set_result(LossReason.FORKED)
        self._news.set()

    def _tell_lost(self, reason: LossReason) -> None:
        self._lost.set_result(reason)
        self._news.set()

    def _tell_leased(self) -> None:
        self._news.set()

    def _stop_body(self) -> None:
        """A thread cannot be cancelled: it has been told."""

    def _place(self) -> str:
        name = next((t.name for t in threading.enumerate() if t.ident == self._thread_id), "a thread that has ended")
        return f"{name} {place_of(frame_of_thread(self._thread_id))}"


class SyncMember:
    """One member of a cluster, for programs without an event loop; made by :func:`tenure.open_sync`. Any thread.

    In a forked child it is void: everything but :meth:`close` raises :class:`tenure.NodeClosed` and names the fork.
    """

    def __init__(self, config: Config, *, dsn: str) -> None:
        from tenure.node.member import Member

        self._member: Member = Member(config, dsn=dsn, handle=SyncLeadership)
        self._opened: Future[None] = Future()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="tenure-application", daemon=True)

    def __enter__(self) -> SyncMember:
        """Open the node: lock its directory, bind its port, begin to found or to run.

        Raises:
            ConfigError: the engine is not installed, or a file of ``raft.tls`` is no good.
            StorageError: the directory is in use, damaged, full, or belongs to another node or cluster.
        """
        self._thread.start()
        try:
            self._opened.result()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the node; see :meth:`close`."""
        self.close()

    def close(self) -> None:
        """Give up leadership, hand it over if one election timeout suffices, and stop the node. Idempotent.

        A body that runs on another thread is told, and not waited for longer than that. In a forked child it does
        nothing: the node is the parent's.
        """
        if self._member.forked:
            return
        if self._loop is not None:
            # It may be closed already, or close just now.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def terms(self) -> Iterator[SyncLeadership]:
        """Each leadership that this member wins, one at a time; ends when the member closes.

        What is not entered before the next one is asked for counts as returned; what another thread has entered does
        not, and the next one comes after it has returned.

        Raises:
            TenureError: the node had to stop (R2); the process should exit.
        """
        while (leadership := self._call(self._next())) is not None:
            try:
                yield leadership
            finally:
                leadership.give_back()

    @property
    def leadership(self) -> SyncLeadership | None:
        """The present leadership while its ``check`` passes, for request handlers; else None."""
        return cast("SyncLeadership | None", self._member.leadership)

    @property
    def name(self) -> str:
        """This member's name."""
        return self._member.name

    @property
    def journal(self) -> list[RoleChange]:
        """The last changes of role, the oldest first."""
        return list(self._member.journal)

    def status(self) -> Status:
        """This member's own view at this instant, judged against the lease's deadline now."""
        return self._member.status()

    def step_down(self) -> bool:
        """Give up leadership and hand it to another member if one is ready. False if this member does not lead."""
        return self._call(self._member.step_down())

    def wait_failed(self, timeout: float | None = None) -> BaseException | None:
        """Wait until the node must stop (R2): its error, upon which the process must exit; None after ``timeout``."""
        return self._call(self._until_failed(timeout))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs to who opened or closes the member.
            if self._opened.done():
                self._error = error
            else:
                self._opened.set_exception(error)

    async def _live(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with self._member:
            self._opened.set_result(None)
            await self._stop.wait()

    async def _next(self) -> SyncLeadership | None:
        async with contextlib.aclosing(self._member.terms()) as terms:
            async for leadership in terms:
                taken = cast("SyncLeadership", leadership)
                taken.take()
                return taken
        return None

    async def _until_failed(self, seconds: float | None) -> BaseException | None:
        done, _ = await asyncio.wait({self._member.failed}, timeout=seconds)
        return self._member.failed.result() if done else None

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        """Have the member's loop do ``work`` and wait for it; an interruption of the waiting cancels it."""
        try:
            self._member.require_own_process()
            if self._loop is None:
                raise NodeClosed("the member is not open")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except BaseException as error:
            work.close()
            if isinstance(error, RuntimeError):
                raise NodeClosed from None
            raise
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise NodeClosed from None
        except BaseException:
            future.cancel()
            raise


def open_sync(config: Config, *, dsn: str | None = None) -> SyncMember:
    """A member of the cluster that ``config`` names, for programs without an event loop, to be entered with ``with``.

    ``dsn`` is that of :func:`tenure.open`. In a pre-forking server open it in each worker, after the fork.
    """
    return SyncMember(config, dsn=config.database.dsn if dsn is None else dsn)
