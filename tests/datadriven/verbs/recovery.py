"""A lost majority is given up by an operator's word."""

from __future__ import annotations

from datadriven.verbs import Line, verb
from datadriven.world import World
from support.recovery import recover as recover_member


@verb("recover old")
def recover(world: World, line: Line) -> list[str]:
    """Make a crashed member the only one of its cluster, under a higher generation; the others take no frame of it."""
    raft_id = world.member(line.word())
    done, _ = recover_member(world.cluster, raft_id)
    return [f"{world.label(raft_id)} is the only member, of generation {done.generation}"]
