"""One member: its machine, its disk, and the lives of its process, one after another.

It starts and ends lives, stops and wakes them, and tells the other members what a transport would: that the process
at the other end of a connection is gone. What outlives a process is here, and nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tenure.core.commands import MemberRecord, Settings
from tenure.core.fsm import Enrolment
from tenure.instants import NS_PER_MS
from tenure.testing.simulation.clocks import Clocks, Power
from tenure.testing.simulation.disk import Disk
from tenure.testing.simulation.life import Life
from tenure.testing.simulation.network import Frame, Network
from tenure.testing.simulation.parts import Application, Fence

if TYPE_CHECKING:
    from tenure.testing.simulation.invariants import Invariants
    from tenure.testing.simulation.members import Members
    from tenure.testing.simulation.swarm import Swarm
    from tenure.testing.simulation.world import World

#: How long it takes at most until a peer knows that a process is gone, where nothing is cut.
GONE_NS = 5 * NS_PER_MS


@dataclass(frozen=True)
class Surroundings:
    """What every member of a simulation shares."""

    world: World
    swarm: Swarm
    network: Network
    database: Fence
    invariants: Invariants
    members: Members
    nodes: dict[int, Node]
    make_application: Callable[[Life], Application]
    on_failure: Callable[[Node], None]


class Node:
    """See the module. ``life`` is None while the process does not run."""

    def __init__(
        self,
        surroundings: Surroundings,
        enrolment: Enrolment,
        member: MemberRecord,
        clocks: Clocks,
    ) -> None:
        self.world, self.swarm, self.network = surroundings.world, surroundings.swarm, surroundings.network
        self.database, self.invariants = surroundings.database, surroundings.invariants
        self.members, self.peers = surroundings.members, surroundings.nodes
        self.make_application = surroundings.make_application
        self.on_failure = surroundings.on_failure
        self.enrolment, self.record, self.raft_id = enrolment, enrolment.record, enrolment.raft_id
        self.name, self.directory_id = member.name, member.directory_id
        self.elector_id = f"raft:{self.record.cluster_id}"
        self.clocks = clocks
        world, raft_id = self.world, self.raft_id
        self.disk = Disk(world.random(f"disk {raft_id}"))
        #: The times that this member last learned from the log, kept beside it.
        self.settings: Settings | None = None
        self.life: Life | None = None
        self.lives = self.failures = 0
        self.paused = False
        #: At the next step of its core it is paused, before anything of what follows from it is done.
        self.pause_in_step = False
        self.on_wake: list[Callable[[], None]] = []

    @property
    def running(self) -> bool:
        """Whether there is a process, stopped or not."""
        return self.life is not None

    @property
    def stopped(self) -> bool:
        """Whether the process, if there is one, does not run: it is paused, or its machine sleeps."""
        return self.paused or self.clocks.power is not Power.ON

    @property
    def application(self) -> Application | None:
        """The application of the present life."""
        return None if self.life is None else self.life.application

    # -- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> Life:
        """Start the process."""
        self.lives += 1
        self.paused = self.pause_in_step = False
        self.on_wake.clear()
        self.world.note(self.name, f"starts (life {self.lives})")
        self.life = life = Life(self, self.lives)
        life.begin()
        self._tell_peers()
        return life

    def crash(self, *, power: bool = False) -> None:
        """End the process at once; with ``power`` the machine goes with it, and nobody is told."""
        if self.life is None:
            return
        self.world.note(self.name, "loses its power" if power else "is killed")
        self._end(tell=not power)

    def fail(self, why: str) -> None:
        """R2: the node cannot go on; its process ends by itself."""
        if self.life is None:
            return
        self.world.note(self.name, f"fails: {why}")
        self.failures += 1
        self._end(tell=True)
        self.on_failure(self)

    def _end(self, *, tell: bool) -> None:
        life, self.life = self.life, None
        if life is not None:
            life.end()
        self.disk.crash()
        self.on_wake.clear()
        if self.clocks.power is not Power.ON:
            self.clocks.change(self.world.now, power=Power.ON)
        self.paused = False
        if tell:
            self._tell_peers()

    def _tell_peers(self) -> None:
        """Who was connected to an earlier life learns that it is over, unless the link is cut."""
        for peer in list(self.peers.values()):
            if peer is self or not (self.network.passes(self.raft_id, peer.raft_id) and peer.life is not None):
                continue
            life = peer.life
            delay = self.world.random("gone").randrange(GONE_NS)
            self.world.after(delay, lambda life=life: life.watch_for(self.raft_id) if life.alive else None)  # type: ignore[misc]

    # -- pauses -------------------------------------------------------------------------------------------------------

    def pause(self) -> None:
        """SIGSTOP: the process stands still, its clocks go on."""
        if self.life is not None:
            self.world.note(self.name, "is paused")
            self.paused = True

    def resume(self) -> None:
        """SIGCONT."""
        self.pause_in_step = False
        if self.paused:
            self.world.note(self.name, "goes on")
            self.paused = False
            self._wake()

    def power_down(self, power: Power) -> None:
        """The machine is suspended, or its hypervisor stops it."""
        if self.life is not None and self.clocks.power is Power.ON:
            self.world.note(self.name, f"its machine is {power.name.lower()}")
            self.clocks.change(self.world.now, power=power)

    def power_up(self) -> None:
        """The machine goes on."""
        if self.clocks.power is not Power.ON:
            self.world.note(self.name, "its machine goes on")
            self.clocks.change(self.world.now, power=Power.ON)
            self.invariants.compare_leases()
            self._wake()

    def change_rate(self, rate_ppm: int) -> None:
        """The clocks run at another rate from now on."""
        self.clocks.change(self.world.now, rate_ppm=rate_ppm)
        self.invariants.compare_leases()

    def _wake(self) -> None:
        if self.stopped or self.life is None:
            return
        life = self.life
        waiting, self.on_wake = self.on_wake, []
        life.wake()
        for call in waiting:
            call()

    # -- frames -------------------------------------------------------------------------------------------------------

    def send(self, to: int, payload: bytes) -> None:
        """Send a payload to a member, if there is a connection to it."""
        peer, life = self.peers.get(to), self.life
        if peer is None or peer.life is None or life is None:
            return
        if self.swarm.members_change and not self.members.connected(life, peer.life):
            return
        self.network.send(Frame(self.raft_id, to, payload, life.number, peer.life.number))

    def deliver(self, frames: list[Frame]) -> None:
        """Frames arrive; those that belong to a connection that is over are dropped (R3)."""
        life = self.life
        if life is None:
            return
        kept = [frame for frame in frames if frame.to_life == life.number and self._takes(frame, life)]
        if kept:
            life.deliver(kept)

    def _takes(self, frame: Frame, life: Life) -> bool:
        sender = self.peers.get(frame.sender)
        if sender is None or sender.lives != frame.sender_life:
            return False
        if not self.swarm.members_change or sender.life is None:
            return True
        return self.members.connected(sender.life, life)
