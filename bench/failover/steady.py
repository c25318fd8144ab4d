"""Whether the tight times hold under full load: no leadership may end by itself.

    make bench-failover-steady              ten minutes for each setting
    QUICK=1 make bench-failover-steady      twenty seconds for each

The leader writes as fast as the database takes it, with 32 writers, so both cores are busy all the time. What is
counted are leaderships that ended although nothing was done to them. Exit code 1 if there was one.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from bench.failover.arena import Arena
from bench.failover.run import DATA, say
from bench.failover.systems import SYSTEMS, Round
from bench.raft.rounds import fresh, machine, quick, rounded

from tenure.demo.postgres import EmbeddedPostgres

WRITERS = 32


def main() -> int:
    """Exit code 1: a leadership ended by itself."""
    parser = argparse.ArgumentParser(prog="make bench-failover-steady", description="Full load and no fault.")
    parser.add_argument("--seconds", type=float, default=20.0 if quick() else 600.0, help="for each setting")
    ours = [name for name, system in SYSTEMS.items() if system.is_ours]
    parser.add_argument("--systems", nargs="+", choices=ours, default=ours, metavar="NAME")
    asked = parser.parse_args()
    changes: dict[str, int] = {}
    busy: dict[str, float] = {}
    with EmbeddedPostgres.start() as server:
        for number, name in enumerate(asked.systems):
            say(f"{asked.seconds:.0f} s of full load: {name}")
            with fresh(DATA) as folder:
                changes[name], busy[name] = _watch(name, Round(number, server.dsn, WRITERS), folder, asked.seconds)
    for name in asked.systems:
        sys.stdout.write(
            f"{SYSTEMS[name].label:66}  {changes[name]} unprovoked ends in {asked.seconds:.0f} s, "
            f"{100 * busy[name]:.0f} % of {os.cpu_count()} cores busy\n"
        )
    report = {
        "benchmark": "failover-steady",
        "settings": dict(vars(asked)),
        "machine": machine(),
        "unprovoked_ends": changes,
        "busy": busy,
    }
    sys.stdout.write(json.dumps(rounded(report)) + "\n")
    return 1 if any(changes.values()) else 0


def _watch(name: str, of: Round, folder: Path, seconds: float) -> tuple[int, float]:
    """How many leaderships ended, and which share of all cores was busy meanwhile."""
    system = SYSTEMS[name]
    with Arena(system.command(of), folder, writes=True, cables=None) as arena:
        before = _ticks()
        changes = arena.watch(seconds)
        busy, idle = (after - earlier for after, earlier in zip(_ticks(), before, strict=True))
        return changes, busy / max(1, busy + idle)


def _ticks() -> tuple[int, int]:
    """Busy and idle ticks of all cores since the start of the machine."""
    fields = [int(field) for field in Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:9]]
    idle = fields[3] + fields[4]
    return sum(fields) - idle, idle


if __name__ == "__main__":
    sys.exit(main())
