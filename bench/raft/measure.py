"""Measure one system once.

    python -m bench.raft.measure SYSTEM --directories A B C --in-flight 1 16 256 --seconds 3 --payload-bytes 256

founds one process in each directory (they must not exist or be empty, and stay), drives the loads one after another
inside the leader and prints one line of JSON for each: ``ops``, ``seconds``, ``p50_ms``, ``p99_ms``,
``leader_cpu_us_per_op``, ``follower_cpu_us_per_op`` and the load. Exit code 1: what could not be measured is said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.raft.cluster import Cluster, Load, MeasurementFailed
from bench.raft.figures import Idle, Measured
from bench.raft.preparation import Unavailable
from bench.raft.systems import SYSTEMS, System


@dataclass(frozen=True)
class Session:
    """What one cluster gave, from its founding to its end."""

    idle: Idle
    loads: list[Measured]


def measure(system: System, directories: Sequence[Path], loads: Sequence[Load], *, idle_seconds: float) -> Session:
    """Found ``system`` in empty ``directories``, let it idle, then run ``loads`` in turn.

    Raises:
        MeasurementFailed: a directory is not empty, or the system did not do what was asked. There are no figures then.
    """
    for directory in directories:
        directory.mkdir(parents=True, exist_ok=True)
        if any(directory.iterdir()):
            raise MeasurementFailed(f"{directory} is not empty; a cluster is founded in fresh directories only")
    with Cluster(system.command, directories) as cluster:
        return Session(cluster.idle(idle_seconds), [cluster.drive(load) for load in loads])


def main() -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m bench.raft.measure", description="measure one system once")
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--directories", type=Path, nargs="+", required=True, help="one for each voter")
    parser.add_argument("--in-flight", type=int, nargs="+", default=[1, 16, 256])
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up-seconds", type=float, default=1.0)
    parser.add_argument("--payload-bytes", type=int, default=256)
    asked = parser.parse_args()
    loads = [Load(count, asked.seconds, asked.warm_up_seconds, asked.payload_bytes) for count in asked.in_flight]
    try:
        SYSTEMS[asked.system].prepare()
        session = measure(SYSTEMS[asked.system], asked.directories, loads, idle_seconds=0.0)
    except (Unavailable, MeasurementFailed) as error:
        print(f"{asked.system}: {error}", file=sys.stderr)
        return 1
    for measured in session.loads:
        print(json.dumps(vars(measured)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
