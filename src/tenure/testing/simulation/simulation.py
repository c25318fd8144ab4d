"""Builds a cluster from one seed, runs it through its faults, heals it, and reports.

::

    safety phase      faults happen; every invariant is judged at every event
    healed phase      no more faults; within a bound one member serves and a payment commits

No event loop, no thread, no clock of this machine and no shared randomness: the same seed gives the same events.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from tenure.core.commands import MemberRecord
from tenure.core.fsm import ClusterRecord, Enrolment
from tenure.core.holding import FENCE_RETRY_NS, WAIT_EPSILON_NS
from tenure.instants import NS_PER_MS, NS_PER_SECOND, PPM, wait_out_ns
from tenure.testing.simulation.client import Application, Payer
from tenure.testing.simulation.clocks import Clocks
from tenure.testing.simulation.faults import Schedule
from tenure.testing.simulation.fence import Database
from tenure.testing.simulation.invariants import CONVERGES, NO_PANIC, Broken, Invariants
from tenure.testing.simulation.ledger import Ledger
from tenure.testing.simulation.life import FENCE_TIMEOUT_NS, Life
from tenure.testing.simulation.members import Members
from tenure.testing.simulation.network import Frame, Network
from tenure.testing.simulation.node import Node, Surroundings
from tenure.testing.simulation.swarm import Swarm
from tenure.testing.simulation.trace import Trace
from tenure.testing.simulation.world import World

#: The share of a run in which faults happen; the rest is healed.
SAFETY_SHARE = 0.8
#: Who asks for payments from outside, and how long each waits for an answer before it asks again.
PAYERS = 2
PATIENCE_NS = 3 * NS_PER_SECOND
#: Lines of the trace that a failure carries.
TRACE_LINES = 400


class SimulationFailed(AssertionError):
    """An invariant does not hold for this seed. ``command`` shows it again with the whole trace."""

    def __init__(self, seed: int, broken: Broken, at_seconds: float, command: str, lines: list[str]) -> None:
        super().__init__(f"seed {seed}: {broken} (at {at_seconds:.6f} s; replay: {command})")
        self.seed = seed
        self.invariant = broken.invariant
        self.message = broken.message
        self.at_seconds = at_seconds
        self.command = command
        self.lines = lines


@dataclass
class Report:
    """What one run has seen."""

    seed: int
    event_hash: str
    events: int
    simulated_seconds: float
    leader_changes: int
    stale_writes_offered: int
    stale_writes_refused: int
    payments_acknowledged: int
    faults: dict[str, int] = field(default_factory=dict)
    wall_seconds: float = 0.0
    #: Of one core, in this process: what the speed is counted by.
    cpu_seconds: float = 0.0


class Simulation:
    """One cluster and everything around it. A directed case moves it by ``advance`` and ``run_until``."""

    def __init__(self, seed: int, *, swarm: Swarm | None = None, seconds: float = 600.0, trace: bool = False) -> None:
        """``seconds`` of true time, faults and healing together; with ``trace`` every line is kept."""
        self.seed, self.seconds = seed, seconds
        self.swarm = Swarm.of(seed) if swarm is None else swarm
        self.trace = Trace() if trace else None
        self.world = World(seed, trace=self.trace)
        self.invariants = Invariants(leases_bounded=self.swarm.clocks_keep_the_bound)
        self.network = Network(self.world, self.swarm.weather, self._deliver)
        self.ledger = Ledger()
        self.database = Database(self.world, self.invariants.raised, self.ledger)
        self.record = _record(self.swarm)
        self.nodes: dict[int, Node] = {}
        self.members = Members(self)
        self.payers: list[Payer] = []
        self.schedule = Schedule(self)
        self._surroundings = Surroundings(
            world=self.world,
            swarm=self.swarm,
            network=self.network,
            database=self.database,
            invariants=self.invariants,
            members=self.members,
            nodes=self.nodes,
            make_application=self._make_application,
            on_failure=self.schedule.restart_after_failure,
        )
        for member, rate in zip(self.record.members, self.swarm.rates_ppm, strict=True):
            self.add_node(Enrolment(record=self.record, raft_id=member.raft_id), member, rate_ppm=rate)
        self._began, self._cpu_began = time.perf_counter(), time.process_time()

    def add_node(self, enrolment: Enrolment, member: MemberRecord, *, rate_ppm: int = 0) -> Node:
        """A member with a new data directory, on a machine of its own; it is not started."""
        clocks = Clocks(self.world.now, rate_ppm, self.world.random("clocks"))
        node = self.nodes[enrolment.raft_id] = Node(self._surroundings, enrolment, member, clocks)
        return node

    def _make_application(self, life: Life) -> Application:
        return Application(life, self.database)

    # -- a whole run --------------------------------------------------------------------------------------------------

    def run(self) -> Report:
        """Everything, from the start of the members to the check of the end.

        Raises:
            SimulationFailed: an invariant does not hold.
        """
        with self._judged():
            self.start()
            self._begin_paying()
            self.schedule.begin()
            self.world.advance(int(self.seconds * SAFETY_SHARE * NS_PER_SECOND))
            self.heal()
            self.world.advance(max(0, int(self.seconds * NS_PER_SECOND) - self.world.elapsed_ns))
            self._require_service("at the end")
            self.ledger.judge_end()
        return self.report()

    def _begin_paying(self) -> None:
        pause = 2 * self.swarm.settings.heartbeat_interval_ms * NS_PER_MS
        for number in range(1, PAYERS + 1):
            payer = Payer(
                self.world, self.nodes, self.ledger, number=number, pause_ns=PAYERS * pause, patience_ns=PATIENCE_NS
            )
            self.payers.append(payer)
            payer.begin()

    def start(self) -> None:
        """Start every member."""
        for node in self.nodes.values():
            if not node.running:
                node.start()
        if self.swarm.members_change:
            self.members.begin()

    def heal(self) -> None:
        """End every fault, and see that one member serves once the bound has passed.

        Who serves at the first instant may still have to fall: it has not heard of the others for long.

        Raises:
            Broken: none does, or more than one.
        """
        self.world.note("world", "is healed")
        self.schedule.heal()
        bound, paid = self.bound_seconds(), self.ledger.acknowledged
        self.world.advance(int(bound * NS_PER_SECOND))
        if self.payers and self.ledger.acknowledged == paid:
            raise Broken(CONVERGES, f"no payment was made {bound:.1f} s after all faults have ended")
        self._require_service(f"{bound:.1f} s after all faults have ended")

    def _require_service(self, when: str) -> None:
        if self.serving() is None:
            names = [node.name for node in self.nodes.values() if node.life is not None and node.life.leads()]
            raise Broken(CONVERGES, f"{' and '.join(names) or 'no member'} serves {when}")

    def serving(self) -> Node | None:
        """The member that serves, if exactly one does."""
        leading = [node for node in self.nodes.values() if node.life is not None and node.life.leads()]
        return leading[0] if len(leading) == 1 else None

    def bound_seconds(self) -> float:
        """How long a healed cluster may take until it serves, by its times."""
        swarm, settings = self.swarm, self.swarm.settings
        lease_ms = max(settings.lease_duration_ms, *swarm.other_leases_ms, 0)
        wait = wait_out_ns(lease_ms * NS_PER_MS, settings.clock_rate_error_ppm, WAIT_EPSILON_NS)
        bound = 8 * swarm.election_ns + wait + 2 * (FENCE_TIMEOUT_NS + FENCE_RETRY_NS)
        return bound * (1 + max(map(abs, swarm.rates_ppm), default=0) / PPM) / NS_PER_SECOND

    def report(self) -> Report:
        """What has been seen so far."""
        return Report(
            seed=self.seed,
            event_hash=self.world.event_hash,
            events=self.world.events,
            simulated_seconds=self.world.elapsed_seconds,
            leader_changes=self.invariants.leader_changes,
            stale_writes_offered=self.ledger.stale_offered,
            stale_writes_refused=self.ledger.stale_refused,
            payments_acknowledged=self.ledger.acknowledged,
            faults=dict(sorted(self.schedule.counts.items())),
            wall_seconds=time.perf_counter() - self._began,
            cpu_seconds=time.process_time() - self._cpu_began,
        )

    # -- for directed cases -------------------------------------------------------------------------------------------

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Let ``call`` happen in ``seconds`` of true time."""
        self.world.after(int(seconds * NS_PER_SECOND), call)

    def advance(self, seconds: float) -> None:
        """Let that much true time pass; :class:`SimulationFailed` if an invariant breaks."""
        with self._judged():
            self.world.advance(int(seconds * NS_PER_SECOND))

    def run_until(self, condition: Callable[[], bool], *, within_seconds: float) -> bool:
        """Let time pass until ``condition`` holds after an event; False if it does not within that time.

        Raises:
            SimulationFailed: an invariant does not hold.
        """
        until = self.world.now + int(within_seconds * NS_PER_SECOND)
        with self._judged():
            while not condition():
                if not self.world.step(until):
                    self.world.now = until
                    return condition()
        return True

    @contextlib.contextmanager
    def _judged(self) -> Iterator[None]:
        """Whatever breaks inside is a failure of this seed."""
        try:
            yield
        except Broken as broken:
            raise self._failed(broken) from None
        except (SimulationFailed, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise self._failed(Broken(NO_PANIC, f"{type(error).__name__}: {error}")) from error

    def _deliver(self, to: int, frames: list[Frame]) -> None:
        node = self.nodes.get(to)
        if node is not None:
            node.deliver(frames)

    def _failed(self, broken: Broken) -> SimulationFailed:
        command = f"make sim SEED={self.seed} SECONDS={self.seconds:g}"
        lines = [] if self.trace is None else self.trace.lines()[-TRACE_LINES:]
        return SimulationFailed(self.seed, broken, self.world.elapsed_seconds, command, lines)


def _record(swarm: Swarm) -> ClusterRecord:
    members = tuple(
        MemberRecord(raft_id=number, name=f"n{number}", directory_id=f"directory-{number}")
        for number in range(1, swarm.members + 1)
    )
    return ClusterRecord(
        format=1,
        cluster_name="simulated",
        cluster_id="5e" * 16,
        lineage="first",
        members=members,
        settings=swarm.settings,
    )
