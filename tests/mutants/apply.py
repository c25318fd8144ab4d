"""Run one thing with one mutant switched on: ``python -m mutants.apply NAME pytest ARGS`` or ``... NAME sim ARGS``.

It is a process of its own for each mutant. ``control`` is the name of no mutant: the real code.
"""

from __future__ import annotations

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
    # Imported, not run as a program: its own processes find what they have to run by the name of its module, and they
    # are forked from this one, so that the mutant is on in them as well.
    from tenure.testing.simulation import __main__ as simulation

    sys.argv = ["tenure.testing.simulation", *arguments]
    return simulation.main()


if __name__ == "__main__":
    sys.exit(main())
