"""A hook for tests: stop the process right between its own leadership check and its INSERT.

This is the gap in which every lease fails: the check passed, the process sleeps, another leads, and the write goes
out. The hook is off unless the environment variable below is set, and it can only stop the process, never change
what is written.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "PAYMENT_SERVICE_PAUSE_BEFORE_INSERT"


def pause_hook(environ: Mapping[str, str]) -> Callable[[], None] | None:
    """The hook, or None where the variable is not set (as it always is outside tests).

    While the file that the variable names exists, each call writes this process's id to ``<file>.paused`` and
    stops the process until somebody sends it SIGCONT.
    """
    path = environ.get(VARIABLE)
    if not path:
        return None
    trigger, mark = Path(path), Path(f"{path}.paused")

    def pause() -> None:
        if not trigger.exists():
            return
        part = mark.with_name(f"{mark.name}.part")
        part.write_text(f"{os.getpid()}\n", encoding="utf-8")
        part.rename(mark)
        # Sent to this very thread, so that it stops before the next line runs.
        signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)

    return pause
