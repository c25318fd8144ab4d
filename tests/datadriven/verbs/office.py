"""The office and the fence: elections, the end of a leadership, members that go, what the database says."""

from __future__ import annotations

import msgspec

from datadriven.verbs import Line, verb
from datadriven.world import World, milliseconds
from tenure.instants import NS_PER_MS
from tenure.types import LossReason


@verb("elect old within=15000")
def elect(world: World, line: Line) -> list[str]:
    """Advance until a member that does not lead now is the only one that leads, and give it that name."""
    name, within = line.word(), line.number("within", 15_000)
    before, start = set(world.cluster.leaders()), world.cluster.now_ns
    elected = world.cluster.advance(within, until=lambda: len(set(world.cluster.leaders()) - before) == 1)
    if not elected or len(world.cluster.leaders()) != 1:
        raise AssertionError(f"within {within} ms leads: {world.labels(world.cluster.leaders())}")
    (raft_id,) = world.cluster.leaders()
    known = [other for other, member in world.names.items() if member == raft_id and other != name]
    world.names[name] = raft_id
    world.events()
    grant = world.cluster.nodes[raft_id].grants[-1]
    elapsed = (world.cluster.now_ns - start) // NS_PER_MS
    who = f"{name} ({known[0]})" if known else name
    return [f"{who} leads term {grant.term} with token {grant.credential.token} after {elapsed} ms"]


@verb("name a b")
def name(world: World, line: Line) -> list[str]:
    """Give names to the members that have none yet, in the order of their numbers."""
    nameless = [raft_id for raft_id in world.cluster.nodes if raft_id not in world.names.values()]
    given = []
    for raft_id in nameless:
        if line.words:
            world.names[line.word()] = raft_id
            given.append(f"{world.label(raft_id)} is member {raft_id}")
    return given


@verb("step-down old")
def step_down(world: World, line: Line) -> None:
    """Tell a leader to stop; its body has not returned yet."""
    node = world.node(line.word())
    core = world.cluster.core(node.raft_id)
    world.cluster.run(node, core.step_down(LossReason.STEPPED_DOWN, world.cluster.reading(node)))


@verb("return-body old")
def return_body(world: World, line: Line) -> None:
    """The work of a member's leadership has returned."""
    world.cluster.return_body(world.member(line.word()))


@verb("application-answers old")
def application_answers(world: World, line: Line) -> None:
    """The application of a member is seen alive now; before the first time it is not judged (R13)."""
    node = world.node(line.word())
    world.cluster.core(node.raft_id).holding.application_at = world.cluster.reading(node)


@verb("refuse old")
def refuse(world: World, line: Line) -> None:
    """The database refuses a write of a member."""
    node = world.node(line.word())
    token = node.grants[-1].credential.token
    core = world.cluster.core(node.raft_id)
    world.cluster.run(node, core.refused(token, LossReason.REFUSED, world.cluster.reading(node)))


@verb("remove old")
def remove(world: World, line: Line) -> None:
    """The leader proposes that a member be removed."""
    raft_id = world.member(line.word())
    leader = next(i for i in world.cluster.nodes if world.standing(i)[0] == "leader")
    world.cluster.core(leader).consensus.engine.propose_conf_change([("remove", raft_id)])


@verb("change-lease old 400")
def change_lease(world: World, line: Line) -> None:
    """The leader changes the length of the lease in the log, in ms."""
    node = world.node(line.word())
    core = world.cluster.core(node.raft_id)
    changed = msgspec.structs.replace(core.state.settings, lease_duration_ms=milliseconds(line.word()))
    world.cluster.run(node, core.change_settings(changed, world.cluster.reading(node)))


@verb("fence-move")
def fence_move(world: World, line: Line) -> None:
    """Somebody closes, rebases or restarts the database: the fence is not what was read any more."""
    world.cluster.fence.version += 1


@verb("fence-token 41")
def fence_token(world: World, line: Line) -> None:
    """The fence holds that token, from an earlier life of everything."""
    world.cluster.fence.token = int(line.word())
    world.cluster.fence.version += 1
