"""The supervisor: a member of the cluster that runs a command each time it leads, and passes its exit code on.

The scope of a leadership is left only when no process of the command is left, so that RELEASE, and with it a
successor that need not wait, comes after the end of the work (R9). It must never hold a lease for a command that it
has lost sight of, and never print the credential.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import tenure
from tenure.config import Config
from tenure.errors import LeadershipLost, TenureError
from tenure.supervision.guard import NS_PER_SECOND, Ended, Guard
from tenure.supervision.guardian import become_subreaper, read_clocks

#: EX_TEMPFAIL of sysexits.h: the leadership was lost. A command that ends with it says that it was refused.
LEADERSHIP_LOST = 75
#: What asks the supervisor to hand over.
STOPPING = (signal.SIGTERM, signal.SIGINT)
#: What is meant for the command. Without a command the first two end the supervisor.
FORWARDED = (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
ENDING = (signal.SIGHUP, signal.SIGQUIT)
#: The last part of a lease, in which a command whose lease is not renewed is told to end.
_WINDOW_DIVISOR = 4
#: How often within a lease the guardian is told of its renewal, at least.
_TOLD_PER_LEASE = 20
_TOLD_SECONDS_MAX = 0.5
_LOOK_SECONDS = 1.0


class Tell(Protocol):
    """Where the supervisor's own news go: an event's stable name and its facts."""

    def __call__(self, event: str, **facts: object) -> None:
        """One line for a person or a machine."""
        ...


async def supervise(config: Config, command: Sequence[str], *, grace_seconds: float, once: bool, tell: Tell) -> int:
    """Run ``command`` each time this member leads, until it ends by itself; the exit code for this process.

    That is the command's own, 128 + n when signal n ended it, 75 when leadership was lost and ``once`` forbids to wait
    for the next, 126 or 127 when the command cannot be started. A SIGTERM or SIGINT hands over and ends; so the same
    call must not run twice in a process, and belongs on the main thread.

    Raises:
        TenureError: the member cannot be opened, or its node had to stop while it did not lead.
    """
    become_subreaper()
    return await Supervisor(config, command, round(grace_seconds * NS_PER_SECOND), once, tell).serve()


class Supervisor:
    """One call of :func:`supervise`."""

    def __init__(self, config: Config, command: Sequence[str], grace_ns: int, once: bool, tell: Tell) -> None:
        self._config = config
        self._command = command
        self._grace_ns = grace_ns
        self._once = once
        self._tell = tell
        self._running: Guard | None = None
        self._stopped_by: int | None = None
        self._lost = False

    async def serve(self) -> int:
        """See :func:`supervise`."""
        following = asyncio.create_task(self._follow())
        with _handling(lambda number: self._on_signal(number, following)):
            try:
                return await following
            except asyncio.CancelledError:
                if self._stopped_by is None:
                    raise
                # A member that stood by and was asked to end has done all of its work.
                return 0 if self._stopped_by == signal.SIGTERM else 128 + self._stopped_by
            except TenureError as error:
                if not self._lost:
                    raise
                self._tell("failed", reason=str(error))
                return LEADERSHIP_LOST

    async def _follow(self) -> int:
        async with tenure.open(self._config) as member:
            looking = asyncio.create_task(self._look(member.status))
            try:
                guard = await Guard.open()
                try:
                    async for leadership in member.terms():
                        code = await self._lead(leadership, guard)
                        if code is not None:
                            return code
                        await guard.close()
                        guard = await Guard.open()
                finally:
                    await guard.close()
            finally:
                looking.cancel()
        raise tenure.NodeClosed

    async def _lead(self, leadership: tenure.HeldLeadership, guard: Guard) -> int | None:
        """Run the command under one leadership. The exit code to end with, or None: stand again."""
        self._lost = False
        reason: tenure.LossReason | None = None
        # Over before it was entered: nothing was begun.
        with contextlib.suppress(LeadershipLost):
            async with leadership:
                await leadership.leased()
                try:
                    await self._run(leadership, guard)
                finally:
                    reason = leadership.reason
                    await guard.until_gone()
                    self._running = None
        if not guard.ended.done():
            return None
        ended = guard.ended.result()
        if guard.problem:
            self._tell("not_started", reason=guard.problem)
            return ended.code
        lost = self._stopped_by is None and _is_loss(ended, reason)
        if lost and not self._lost:
            self._tell("lost", reason=reason or ended.cause or "the command was refused", term=leadership.term)
        self._lost = lost
        self._tell("ended", code=_exit_code(ended.code), reason=reason or ended.cause)
        if self._stopped_by is not None:
            return (
                128 + self._stopped_by if ended.code in (-signal.SIGTERM, -signal.SIGKILL) else _exit_code(ended.code)
            )
        if not lost:
            return _exit_code(ended.code)
        return LEADERSHIP_LOST if self._once else None

    async def _run(self, leadership: tenure.HeldLeadership, guard: Guard) -> None:
        lease_ns = round(leadership.remaining() * NS_PER_SECOND)
        guard.run(
            self._command,
            {
                "TENURE_TOKEN": str(leadership.token),
                "TENURE_CREDENTIAL": leadership.credential.encode(),
                "TENURE_TERM": str(leadership.term),
                "TENURE_RESOURCE": self._config.fence.resource,
            },
            lease=_deadline(leadership),
            window_ns=min(self._grace_ns, lease_ns // _WINDOW_DIVISOR),
            grace_ns=self._grace_ns,
        )
        self._running = guard
        told_seconds = min(_TOLD_SECONDS_MAX, lease_ns / NS_PER_SECOND / _TOLD_PER_LEASE)
        try:
            pid = await asyncio.shield(guard.started)
            if pid is not None:
                self._tell("started", pid=pid, term=leadership.term, token=leadership.token)
            while not guard.gone.done():
                await asyncio.wait({guard.gone}, timeout=told_seconds)
                guard.renew(_deadline(leadership))
        except asyncio.CancelledError:
            self._lost = True
            self._tell("lost", reason=str(leadership.reason), term=leadership.term)
            guard.stop(self._grace_ns)
            raise

    async def _look(self, status: Callable[[], tenure.Status]) -> None:
        """Say whom this member waits for, each time that it changes."""
        told: tuple[object, ...] | None = None
        while True:
            now = status()
            waits = (now.leader_name, now.reason)
            if now.state is not tenure.State.LEADER and self._running is None and waits != told:
                self._tell("waiting", leader=now.leader_name, reason=now.reason)
            told = waits
            await asyncio.sleep(_LOOK_SECONDS)

    def _on_signal(self, number: int, following: asyncio.Task[int]) -> None:
        if number in STOPPING or (self._running is None and number in ENDING):
            first, self._stopped_by = self._stopped_by is None, self._stopped_by or number
            if self._running is not None:
                # Who asks twice does not want to wait.
                self._running.stop(self._grace_ns if first else 0)
            elif first:
                following.cancel()
        elif self._running is not None:
            self._running.forward(number)


def _deadline(leadership: tenure.HeldLeadership) -> tuple[int, int]:
    """Until when the lease may be believed, on both clocks. They are read first: a pause can only make it earlier."""
    raw_ns, boottime_ns = read_clocks()
    left_ns = int(leadership.remaining() * NS_PER_SECOND)
    return raw_ns + left_ns, boottime_ns + left_ns


def _exit_code(code: int) -> int:
    return code if code >= 0 else 128 - code


def _is_loss(ended: Ended, reason: str | None) -> bool:
    """Whether the command ended for want of leadership.

    One that finished its work did so. One that failed while the leadership was over may well have failed of that.
    """
    if ended.cause is not None or ended.code == LEADERSHIP_LOST:
        return True
    return reason is not None and ended.code != 0


@contextlib.contextmanager
def _handling(on_signal: Callable[[int], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    # What was ignored from the start stays so: nohup, a job in the background of a script.
    numbers = [number for number in (*STOPPING, *FORWARDED) if signal.getsignal(number) is not signal.SIG_IGN]
    for number in numbers:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
