"""The life of one log: what a cluster of ours gives and holds after 10 thousand, 1 million and 10 million entries.

    make bench-raft-long                    10 million entries
    ENTRIES=1000000 make bench-raft-long    as many as that
    QUICK=1 make bench-raft-long            300 thousand, under a minute: shows that it runs; too short to quote

One cluster lives through all of it, with compaction and snapshots as the defaults of the configuration have them. At
each place windows of the closed loop are measured, and what the nodes hold in memory and on the disk. So that a change
of the machine within these minutes is not taken for one of the log, a young cluster is founded at each later place and
measured in the same alternating windows. It must never give figures of a log that was not compacted by snapshots.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.raft import ours
from bench.raft.cluster import Cluster, Footprint, Load, MeasurementFailed
from bench.raft.figures import Idle, Row, rows
from bench.raft.preparation import Unavailable
from bench.raft.rounds import DATA, SCHEMA, file_system, fresh, machine, quick, rounded, say

VOTERS = 3
PAYLOAD_BYTES = 256
PLACES = (10_000, 1_000_000, 10_000_000)
#: In how many steps each stretch between two places is filled; what the nodes hold is looked at after each.
STEPS = 10
FILL_IN_FLIGHT = 256
#: How many times the entries of one snapshot may be uncompacted before a log counts as one that is not compacted.
UNCOMPACTED_MAX = 3
OLD, YOUNG = "old", "young"


@dataclass(frozen=True)
class Sample:
    """What the leader and the mean follower hold, and how fast the stretch before was filled."""

    entries: int
    filled_per_second: float
    leader: Footprint
    follower_memory_mb: float


@dataclass(frozen=True)
class Place:
    """One point in the life of the log. ``young`` rows are of a cluster founded there; there are none at the first."""

    entries: int
    entries_after: int
    leader: Footprint
    idle: Idle
    old: list[Row]
    young: list[Row]


def main() -> int:
    """Run it. Exit code 1: what could not be measured is said, and there are no figures."""
    asked = _arguments()
    settings = {key: value for key, value in vars(asked).items() if key != "directory"}
    settings["file_system"] = file_system(asked.directory)
    began_load = os.getloadavg()[0]
    try:
        ours.prepare()
        with fresh(asked.directory) as folder:
            places, samples = _live(asked, folder)
    except (Unavailable, MeasurementFailed) as error:
        say(f"no figures: {error}")
        return 1
    ratios = _ratios(places)
    _print(places, samples, ratios, asked)
    report = {
        "schema": SCHEMA,
        "settings": {**settings, "voters": VOTERS},
        "machine": machine(),
        "load_average": [began_load, os.getloadavg()[0]],
        "places": [asdict(place) for place in places],
        "filling": [asdict(sample) for sample in samples],
        "ratios": ratios,
    }
    print(json.dumps(rounded(report)))
    return 0


def _arguments() -> argparse.Namespace:
    short = quick()
    parser = argparse.ArgumentParser(prog="python -m bench.raft.long", description="the life of one log")
    parser.add_argument("--entries", type=int, default=300_000 if short else PLACES[-1])
    parser.add_argument("--windows", type=int, default=2 if short else 5, help="windows at each place and load")
    parser.add_argument("--seconds", type=float, default=0.5 if short else 1.0, help="of one window")
    parser.add_argument("--warm-up-seconds", type=float, default=0.2)
    parser.add_argument("--idle-seconds", type=float, default=1.0 if short else 10.0)
    parser.add_argument("--in-flight", type=int, nargs="+", default=[256] if short else [1, 16, 256])
    parser.add_argument("--payload-bytes", type=int, default=PAYLOAD_BYTES)
    parser.add_argument("--directory", type=Path, default=DATA, help="on the disk to be measured")
    return parser.parse_args()


def _live(asked: argparse.Namespace, folder: Path) -> tuple[list[Place], list[Sample]]:
    places: list[Place] = []
    samples: list[Sample] = []
    with Cluster(ours.command, _directories(folder / OLD)) as old:
        for goal in [*(place for place in PLACES if place < asked.entries), asked.entries]:
            samples += _fill_to(old, goal, asked.payload_bytes, steps=STEPS if places else 1)
            with ExitStack() as beside:
                clusters = {OLD: old}
                if places:
                    command = Cluster(ours.command, _directories(folder / f"{YOUNG}-{goal}"))
                    clusters[YOUNG] = beside.enter_context(command)
                    _fill_to(clusters[YOUNG], PLACES[0], asked.payload_bytes)
                places.append(_measure(clusters, asked))
    return places, samples


def _directories(folder: Path) -> list[Path]:
    made = [folder / str(voter) for voter in range(VOTERS)]
    for directory in made:
        directory.mkdir(parents=True)
    return made


def _fill_to(cluster: Cluster, goal: int, payload_bytes: int, *, steps: int = 1) -> list[Sample]:
    """Fill the log up to an entry, and look after each step. Raises MeasurementFailed if it is not compacted."""
    samples: list[Sample] = []
    start = cluster.footprints()[0].commit_index
    for step in range(1, steps + 1):
        count = start + (goal - start) * step // steps - cluster.footprints()[0].commit_index
        if count <= 0:
            continue
        seconds = cluster.fill(count, in_flight=min(FILL_IN_FLIGHT, count), payload_bytes=payload_bytes)
        leader, *followers = _compacted(cluster)
        memory = sum(follower.memory_mb for follower in followers) / len(followers)
        samples.append(Sample(leader.commit_index, count / seconds, leader, memory))
        say(f"{leader.commit_index:,} entries, {count / seconds:,.0f} a second")
    return samples


def _compacted(cluster: Cluster) -> list[Footprint]:
    footprints = cluster.footprints()
    for index, node in enumerate(footprints):
        behind = node.commit_index - node.snapshot_index
        if behind > UNCOMPACTED_MAX * node.snapshot_entries:
            who = "the leader" if index == 0 else "a follower"
            raise MeasurementFailed(
                f"{who} has {behind:,} entries since its last snapshot, and is set to take one after "
                f"{node.snapshot_entries:,}: this log is not compacted"
            )
    return footprints


def _measure(clusters: dict[str, Cluster], asked: argparse.Namespace) -> Place:
    """Memory first, because the latencies of a load are kept inside the leader; then windows that alternate."""
    old = clusters[OLD]
    leader, idle = _compacted(old)[0], old.idle(asked.idle_seconds)
    measured: dict[str, list[Any]] = {name: [] for name in clusters}
    for window in range(asked.windows):
        for in_flight in asked.in_flight:
            load = Load(in_flight, asked.seconds, asked.warm_up_seconds, asked.payload_bytes)
            order = list(clusters)
            for name in order if window % 2 == 0 else reversed(order):
                measured[name].append(clusters[name].drive(load))
    after = _compacted(old)[0].commit_index
    found = rows(measured, [YOUNG])
    return Place(
        entries=leader.commit_index,
        entries_after=after,
        leader=leader,
        idle=idle,
        old=[row for row in found if row.system == OLD],
        young=[row for row in found if row.system == YOUNG],
    )


def _ratios(places: Sequence[Place]) -> dict[str, dict[str, float | None]]:
    """For each number in flight: the rate at the last place, over that at the first and over the young cluster's."""
    last = places[-1]
    first = {row.in_flight: row.ops_per_second.median for row in places[0].old}
    return {
        str(row.in_flight): {
            "last_to_first": row.ops_per_second.median / first[row.in_flight],
            "last_to_young": row.ratio,
        }
        for row in last.old
    }


def _print(
    places: Sequence[Place],
    samples: Sequence[Sample],
    ratios: dict[str, dict[str, float | None]],
    asked: argparse.Namespace,
) -> None:
    every = places[0].leader.snapshot_entries
    print(
        f"{VOTERS} processes share {os.cpu_count()} cores, {asked.payload_bytes}-byte payloads, a snapshot every "
        f"{every:,} entries; medians of {asked.windows} windows of {asked.seconds:g} s"
    )
    print(
        f"\n  {'entries':>12}  {'in flight':>9}  {'cluster':7}  {'ops/s':>8}  {'[range]':>19}  {'p50 ms':>8}"
        f"  {'p99 ms':>8}  {'CPU us/op: leader':>17}  {'follower':>8}"
    )
    for place in places:
        for row in sorted([*place.old, *place.young], key=lambda row: (row.in_flight, row.system)):
            entries = f"{place.entries:,}" if row.system == OLD else ""
            rate = row.ops_per_second
            print(
                f"  {entries:>12}  {row.in_flight:9}  {row.system:7}  {rate.median:8,.0f}"
                f"  {f'[{rate.low:,.0f}-{rate.high:,.0f}]':>19}  {row.p50_ms.median:8.2f}  {row.p99_ms.median:8.2f}"
                f"  {row.leader_cpu_us_per_op.median:17.1f}  {row.follower_cpu_us_per_op.median:8.1f}"
            )
    print("\n  at rest, leader / follower; the disk is the leader's")
    for place in places:
        idle = place.idle
        print(
            f"  {place.entries:>12,}  {idle.leader_memory_mb:.1f} / {idle.follower_memory_mb:.1f} MB of memory, "
            f"{idle.leader_cpu_percent:.1f} / {idle.follower_cpu_percent:.1f} % of a core, {_disk(place.leader)}"
        )
    print(f"\n  while it is filled, {FILL_IN_FLIGHT} in flight; the disk is the leader's")
    for sample in samples:
        print(
            f"  {sample.entries:>12,}  {sample.filled_per_second:8,.0f} ops/s, {sample.leader.memory_mb:.1f} / "
            f"{sample.follower_memory_mb:.1f} MB of memory, {sum(sample.leader.disk_mb.values()):.1f} MB of disk"
        )
    print()
    for in_flight, ratio in ratios.items():
        young = ratio["last_to_young"]
        beside = "" if young is None else f", {young:.2f} of a young cluster's in the same windows"
        print(f"{in_flight} in flight: at the last place {ratio['last_to_first']:.2f} of the rate at the first{beside}")


def _disk(node: Footprint) -> str:
    parts = ", ".join(f"{name} {size:.1f}" for name, size in node.disk_mb.items() if size >= 0.05)
    since = node.commit_index - node.snapshot_index
    return f"{sum(node.disk_mb.values()):.1f} MB of disk ({parts}), {since:,} entries since the snapshot"


if __name__ == "__main__":
    sys.exit(main())
