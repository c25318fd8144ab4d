"""The guardian: the small process between a supervisor and the command, which ends the command whatever becomes of it.

It starts the command in a session of its own and ends it, with everything that came of it, when the supervisor asks,
when the supervisor is gone (``kill -9``: the channel ends), and when the lease that the supervisor last spoke of is
nearly over, so that a paused supervisor's command does not go on (R8, R11). It says ``gone`` only when no process of
the command is left, for RELEASE may be written then (R9).

It must never outlast the command, import anything outside the standard library (it runs without any path of packages),
trust the supervisor to be alive, or signal a process id that may already belong to somebody else. It has one thread.

On the channel each side writes one JSON object a line. To the guardian: ``run`` (once), ``lease``, ``stop``,
``signal``. From it: ``started`` or ``failed``, then ``ended``, then ``gone``.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_CANNOT_RUN, _NOT_FOUND = 126, 127
#: select() does not count the time in which the machine sleeps, the lease does: so no wait is longer.
_WAIT_SECONDS_MAX = 0.1
#: Between two rounds of SIGKILL over processes that were just handed over by a parent that died.
_ROUND_SECONDS = 0.01
_NS_PER_SECOND = 1_000_000_000
#: They end or stop a process that does not handle them. The guardian hears of the end by its channel.
_HELD_OFF = (
    signal.SIGHUP,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGTERM,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)

_libc = ctypes.CDLL(None, use_errno=True)


def read_clocks() -> tuple[int, int]:
    """CLOCK_MONOTONIC_RAW and CLOCK_BOOTTIME in nanoseconds, as R11 wants both."""
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def become_subreaper() -> None:
    """From now on every orphan among this process's descendants becomes its child: none can be lost sight of."""
    _set_process(_PR_SET_CHILD_SUBREAPER, 1)


def end_children(*, but: int | None = None) -> bool:
    """One round: reap what has died, kill what has not; True when no child is left but ``but``.

    Only children are signalled, because the id of a child cannot pass to another process before it is reaped. Their
    own children come here when they die, so that rounds reach everything.
    """
    left = _living_children(but)
    for child in left:
        # A process of another user (a setuid program) cannot be killed: it is waited for.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    return not left


def is_childless() -> bool:
    """Whether there is no child at all, by the kernel's word; one that has died is reaped."""
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def _living_children(but: int | None) -> list[int]:
    """The children that have not died; the dead ones are reaped, except ``but``."""
    return [child for child in _children() if child != but and os.waitpid(child, os.WNOHANG) == (0, 0)]


def _children() -> list[int]:
    pid = os.getpid()
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    except FileNotFoundError:
        # A kernel without that list: every process is asked for its parent.
        processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        return [process for process in processes if _parent(process) == pid]


def _parent(process: int) -> int | None:
    """The process id of its parent, or None if it has ended meanwhile."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return int(stat.rpartition(")")[2].split()[1])


def _set_process(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


class Guardian:
    """One command, from its start until nothing of it is left."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._received = b""
        self._orphaned = False
        self._failed = False
        self._command: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._lease = (0, 0)
        self._window_ns = 0
        self._grace_ns = 0
        #: Why the command is being ended; None while it may run.
        self._cause: str | None = None
        self._kill_at_ns = 0

    def serve(self) -> None:
        """Run the command that the supervisor names, and return when nothing of it is left."""
        woken, wake = socket.socketpair()
        woken.setblocking(False)
        wake.setblocking(False)
        self._channel.setblocking(False)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGCHLD, *_HELD_OFF):
            # A handler is forgotten by the command's exec. What was ignored from the start (nohup) stays ignored there.
            if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, lambda *_: None)
        while not self._finished():
            sources = [woken] if self._orphaned else [woken, self._channel]
            ready, _, _ = select.select(sources, [], [], self._wait_seconds())
            if woken in ready:
                woken.recv(4096)
                # Orphans that came here and died: the command is not among those that are reaped.
                _living_children(self._command.pid if self._command is not None else None)
            if self._channel in ready:
                self._listen()
            if self._command is not None:
                self._look()
                self._judge()
        self._linger()

    # -- the channel --------------------------------------------------------------------------------------------------

    def _linger(self) -> None:
        """Stay until the supervisor has heard everything: who writes to a closed channel loses what it has not read."""
        self._channel.setblocking(True)
        with contextlib.suppress(OSError):
            while self._channel.recv(1 << 16):
                pass

    def _listen(self) -> None:
        try:
            data = self._channel.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._orphaned = True
            self._stop("supervisor_gone", self._grace_ns)
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            for word, value in json.loads(line).items():
                getattr(self, f"_on_{word}")(value)

    def _on_run(self, order: dict[str, Any]) -> None:
        self._on_lease(order["lease"])
        self._window_ns, self._grace_ns = order["window_ns"], order["grace_ns"]
        try:
            self._command = subprocess.Popen(
                order["command"],
                env={**os.environ, **order["environment"]},
                start_new_session=True,
                # Safe: this process has one thread.
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509
            )
        except OSError as error:
            code = _NOT_FOUND if isinstance(error, FileNotFoundError) else _CANNOT_RUN
            self._say(failed={"code": code, "problem": error.strerror})
            self._failed = True
        else:
            self._say(started=self._command.pid)

    def _on_lease(self, lease: list[int]) -> None:
        self._lease = (lease[0], lease[1])

    def _on_stop(self, grace_ns: int) -> None:
        self._stop("asked", grace_ns)

    def _on_signal(self, number: int) -> None:
        self._signal_group(number)

    def _say(self, **message: object) -> None:
        # Nobody hears a supervisor's guardian when the supervisor is gone. The few lines fit into any socket's buffer.
        with contextlib.suppress(OSError):
            self._channel.sendall(json.dumps(message).encode() + b"\n")

    # -- the command --------------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Notice the end of the command. It is not reaped before the end, so that its group's number stays its own."""
        command = self._process()
        if self._ended:
            return
        how = os.waitid(os.P_PID, command.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if how is None:
            return
        self._ended = True
        exited = how.si_code == os.CLD_EXITED
        self._say(ended={"code": how.si_status if exited else -how.si_status, "cause": self._cause})
        # What it left behind in the background ends with it.
        self._stop("ended", self._grace_ns)

    def _judge(self) -> None:
        """End the command when the lease is nearly over, and kill it when its time is up."""
        left_ns = self._left_ns()
        if self._cause is None and left_ns <= self._window_ns:
            self._stop("lease_expired", self._grace_ns)
        if self._cause is not None and self._grace_left_ns() <= 0:
            self._signal_group(signal.SIGKILL)
            end_children(but=self._process().pid)

    def _stop(self, cause: str, grace_ns: int) -> None:
        """SIGTERM to the whole group. A second call can only make the grace shorter."""
        kill_at_ns = read_clocks()[1] + grace_ns
        if self._cause is not None:
            self._kill_at_ns = min(self._kill_at_ns, kill_at_ns)
            return
        self._cause, self._kill_at_ns = cause, kill_at_ns
        if self._command is not None:
            self._signal_group(signal.SIGTERM)
            # One that is stopped would hear it only when somebody wakes it.
            self._signal_group(signal.SIGCONT)

    def _signal_group(self, number: int) -> None:
        if self._command is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._command.pid, number)

    def _finished(self) -> bool:
        if self._command is None:
            return self._orphaned or self._failed
        if not self._ended or _living_children(self._command.pid):
            return False
        self._command.wait()
        # The list of children may miss one while another dies; wait() does not. Groups are not signalled any more.
        while not is_childless():
            end_children()
            time.sleep(_ROUND_SECONDS)
        self._say(gone=True)
        return True

    def _process(self) -> subprocess.Popen[bytes]:
        if self._command is None:
            raise RuntimeError("there is no command yet")
        return self._command

    # -- time ---------------------------------------------------------------------------------------------------------

    def _left_ns(self) -> int:
        """What is left of the lease, by the clock that says less (R11)."""
        raw_ns, boottime_ns = read_clocks()
        return min(self._lease[0] - raw_ns, self._lease[1] - boottime_ns)

    def _grace_left_ns(self) -> int:
        return min(self._kill_at_ns - read_clocks()[1], self._left_ns())

    def _wait_seconds(self) -> float | None:
        if self._command is None:
            return None
        if self._cause is None:
            left_ns = self._left_ns() - self._window_ns
        else:
            left_ns = self._grace_left_ns()
            if left_ns <= 0:
                return _ROUND_SECONDS
        return min(_WAIT_SECONDS_MAX, max(0.0, left_ns / _NS_PER_SECOND))


def _die_with(guardian: int) -> Callable[[], None]:
    """For the command, before its exec: should the guardian itself be killed, the command dies with it."""

    def prepare() -> None:
        _set_process(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guardian:
            os._exit(_CANNOT_RUN)

    return prepare


if __name__ == "__main__":
    become_subreaper()
    Guardian(socket.socket(fileno=int(sys.argv[1]))).serve()
