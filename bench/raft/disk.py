"""The disk's own rate: appends of one block, each followed by fdatasync, by one writer or several at once.

    python -m bench.raft.disk DIRECTORY       blocks of 4 KiB, one writer and three

It is the limit that no durable log passes with one operation in flight. The writers are threads with a file each:
write and fdatasync run without the interpreter's lock, which leaves it idle for nearly all of the time.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.raft.figures import percentile

BLOCK_BYTES = 4096


@dataclass(frozen=True)
class DiskRate:
    """``syncs_per_second`` is the sum of all writers; the percentiles are of one append with its fdatasync."""

    writers: int
    syncs_per_second: float
    p50_ms: float
    p99_ms: float


def disk_rate(directory: Path, *, writers: int, seconds: float, block_bytes: int = BLOCK_BYTES) -> DiskRate:
    """Measure in ``directory`` and leave nothing there. OSError: the disk is full or failed."""
    start = threading.Barrier(writers)
    files = [directory / f"append-{number}" for number in range(writers)]
    with ThreadPoolExecutor(writers) as pool:
        spans = list(pool.map(lambda file: _append(file, start, seconds, block_bytes), files))
    for file in files:
        file.unlink()
    ordered = sorted(span for of_writer in spans for span in of_writer)
    rate = sum(len(of_writer) / (sum(of_writer) / 1e9) for of_writer in spans)
    return DiskRate(writers, rate, percentile(ordered, 50) / 1e6, percentile(ordered, 99) / 1e6)


def _append(file: Path, start: threading.Barrier, seconds: float, block_bytes: int) -> Sequence[int]:
    """The span of each append in nanoseconds, at least one."""
    block, spans = os.urandom(block_bytes), list[int]()
    with file.open("wb", buffering=0) as out:
        start.wait()
        until = time.perf_counter_ns() + int(seconds * 1e9)
        while not spans or time.perf_counter_ns() < until:
            began = time.perf_counter_ns()
            out.write(block)
            os.fdatasync(out.fileno())
            spans.append(time.perf_counter_ns() - began)
    return spans


if __name__ == "__main__":
    for count in (1, 3):
        print(json.dumps(asdict(disk_rate(Path(sys.argv[1]), writers=count, seconds=2.0))), flush=True)
