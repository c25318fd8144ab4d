"""Time moves, and what is to be seen is shown, or demanded."""

from __future__ import annotations

from collections.abc import Callable

from datadriven.verbs import Line, verb
from datadriven.world import World, milliseconds
from tenure.instants import NS_PER_MS


@verb("advance 1500 until=phase:any:preparing names=a")
def advance(world: World, line: Line) -> list[str]:
    """Let so many ms pass, and show what happened; ``until`` a condition stops there or fails, ``names`` who met it."""
    ms, text, given = milliseconds(line.word()), line.option("until", ""), line.option("names", "")
    if not text:
        return world.advance(ms)[1] or ["nothing happened"]
    what, _, promise = text.partition(":")
    start = world.cluster.now_ns
    reached, shown = world.advance(ms, until=lambda: _holds(world, what, promise))
    if not reached:
        raise AssertionError(f"{text} does not hold within {ms} ms; there was:\n" + "\n".join(shown))
    if given:
        world.names[given] = next(
            i for i in world.cluster.nodes if _of_a_member(world, what, str(i)) == _value(promise)
        )
    return [*shown, f"{text} after {(world.cluster.now_ns - start) // NS_PER_MS} ms"]


@verb("status")
def status(world: World, line: Line) -> list[str]:
    """Every member: what it shows outside, its role, term and phase, and what is left of its lease."""
    shown = []
    for raft_id, node in world.cluster.nodes.items():
        label = f"{world.label(raft_id)}:"
        if node.core is None:
            shown.append(f"{label:10} down")
            continue
        view, now = node.core.view(), world.cluster.reading(node)
        left = node.span.remaining_ns(now) // NS_PER_MS if node.granted is not None and node.span else 0
        lease = f", lease {left} ms, token {view.token}" if left else ""
        asleep = ", paused" if node.paused else ""
        where = f"{view.raft_role} of term {view.term}, {view.phase}"
        shown.append(f"{label:10} {view.shown_state(now):9}  {where}{lease}{asleep}")
    return shown


@verb("mark")
def mark(world: World, line: Line) -> list[str]:
    """Remember role, term and leader of every member for ``expect unchanged=``."""
    running = [raft_id for raft_id, node in world.cluster.nodes.items() if node.core is not None]
    world.marked = {raft_id: world.standing(raft_id) for raft_id in running}
    return ["ok"]


@verb("expect leader=a holder=a token=2")
def expect(world: World, line: Line) -> list[str]:
    """Demand that all of it holds now; see the table of conditions. Rewriting does not bless a failure."""
    for what in list(line.options):
        promise = line.options.pop(what)
        if not _holds(world, what, promise):
            raise AssertionError(f"{what}={promise} does not hold; {_found(world, what, promise)}")
    return ["ok"]


def _last_loss(world: World, word: str) -> str:
    revoked = world.node(word).revoked
    return str(revoked[-1]) if revoked else "none"


def _unchanged(world: World, word: str) -> str:
    raft_id = world.member(word)
    return word if world.marked.get(raft_id) == world.standing(raft_id) else str(world.standing(raft_id))


#: What can be expected: for ``what=promise`` the value that must equal the promise; for ``what=member:promise`` of that
#: member.
OF_THE_CLUSTER: dict[str, Callable[[World], str]] = {
    "leader": lambda world: world.labels(world.cluster.leaders()),
    "holder": lambda world: world.labels(world.cluster.lease_holders()),
    "token": lambda world: str(world.cluster.fence.token),
    "raises": lambda world: ",".join(str(token) for token in world.cluster.fence.raises),
    "released": lambda world: (
        "yes" if any(node.core and node.core.state.released for node in world.cluster.nodes.values()) else "no"
    ),
}
OF_A_MEMBER: dict[str, Callable[[World, str], str]] = {
    "phase": lambda world, word: str(world.cluster.core(world.member(word)).holding.phase),
    "role": lambda world, word: world.standing(world.member(word))[0],
    "term": lambda world, word: str(world.standing(world.member(word))[1]),
    "lost": _last_loss,
    "grants": lambda world, word: str(len(world.node(word).grants)),
    "writing": lambda world, word: "yes" if world.node(word).pending_persist is not None else "no",
}


def _of_a_member(world: World, what: str, word: str) -> str:
    return OF_A_MEMBER[what](world, word)


def _value(promise: str) -> str:
    return promise.partition(":")[2]


def _found(world: World, what: str, promise: str) -> str:
    """What is found where the promise looks."""
    if what in OF_THE_CLUSTER:
        return OF_THE_CLUSTER[what](world)
    if what == "unchanged":
        return _unchanged(world, promise)
    if what in OF_A_MEMBER:
        word = promise.partition(":")[0]
        values = [_of_a_member(world, what, str(i)) for i in world.cluster.nodes] if word == "any" else []
        return _of_a_member(world, what, word) if word != "any" else " ".join(values)
    known = ", ".join([*OF_THE_CLUSTER, *(f"{name}=MEMBER:" for name in OF_A_MEMBER), "unchanged=MEMBER"])
    raise ValueError(f"{what!r} cannot be expected; conditions are {known}")


def _holds(world: World, what: str, promise: str) -> bool:
    found = _found(world, what, promise)
    if what in OF_A_MEMBER:
        return _value(promise) in found.split() if promise.startswith("any:") else found == _value(promise)
    if what in ("leader", "holder") and promise != "none":
        # A member may have several names; the first is the one that is shown.
        return found == world.label(world.member(promise))
    return found == promise
