"""Start child processes that cannot outlive their parent, as another user where asked.

A child gets a session of its own, so that a Ctrl-C at the terminal reaches only the parent, and a
parent-death signal, so that even ``kill -9`` of the parent leaves nothing running. It is done without
``preexec_fn``, which is unsafe beside threads: this very file is run as a small program that prepares its own
process and then becomes the command.

The kernel counts the *thread* that started the child as its parent: start children from a thread that lives
on. This file must import nothing outside the standard library: it also runs without any path of packages.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1


def start(
    command: Sequence[str | os.PathLike[str]],
    *,
    death_signal: signal.Signals = signal.SIGKILL,
    user: str | None = None,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """Start ``command`` and return its process; its pid is the command's own.

    Args:
        command: program and arguments; the program is looked up on ``PATH``.
        death_signal: what the child receives when the calling thread ends, for whatever reason.
        user: the account that the child runs as (only root can change it).
        options: passed to :class:`subprocess.Popen` as they are (``cwd``, ``env``, ``stdout``, …).
    """
    words = [os.fspath(word) for word in command]
    prepared = [
        sys.executable,
        "-I",
        "-S",
        __file__,
        str(os.getpid()),
        str(int(death_signal)),
        user or "",
        *words,
    ]
    return subprocess.Popen[bytes](prepared, start_new_session=True, **options)


def _become(parent: int, death_signal: int, user: str, command: list[str]) -> None:
    if user:
        account = pwd.getpwnam(user)
        os.initgroups(user, account.pw_gid)
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    # The kernel forgets the signal when the user changes, so this comes after it.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, death_signal, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # A parent that died before the call above sends no signal any more.
    if os.getppid() != parent:
        sys.exit("the parent process is gone")
    try:
        os.execvp(command[0], command)  # noqa: S606 - becoming the command is the purpose; there is no shell.
    except OSError as error:
        sys.stderr.write(f"{command[0]} cannot be started: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    _become(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4:])
