"""A cluster begins, members fall, sleep and come back; clocks run wrong."""

from __future__ import annotations

import msgspec

from datadriven.verbs import Line, verb
from datadriven.world import World, milliseconds
from support.virtual_cluster import SETTINGS, VirtualCluster
from tenure.instants import NS_PER_MS, Reading


@verb("cluster 3 seed=1 lease=1000 election=1000 rate-error=10000 wait-out=always fence-delay=0")
def cluster(world: World, line: Line) -> list[str]:
    """Begin with so many members, all running; times in ms, the rate error in millionths."""
    size = int(line.word())
    settings = msgspec.structs.replace(
        SETTINGS,
        lease_duration_ms=line.number("lease", SETTINGS.lease_duration_ms),
        election_timeout_ms=line.number("election", SETTINGS.election_timeout_ms),
        clock_rate_error_ppm=line.number("rate-error", SETTINGS.clock_rate_error_ppm),
        wait_out=line.option("wait-out", SETTINGS.wait_out),
    )
    begun = VirtualCluster(size=size, seed=line.number("seed", 1), settings=settings)
    begun.fence_delay_ms = line.number("fence-delay", 0)
    world.begin(begun)
    return [f"{size} {'member' if size == 1 else 'members'}, nobody leads"]


@verb("crash old")
def crash(world: World, line: Line) -> None:
    """Kill a member: what was not made durable is gone."""
    world.cluster.crash(world.member(line.word()))


@verb("restart old")
def restart(world: World, line: Line) -> list[str]:
    """Start a member again from what was durable."""
    raft_id = world.member(line.word())
    world.cluster.restart(raft_id)
    world.events()
    role, term, _ = world.standing(raft_id)
    return [f"{world.label(raft_id)} is {role} of term {term}"]


@verb("pause old")
def pause(world: World, line: Line) -> None:
    """Stop a process (SIGSTOP): its clocks go on, messages wait for it."""
    world.cluster.pause(world.member(line.word()))


@verb("resume old")
def resume(world: World, line: Line) -> None:
    """Let a paused process go on: first it reads what waited."""
    world.cluster.resume(world.member(line.word()))


@verb("suspend old 3000")
def suspend(world: World, line: Line) -> None:
    """A machine sleeps: of its clocks only the one that counts sleep shows the time. The others go on meanwhile."""
    node = world.node(line.word())
    slept_ns = milliseconds(line.word()) * NS_PER_MS
    clock = node.clock
    world.cluster.pause(node.raft_id)
    world.advance(slept_ns // NS_PER_MS)
    node.clock = lambda ns: Reading(clock(ns).raw_ns - slept_ns, clock(ns).boottime_ns)
    world.cluster.resume(node.raft_id)


@verb("clock old 0.99")
def clock(world: World, line: Line) -> None:
    """Let a member's clocks run at that rate from now on."""
    node = world.node(line.word())
    rate, start, base = float(line.word()), world.cluster.now_ns, node.clock(world.cluster.now_ns)
    node.clock = lambda ns: Reading(*(now + int((ns - start) * rate) for now in base))


@verb("hold-fsync a")
def hold_fsync(world: World, line: Line) -> None:
    """Let a member's disk hang: what it writes from now on is not durable."""
    world.node(line.word()).hold_persist = True


@verb("fsync a")
def fsync(world: World, line: Line) -> None:
    """Let a hanging disk answer, and work from now on."""
    node = world.node(line.word())
    node.hold_persist = False
    if node.pending_persist is not None:
        world.cluster.finish_persist(node)
