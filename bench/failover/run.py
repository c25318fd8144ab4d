"""How long nobody leads: kill -9, SIGSTOP and a cut of the leader, and a planned hand-over, beside the peers.

    make bench-failover                 three rounds, 30 runs of each fault, about 40 minutes
    QUICK=1 make bench-failover         under a minute: shows that it runs; too few runs to quote

Each round founds every system anew, in rotated order. A table for people, and one JSON object as the last line.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.failover.arena import FAULTS, NODES, Arena, FaultFailed, Takeover
from bench.failover.networks import DATABASE_ADDRESS, Cables, can_cut, enter
from bench.failover.systems import SYSTEMS, Round, System
from bench.raft.figures import rotated
from bench.raft.preparation import Unavailable
from bench.raft.rounds import fresh, machine, quick, rounded

from tenure.demo.postgres import EmbeddedPostgres

SCHEMA = 1
DATA = Path(__file__).resolve().parent / ".data"
#: A member that just started does not vote for one election timeout; the longest of these systems is 1 s.
SETTLE_SECONDS = 2.5
REFERENCE = "hashicorp"


@dataclass(frozen=True)
class Spans:
    """Milliseconds over all runs of one fault."""

    runs: int
    median: float
    p90: float
    highest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spans:
        """The spans of these runs."""
        ordered = sorted(1000 * second for second in seconds)
        return cls(
            runs=len(ordered),
            median=ordered[len(ordered) // 2],
            p90=ordered[min(len(ordered) - 1, len(ordered) * 9 // 10)],
            highest=ordered[-1],
        )


def main() -> int:
    """Exit code 1: a system failed, and that is said."""
    asked = _arguments()
    why_not = can_cut()
    if why_not is None and "cut" in asked.faults:
        enter("bench.failover.run", sys.argv[1:])
    elif "cut" in asked.faults:
        say(f"no cuts: {why_not}")
        asked.faults = [fault for fault in asked.faults if fault != "cut"]
    systems = _prepared([SYSTEMS[name] for name in asked.systems])
    taken: dict[str, dict[str, list[Takeover]]] = {}
    failures: list[str] = []
    began_load = os.getloadavg()[0]
    with _database("cut" in asked.faults) as dsn:
        for number in range(asked.rounds):
            for system in rotated(systems, number):
                say(f"round {number + 1} of {asked.rounds}: {system.name}")
                try:
                    _measure(system, Round(number, dsn), asked, taken.setdefault(system.name, {}))
                except FaultFailed as error:
                    failures.append(f"{system.name}: {error}")
                    say(f"failed: {failures[-1]}")
    report = _report(taken, failures, asked, began_load)
    sys.stdout.write("\n".join([*_table(report), json.dumps(rounded(report)), ""]))
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-failover", description="How long nobody leads after a fault.")
    parser.add_argument("--rounds", type=int, default=1 if quick() else 3)
    parser.add_argument("--runs", type=int, default=1 if quick() else 10, help="of each fault in each round")
    faults = ["kill", "transfer"] if quick() else list(FAULTS)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=faults)
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), metavar="NAME")
    parser.add_argument("--settle", type=float, default=SETTLE_SECONDS, metavar="SECONDS", help="between two faults")
    return parser.parse_args()


def say(text: str) -> None:
    """Progress goes to the standard error: the report is alone on the other."""
    sys.stderr.write(f"bench-failover: {text}\n")
    sys.stderr.flush()


def _prepared(systems: Sequence[System]) -> list[System]:
    ready = []
    for system in systems:
        try:
            system.prepare()
            ready.append(system)
        except Unavailable as error:
            say(f"left out: {system.label}: {error}")
    return ready


@contextmanager
def _database(in_networks: bool) -> Iterator[str]:
    """A PostgreSQL that the nodes reach, in their namespaces as well."""
    settings = {"listen_addresses": f"127.0.0.1,{DATABASE_ADDRESS}"} if in_networks else {}
    with EmbeddedPostgres.start(settings=settings) as server:
        if in_networks:
            with (server.home / "pgdata" / "pg_hba.conf").open("a") as rules:
                rules.write("host all all 10.78.0.0/24 scram-sha-256\n")
            server.restart()
        yield server.dsn.replace("127.0.0.1", DATABASE_ADDRESS) if in_networks else server.dsn


def _measure(system: System, of: Round, asked: argparse.Namespace, taken: dict[str, list[Takeover]]) -> None:
    faults = [fault for fault in system.faults if fault in asked.faults]
    cables = Cables(NODES) if "cut" in asked.faults else None
    with fresh(DATA) as folder:
        if cables is None:
            _suffer(Arena(system.command(of), folder, writes=system.writes, cables=None), faults, asked, taken)
        else:
            with cables:
                _suffer(Arena(system.command(of), folder, writes=system.writes, cables=cables), faults, asked, taken)


def _suffer(arena: Arena, faults: Sequence[str], asked: argparse.Namespace, taken: dict[str, list[Takeover]]) -> None:
    with arena:
        time.sleep(asked.settle)
        for _ in range(asked.runs):
            for fault in faults:
                taken.setdefault(fault, []).append(arena.suffer(fault, settle_seconds=asked.settle))


def _report(
    taken: dict[str, dict[str, list[Takeover]]], failures: list[str], asked: argparse.Namespace, began_load: float
) -> dict[str, Any]:
    systems: dict[str, Any] = {}
    for name, of_faults in taken.items():
        systems[name] = {}
        for fault, takeovers in of_faults.items():
            if not takeovers:
                continue
            row: dict[str, Any] = {"lease_ms": asdict(Spans.of([takeover.lease for takeover in takeovers]))}
            writes = [takeover.write for takeover in takeovers if takeover.write is not None]
            if writes:
                row["write_ms"] = asdict(Spans.of(writes))
            systems[name][fault] = row
    ratios = {
        name: {
            fault: systems[REFERENCE][fault]["lease_ms"]["median"] / max(row["lease_ms"]["median"], 0.001)
            for fault, row in of_faults.items()
            if fault in systems.get(REFERENCE, {})
        }
        for name, of_faults in systems.items()
        if SYSTEMS[name].is_ours
    }
    return {
        "schema": SCHEMA,
        "benchmark": "failover",
        "settings": dict(vars(asked)),
        "machine": machine(),
        "load_average_before": began_load,
        "systems": systems,
        "ratios": {"hashicorp_to_ours": ratios},
        "failures": failures,
    }


def _table(report: dict[str, Any]) -> list[str]:
    lines = ["Milliseconds from the fault: median / 90 % / highest (runs)", ""]
    for fault in FAULTS:
        rows = {name: of[fault] for name, of in report["systems"].items() if fault in of}
        if not rows:
            continue
        lines.append({"transfer": "planned hand-over, from the last write of the old leader"}.get(fault, fault))
        for name, row in rows.items():
            cells = [f"{kind} {_cell(row[kind + '_ms'])}" for kind in ("lease", "write") if f"{kind}_ms" in row]
            lines.append(f"  {SYSTEMS[name].label:66}  {'   '.join(cells)}")
        lines.append("")
    return lines


def _cell(spans: dict[str, float]) -> str:
    return f"{spans['median']:6.0f} /{spans['p90']:6.0f} /{spans['highest']:6.0f} ({spans['runs']})"


if __name__ == "__main__":
    sys.exit(main())
