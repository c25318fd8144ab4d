"""How a node speaks with the benchmark: events on its standard output, requests on its standard input, as JSON lines.

Standard library only: the nodes of peers run it in a virtual environment that has nothing of ours. ``at`` is
CLOCK_MONOTONIC in seconds, which all processes of one machine share.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

_lock = threading.Lock()


def report(event: str, *, at: float | None = None, **fields: object) -> None:
    """Say one thing at once. Any thread."""
    line = json.dumps({"event": event, "at": time.monotonic() if at is None else at, **fields})
    with _lock:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def listen(on_request: Callable[[dict[str, Any] | None], None]) -> None:
    """Hand over each request from a thread of its own; None once the benchmark closed the input: the node must end."""

    def read() -> None:
        for line in sys.stdin:
            on_request(json.loads(line))
        on_request(None)

    threading.Thread(target=read, daemon=True).start()
