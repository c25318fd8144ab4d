"""The schedule that makes the faults of a swarm happen, and heals them all. It decides by its own stream of chance."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from tenure.instants import NS_PER_MS, PPM
from tenure.testing.simulation.clocks import Power
from tenure.testing.simulation.disk import Condition
from tenure.testing.simulation.engine import encode_message
from tenure.testing.simulation.network import CALM, DATABASE, Frame
from tenure.testing.simulation.swarm import clock_rate

if TYPE_CHECKING:
    from tenure.testing.simulation.life import Life
    from tenure.testing.simulation.node import Node
    from tenure.testing.simulation.simulation import Simulation


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
            if node.life is not None:
                node.life.turn()
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

    def _slow_one_way(self) -> bool:
        """What is sent to one member takes long, or what it sends: its answers are true, and old."""
        one, network = self._any().raft_id, self._simulation.network
        pairs = [(one, other) for other in self._simulation.nodes if other != one]
        if self._chance.random() < 0.7:
            pairs = [(to, sender) for sender, to in pairs]
        heartbeat_ns = self._swarm.settings.heartbeat_interval_ms * NS_PER_MS
        network.slow_links = dict.fromkeys(pairs, int((0.5 + 2.5 * self._chance.random()) * heartbeat_ns))
        self._for_a_while(network.slow_links.clear)
        return True

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

    def _application_hang(self) -> bool:
        life = self._any().life
        if life is None:
            return False
        life.hang()
        self._for_a_while(life.turn)
        return True

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
        self._any().change_rate(clock_rate(self._chance, min(bound, PPM // 2)))
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
        """Most often right after the leader has renewed its lease, and while it is cut off and does not learn of it."""
        leader = self._leader()
        if leader is None or leader.life is None:
            return False
        if self._swarm.other_leases_ms and self._chance.random() < 0.3:
            # Whoever is elected next has a shorter lease than the one that it must wait out.
            self._change_lease(leader.life, min(self._swarm.other_leases_ms))
        if self._chance.random() < 0.5:
            leader.life.on_renewed = lambda: self._overthrow(leader)
        else:
            self._overthrow(leader)
        return True

    def _overthrow(self, leader: Node) -> None:
        """Others are elected in its place, perhaps several in a row, while it is cut off or stopped with its lease."""
        if not self._running:
            return
        drawn = self._chance.random()
        if drawn < 0.4:
            self._cut(*_both((leader.raft_id, other) for other in self._simulation.nodes if other != leader.raft_id))
        elif drawn < 0.8 and leader.running and not leader.stopped:
            # Its engine does not see that it has lost its quorum: what ends its lease is the clock alone.
            leader.pause()
            self._for_a_while(leader.resume)
        self._replace_leader(leader, self._chance.choice((0, 0, 1, 2)))

    def _replace_leader(self, leader: Node | None, left: int) -> None:
        followers = [node for node in self._simulation.nodes.values() if node.running and node is not leader]
        if not self._running or leader is None or leader.life is None or not followers:
            return
        follower = self._chance.choice(followers)
        if self._chance.random() < 0.6:
            self.force_election(leader, follower)
        else:
            leader.life.step_down(to=follower.raft_id)
        if left:
            lease_ns = self._swarm.settings.lease_duration_ms * NS_PER_MS
            pause = int(self._chance.random() * lease_ns / 3)
            self._world.after(pause, lambda: self._replace_leader(self._leader(), left - 1))

    def _leader(self) -> Node | None:
        """Who leads the Raft group; of several, one of which is cut off, the last that was elected."""
        leading = [
            (node.life.engine.term, node.raft_id, node)
            for node in self._simulation.nodes.values()
            if node.life is not None and not node.stopped and node.life.engine.role == "leader"
        ]
        return max(leading)[2] if leading else None

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
        return self._change_lease(node.life, self._chance.choice(self._swarm.other_leases_ms))

    def _change_lease(self, life: Life, lease_ms: int) -> bool:
        settings = msgspec.structs.replace(life.core.state.settings, lease_duration_ms=lease_ms)
        life.feed(lambda core, now: core.change_settings(settings, now))
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
        self._simulation.database.restart(down_ns=self._down_ns())
        return True

    def _database_failover(self) -> bool:
        self._simulation.database.fail_over(lose=self._chance.choice((0, 0, 1, 3)), down_ns=self._down_ns())
        return True

    def _database_restore(self) -> bool:
        self._simulation.database.restore(lose=self._chance.choice((1, 2, 5)), down_ns=self._down_ns())
        return True

    def _fence_rebase(self) -> bool:
        self._simulation.database.rebase()
        return True

    def _down_ns(self) -> int:
        return int(self._chance.choice((0.0, 0.1, 1.0)) * self._chance.random() * self._swarm.election_ns)


def _both(pairs: object) -> list[tuple[int, int]]:
    """Each pair in both directions."""
    listed = list(pairs)  # type: ignore[call-overload]
    return [pair for one, other in listed for pair in ((one, other), (other, one))]
