"""Directed cases of the database: winners that have not raised yet while the database goes back (R20, R23)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tenure.core.roles import Phase
from tenure.testing import Simulation
from tenure.testing.simulation.node import Node
from tenure.testing.simulation.swarm import Swarm

Undo = Callable[[Simulation], None]


class HeldRaise:
    """The first raise that a member sends is kept on its way, and everything that it sends after it is lost."""

    def __init__(self, simulation: Simulation) -> None:
        self._database: Any = simulation.database
        self._raise_token = simulation.database.raise_token
        self.held: Callable[[], None] | None = None
        self.holder = ""
        self.answers: list[object] = []
        self._database.raise_token = self._take

    def _take(self, credential: Any, expected: object, **options: Any) -> None:
        if self.held is None:
            self.holder = options["holder"]
            options["reply"] = self.answers.append
            self.held = lambda: self._raise_token(credential, expected, **options)
        elif options["holder"] != self.holder:
            self._raise_token(credential, expected, **options)

    def deliver(self) -> object:
        """It arrives at last; what the database answers."""
        assert self.held is not None
        self.held()
        return self.answers[0]


def two_winners() -> tuple[Simulation, HeldRaise, Node]:
    """A first winner sleeps between its win and its raise; another one leads and has raised the fence."""
    simulation = Simulation(1, swarm=Swarm())
    raising = HeldRaise(simulation)
    simulation.start()
    assert simulation.run_until(lambda: raising.held is not None, within_seconds=60)
    first = next(node for node in simulation.nodes.values() if node.name == raising.holder)
    assert first.life is not None
    assert first.life.core.holding.phase is Phase.PREPARING
    first.pause()
    assert simulation.run_until(lambda: simulation.serving() not in (None, first), within_seconds=60)
    leader = simulation.serving()
    assert leader is not None
    return simulation, raising, leader


@pytest.mark.parametrize(
    "undo",
    [
        lambda simulation: simulation.database.fail_over(lose=1),
        lambda simulation: simulation.database.restore(lose=1),
        lambda simulation: simulation.database.rebase(),
    ],
    ids=["failover", "older_copy", "rebase"],
)
def test_R20_R23_stale_winner_does_not_take_the_fence_when_the_raise_after_it_is_undone(undo: Undo):
    simulation, raising, _ = two_winners()
    undo(simulation)
    before = simulation.database.row
    raising.deliver()
    assert simulation.database.row is before, "the first winner's raise came after the database had changed"
    # Whoever leads then has a higher token than both, and the first winner never led.
    assert simulation.run_until(
        lambda: simulation.serving() is not None and simulation.database.row is not before, within_seconds=120
    )
    simulation.advance(30)
    serving = simulation.serving()
    assert serving is not None
    assert serving.name == simulation.database.row.holder


def test_stale_winner_is_refused_when_its_raise_arrives_after_the_later_one():
    simulation, raising, leader = two_winners()
    before = simulation.database.row
    raising.deliver()
    assert simulation.database.row is before
    first = next(node for node in simulation.nodes.values() if node.name == raising.holder)
    first.resume()
    simulation.advance(30)
    assert simulation.serving() is leader
    assert simulation.database.row.token == before.token
