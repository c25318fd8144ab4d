"""What every benchmark over several systems shares: preparing them, one round of fresh clusters, what goes to machines.

Each round founds every system anew in fresh directories, and what it left is removed before the next one starts. It
must never let a failed load leave a figure: the failure itself is kept and said.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.raft.cluster import Load, MeasurementFailed
from bench.raft.figures import Idle, Measured, Row, best_rows
from bench.raft.measure import measure
from bench.raft.preparation import HERE, Unavailable
from bench.raft.systems import System

SCHEMA = 1
#: Where clusters are founded, unless the command line names another folder.
DATA = HERE / ".data"
#: File systems that answer fsync from memory: durable figures cannot be had there.
VOLATILE = {"tmpfs", "ramfs"}


@dataclass
class Results:
    """What the rounds gave so far for one setting of payload and voters."""

    measured: dict[str, list[Measured]] = field(default_factory=dict)
    idle: dict[str, list[Idle]] = field(default_factory=dict)
    disk: dict[int, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


def quick() -> bool:
    """Whether QUICK asks for a run that shows that all works and has figures too short to quote."""
    return os.environ.get("QUICK", "") not in {"", "0"}


def prepared(systems: Sequence[System]) -> tuple[list[System], dict[str, str]]:
    """The systems that can be measured here, and why the others cannot, by their names."""
    ready: list[System] = []
    missing: dict[str, str] = {}
    for system in systems:
        try:
            system.prepare()
            ready.append(system)
        except Unavailable as error:
            missing[system.name] = f"{system.label}: {error}"
            say(f"left out: {missing[system.name]}")
    return ready, missing


def rounds(count: int, directory: Path) -> Iterator[tuple[int, Path, float]]:
    """For each round its number, an empty folder that is removed after it, and the load average at its beginning."""
    for number in range(count):
        average = os.getloadavg()[0]
        say(f"round {number + 1} of {count}, load average {average:.2f}")
        with fresh(directory) as folder:
            yield number, folder, average


@contextmanager
def fresh(directory: Path) -> Iterator[Path]:
    """An empty folder in ``directory``, removed with all that was put there."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="round-") as folder:
        yield Path(folder)


def measure_each(
    systems: Sequence[System],
    folder: Path,
    results: Results,
    *,
    voters: int,
    loads: Sequence[Load],
    idle_seconds: float,
) -> None:
    """Found, measure and remove each system in turn."""
    for system in systems:
        directories = [folder / system.name / str(voter) for voter in range(voters)]
        try:
            session = measure(system, directories, loads, idle_seconds=idle_seconds)
            results.measured.setdefault(system.name, []).extend(session.loads)
            results.idle.setdefault(system.name, []).append(session.idle)
        except MeasurementFailed as error:
            results.failures.append(f"{system.name}: {error}")
            say(f"failed: {results.failures[-1]}")
        # What is dirty in memory is dropped with its files, before the next system could pay for writing it.
        shutil.rmtree(folder / system.name)


def figures_of(all_rows: Sequence[Row], reference: Sequence[str]) -> dict[str, Any]:
    """The rows for machines. ``hashicorp_best`` names the row that ``ratio`` refers to, for each number in flight."""
    systems: dict[str, dict[str, Any]] = {}
    for row in all_rows:
        of_row = asdict(row)
        systems.setdefault(of_row.pop("system"), {})[str(of_row.pop("in_flight"))] = of_row
    best = {
        str(in_flight): {"system": row.system, "ops_per_second": row.ops_per_second.median, "p99_ms": row.p99_ms.median}
        for in_flight, row in best_rows(all_rows, reference).items()
    }
    return {"systems": systems, "hashicorp_best": best}


def rounded(value: Any) -> Any:
    """Every float to three decimals: more would be noise that looks like knowledge."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return round(value, 3) if isinstance(value, float) else value


def machine() -> dict[str, Any]:
    """What the figures depend on and a reader cannot see."""
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "go": _output("go", "version"),
        "commit": _output("git", "-C", str(HERE), "rev-parse", "HEAD"),
    }


def file_system(directory: Path) -> str:
    """The type of the file system of ``directory``, which is made; warns where a sync may cost nothing."""
    directory.mkdir(parents=True, exist_ok=True)
    kind = _output("stat", "--file-system", "--format=%T", str(directory)) or "unknown"
    if kind in VOLATILE:
        say(f"{directory} is on {kind}: fsync may cost nothing there; name a disk with --directory")
    return kind


def say(text: str) -> None:
    """Tell progress on the standard error; the standard output is for results."""
    print(f"bench-raft: {text}", file=sys.stderr, flush=True)


def _output(*command: str) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
