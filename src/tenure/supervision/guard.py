"""The supervisor's side of a guardian: starts it, tells it the lease, hears what becomes of the command.

Should the guardian be killed, or hang beyond the lease, its part is done from here: every process of the command comes
to the supervisor as an orphan, and is killed. ``ended`` and ``gone`` therefore always resolve. The credential goes
through the channel into the environment of the command; it must never be an argument of a process, nor be logged.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tenure.supervision import guardian
from tenure.supervision.guardian import end_children, is_childless, read_clocks

NS_PER_SECOND = 1_000_000_000
#: How long after the end of the lease a guardian may still be believed to be at work.
OVERDUE_SECONDS = 0.2
_ROUND_SECONDS = 0.01


class Ended(NamedTuple):
    """How the command ended: its exit code, or minus the signal; and why it was being ended, if it was."""

    code: int
    cause: str | None


class Guard:
    """One guardian with its command. Everything runs on one event loop."""

    def __init__(self, process: subprocess.Popen[bytes], writer: asyncio.StreamWriter) -> None:
        self._process = process
        self._writer = writer
        self._listening: asyncio.Task[None] | None = None
        self._kill_at_ns = 0
        loop = asyncio.get_running_loop()
        #: The process id of the command, or None if it could not be started: then ``problem`` says why.
        self.started: asyncio.Future[int | None] = loop.create_future()
        self.ended: asyncio.Future[Ended] = loop.create_future()
        #: No process of the command is left.
        self.gone: asyncio.Future[None] = loop.create_future()
        self.problem = ""

    @classmethod
    async def open(cls) -> Guard:
        """Start a guardian that has no command yet. It is there in advance because starting it takes some time."""
        ours, theirs = socket.socketpair()
        with theirs:
            # A session of its own: what a terminal sends to the supervisor's group must not end the guardian.
            process = subprocess.Popen(  # noqa: ASYNC220 - it forks and returns; nothing is waited for.
                [sys.executable, "-I", "-S", guardian.__file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        reader, writer = await asyncio.open_unix_connection(sock=ours)
        guard = cls(process, writer)
        guard._listening = asyncio.create_task(guard._listen(reader))
        return guard

    def run(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        *,
        lease: tuple[int, int],
        window_ns: int,
        grace_ns: int,
    ) -> None:
        """Start ``command`` with ``environment`` added to that of this process.

        It gets SIGTERM ``window_ns`` before ``lease`` (an instant on each clock of R11), and SIGKILL at ``lease``, or
        ``grace_ns`` after the SIGTERM.
        """
        self._kill_at_ns = lease[1]
        order = {
            "command": list(command),
            "environment": dict(environment),
            "lease": lease,
            "window_ns": window_ns,
            "grace_ns": grace_ns,
        }
        self._send(run=order)

    def renew(self, lease: tuple[int, int]) -> None:
        """The command may go on until ``lease``."""
        # A guardian that does not read keeps the older and earlier one.
        if not self._writer.transport.get_write_buffer_size():
            self._kill_at_ns = lease[1]
            self._send(lease=lease)

    def stop(self, grace_ns: int) -> None:
        """SIGTERM now, SIGKILL after the grace or at the end of the lease. A second call can only shorten the grace."""
        self._send(stop=grace_ns)

    def forward(self, number: int) -> None:
        """Send a signal to the group of the command."""
        self._send(signal=number)

    async def until_gone(self) -> None:
        """Return when no process of the command is left, whatever the guardian does. Nothing may renew any more."""
        left_ns = self._kill_at_ns - read_clocks()[1]
        done, _ = await asyncio.wait({self.gone}, timeout=max(0, left_ns) / NS_PER_SECOND + OVERDUE_SECONDS)
        if not done:
            self._process.kill()
            await self.gone

    async def close(self) -> None:
        """End a guardian that has no command, or none any more."""
        self._writer.close()
        if self._listening is not None:
            await self._listening

    # -- inside -------------------------------------------------------------------------------------------------------

    def _send(self, **message: object) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                for word, value in json.loads(line).items():
                    getattr(self, f"_on_{word}")(value)
        # It has closed the channel: it ends now, or was killed.
        await asyncio.to_thread(self._process.wait)
        while not self.gone.done() and not is_childless():
            end_children()
            await asyncio.sleep(_ROUND_SECONDS)
        if not self.started.done():
            self.started.set_result(None)
        if not self.ended.done():
            self.ended.set_result(Ended(-signal.SIGKILL, "guardian_gone"))
        if not self.gone.done():
            self.gone.set_result(None)
        self._writer.close()

    def _on_started(self, pid: int) -> None:
        self.started.set_result(pid)

    def _on_failed(self, failure: dict[str, object]) -> None:
        self.problem = str(failure["problem"])
        self.started.set_result(None)
        self.ended.set_result(Ended(int(str(failure["code"])), None))
        self._on_gone(None)

    def _on_ended(self, how: dict[str, object]) -> None:
        cause = how["cause"]
        self.ended.set_result(Ended(int(str(how["code"])), None if cause is None else str(cause)))

    def _on_gone(self, _: object) -> None:
        self.gone.set_result(None)
        # The guardian stays until then.
        self._writer.close()
