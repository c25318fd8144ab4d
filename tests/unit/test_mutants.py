"""The mutants can be switched on in today's source, in a process of their own, and nowhere else.

`make mutants` shows that each of them is caught; here stands what would make that run worthless.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from mutants.mechanism import ROOT, Mutant, MutantError, install
from mutants.table import MUTANTS

MUTANTS_MIN = 20


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_mutant_changes_todays_source_into_something_that_compiles(mutant: Mutant):
    text = (ROOT / mutant.file).read_text(encoding="utf-8")
    mutated = mutant.mutated(text)
    assert mutated != text
    if mutant.file.endswith(".py"):
        compile(mutated, mutant.file, "exec")


def test_there_are_enough_mutants_and_each_case_that_one_names_exists():
    assert len(MUTANTS) >= MUTANTS_MIN
    for mutant in MUTANTS.values():
        for test in mutant.tests:
            file, name = test.split("::")
            assert re.search(rf"def {name}\(", (ROOT / file).read_text(encoding="utf-8")), test


def test_mutant_whose_text_is_not_there_once_is_refused():
    mutant = Mutant("gone", "R1", "text that is not there", "src/tenure/instants.py", "no such text", "")
    with pytest.raises(MutantError, match=r"0 times in src/tenure/instants\.py"):
        mutant.check()


def test_mutant_of_a_module_that_is_imported_already_is_refused():
    import tenure.instants  # noqa: F401 - it is what is refused.

    with pytest.raises(MutantError, match="imported already"):
        install(MUTANTS["one_clock_for_holders"])


@pytest.mark.parametrize(
    ("name", "says"), [("control", "8000"), ("one_clock_for_holders", "100")], ids=["control", "mutant"]
)
def test_mutant_is_on_in_its_own_process_alone(name: str, says: str):
    code = (
        "from mutants.mechanism import install; from mutants.table import MUTANTS\n"
        f"if {name!r} in MUTANTS: install(MUTANTS[{name!r}])\n"
        "from tenure.instants import Reading, elapsed_for_holder\n"
        "print(elapsed_for_holder(Reading(0, 0), Reading(100, 8000)))"
    )
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "tests"))
    answer = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == says


def test_wheels_hold_the_source_as_it_is_and_no_switch(tmp_path: Path):
    """What is installed cannot be switched by an environment, a configuration or an import: there is nothing to."""
    for project, source in ((ROOT, ROOT / "src"), (ROOT / "payments", ROOT / "payments/src")):
        folder = tmp_path / project.name
        command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
        subprocess.run(command, cwd=project, capture_output=True, check=True)
        (wheel,) = folder.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            modules = [name for name in archive.namelist() if name.endswith((".py", ".sql"))]
            assert modules
            for name in modules:
                content = archive.read(name)
                assert content == (source / name).read_bytes(), f"{name} is not the source"
                assert b"mutant" not in content.lower(), f"{name} speaks of mutants"
