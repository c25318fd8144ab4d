"""`make mutants` as a newcomer runs it: each named fault is caught, and the real code stays green over the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from mutants.mechanism import ROOT
from mutants.table import MUTANTS

pytestmark = pytest.mark.processes


@pytest.mark.timeout(900)
def test_every_mutant_is_caught_and_the_control_is_green():
    environment = dict(os.environ, PYTHONPATH=str(ROOT / "tests"))
    command = [sys.executable, "-m", "mutants"]
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    report = json.loads(answer.stdout.splitlines()[-1])
    assert report["caught"] == report["mutants"] == len(MUTANTS)
