"""The front door: what a target leaves behind, in a folder of the test's own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def test_clean_removes_everything_that_was_built_and_no_source_when_it_is_run(tmp_path: Path):
    built = [
        ".venv/bin/python",
        "raft/target/x",
        "dist/x",
        "bench/raft/.build/hashicorp",
        "bench/raft/.venv/bin/python",
    ]
    sources = ["bench/raft/run.py", "raft/src/lib.rs", "src/tenure/__init__.py"]
    for name in [*built, *sources]:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    shutil.copy(MAKEFILE, tmp_path / "Makefile")
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == sorted([*sources, "Makefile"])
