"""One node of a PySyncObj cluster for the benchmark, with its journal on.

    python -m bench.raft.pysyncobj_node --index 0 --voters A,B,C --directory DIR [--unbatched]

It runs in the benchmark's private virtual environment and gives the library its best case: ticks and operations share
one thread, so nothing waits for the interpreter's lock, and the period is 1 ms instead of 100 ms, because the library's
batching mode answers at the next period. PySyncObj never calls fsync: its rows are not durable, and the table says so.
"""

from __future__ import annotations

import argparse
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.raft.speech import Window, report, requests
from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf, replicated

PERIOD_SECONDS = 0.001


class Counter(SyncObj):  # type: ignore[misc]
    """Counts what was applied."""

    def __init__(self, own: str, others: list[str], conf: SyncObjConf) -> None:
        super().__init__(own, others, conf)
        self.applied = 0

    @replicated  # type: ignore[untyped-decorator]
    def add(self, payload: bytes) -> int:
        """One operation; the payload is only carried."""
        self.applied += 1
        return self.applied


class Driver:
    """Runs the library's ticks and, when asked, a closed loop of operations between them."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._in_flight = 0

    def run(self, inbox: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        """Until the benchmark closes the input."""
        announced = False
        while True:
            self._counter.doTick(PERIOD_SECONDS)
            if not announced and self._counter._isLeader() and self._counter.isReady():  # noqa: SLF001
                report("leader")  # The library has no public call that says whether this node leads.
                announced = True
            if inbox.empty():
                continue
            request = inbox.get()
            if request is None:
                return
            if request["do"] == "load":
                self._drive(request)
            else:
                report("applied", count=self._counter.applied)

    def _drive(self, request: dict[str, Any]) -> None:
        window, payload = Window(), os.urandom(request["payload_bytes"])
        measuring_from = time.monotonic() + request["warm_up_seconds"]
        for _ in range(request["in_flight"]):
            self._ask(payload, window)
        self._tick_until(lambda: time.monotonic() >= measuring_from)
        window.open()
        measuring_until = time.monotonic() + request["seconds"]
        self._tick_until(lambda: time.monotonic() >= measuring_until)
        window.close()
        self._tick_until(lambda: self._in_flight == 0)
        window.report()

    def _tick_until(self, done: Callable[[], bool]) -> None:
        while not done():
            self._counter.doTick(PERIOD_SECONDS)

    def _ask(self, payload: bytes, window: Window) -> None:
        asked_ns = time.perf_counter_ns()

        def answered(_result: object, failure: int) -> None:
            self._in_flight -= 1
            if failure != FAIL_REASON.SUCCESS:
                report("failed", problem=f"an operation was not acknowledged: reason {failure}")
                return
            window.answered(asked_ns)
            if not window.closed:
                self._ask(payload, window)

        self._in_flight += 1
        self._counter.add(payload, callback=answered)


def main() -> None:
    """Run one node until the standard input ends."""
    parser = argparse.ArgumentParser(description="one PySyncObj node of the benchmark")
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--voters", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--unbatched", action="store_true", help="appendEntriesUseBatch=False")
    asked = parser.parse_args()
    voters = asked.voters.split(",")
    conf = SyncObjConf(
        autoTick=False,
        appendEntriesPeriod=PERIOD_SECONDS,
        appendEntriesUseBatch=not asked.unbatched,
        connectionRetryTime=0.2,  # Only the start: nodes that come up first would wait 5 s for the others.
        journalFile=str(asked.directory / "journal"),
    )
    inbox: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()

    def listen() -> None:
        for request in requests():
            inbox.put(request)
        inbox.put(None)

    own = voters.pop(asked.index)
    threading.Thread(target=listen, daemon=True).start()
    Driver(Counter(own, voters, conf)).run(inbox)


if __name__ == "__main__":
    main()
