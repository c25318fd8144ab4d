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
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.raft.cluster import Load, MeasurementFailed
from bench.raft.disk import disk_rate
from bench.raft.figures import Idle, Measured, Row, best_rows, median_idle, rotated, rows, spread, table
from bench.raft.measure import measure
from bench.raft.preparation import HERE, Unavailable
from bench.raft.systems import SYSTEMS, System

SCHEMA = 1
DISK_WRITERS = (1, 3)
#: File systems that answer fsync from memory: durable figures cannot be had there.
VOLATILE = {"tmpfs", "ramfs"}


@dataclass
class Results:
    """What the rounds gave so far."""

    measured: dict[str, list[Measured]] = field(default_factory=dict)
    idle: dict[str, list[Idle]] = field(default_factory=dict)
    disk: dict[int, list[float]] = field(default_factory=lambda: {count: [] for count in DISK_WRITERS})
    missing: dict[str, str] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    load_average: list[float] = field(default_factory=list)


def main() -> int:
    """Run it. Exit code 1 if nothing was measured or a load failed; systems that are missing are only said."""
    asked = _arguments()
    loads = [Load(count, asked.seconds, asked.warm_up_seconds, asked.payload_bytes) for count in asked.in_flight]
    results = Results()
    systems = _prepared([SYSTEMS[name] for name in asked.systems], results)
    for problem in results.missing.values():
        _say(f"left out: {problem}")

    asked.directory.mkdir(parents=True, exist_ok=True)
    file_system = _file_system(asked.directory)
    if file_system in VOLATILE:
        _say(f"{asked.directory} is on {file_system}: fsync may cost nothing there; name a disk with --directory")
    for number in range(asked.rounds):
        results.load_average.append(os.getloadavg()[0])
        _say(f"round {number + 1} of {asked.rounds}, load average {results.load_average[-1]:.2f}")
        with tempfile.TemporaryDirectory(dir=asked.directory, prefix="round-") as fresh:
            _round(Path(fresh), rotated(systems, number), loads, asked, results)

    reference = [system.name for system in systems if system.is_reference]
    all_rows = rows(results.measured, reference)
    _print_table(all_rows, results, asked)
    settings = {key: value for key, value in vars(asked).items() if key != "directory"}
    print(json.dumps(_rounded(_report(all_rows, reference, results, {**settings, "file_system": file_system}))))
    return 1 if results.failures or not all_rows else 0


def _arguments() -> argparse.Namespace:
    quick = os.environ.get("QUICK", "") not in {"", "0"}
    parser = argparse.ArgumentParser(prog="python -m bench.raft.run", description="the Raft benchmark")
    parser.add_argument("--rounds", type=int, default=1 if quick else 5)
    parser.add_argument("--seconds", type=float, default=0.5 if quick else 3.0)
    parser.add_argument("--warm-up-seconds", type=float, default=0.2 if quick else 1.0)
    parser.add_argument("--idle-seconds", type=float, default=0.2 if quick else 1.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--payload-bytes", type=int, default=256)
    parser.add_argument("--voters", type=int, default=3)
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--directory", type=Path, default=HERE / ".data", help="on the disk to be measured")
    return parser.parse_args()


def _prepared(systems: Sequence[System], results: Results) -> list[System]:
    """The systems that can be measured here; why the others cannot goes to ``results.missing``."""
    ready = []
    for system in systems:
        try:
            system.prepare()
            ready.append(system)
        except Unavailable as error:
            results.missing[system.name] = f"{system.label}: {error}"
    return ready


def _round(
    fresh: Path, systems: Sequence[System], loads: Sequence[Load], asked: argparse.Namespace, results: Results
) -> None:
    for count in DISK_WRITERS:
        rate = disk_rate(fresh, writers=count, seconds=asked.seconds / 2)
        results.disk[count].append(rate.syncs_per_second)
    for system in systems:
        directories = [fresh / system.name / str(voter) for voter in range(asked.voters)]
        try:
            session = measure(system, directories, loads, idle_seconds=asked.idle_seconds)
            results.measured.setdefault(system.name, []).extend(session.loads)
            results.idle.setdefault(system.name, []).append(session.idle)
        except MeasurementFailed as error:
            results.failures.append(f"{system.name}: {error}")
            _say(f"failed: {results.failures[-1]}")
        # What is dirty in memory is dropped with its files, before the next system could pay for writing it.
        shutil.rmtree(fresh / system.name)


def _print_table(all_rows: Sequence[Row], results: Results, asked: argparse.Namespace) -> None:
    print(
        f"\n{asked.voters} processes on loopback, {asked.payload_bytes}-byte payloads, medians of {asked.rounds} rounds"
    )
    labels = {name: system.label for name, system in SYSTEMS.items()}
    print(table(all_rows, labels, {name: system.syncs for name, system in SYSTEMS.items()}))
    print("\nidle, leader / follower")
    for name, rounds in results.idle.items():
        idle = median_idle(rounds)
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
    for problem in [*results.missing.values(), *results.failures]:
        print(f"no figures: {problem}")


def _report(
    all_rows: Sequence[Row], reference: Sequence[str], results: Results, settings: dict[str, Any]
) -> dict[str, Any]:
    """The line for machines. ``hashicorp_best`` names the row that ``ratio`` refers to, for each number in flight."""
    figures: dict[str, dict[str, Any]] = {}
    for row in all_rows:
        of_row = asdict(row)
        figures.setdefault(of_row.pop("system"), {})[str(of_row.pop("in_flight"))] = of_row
    best = best_rows(all_rows, reference)
    return {
        "schema": SCHEMA,
        "settings": settings,
        "machine": _machine(),
        "load_average": results.load_average,
        "disk_syncs_per_second": {str(count): asdict(spread(rates)) for count, rates in results.disk.items()},
        "systems": figures,
        "idle": {name: asdict(median_idle(rounds)) for name, rounds in results.idle.items()},
        "hashicorp_best": {
            str(in_flight): {
                "system": row.system,
                "ops_per_second": row.ops_per_second.median,
                "p99_ms": row.p99_ms.median,
            }
            for in_flight, row in best.items()
        },
        "missing": results.missing,
        "failures": results.failures,
    }


def _rounded(value: Any) -> Any:
    """Every float to three decimals: more would be noise that looks like knowledge."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


def _machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "go": _output("go", "version"),
        "commit": _output("git", "-C", str(HERE), "rev-parse", "HEAD"),
    }


def _file_system(directory: Path) -> str:
    return _output("stat", "--file-system", "--format=%T", str(directory)) or "unknown"


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _say(text: str) -> None:
    print(f"bench-raft: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
