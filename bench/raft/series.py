"""One quantity varied: payload sizes, numbers of voters, or nothing to do; ours beside hashicorp's best two.

    make bench-raft-sizes      payloads of 256 B, 1 KiB, 16 KiB and the largest that ours takes
    make bench-raft-voters     3, 5 and 7 voters, all of them processes of this machine
    make bench-raft-idle       what a cluster costs that does nothing
    QUICK=1 make ...           under a minute: shows that all of it runs; the figures are too short to quote

Every round measures every variant with every system, each in a fresh cluster; variants and systems rotate from round to
round. Ratios are within one variant of one run. It must never compare variants of different runs.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.raft.cluster import Load
from bench.raft.disk import BLOCK_BYTES, disk_rate
from bench.raft.figures import IdleSpread, Row, Spread, idle_spread, rotated, rows, spread, table
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
from bench.raft.systems import SYSTEMS, System

PAYLOAD_BYTES = 256
VOTERS = 3
#: One byte more and ours refuses the command.
LARGEST_PAYLOAD_BYTES = (1 << 20) - 1
COMPARED = ["ours", "hashicorp-wal-tuned", "hashicorp-wal-tuned-cache"]


@dataclass(frozen=True)
class Variant:
    """One value of the quantity that is varied."""

    voters: int = VOTERS
    payload_bytes: int = PAYLOAD_BYTES

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.voters} voters, {self.payload_bytes:,}-byte payloads"


@dataclass(frozen=True)
class Series:
    """What is varied, under which loads. ``idle_seconds`` of 0: idling is not measured."""

    variants: Mapping[str, Variant]
    in_flight: Sequence[int]
    idle_seconds: float = 0.0


SERIES = {
    "sizes": Series(
        {str(size): Variant(payload_bytes=size) for size in (256, 1 << 10, 16 << 10, LARGEST_PAYLOAD_BYTES)}, [1, 16]
    ),
    "voters": Series({str(voters): Variant(voters=voters) for voters in (3, 5, 7)}, [1, 16, 256]),
    "idle": Series({str(VOTERS): Variant()}, [], idle_seconds=10.0),
}


def main() -> int:
    """Run it. Exit code 1 if nothing was measured or a load failed; systems that are missing are only said."""
    asked = _arguments()
    variants = SERIES[asked.series].variants
    systems, missing = prepared([SYSTEMS[name] for name in asked.systems])
    settings = {key: value for key, value in vars(asked).items() if key not in {"directory", "series"}}
    settings["file_system"] = file_system(asked.directory)
    results = {name: Results() for name in variants}
    load_average: list[float] = []
    for number, folder, average in rounds(asked.rounds, asked.directory):
        load_average.append(average)
        for name in rotated(list(variants), number):
            _measure(variants[name], results[name], rotated(systems, number), folder, asked)

    reference = [system.name for system in systems if system.is_reference]
    print(f"all processes of a cluster share the {os.cpu_count()} cores of this machine; rounds: {asked.rounds}")
    told = {
        name: _tell(variant, rows(results[name].measured, reference), results[name], reference)
        for name, variant in variants.items()
    }
    failures = [f"{name}: {problem}" for name, of in results.items() for problem in of.failures]
    print("\nsyncs: fsyncs that a node makes for one batch of entries. x: within one block of this run only.")
    for problem in [*missing.values(), *failures]:
        print(f"no figures: {problem}")
    report = {
        "schema": SCHEMA,
        "series": asked.series,
        "settings": settings,
        "machine": machine(),
        "load_average": load_average,
        "variants": told,
        "missing": missing,
        "failures": failures,
    }
    print(json.dumps(rounded(report)))
    return 1 if failures or not systems else 0


def _arguments() -> argparse.Namespace:
    short = quick()
    parser = argparse.ArgumentParser(prog="python -m bench.raft.series", description="the Raft benchmark, in variants")
    parser.add_argument("series", choices=SERIES)
    parser.add_argument("--rounds", type=int, default=1 if short else 3)
    parser.add_argument("--seconds", type=float, default=0.3 if short else 3.0)
    parser.add_argument("--warm-up-seconds", type=float, default=0.1 if short else 1.0)
    parser.add_argument("--idle-seconds", type=float, help="0: idling is not measured")
    parser.add_argument("--in-flight", type=int, nargs="+")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=COMPARED)
    parser.add_argument("--directory", type=Path, default=DATA, help="on the disk to be measured")
    asked = parser.parse_args()
    series = SERIES[asked.series]
    asked.in_flight = series.in_flight if asked.in_flight is None else asked.in_flight
    asked.idle_seconds = series.idle_seconds if asked.idle_seconds is None else asked.idle_seconds
    return asked


def _measure(
    variant: Variant,
    results: Results,
    systems: Sequence[System],
    folder: Path,
    asked: argparse.Namespace,
) -> None:
    """One round of one variant: the disk's own rate with as many logs and blocks as large, then every system."""
    loads = [Load(count, asked.seconds, asked.warm_up_seconds, variant.payload_bytes) for count in asked.in_flight]
    if loads:
        block = max(variant.payload_bytes, BLOCK_BYTES)
        rate = disk_rate(folder, writers=variant.voters, seconds=asked.seconds / 2, block_bytes=block)
        results.disk.setdefault(block, []).append(rate.syncs_per_second)
    measure_each(systems, folder, results, voters=variant.voters, loads=loads, idle_seconds=asked.idle_seconds)
    if not asked.idle_seconds:
        results.idle.clear()


def _tell(variant: Variant, all_rows: Sequence[Row], results: Results, reference: Sequence[str]) -> dict[str, Any]:
    """Print one variant for people and return it for machines."""
    labels = {name: system.label for name, system in SYSTEMS.items()}
    print(f"\n== {variant.label}")
    if all_rows:
        syncs = {name: system.syncs for name, system in SYSTEMS.items()}
        print(table(all_rows, labels, syncs, payload_bytes=variant.payload_bytes))
    idle = {name: idle_spread(of) for name, of in results.idle.items()}
    for name, of in idle.items():
        print(f"  {labels[name]}, idle\n{_idle_lines(of)}")
    disk = {block: spread(rates) for block, rates in results.disk.items()}
    for block, rate in disk.items():
        print(
            f"\nthe disk: appends of {block:,} bytes + fdatasync, {variant.voters} at once: {rate.median:,.0f} "
            f"a second in all [{rate.low:,.0f}-{rate.high:,.0f}], {rate.median * block / 1e6:,.1f} MB/s"
        )
    told = {**asdict(variant), **figures_of(all_rows, reference)}
    for of_system in told["systems"].values():
        for row in of_system.values():
            row["bytes_per_second"] = _scaled(row["ops_per_second"], variant.payload_bytes)
    told["idle"] = {name: asdict(of) for name, of in idle.items()}
    told["disk"] = [{"block_bytes": block, "syncs_per_second": asdict(rate)} for block, rate in disk.items()]
    return told


def _scaled(figures: Mapping[str, Any], factor: int) -> dict[str, Any]:
    return {key: value if key == "rounds" else value * factor for key, value in figures.items()}


def _idle_lines(idle: IdleSpread) -> str:
    def cell(over: Spread, unit: str) -> str:
        return f"{over.median:.1f} [{over.low:.1f}-{over.high:.1f}] {unit}"

    memory, busy = "MB", "% of a core"
    return (
        f"    leader    {cell(idle.leader_memory_mb, memory)}, {cell(idle.leader_cpu_percent, busy)}\n"
        f"    follower  {cell(idle.follower_memory_mb, memory)}, {cell(idle.follower_cpu_percent, busy)}"
    )


if __name__ == "__main__":
    sys.exit(main())
