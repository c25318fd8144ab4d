"""Switch every mutant on, one at a time, and show what caught it: ``make mutants``.

    make mutants                           all of them, two at a time
    make mutants NAMES="no_wait_out"       those alone
    make mutants SEEDS=500                 more seeds than 200 for those that only the simulator can catch

First the control: the same cases and the same seeds on the real code, which must stay green. A mutant that nothing
catches is a fault that the tests would let through: exit code 1, and its name. The last line is for machines.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass

from mutants.mechanism import ROOT, Mutant, MutantError
from mutants.table import MUTANTS

SEEDS = 200
SIMULATED_SECONDS = 300
LIMIT_SECONDS = 300
_PYTEST = ("-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", "--no-header", "--tb=short", "-W", "error")


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant, or of the control: ``by`` caught it, with ``how`` as the first words of it."""

    name: str
    caught: bool
    by: str
    how: str
    seconds: float


def main() -> int:
    """Exit code 1: a mutant lives, or the control does not."""
    asked = _arguments()
    chosen = [MUTANTS[name] for name in asked.names] if asked.names else list(MUTANTS.values())
    try:
        for mutant in chosen:
            mutant.check()
    except MutantError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    control = _control(chosen, asked)
    _say(control, is_good=not control.caught)
    if control.caught:
        return 1
    with ThreadPoolExecutor(asked.jobs) as pool:
        outcomes = []
        for outcome in pool.map(lambda mutant: _try(mutant, asked), chosen):
            _say(outcome, is_good=outcome.caught)
            outcomes.append(outcome)
    alive = [outcome.name for outcome in outcomes if not outcome.caught]
    caught = len(outcomes) - len(alive)
    living = f"; alive: {', '.join(alive)}" if alive else ""
    sys.stdout.write(f"{caught} of {len(outcomes)} mutants were caught{living}\n")
    report = {"mutants": len(outcomes), "caught": caught, "outcomes": [asdict(outcome) for outcome in outcomes]}
    sys.stdout.write(json.dumps(report) + "\n")
    return 1 if alive else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make mutants", description="Every named fault must be caught.")
    parser.add_argument("names", nargs="*", choices=[*MUTANTS, []], metavar="NAME", help="all, if none is named")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many the simulator tries (default: %(default)s)")
    parser.add_argument(
        "--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at a time (default: %(default)s)"
    )
    return parser.parse_args()


def _control(chosen: list[Mutant], asked: argparse.Namespace) -> Outcome:
    """The real code over the same cases and seeds."""
    began = time.monotonic()
    tests = sorted({test for mutant in chosen for test in mutant.tests})
    # Seeds in any case: a mutant that its own cases do not catch is tried on them, too.
    found = (_run_tests("control", tests) if tests else None) or _run_seeds("control", asked.seeds, jobs=asked.jobs)
    by, how = found or ("", f"{len(tests)} cases and {asked.seeds} seeds are green")
    return Outcome("control", found is not None, by, how, round(time.monotonic() - began, 1))


def _try(mutant: Mutant, asked: argparse.Namespace) -> Outcome:
    began = time.monotonic()
    found = _run_tests(mutant.name, list(mutant.tests)) if mutant.tests else None
    if found is None:
        found = _run_seeds(mutant.name, asked.seeds, jobs=1)
    by, how = found or ("", mutant.what)
    return Outcome(mutant.name, found is not None, by, how, round(time.monotonic() - began, 1))


def _run_tests(name: str, tests: list[str]) -> tuple[str, str] | None:
    """The case that failed and its first words; None if all are green."""
    answer = _run(name, "pytest", *_PYTEST, *tests)
    if answer is None:
        return "a directed case", f"it did not end within {LIMIT_SECONDS} s"
    if answer.returncode == 0:
        return None
    lines = answer.stdout.splitlines()
    failed = [line.split(" ")[1].split("::")[-1] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    words = [line[1:].strip() for line in lines if line.startswith("E  ")]
    if not failed:
        raise SystemExit(f"{name}: pytest said {answer.returncode}\n{answer.stdout[-2000:]}{answer.stderr[-2000:]}")
    return failed[0], words[0] if words else "it failed"


def _run_seeds(name: str, seeds: int, *, jobs: int) -> tuple[str, str] | None:
    """The first seed that failed and its invariant; None if all are green."""
    answer = _run(
        name, "sim", "--seeds", str(seeds), "--seconds", str(SIMULATED_SECONDS), "--jobs", str(jobs), "-o", "json"
    )
    if answer is None:
        return "the simulator", f"it did not end within {LIMIT_SECONDS} s"
    if answer.returncode == 0:
        return None
    try:
        report = json.loads(answer.stdout.splitlines()[-1])
        failure = report["failures"][0]
        return f"seed {failure['seed']}", f"{failure['invariant']}: {failure['message']}"
    except (ValueError, LookupError):
        # Whatever broke in it, broke by the mutant: the control over the same seeds is green.
        return "the simulator", (answer.stderr.strip().splitlines() or ["it failed"])[-1]


def _run(name: str, *what: str) -> subprocess.CompletedProcess[str] | None:
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "tests"), PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-m", "mutants.apply", name, *what]
    try:
        return subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return None


def _say(outcome: Outcome, *, is_good: bool) -> None:
    mark = "ok " if is_good else "!! "
    sys.stdout.write(f"{mark}{outcome.name:38} {outcome.seconds:6.1f} s  {outcome.by:60.60}  {outcome.how:.90}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
