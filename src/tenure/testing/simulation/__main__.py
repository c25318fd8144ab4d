"""``python -m tenure.testing.simulation``: run seeds, or replay one with its trace.

    make sim SEED=7            one seed, with its whole trace
    make sim SEEDS=1000        the first thousand, and what they saw
    make sim SEEDS=5000-5999   those

Exit code 1: a seed failed; its number, the invariant and the command that replays it are printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

from tenure.testing.simulation.simulation import Report, Simulation, SimulationFailed

#: Seeds that one process takes at a time.
_CHUNK = 4
#: Lines of the trace that are shown for a seed that failed among many.
_TAIL = 40


@dataclass(frozen=True)
class Failure:
    """What became of a seed that failed."""

    seed: int
    invariant: str
    message: str
    at_seconds: float
    command: str


def main() -> int:
    """Run what was asked for; see the module."""
    asked = _arguments()
    if asked.seed is not None:
        return _replay(asked.seed, asked.seconds, as_json=asked.output == "json")
    seeds = _seeds_of(asked.seeds)
    reports: list[Report] = []
    failures: list[Failure] = []
    for outcome in _run_all(seeds, asked.seconds, asked.jobs):
        if isinstance(outcome, Report):
            reports.append(outcome)
            continue
        failures.append(outcome)
        if asked.output != "json":
            _say(f"seed {outcome.seed}: {outcome.invariant}: {outcome.message}")
            _say(f"  replay: {outcome.command}")
        if not asked.go_on:
            break
    _summarise(reports, failures, as_json=asked.output == "json")
    return 1 if failures else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tenure.testing.simulation", description="Simulate clusters.")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--seed", type=int, help="replay one seed with its trace")
    what.add_argument("--seeds", help="how many seeds from 1 on, or FIRST-LAST")
    parser.add_argument("--seconds", type=float, default=600.0, help="simulated for each seed (default: 600)")
    parser.add_argument("--hours", type=float, help="simulated for each seed, in hours")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--go-on", action="store_true", help="after a seed that failed")
    parser.add_argument("-o", "--output", choices=("text", "json"), default="text")
    asked = parser.parse_args()
    if asked.hours is not None:
        asked.seconds = asked.hours * 3600
    return asked


def _seeds_of(text: str) -> range:
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(1, int(first) + 1)


def _replay(seed: int, seconds: float, *, as_json: bool) -> int:
    simulation = Simulation(seed, seconds=seconds, trace=True)
    try:
        report = simulation.run()
    except SimulationFailed as failed:
        if as_json:
            _summarise([], [_failure_of(failed)], as_json=True)
        else:
            _say("\n".join(failed.lines))
            _say(f"seed {seed} failed at {failed.at_seconds:.6f} s: {failed.invariant}: {failed.message}")
        return 1
    if as_json:
        _summarise([report], [], as_json=True)
    else:
        _say("\n".join(simulation.trace.lines() if simulation.trace is not None else []))
        _say(f"seed {seed}: event hash {report.event_hash}, {report.events} events, all invariants held")
        _summarise([report], [], as_json=False)
    return 0


def run_seed(seed: int, seconds: float) -> Report | Failure:
    """One seed; what it saw, or how it failed."""
    try:
        return Simulation(seed, seconds=seconds).run()
    except SimulationFailed as failed:
        return _failure_of(failed)


def _failure_of(failed: SimulationFailed) -> Failure:
    return Failure(failed.seed, failed.invariant, failed.message, failed.at_seconds, failed.command)


def _run_all(seeds: range, seconds: float, jobs: int) -> Iterator[Report | Failure]:
    if jobs <= 1:
        yield from (run_seed(seed, seconds) for seed in seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        try:
            yield from pool.map(run_seed, seeds, [seconds] * len(seeds), chunksize=_CHUNK)
        finally:
            pool.shutdown(cancel_futures=True)


def summary(reports: list[Report], failures: list[Failure]) -> dict[str, object]:
    """What all seeds together have seen."""
    faults: Counter[str] = Counter()
    for report in reports:
        faults.update(report.faults)
    simulated = sum(report.simulated_seconds for report in reports)
    cpu = sum(report.cpu_seconds for report in reports)
    return {
        "seeds": len(reports) + len(failures),
        "failures": [asdict(failure) for failure in failures],
        "simulated_hours": round(simulated / 3600, 3),
        "times_real_time_per_core": round(simulated / cpu) if cpu else 0,
        "events": sum(report.events for report in reports),
        "leader_changes": sum(report.leader_changes for report in reports),
        "stale_writes_offered": sum(report.stale_writes_offered for report in reports),
        "stale_writes_refused": sum(report.stale_writes_refused for report in reports),
        "payments_acknowledged": sum(report.payments_acknowledged for report in reports),
        "faults": dict(sorted(faults.items())),
    }


def _summarise(reports: list[Report], failures: list[Failure], *, as_json: bool) -> None:
    seen = summary(reports, failures)
    if as_json:
        _say(json.dumps(seen))
        return
    faults = seen.pop("faults")
    seen["failures"] = len(failures)
    for name, value in seen.items():
        _say(f"{name.replace('_', ' '):26} {value:>14,}" if isinstance(value, int) else f"{name:26} {value:>14}")
    _say("faults " + ", ".join(f"{name} {count}" for name, count in faults.items()))  # type: ignore[attr-defined]


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
