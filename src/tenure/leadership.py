"""The leadership scope: one handle that carries token, credential and deadline, and ends its body in time.

::

    async for leadership in member.terms():     # one item for each time this member wins
        async with leadership:                  # the body's task is cancelled before the lease runs out
            await serve(leadership)

There is no ``is_leader`` flag: it invites check-then-act (R14). ``remaining()`` and ``check()`` are advice for a quick
stop; what makes a late write harmless is the credential, which the database compares (G3).

The handle belongs to the application's event loop. The node's thread touches it only through ``renew`` and
``revoke``. It reads the clocks through the function that it was given.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable
from types import TracebackType

from tenure.errors import FenceError, LeadershipLost, ServerChanged
from tenure.instants import NS_PER_SECOND, LeaseSpan, Reading
from tenure.types import Credential, LossReason


class _Scope(enum.Enum):
    OFFERED = enum.auto()
    ENTERED = enum.auto()
    EXITED = enum.auto()


class HeldLeadership:
    """One won leadership; implements :class:`tenure.types.Leadership`. Made by the member, never by hand.

    ``async with`` may be entered once. When the leadership ends while the body runs, the body's task is cancelled and
    the ``async with`` statement ends quietly; a cancellation from elsewhere passes through. ``lost`` tells the reason.
    When the body ends by itself, the leadership is given up: RELEASE is written and another member can lead at once.
    """

    def __init__(
        self,
        *,
        term: int,
        credential: Credential,
        span: LeaseSpan,
        margin_ns: int,
        clock: Callable[[], Reading],
        loop: asyncio.AbstractEventLoop,
        on_exit: Callable[[], None],
        on_loss: Callable[[LossReason], None],
    ) -> None:
        self._term = term
        self._credential = credential
        self._span = span
        self._margin_ns = margin_ns
        self._clock = clock
        self._loop = loop
        self._on_exit = on_exit
        self._on_loss = on_loss
        self._scope = _Scope.OFFERED
        self._reason: LossReason | None = None
        self._lost: asyncio.Future[LossReason] = loop.create_future()
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0
        self._cancelled = False
        self._timer: asyncio.TimerHandle | None = None
        self._watch()

    @property
    def term(self) -> int:
        """The term that was won."""
        return self._term

    @property
    def token(self) -> int:
        """The fencing token of this holding; every later leader's is higher (G4)."""
        return self._credential.token

    @property
    def credential(self) -> Credential:
        """Token and nonce: what every guarded write carries (R18). A secret."""
        return self._credential

    @property
    def lost(self) -> asyncio.Future[LossReason]:
        """Resolves with the reason once this leadership is over. Await it through ``asyncio.shield``."""
        return self._lost

    @property
    def reason(self) -> LossReason | None:
        """Why it is over, or None while it is not known to be."""
        return self._reason

    def remaining(self) -> float:
        """Seconds for which the lease may be believed, the margin taken off; 0.0 once it is over. Any thread."""
        if self._reason is not None:
            return 0.0
        return max(0, self._span.remaining_ns(self._clock()) - self._margin_ns) / NS_PER_SECOND

    def check(self) -> None:
        """Raise :class:`tenure.LeadershipLost` once the lease is over. Advice: the pause may come right after (R14)."""
        if self.remaining() <= 0.0:
            raise LeadershipLost(term=self._term, reason=self._reason or LossReason.LEASE_EXPIRED)

    def report_refused(self, error: Exception) -> None:
        """The database refused this credential: the leadership ends at once (R12). Any thread; idempotent."""
        if isinstance(error, FenceError):
            reason = LossReason.SERVER_CHANGED if isinstance(error, ServerChanged) else LossReason.REFUSED
            self._on_loss(reason)
            self.revoke(reason)

    # -- called by the node's thread ------------------------------------------------------------------------------

    def renew(self, span: LeaseSpan) -> None:
        """The lease now runs from ``span.started``. Any thread."""
        self._span = span

    def revoke(self, reason: LossReason) -> None:
        """The leadership is over. Any thread; the first reason stays."""
        if self._reason is None:
            self._reason = reason
        # The application's loop may be closed, or close just now: then no body runs on it any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._lose)

    # -- on the application's loop --------------------------------------------------------------------------------

    @property
    def offered(self) -> bool:
        """True until the scope is entered or abandoned."""
        return self._scope is _Scope.OFFERED

    def abandon(self) -> None:
        """The scope will not be entered: its body counts as returned."""
        if self._scope is _Scope.OFFERED:
            self._leave()

    async def __aenter__(self) -> HeldLeadership:
        """Enter the scope; :class:`tenure.LeadershipLost` if the leadership was over before (await nothing between)."""
        if self._scope is not _Scope.OFFERED:
            raise LeadershipLost(term=self._term, reason=self._reason or LossReason.STEPPED_DOWN)
        self._task = asyncio.current_task()
        self._cancelling = self._task.cancelling() if self._task is not None else 0
        self._scope = _Scope.ENTERED
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Leave the scope. Only the cancellation that the loss itself caused is swallowed."""
        self._leave()
        if self._cancelled and self._task is not None:
            return self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError
        return False

    def _leave(self) -> None:
        if self._scope is _Scope.EXITED:
            return
        self._scope = _Scope.EXITED
        if self._timer is not None:
            self._timer.cancel()
        if self._reason is None:
            self._reason = LossReason.STEPPED_DOWN
        if not self._lost.done():
            self._lost.set_result(self._reason)
        self._on_exit()

    def _watch(self) -> None:
        """End the body by the own clock, whether or not the node's thread still says anything."""
        if self._scope is _Scope.EXITED or self._reason is not None:
            return
        remaining = self.remaining()
        if remaining <= 0.0:
            self._reason = LossReason.LEASE_EXPIRED
            self._on_loss(LossReason.LEASE_EXPIRED)
            self._lose()
        else:
            self._timer = self._loop.call_later(remaining, self._watch)

    def _lose(self) -> None:
        if self._lost.done() or self._reason is None:
            return
        self._lost.set_result(self._reason)
        if self._scope is _Scope.OFFERED:
            self._leave()
        elif self._scope is _Scope.ENTERED and self._task is not None:
            self._cancelled = True
            self._task.cancel(msg=f"leadership of term {self._term} is over: {self._reason}")
