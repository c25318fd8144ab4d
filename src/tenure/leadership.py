"""The leadership scope: one handle that carries token, credential and deadline, and ends its body in time.

::

    async for leadership in member.terms():     # one item for each time this member wins
        async with leadership:                  # the body's task is cancelled before the lease runs out
            await serve(leadership)

There is no ``is_leader`` flag: it invites check-then-act (R14). ``remaining()`` and ``check()`` are advice for a quick
stop; what makes a late write harmless is the credential, which the database compares (G3).

:class:`Scope` is what every handle does, whatever its body runs on; :class:`HeldLeadership` is the one of an event
loop, :class:`tenure.SyncLeadership` the one of a thread. A handle has a loop, that of its member, on which it
watches its own deadline; the node's thread touches it only through ``renew`` and ``revoke``. It reads the clocks
through the functions that it was given. In a forked child it is void: the parent goes on using the original.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import enum
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from tenure.errors import FenceError, LeadershipLost, ServerChanged
from tenure.instants import CLOSED, NS_PER_SECOND, LeaseSpan, Reading
from tenure.types import Credential, LossReason

logger = logging.getLogger("tenure.leadership")

#: How long the work of an ended leadership may take to return before it is reported.
OVERDUE_SECONDS = 1.0
FORKED = (
    "this process was forked after the member was opened, and the leadership stayed with the parent: "
    "open a member in the child, after the fork"
)


class Forkable(abc.ABC):
    """What a forked child must not go on using: it holds a copy, while the parent uses the original."""

    def __init__(self) -> None:
        _forkables.add(self)

    @abc.abstractmethod
    def void_after_fork(self) -> None:
        """In the child, before anything else runs there: become void. No other thread exists."""


_forkables: weakref.WeakSet[Forkable] = weakref.WeakSet()


def _void_all() -> None:
    for forkable in list(_forkables):
        forkable.void_after_fork()


os.register_at_fork(after_in_child=_void_all)


class Standing(enum.Enum):
    """How far a scope has got."""

    OFFERED = enum.auto()
    TAKEN = enum.auto()
    ENTERED = enum.auto()
    EXITED = enum.auto()


class Scope(Forkable):
    """One won leadership, whatever runs its body; implements :class:`tenure.types.Leadership`.

    Made by the member, never by hand. ``token``, ``term``, ``credential``, ``remaining()``, ``check()``,
    ``heartbeat()`` and ``report_refused()`` may be used on any thread.
    """

    def __init__(
        self,
        *,
        term: int,
        credential: Credential,
        span: LeaseSpan,
        margin_ns: int,
        clocks: tuple[Callable[[], int], Callable[[], int]],
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[], None],
        on_loss: Callable[[LossReason], None],
        on_overdue: Callable[[str | None], None] = lambda place: None,
        leased: bool = True,
    ) -> None:
        super().__init__()
        self._term = term
        self._credential: Credential | None = credential
        self._token = credential.token
        self._margin_ns = margin_ns
        self._raw_ns, self._boottime_ns = clocks
        self._window = span.window(margin_ns)
        self._leased = leased
        self._loop = loop
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._on_overdue = on_overdue
        self._lock = threading.Lock()
        self._state = Standing.OFFERED
        self._reason: LossReason | None = None
        self._loss_told = False
        self._timer: asyncio.TimerHandle | None = None
        self._overdue = threading.Timer(OVERDUE_SECONDS, self._report_overdue)
        self._overdue.daemon = True
        self._overdue_told = False
        self._thread_id = 0
        self.beaten_at: Reading | None = None

    # -- for the body, any thread ---------------------------------------------------------------------------------

    @property
    def term(self) -> int:
        """The term that was won."""
        return self._term

    @property
    def token(self) -> int:
        """The fencing token of this holding; every later leader's is higher (G4)."""
        return self._token

    @property
    def credential(self) -> Credential:
        """Token and nonce: what every guarded write carries (R18). A secret.

        :class:`tenure.LeadershipLost` in a forked child: the leadership stayed with the parent.
        """
        if self._credential is None:
            raise self._lost_error()
        return self._credential

    @property
    def reason(self) -> LossReason | None:
        """Why it is over, or None while it is not known to be."""
        return self._reason

    def remaining(self) -> float:
        """Seconds for which the lease may be believed, the margin taken off; 0.0 before it starts and after its end."""
        return self._left_ns() / NS_PER_SECOND if self._leased else 0.0

    def check(self) -> None:
        """Raise :class:`tenure.LeadershipLost` once the leadership is over. Costs a quarter of a microsecond.

        It is over when the lease is, or when it was revoked. Under ``lease.wait_out = "fenced-only"`` it passes before
        the lease has started, too: the fence is raised, and a quorum was heard within the length of a lease. Advice in
        any case: the process may be stopped right behind it (R14).
        """
        raw_from, raw_until, boottime_from, boottime_until = self._window
        if raw_from <= self._raw_ns() < raw_until and boottime_from <= self._boottime_ns() < boottime_until:
            return
        raise self._lost_error()

    def heartbeat(self) -> None:
        """Say that the work gets on (R13). From the first call on, this leadership is held to it.

        Without another call for ``lease.application_heartbeat_timeout_ms`` it is given up. Who never calls this is
        judged by the member's event loop alone.
        """
        self.beaten_at = Reading(self._raw_ns(), self._boottime_ns())

    def report_refused(self, error: Exception) -> None:
        """The database refused this credential: the leadership ends at once (R12). Any thread; idempotent.

        ``error`` is one of :class:`tenure.FenceError`, or a driver's own with the SQLSTATE of one (TN001 to TN004);
        any other is ignored.
        """
        sqlstate = getattr(error, "sqlstate", None) or ""
        if isinstance(error, FenceError) or sqlstate.startswith("TN0"):
            reason = LossReason.SERVER_CHANGED if sqlstate == ServerChanged.sqlstate else LossReason.REFUSED
            self._on_loss(reason)
            self.revoke(reason)

    # -- called by the node's thread ------------------------------------------------------------------------------

    def renew(self, span: LeaseSpan, *, leased: bool = True) -> None:
        """The leadership now counts from ``span.started``, and so does the lease if it is ``leased``. Any thread."""
        window = span.window(self._margin_ns)
        with self._lock:
            if self._reason is not None:
                return
            self._window = window
            starts, self._leased = leased and not self._leased, leased
        if starts:
            self._post(self._tell_leased)

    def revoke(self, reason: LossReason) -> None:
        """The leadership is over. Any thread; the first reason stays."""
        self._end(reason)
        self._post(self._lose)

    # -- on the member's loop -------------------------------------------------------------------------------------

    @property
    def offered(self) -> bool:
        """True until somebody has taken, entered or abandoned the scope."""
        return self._state is Standing.OFFERED

    @property
    def entered(self) -> bool:
        """False until the body begins."""
        return self._state not in (Standing.OFFERED, Standing.TAKEN)

    @property
    def holds(self) -> bool:
        """Whether :meth:`check` passes now; for who decides whether to hand this handle out."""
        return self._left_ns() > 0

    def abandon(self, reason: LossReason = LossReason.STEPPED_DOWN) -> None:
        """If nobody has taken the scope, nobody will: its body counts as returned."""
        if self._state is Standing.OFFERED:
            self._end(reason)
            self.leave()

    def leave(self) -> None:
        """The body has returned, and only now may RELEASE be written (R9). Idempotent."""
        self._leave(Standing.OFFERED, Standing.TAKEN, Standing.ENTERED)

    def give_back(self) -> None:
        """Nobody will enter the scope. If somebody has, its body has not returned, on whichever thread it is (R9)."""
        self._leave(Standing.OFFERED, Standing.TAKEN)

    def _leave(self, *standings: Standing) -> None:
        with self._lock:
            if self._state not in standings:
                return
            self._state = Standing.EXITED
            if self._reason is None:
                self._reason, self._window = LossReason.STEPPED_DOWN, CLOSED
            overdue_told = self._overdue_told
        self._overdue.cancel()
        if overdue_told:
            logger.warning("the work of the leadership of term %d has returned now", self._term)
            self._on_overdue(None)
        if self._timer is not None:
            self._post(self._timer.cancel)
        self._announce()
        if self._reason is not LossReason.FORKED:
            self._on_exit()

    def watch(self) -> None:
        """End the body by the own clock, whether or not the node's thread still says anything."""
        if self._state is Standing.EXITED or self._reason is not None:
            return
        left_ns = self._left_ns()
        if left_ns > 0:
            self._timer = self._loop.call_later(left_ns / NS_PER_SECOND, self.watch)
        else:
            self._end(LossReason.LEASE_EXPIRED)
            self._on_loss(LossReason.LEASE_EXPIRED)
            self._lose()

    @abc.abstractmethod
    def _tell_lost(self, reason: LossReason) -> None:
        """Once, on the member's loop or by who leaves the scope: the leadership is over."""

    @abc.abstractmethod
    def _tell_leased(self) -> None:
        """On the member's loop: the lease has started."""

    @abc.abstractmethod
    def _stop_body(self) -> None:
        """On the member's loop: the body runs, and must end."""

    @abc.abstractmethod
    def _place(self) -> str:
        """Who has not returned, and where it hangs. Any thread."""

    # -- inside ---------------------------------------------------------------------------------------------------

    def _left_ns(self) -> int:
        """How long :meth:`check` goes on passing unless it is renewed; 0 if it does not pass now."""
        raw_from, raw_until, boottime_from, boottime_until = self._window
        raw_ns, boottime_ns = self._raw_ns(), self._boottime_ns()
        if raw_ns < raw_from or boottime_ns < boottime_from:
            return 0
        return max(0, min(raw_until - raw_ns, boottime_until - boottime_ns))

    def _end(self, reason: LossReason) -> None:
        with self._lock:
            if self._reason is not None:
                return
            self._reason, self._window = reason, CLOSED
            if self._state is not Standing.EXITED:
                # No thread can be started any more while the interpreter ends.
                with contextlib.suppress(RuntimeError):
                    self._overdue.start()

    def _lose(self) -> None:
        if self._loss_told:
            return
        if self._state is Standing.OFFERED:
            self.leave()
            return
        self._announce()
        if self._state is Standing.ENTERED:
            self._stop_body()

    def _announce(self) -> None:
        with self._lock:
            told, self._loss_told = self._loss_told, True
        if not told and self._reason is not None:
            self._tell_lost(self._reason)

    def _report_overdue(self) -> None:
        """On a thread of its own: neither a blocked loop nor a node that failed may keep this from being said."""
        if self._state is not Standing.ENTERED:
            return
        place = self._place()
        with self._lock:
            # It may have returned meanwhile: then nobody would ever take the report back.
            if self._state is not Standing.ENTERED:
                return
            self._overdue_told = True
            logger.error(
                "the leadership of term %d ended (%s) %g s ago and its work has not returned: %s. The database refuses "
                "its writes; this member does not stand for election until it returns",
                self._term,
                self._reason,
                OVERDUE_SECONDS,
                place,
            )
            self._on_overdue(place)

    def _lost_error(self) -> LeadershipLost:
        reason = self._reason or LossReason.LEASE_EXPIRED
        return LeadershipLost(term=self._term, reason=reason, detail=FORKED if reason is LossReason.FORKED else "")

    def _post(self, call: Callable[[], None]) -> None:
        # The member's loop may be closed, or close just now: then no body runs on it any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def void_after_fork(self) -> None:
        """See :class:`Forkable`. Another thread may have held the lock when the process was forked."""
        self._lock = threading.Lock()
        self._reason, self._window, self._credential = LossReason.FORKED, CLOSED, None
        self._loss_told = True


class HeldLeadership(Scope):
    """One won leadership, for an event loop. Made by the member, never by hand.

    ``async with`` may be entered once. When the leadership ends while the body runs, the body's task is cancelled and
    the ``async with`` statement ends quietly; a cancellation from elsewhere passes through. ``lost`` tells the reason.
    When the body ends by itself, the leadership is given up: RELEASE is written and another member can lead at once.
    A body that ignores its cancellation is reported after a second with the place where it hangs.
    """

    def __init__(self, **fields: Any) -> None:
        super().__init__(**fields)
        self._lost: asyncio.Future[LossReason] = self._loop.create_future()
        self._lease_start: asyncio.Future[None] = self._loop.create_future()
        if self._leased:
            self._lease_start.set_result(None)
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False
        self.watch()

    @property
    def lost(self) -> asyncio.Future[LossReason]:
        """Resolves with the reason once this leadership is over. Await it through ``asyncio.shield``."""
        return self._lost

    async def leased(self) -> None:
        """Return once the lease runs: at once, unless ``lease.wait_out`` lets fenced transactions begin before it.

        Raises:
            LeadershipLost: it ended before.
        """
        either: set[asyncio.Future[Any]] = {self._lease_start, self._lost}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        self.check()

    async def __aenter__(self) -> HeldLeadership:
        """Enter the scope; :class:`tenure.LeadershipLost` if the leadership was over before (await nothing between)."""
        if self._state is not Standing.OFFERED:
            raise LeadershipLost(term=self._term, reason=self._reason or LossReason.STEPPED_DOWN)
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._thread_id = threading.get_ident()
        self._state = Standing.ENTERED
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Leave the scope. Only the cancellation that the loss itself caused is swallowed."""
        self.leave()
        if self._cancelled and self._task is not None:
            return self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        return False

    def _tell_lost(self, reason: LossReason) -> None:
        if not self._lost.done():
            self._lost.set_result(reason)

    def _tell_leased(self) -> None:
        if not self._lease_start.done():
            self._lease_start.set_result(None)

    def _stop_body(self) -> None:
        if self._task is not None:
            self._cancelled = True
            self._task.cancel(msg=f"leadership of term {self._term} is over: {self._reason}")

    def _place(self) -> str:
        task = self._task
        if task is None:
            return "work outside any task"
        awaited = list(_awaited(task.get_coro()))
        # Whoever is running stands where its thread is; whoever waits does so at the end of the chain of awaits.
        running = not awaited or getattr(awaited[0], "cr_running", False)
        frame = frame_of_thread(self._thread_id) if running else _frame_of(awaited[-1])
        return f"{task.get_name()} {place_of(frame)}"


def frame_of_thread(thread_id: int) -> FrameType | None:
    """Where that thread of this process is now."""
    return sys._current_frames().get(thread_id)  # noqa: SLF001 - made for this; its name says that CPython alone has it.


def place_of(frame: FrameType | None) -> str:
    """Where a frame stands, for a person."""
    if frame is None:
        return "at an unknown place"
    return f"in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"


def _awaited(awaitable: object) -> Iterator[object]:
    """A coroutine, what it awaits, what that awaits, as far as there are frames."""
    while awaitable is not None and _frame_of(awaitable) is not None:
        yield awaitable
        awaitable = next(
            (
                inner
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if (inner := getattr(awaitable, name, None)) is not None
            ),
            None,
        )


def _frame_of(awaitable: object) -> FrameType | None:
    return next(
        (frame for name in ("cr_frame", "gi_frame", "ag_frame") if (frame := getattr(awaitable, name, None))), None
    )
