"""The whole comparison: interleaved rounds, a table for people, and one line of JSON at the end for machines.

    make bench-raft                      about ten minutes
    QUICK=1 make bench-raft              under a minute: shows that all of it runs; the figures are too short to quote
    make bench-raft ARGS="--payload-bytes 1024 --voters 5 --systems ours hashicorp-wal-tuned"

Each round founds every system anew in fresh directories; the order rotates from round to round, so that none always
comes first or after the same neighbour. A load that fails is reported and leaves no figure. It must never compare rows
of different runs, nor keep data outside ``--directory``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.raft.cluster import Load
from bench.raft.disk import disk_rate
from bench.raft.figures import Row, median_idle, rotated, rows, spread, table
from bench.raft.rounds import (
    DATA,
    SCHEMA,
    Results,
    figures_of,
    file_system,
    machine,
    measure_each,
    prepared,
    quick,
    rounded,
    rounds,
)
from bench.raft.systems import SYSTEMS

DISK_WRITERS = (1, 3)


def main() -> int:
    """Run it. Exit code 1 if nothing was measured or a load failed; systems that are missing are only said."""
    asked = _arguments()
    loads = [Load(count, asked.seconds, asked.warm_up_seconds, asked.payload_bytes) for count in asked.in_flight]
    results, load_average = Results(), list[float]()
    systems, missing = prepared([SYSTEMS[name] for name in asked.systems])
    settings = {key: value for key, value in vars(asked).items() if key != "directory"}
    settings["file_system"] = file_system(asked.directory)
    for number, folder, average in rounds(asked.rounds, asked.directory):
        load_average.append(average)
        for count in DISK_WRITERS:
            rate = disk_rate(folder, writers=count, seconds=asked.seconds / 2)
            results.disk.setdefault(count, []).append(rate.syncs_per_second)
        order = rotated(systems, number)
        measure_each(order, folder, results, voters=asked.voters, loads=loads, idle_seconds=asked.idle_seconds)

    reference = [system.name for system in systems if system.is_reference]
    all_rows = rows(results.measured, reference)
    _print_table(all_rows, results, missing, asked)
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "settings": settings,
        "machine": machine(),
        "load_average": load_average,
        "disk_syncs_per_second": {str(count): asdict(spread(rates)) for count, rates in results.disk.items()},
        **figures_of(all_rows, reference),
        "idle": {name: asdict(median_idle(windows)) for name, windows in results.idle.items()},
        "missing": missing,
        "failures": results.failures,
    }
    print(json.dumps(rounded(report)))
    return 1 if results.failures or not all_rows else 0


def _arguments() -> argparse.Namespace:
    short = quick()
    parser = argparse.ArgumentParser(prog="python -m bench.raft.run", description="the Raft benchmark")
    parser.add_argument("--rounds", type=int, default=1 if short else 5)
    parser.add_argument("--seconds", type=float, default=0.5 if short else 3.0)
    parser.add_argument("--warm-up-seconds", type=float, default=0.2 if short else 1.0)
    parser.add_argument("--idle-seconds", type=float, default=0.2 if short else 1.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--payload-bytes", type=int, default=256)
    parser.add_argument("--voters", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--directory", type=Path, default=DATA, help="on the disk to be measured")
    return parser.parse_args()


def _print_table(all_rows: Sequence[Row], results: Results, missing: dict[str, str], asked: argparse.Namespace) -> None:
    print(
        f"\n{asked.voters} processes on loopback, {asked.payload_bytes}-byte payloads, medians of {asked.rounds} rounds"
    )
    labels = {name: system.label for name, system in SYSTEMS.items()}
    print(table(all_rows, labels, {name: system.syncs for name, system in SYSTEMS.items()}))
    print("\nidle, leader / follower")
    for name, windows in results.idle.items():
        idle = median_idle(windows)
        print(
            f"  {labels[name]}: {idle.leader_memory_mb:.0f} / {idle.follower_memory_mb:.0f} MB, "
            f"{idle.leader_cpu_percent:.1f} / {idle.follower_cpu_percent:.1f} % of a core"
        )
    print()
    for count, rates in results.disk.items():
        over = spread(rates)
        print(
            f"the disk: 4 KiB append + fdatasync, {count} at once: "
            f"{over.median:,.0f} a second in all [{over.low:,.0f}-{over.high:,.0f}]"
        )
    print("syncs: fsyncs that a node makes for one batch of entries; 0 means not durable. x: within this run only.")
    for problem in [*missing.values(), *results.failures]:
        print(f"no figures: {problem}")


if __name__ == "__main__":
    sys.exit(main())
