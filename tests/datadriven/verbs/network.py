"""What the network does to messages: cut, delay, hold, lose."""

from __future__ import annotations

from tenure_raft import message_kinds

from datadriven.verbs import Line, verb
from datadriven.world import World, milliseconds


@verb("isolate old")
def isolate(world: World, line: Line) -> None:
    """Cut every way to and from a member."""
    world.cluster.isolate(world.member(line.word()))


@verb("cut old->a")
def cut(world: World, line: Line) -> None:
    """Cut one way, in that direction only."""
    world.cluster.cut.add(world.way(line.word()))


@verb("heal")
def heal(world: World, line: Line) -> None:
    """Undo every cut, delay, hold and loss; what was held is gone."""
    world.cluster.heal()
    world.cluster.delay_ms.clear()
    world.ways.clear()
    world.held.clear()


@verb("delay a->old 300")
def delay(world: World, line: Line) -> None:
    """Let messages on one way take so many ms."""
    way = world.way(line.word())
    world.cluster.delay_ms[way] = milliseconds(line.word())


@verb("hold old->a kind=timeout_now")
def hold(world: World, line: Line) -> None:
    """Keep the messages of one way back, all or one kind, until they are released."""
    world.ways.append((*world.way(line.word()), line.option("kind", "") or None, True))


@verb("lose old->a kind=append")
def lose(world: World, line: Line) -> None:
    """Lose the messages of one way, all or one kind."""
    world.ways.append((*world.way(line.word()), line.option("kind", "") or None, False))


@verb("release old->a")
def release(world: World, line: Line) -> list[str]:
    """Deliver what was held on one way, in its order, and hold no more."""
    sender, to = world.way(line.word())
    world.ways = [way for way in world.ways if way[:2] != (sender, to) or not way[3]]
    due = [held for held in world.held if held[:2] == (sender, to)]
    world.held = [held for held in world.held if held[:2] != (sender, to)]
    kinds: list[str] = []
    for _, _, payload in due:
        kinds += [kind for kind, *_ in message_kinds(payload)]
        world.cluster.hand_over(sender, to, payload)
    shown = ", ".join(f"{kinds.count(kind)} {kind}" for kind in sorted(set(kinds))) or "nothing"
    return [f"delivers {shown}", *world.events()]
