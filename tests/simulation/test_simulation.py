"""The simulator itself: it is deterministic, its seeds are green, and its report says what they have seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tenure.testing import Simulation
from tenure.testing.simulation.swarm import Swarm


def _hash_in_another_process(seed: int, hash_seed: str) -> str:
    program = f"from tenure.testing import Simulation; print(Simulation({seed}, seconds=60).run().event_hash)"
    environment = dict(os.environ, PYTHONHASHSEED=hash_seed)
    answer = subprocess.run(
        [sys.executable, "-c", program], env=environment, check=True, capture_output=True, text=True
    )
    return answer.stdout.strip()


def test_R33_same_seed_gives_the_same_events_when_it_runs_in_another_process():
    here = Simulation(3, seconds=60).run().event_hash
    assert _hash_in_another_process(3, "1") == here
    assert _hash_in_another_process(3, "4711") == here


def test_R33_trace_changes_nothing_when_it_is_kept():
    traced = Simulation(5, seconds=60, trace=True)
    assert traced.run().event_hash == Simulation(5, seconds=60).run().event_hash
    assert traced.trace is not None
    assert traced.trace.lines()


def test_R33_two_seeds_differ_when_their_swarm_is_the_same():
    swarm = Swarm()
    assert (
        Simulation(1, swarm=swarm, seconds=30).run().event_hash
        != Simulation(2, swarm=swarm, seconds=30).run().event_hash
    )


@pytest.mark.parametrize("members", [1, 2, 3, 5])
def test_simulation_serves_when_nothing_goes_wrong(members: int):
    simulation = Simulation(1, swarm=Swarm(members=members, rates_ppm=(0,) * members))
    simulation.start()
    assert simulation.run_until(lambda: simulation.serving() is not None, within_seconds=simulation.bound_seconds())
    leader = simulation.serving()
    simulation.advance(60)
    assert simulation.serving() is leader, "nothing went wrong, and yet another member leads"
    assert simulation.report().leader_changes == 1


def test_command_reports_what_its_seeds_have_seen_when_it_is_asked_for_json():
    command = [sys.executable, "-m", "tenure.testing.simulation", "--seeds", "4", "--seconds", "60", "--jobs", "1"]
    answer = subprocess.run([*command, "-o", "json"], check=True, capture_output=True, text=True)
    seen = json.loads(answer.stdout)
    assert seen["seeds"] == 4
    assert seen["failures"] == []
    assert seen["leader_changes"] >= 4


def test_command_prints_a_trace_when_one_seed_is_replayed():
    command = [sys.executable, "-m", "tenure.testing.simulation", "--seed", "2", "--seconds", "60"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "leads term" in answer.stdout
    assert "all invariants held" in answer.stdout
