"""How a node written in Python speaks with the benchmark: one line of JSON each way (``bench/raft/README.md``).

Standard library only: the peers' nodes run it in a virtual environment that has nothing of ours.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bench.raft.figures import percentile


def report(event: str, **fields: object) -> None:
    """Say one thing, at once: the benchmark reads processor time when it hears it. Call it from one thread only."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


def requests() -> Iterator[dict[str, Any]]:
    """Requests in the order they arrive, blocking; ends when the benchmark closes the pipe, and so must the node."""
    for line in sys.stdin:
        yield json.loads(line)


@dataclass
class Window:
    """The span of a load that counts. Operations answered outside it are acknowledged but not measured."""

    acknowledged: int = 0
    latencies_ns: list[int] = field(default_factory=list)
    _began_ns: int = 0
    _ended_ns: int = 0

    def open(self) -> None:
        """The warm-up is over."""
        report("measuring")
        self._began_ns = time.perf_counter_ns()

    def close(self) -> None:
        """No later answer counts."""
        self._ended_ns = time.perf_counter_ns()
        report("stopped")

    @property
    def closed(self) -> bool:
        """Whether clients should stop asking."""
        return self._ended_ns > 0

    def answered(self, asked_ns: int) -> None:
        """One operation that was asked at ``asked_ns`` (perf_counter_ns) is acknowledged."""
        self.acknowledged += 1
        if self._began_ns and not self._ended_ns:
            self.latencies_ns.append(time.perf_counter_ns() - asked_ns)

    def report(self) -> None:
        """Say the result, once the last client was answered."""
        ordered = sorted(self.latencies_ns)
        report(
            "measured",
            ops=len(ordered),
            seconds=(self._ended_ns - self._began_ns) / 1e9,
            p50_ms=percentile(ordered, 50) / 1e6,
            p99_ms=percentile(ordered, 99) / 1e6,
            acknowledged=self.acknowledged,
        )
