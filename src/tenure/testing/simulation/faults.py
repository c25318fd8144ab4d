"""The swarm of one seed: which faults there are, how often, under which times; and the schedule that makes them happen.

Every seed leaves some kinds out and makes others frequent, since faults hide one another: a cluster that is always cut
off is never late. Rates are in the cluster's own time, its election timeout, so that a slow cluster sees as much in a
run as a quick one.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from tenure.core import commands
from tenure.core.commands import Settings
from tenure.core.snapshots import SnapshotLimits
from tenure.instants import NS_PER_MS, PPM
from tenure.testing.simulation.clocks import Power
from tenure.testing.simulation.disk import Condition
from tenure.testing.simulation.engine import encode_message
from tenure.testing.simulation.network import CALM, DATABASE, Frame, Weather

if TYPE_CHECKING:
    from tenure.testing.simulation.node import Node
    from tenure.testing.simulation.simulation import Simulation

#: Every kind of fault, by its stable name.
KINDS = (
    "cut_off",
    "cut_in_two",
    "cut_one_way",
    "cut_in_a_ring",
    "flapping",
    "bad_weather",
    "pause",
    "suspend",
    "kill",
    "power_loss",
    "slow_disk",
    "hanging_disk",
    "full_disk",
    "failing_disk",
    "clock_rate",
    "wall_clock_step",
    "hand_over",
    "forced_election",
    "change_of_members",
    "new_member",
    "wiped_disk",
    "change_of_times",
    "database_cut",
    "database_restart",
    "database_failover",
    "hypervisor_stop",
)
#: Only where members may change.
OF_MEMBERS = ("change_of_members", "new_member", "wiped_disk")
#: Beyond what the clocks' bound allows: then two leases may overlap, and only the fence protects (G3).
BEYOND_THE_BOUND = ("hypervisor_stop",)


@dataclass(frozen=True)
class Swarm:
    """Every parameter of one seed. ``of`` draws one; a directed case sets what it needs."""

    members: int = 3
    settings: Settings = field(
        default_factory=lambda: Settings(
            heartbeat_interval_ms=500,
            election_timeout_ms=3000,
            lease_duration_ms=3000,
            clock_rate_error_ppm=10_000,
        )
    )
    #: What may become of the times while the cluster runs.
    other_leases_ms: tuple[int, ...] = ()
    #: Whether members come and go. The rosters of all others are fixed, and cost nothing.
    members_change: bool = False
    margin_ms: int = 50
    rates_ppm: tuple[int, ...] = (0, 0, 0)
    #: Whether the clocks keep the bound of the settings; if not, G2 is not promised.
    clocks_keep_the_bound: bool = True
    weather: Weather = CALM
    worse_weather: Weather = CALM
    snapshot_limits: SnapshotLimits = field(default_factory=SnapshotLimits)
    #: How often each kind happens, in election timeouts between two of them.
    faults: dict[str, float] = field(default_factory=dict)
    #: How long a fault lasts at most, in election timeouts.
    lasts: float = 3.0
    #: The share of bodies that return late, and of those that never do while their process lives.
    late_bodies: float = 0.0
    hung_bodies: float = 0.0

    @property
    def election_ns(self) -> int:
        """The election timeout."""
        return self.settings.election_timeout_ms * NS_PER_MS

    @classmethod
    def of(cls, seed: int) -> Swarm:
        """The parameters of ``seed``."""
        chance = random.Random(f"{seed}/swarm")  # noqa: S311 - replayable on purpose.
        heartbeat = chance.choice((200, 500, 500, 1000, 1000, 2000))
        lease = heartbeat * chance.choice((3, 4, 6, 10))
        bound = chance.choice((0, 10_000, 10_000, 100_000))
        beyond = chance.random() < 0.1
        members = chance.choice((3, 3, 3, 3, 3, 5, 2, 1))
        drift = bound if not beyond else max(bound, 20_000) * 2
        weather = _weather(chance, heartbeat)
        members_change = members > 2 and chance.random() < 0.3
        return cls(
            members=members,
            settings=Settings(
                heartbeat_interval_ms=heartbeat,
                election_timeout_ms=heartbeat * chance.choice((5, 6, 8, 10)),
                lease_duration_ms=lease,
                clock_rate_error_ppm=bound,
            ),
            other_leases_ms=tuple(heartbeat * times for times in (3, 6, 12, 20)),
            members_change=members_change,
            margin_ms=chance.choice((20, 50, heartbeat // 4)),
            rates_ppm=tuple(_rate(chance, drift) for _ in range(members)),
            clocks_keep_the_bound=not beyond,
            weather=weather,
            worse_weather=_weather(chance, heartbeat, worse=True),
            snapshot_limits=SnapshotLimits(
                entries=chance.choice((8, 20, 100)), size_bytes=1 << 20, keep_entries=chance.choice((0, 2, 10))
            ),
            faults=_rates(chance, beyond=beyond, members_change=members_change),
            lasts=chance.choice((1.0, 3.0, 6.0)),
            late_bodies=chance.choice((0.0, 0.2, 0.6)),
            hung_bodies=chance.choice((0.0, 0.0, 0.1)),
        )


def _rate(chance: random.Random, bound_ppm: int) -> int:
    """Most often an end of the range: what lies between is easier."""
    return chance.choice((-bound_ppm, bound_ppm, chance.randint(-bound_ppm, bound_ppm)))


def _weather(chance: random.Random, heartbeat_ms: int, *, worse: bool = False) -> Weather:
    heartbeat_ns = heartbeat_ms * NS_PER_MS
    longest = chance.choice((2 * NS_PER_MS, heartbeat_ns // 20, heartbeat_ns // 4))
    often = 0.05 if worse else 0.005
    return Weather(
        delay_ns=(NS_PER_MS // 5, longest),
        slow=chance.choice((0.0, often)),
        slow_ns=heartbeat_ns * chance.choice((2, 8)),
        loss=chance.choice((0.0, often, 4 * often)) if worse else chance.choice((0.0, 0.0, often)),
        duplicate=chance.choice((0.0, often)),
        late=chance.choice((0.0, often / 2)),
        late_ns=heartbeat_ns * 30,
        reorder=chance.random() < 0.3,
    )


def _rates(chance: random.Random, *, beyond: bool, members_change: bool) -> dict[str, float]:
    """Each kind is left out, rare or frequent."""
    left_out = (() if beyond else BEYOND_THE_BOUND) + (() if members_change else OF_MEMBERS)
    kinds = [kind for kind in KINDS if kind not in left_out]
    rates = {kind: chance.choice((0.0, 0.0, 60.0, 25.0, 12.0)) for kind in kinds}
    if members_change:
        rates |= {kind: chance.choice((30.0, 12.0, 6.0)) for kind in OF_MEMBERS}
    # By itself an election never comes while a lease has long to run; this is where the rules of the wait are tried.
    rates["forced_election"] = chance.choice((0.0, 10.0, 5.0))
    return {kind: rate for kind, rate in rates.items() if rate}


class Schedule:
    """Makes the faults of a swarm happen, and ends them all."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._swarm = simulation.swarm
        self._chance = simulation.world.random("faults")
        self._running = False
        self.counts: dict[str, int] = {}

    def begin(self) -> None:
        """From now on faults happen."""
        self._running = True
        for kind in self._swarm.faults:
            self._plan(kind)

    def heal(self) -> None:
        """No more of them, and those that last are over: everything runs, on machines that work."""
        self._running = False
        simulation = self._simulation
        simulation.network.heal()
        simulation.network.weather = CALM
        simulation.database.recover()
        for node in list(simulation.nodes.values()):
            node.disk.condition = Condition()
            node.power_up()
            node.resume()
            if node.life is not None and node.life.core.holding.body_outstanding and not node.life.leads():
                # Work that never returns keeps its member out of office for good: somebody has to end that process.
                node.crash()
            if not node.running:
                self._start(node)

    def _plan(self, kind: str) -> None:
        mean_ns = self._swarm.faults[kind] * self._swarm.election_ns
        self._world.after(int(self._chance.expovariate(1.0) * mean_ns), lambda: self._happen(kind))

    def _happen(self, kind: str) -> None:
        if not self._running:
            return
        if getattr(self, f"_{kind}")():
            self.counts[kind] = self.counts.get(kind, 0) + 1
        self._plan(kind)

    # -- what they all need -------------------------------------------------------------------------------------------

    def _for_a_while(self, end: Callable[[], None], *, share: float = 1.0) -> None:
        """Let ``end`` happen after some time, unless everything has been healed by then."""
        lasts = int(self._chance.random() * share * self._swarm.lasts * self._swarm.election_ns)
        self._world.after(lasts, lambda: end() if self._running else None)

    def _any(self) -> Node:
        """A member; the one in office more often than the others."""
        nodes = list(self._simulation.nodes.values())
        leading = [node for node in nodes if node.life is not None and node.life.engine.role == "leader"]
        if leading and self._chance.random() < 0.4:
            return self._chance.choice(leading)
        return self._chance.choice(nodes)

    def _start(self, node: Node) -> None:
        """Start the process, as a supervisor does, unless it is gone for good."""
        if node.running or self._simulation.nodes.get(node.raft_id) is not node:
            return
        node.start()

    def _cut(self, *pairs: tuple[int, int]) -> bool:
        network = self._simulation.network
        new = [pair for pair in pairs if pair not in network.cuts]
        if not new:
            return False
        network.cut(*new)
        self._world.note("network", f"cuts {sorted(new)}")
        self._for_a_while(lambda: self._mend(new))
        return True

    def _mend(self, pairs: list[tuple[int, int]]) -> None:
        self._simulation.network.cuts.difference_update(pairs)
        self._world.note("network", f"mends {sorted(pairs)}")

    # -- the network --------------------------------------------------------------------------------------------------

    def _cut_off(self) -> bool:
        one = self._any().raft_id
        return self._cut(*_both((one, other) for other in self._simulation.nodes if other != one))

    def _cut_in_two(self) -> bool:
        ids = list(self._simulation.nodes)
        self._chance.shuffle(ids)
        half = len(ids) // 2
        return self._cut(*_both((one, other) for one in ids[:half] for other in ids[half:]))

    def _cut_one_way(self) -> bool:
        one = self._any().raft_id
        pairs = [(one, other) for other in self._simulation.nodes if other != one]
        if self._chance.random() < 0.5:
            pairs = [(to, sender) for sender, to in pairs]
        return self._cut(*pairs)

    def _cut_in_a_ring(self) -> bool:
        """Each member is connected to its neighbours alone: no two of them see the same others."""
        ids = list(self._simulation.nodes)
        self._chance.shuffle(ids)
        near = {(ids[place], ids[(place + 1) % len(ids)]) for place in range(len(ids))}
        apart = [
            (one, other) for one in ids for other in ids if one < other and not {(one, other), (other, one)} & near
        ]
        return self._cut(*_both(apart or [(ids[0], ids[-1])] if len(ids) > 1 else []))

    def _flapping(self) -> bool:
        one = self._any().raft_id
        pairs = _both((one, other) for other in self._simulation.nodes if other != one)
        if not pairs:
            return False
        self._flap(pairs, self._chance.randrange(4, 20))
        return True

    def _flap(self, pairs: list[tuple[int, int]], left: int) -> None:
        if not self._running or left == 0:
            return
        network = self._simulation.network
        if left % 2:
            network.cuts.difference_update(pairs)
        else:
            network.cut(*pairs)
        pause = int(self._chance.random() * self._swarm.election_ns)
        self._world.after(pause, lambda: self._flap(pairs, left - 1))

    def _bad_weather(self) -> bool:
        self._simulation.network.weather = self._swarm.worse_weather
        self._for_a_while(self._good_weather)
        return True

    def _good_weather(self) -> None:
        self._simulation.network.weather = self._swarm.weather

    # -- processes and machines ---------------------------------------------------------------------------------------

    def _pause(self) -> bool:
        node = self._any()
        if not node.running or node.stopped:
            return False
        if self._chance.random() < 0.3:
            # It will stand still between what its core has decided and what becomes of it.
            node.pause_in_step = True
        else:
            node.pause()
        self._for_a_while(node.resume)
        return True

    def _suspend(self) -> bool:
        return self._power_down(Power.SUSPENDED)

    def _hypervisor_stop(self) -> bool:
        return self._power_down(Power.STOPPED)

    def _power_down(self, power: Power) -> bool:
        node = self._any()
        if not node.running or node.stopped:
            return False
        node.power_down(power)
        self._for_a_while(node.power_up)
        return True

    def _kill(self) -> bool:
        return self._end(self._any(), power=False)

    def _power_loss(self) -> bool:
        return self._end(self._any(), power=True)

    def _end(self, node: Node, *, power: bool) -> bool:
        if not node.running:
            return False
        node.crash(power=power)
        self._for_a_while(lambda: self._start(node), share=self._chance.random())
        return True

    def _clock_rate(self) -> bool:
        bound = self._swarm.settings.clock_rate_error_ppm
        self._any().change_rate(_rate(self._chance, min(bound, PPM // 2)))
        return True

    def _wall_clock_step(self) -> bool:
        self._any().clocks.wall_offset_ns += self._chance.randrange(-(10**13), 10**13)
        return True

    # -- disks --------------------------------------------------------------------------------------------------------

    def _slow_disk(self) -> bool:
        return self._trouble(Condition(fsync_ns=(NS_PER_MS, self._swarm.election_ns // 2)))

    def _hanging_disk(self) -> bool:
        return self._trouble(Condition(fsync_ns=(self._swarm.election_ns // 4, 4 * self._swarm.election_ns)))

    def _full_disk(self) -> bool:
        return self._trouble(Condition(full=True))

    def _failing_disk(self) -> bool:
        return self._trouble(Condition(failing=True))

    def _trouble(self, condition: Condition) -> bool:
        node = self._any()
        node.disk.condition = condition
        self._for_a_while(lambda: self._mend_disk(node))
        return True

    def _mend_disk(self, node: Node) -> None:
        node.disk.condition = Condition()

    def restart_after_failure(self, node: Node) -> None:
        """Its supervisor starts a process again that has ended by itself."""
        self._world.after(int(self._chance.random() * self._swarm.election_ns), lambda: self._start(node))

    # -- orders of operators ------------------------------------------------------------------------------------------

    def _hand_over(self) -> bool:
        node = self._any()
        if node.life is None:
            return False
        node.life.step_down(to=self._chance.choice(list(self._simulation.nodes)))
        return True

    def _forced_election(self) -> bool:
        """It most often comes while the leader is cut off, which then does not learn of it."""
        nodes = [node for node in self._simulation.nodes.values() if node.running and not node.stopped]
        leading = [node for node in nodes if node.life is not None and node.life.engine.role == "leader"]
        followers = [node for node in nodes if node not in leading]
        if not leading or not followers:
            return False
        leader = leading[-1]
        if self._chance.random() < 0.7:
            self._cut(*_both((leader.raft_id, other) for other in self._simulation.nodes if other != leader.raft_id))
        return self.force_election(leader, self._chance.choice(followers))

    def force_election(self, leader: Node, follower: Node) -> bool:
        """A peer without manners has ``follower`` campaign at once, in the leader's name; False if one is down."""
        if leader.life is None or follower.life is None:
            return False
        term = leader.life.engine.term
        order = encode_message("timeout_now", sender=leader.raft_id, to=follower.raft_id, term=term)
        follower.life.deliver([Frame(leader.raft_id, follower.raft_id, order, leader.lives, follower.lives)])
        return True

    def _change_of_times(self) -> bool:
        node = self._any()
        if node.life is None or not self._swarm.other_leases_ms:
            return False
        lease = self._chance.choice(self._swarm.other_leases_ms)
        settings = msgspec.structs.replace(self._swarm.settings, lease_duration_ms=lease)
        if commands.problem_of(settings) is not None:
            return False
        node.life.feed(lambda core, now: core.change_settings(settings, now))
        return True

    def _change_of_members(self) -> bool:
        return self._simulation.members.change()

    def _new_member(self) -> bool:
        return self._simulation.members.join()

    def _wiped_disk(self) -> bool:
        return self._simulation.members.wipe(self._any())

    # -- the database -------------------------------------------------------------------------------------------------

    def _database_cut(self) -> bool:
        one = self._any().raft_id
        pairs = [(one, DATABASE), (DATABASE, one)]
        return self._cut(*(pairs if self._chance.random() < 0.5 else [self._chance.choice(pairs)]))

    def _database_restart(self) -> bool:
        self._simulation.database.restart()
        return True

    def _database_failover(self) -> bool:
        lost = self._chance.choice((0, 0, 1, 2))
        self._simulation.database.fail_over(lose_raises=lost, lose_payments=self._chance.choice((0, lost)))
        return True


def _both(pairs: object) -> list[tuple[int, int]]:
    """Each pair in both directions."""
    listed = list(pairs)  # type: ignore[call-overload]
    return [pair for one, other in listed for pair in ((one, other), (other, one))]
