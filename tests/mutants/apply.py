"""Run one thing with one mutant switched on: ``python -m mutants.apply NAME pytest ARGS`` or ``... NAME sim ARGS``.

It is a process of its own for each mutant. ``control`` is the name of no mutant: the real code.
"""

from __future__ import annotations

import runpy
import sys

from mutants.mechanism import install
from mutants.table import MUTANTS


def main() -> int:
    """The exit code of what was run."""
    name, kind, *arguments = sys.argv[1:]
    if name != "control":
        install(MUTANTS[name])
    if kind == "pytest":
        import pytest

        return int(pytest.main(arguments))
    sys.argv = ["tenure.testing.simulation", *arguments]
    runpy.run_module("tenure.testing.simulation", run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
