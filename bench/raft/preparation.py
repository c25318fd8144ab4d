"""What must be built or installed before a peer can be measured, inside this folder and nowhere else.

Whatever is missing is said with the command that brings it (Unavailable); the other systems are measured all the same.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
HASHICORP_SOURCE = HERE / "hashicorp"
HASHICORP_BINARY = HERE / ".build" / "hashicorp"
PYSYNCOBJ_LOCK = HERE / "requirements.lock"
PYSYNCOBJ_PYTHON = HERE / ".venv" / "bin" / "python"
PYSYNCOBJ_INSTALLED = HERE / ".venv" / ".installed"


class Unavailable(Exception):
    """A system cannot be measured here; the text says why and what would bring it."""


def build_hashicorp() -> None:
    """Compile the Go program from its locked modules; almost free when nothing changed.

    Raises:
        Unavailable: there is no Go toolchain, or the build failed.
    """
    if shutil.which("go") is None:
        raise Unavailable(
            "no Go toolchain (go) found. Install Go 1.21 or newer: https://go.dev/doc/install, "
            "or Debian: apt-get install golang-go (check that it is 1.21+)"
        )
    build = ("go", "build", "-mod=readonly", "-o", str(HASHICORP_BINARY), ".")
    _run(build, HASHICORP_SOURCE, advice="cd bench/raft/hashicorp && go mod download")


def install_pysyncobj() -> None:
    """Make the private virtual environment from the hashed lock, once and again when the lock is newer.

    Raises:
        Unavailable: the environment cannot be made or filled.
    """
    if PYSYNCOBJ_INSTALLED.exists() and PYSYNCOBJ_INSTALLED.stat().st_mtime >= PYSYNCOBJ_LOCK.stat().st_mtime:
        return
    _run((sys.executable, "-m", "venv", "--clear", ".venv"), HERE, advice="apt-get install python3-venv")
    install = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes", "-r")
    _run(
        (str(PYSYNCOBJ_PYTHON), *install, PYSYNCOBJ_LOCK.name),
        HERE,
        advice="bench/raft/.venv/bin/pip install --require-hashes -r bench/raft/requirements.lock",
    )
    PYSYNCOBJ_INSTALLED.touch()


def _run(command: Sequence[str], directory: Path, *, advice: str) -> None:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise Unavailable(f"`{' '.join(command)}` failed:\n{said}\nTry: {advice}")
