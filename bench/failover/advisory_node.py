"""A leader by PostgreSQL's advisory lock, as it is usually done: try every 100 ms, lead while the session lives.

    python -m bench.failover.advisory_node DSN KEY

The lock goes when its session does. Nothing ends a holder that sleeps or is cut off, so only its death is measured.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import Any

import psycopg
from bench.failover.speech import listen, report

POLL_SECONDS = 0.1


def main() -> None:
    """Until the input ends."""
    dsn, key = sys.argv[1], int(sys.argv[2])
    ended, released = threading.Event(), threading.Event()

    def on_request(request: dict[str, Any] | None) -> None:
        (ended if request is None else released).set()

    listen(on_request)
    with psycopg.connect(dsn, autocommit=True) as session:
        report("ready")
        while not ended.is_set():
            [got] = session.execute("SELECT pg_try_advisory_lock(%s)", [key]).fetchone() or [False]
            if got:
                report("lease")
                session.execute("SELECT pg_current_xact_id()")
                report("wrote")
                while not ended.is_set() and not released.wait(0.01):
                    last_write = time.monotonic()
                session.execute("SELECT pg_advisory_unlock(%s)", [key])
                report("lost", last_write=last_write)
                released.clear()
            ended.wait(POLL_SECONDS)


if __name__ == "__main__":
    main()
