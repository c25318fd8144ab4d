"""The command line ``tenure``: one file per noun, each imported only when it is called.

Data goes to stdout and everything else to stderr; an error is one clear line and what to do next, never a
traceback. Exit codes are those of :class:`tenure.cli.output.ExitCode`, the same for every command.
"""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command (``argv`` defaults to the process's own arguments) and return its exit code."""
    from tenure.cli.app import run

    return run(argv)
