"""Several real cores on real engines with a virtual clock, a network in memory and a fence that obeys the token rule.

Nothing runs by itself: ``advance`` moves the time, delivers what is due and steps every running member. It is the
seed of the simulator: same construction, same calls, same trace.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import tenure_raft

from tenure.core.commands import MemberRecord, Settings
from tenure.core.consensus import Cadence
from tenure.core.effects import Effect, Grant, Persist, RaiseFence, ReadFence, Renewed, Revoke, Send
from tenure.core.fsm import ClusterRecord
from tenure.core.holding import FloorRead, Raised, RaiseMoved
from tenure.core.member import MemberCore
from tenure.instants import NS_PER_MS, LeaseSpan, Reading
from tenure.types import Credential, LossReason, State

SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)
STEP_MS = 5


class SeededEngine:
    """The real engine; its election timeouts come from the cluster's seed, so that a run can be had again."""

    def __init__(self, engine: tenure_raft.Engine, election_tick: int, source: random.Random) -> None:
        self._engine = engine
        self._election_tick = election_tick
        self._random = source
        self._drawn_for: tuple[int, str, int] | None = None
        self._timeout = election_tick

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def tick(self, count: int = 1) -> None:
        # raft-rs draws anew at changes of role from the thread's own randomness: each draw is replaced before its use.
        for _ in range(count):
            standing = (self._engine.term, self._engine.role, self._engine.leader_id)
            if standing != self._drawn_for:
                self._drawn_for = standing
                self._timeout = self._election_tick + self._random.randrange(self._election_tick)
            self._engine.set_randomized_election_timeout(self._timeout)
            self._engine.tick()


@dataclass
class Fence:
    """The fence as far as the core sees it: a highest token and a version."""

    token: int = 0
    version: int = 1
    raises: list[int] = field(default_factory=list)

    def raise_to(self, credential: Credential, expected: object) -> Raised | RaiseMoved:
        if expected != self.version:
            return RaiseMoved("the fence moved")
        if credential.token <= self.token:
            return RaiseMoved("the fence holds a higher token")
        self.token, self.version = credential.token, self.version + 1
        self.raises.append(credential.token)
        return Raised()


@dataclass
class Node:
    """One member: what survives a crash (batches, hard state) and what does not (the core)."""

    raft_id: int
    batches: list[bytes] = field(default_factory=list)
    hard_state: tuple[int, int, int] = (0, 0, 0)
    core: MemberCore | None = None
    running: bool = True
    paused: bool = False
    clock: Callable[[int], Reading] = lambda ns: Reading(ns, ns)
    pending_persist: Persist | None = None
    hold_persist: bool = False
    granted: Grant | None = None
    span: LeaseSpan | None = None
    revoked: list[LossReason] = field(default_factory=list)
    grants: list[Grant] = field(default_factory=list)
    inbox_while_paused: list[tuple[int, bytes]] = field(default_factory=list)
    events: list[tuple[int, str]] = field(default_factory=list)


class VirtualCluster:
    """``advance(ms)`` is the only thing that moves it."""

    def __init__(self, size: int = 3, *, seed: int = 1, settings: Settings = SETTINGS, fenced: bool = True) -> None:
        self.now_ns = 1_000_000_000
        self.settings = settings
        self.random = random.Random(seed)
        self.fence = Fence()
        self.fenced = fenced
        self.fence_delay_ms = 0
        self.margin_ms = 20
        self.application_timeout_ms = 5 * settings.lease_duration_ms
        self.cut: set[tuple[int, int]] = set()
        self.delay_ms: dict[tuple[int, int], int] = {}
        self.filter: Callable[[int, int, bytes], bool] = lambda sender, to, payload: True
        self._flights: list[tuple[int, int, int, int, bytes]] = []
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._order = 0
        self.trace: list[tuple[int, int, Effect]] = []
        members = tuple(MemberRecord(raft_id=i, name=f"node-{i}", directory_id=f"d{i}") for i in range(1, size + 1))
        self.record = ClusterRecord(
            format=1, cluster_name="test", cluster_id="00" * 16, lineage="l", members=members, settings=settings
        )
        self.nodes = {i: Node(i) for i in range(1, size + 1)}
        for node in self.nodes.values():
            self.start(node)

    # -- life of a node ---------------------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        cadence = Cadence.of(self.settings.heartbeat_interval_ms, self.settings.election_timeout_ms)
        engine = tenure_raft.Engine(
            raft_id=node.raft_id,
            election_tick=cadence.election_tick,
            heartbeat_tick=cadence.heartbeat_tick,
            voters=[member.raft_id for member in self.record.members],
            learners=[],
            term=node.hard_state[0],
            vote=node.hard_state[1],
            commit=node.hard_state[2],
            batches=list(node.batches),
            tell_commits=False,
        )
        node.core = MemberCore(
            SeededEngine(engine, cadence.election_tick, self.random),
            record=self.record,
            raft_id=node.raft_id,
            incarnation=self.random.randrange(1, 1 << 62),
            fenced=self.fenced,
            margin_ns=self.margin_ms * NS_PER_MS,
            nonce=lambda: f"{self.random.getrandbits(128):032x}",
            started=self.reading(node),
            binding=tenure_raft,
            application_timeout_ns=self.application_timeout_ms * NS_PER_MS,
        )
        node.running, node.paused = True, False
        node.pending_persist, node.granted, node.span = None, None, None
        node.inbox_while_paused = []

    def crash(self, raft_id: int) -> None:
        node = self.nodes[raft_id]
        node.running, node.core, node.granted, node.span = False, None, None, None

    def restart(self, raft_id: int) -> None:
        self.start(self.nodes[raft_id])

    def core(self, raft_id: int) -> MemberCore:
        core = self.nodes[raft_id].core
        assert core is not None
        return core

    # -- time -------------------------------------------------------------------------------------------------------

    def reading(self, node: Node) -> Reading:
        return node.clock(self.now_ns)

    def after(self, ms: int, call: Callable[[], None]) -> None:
        self._order += 1
        self._timers.append((self.now_ns + ms * NS_PER_MS, self._order, call))

    def advance(self, ms: int, *, until: Callable[[], bool] | None = None) -> bool:
        """Move the time by ``ms`` in small steps; stops early and returns True once ``until`` holds."""
        for _ in range(max(1, ms // STEP_MS)):
            if until is not None and until():
                return True
            self.now_ns += STEP_MS * NS_PER_MS
            for timer in sorted(t for t in self._timers if t[0] <= self.now_ns):
                self._timers.remove(timer)
                timer[2]()
            self._deliver()
            for node in self.nodes.values():
                if node.running and not node.paused:
                    self.run(node, self.core(node.raft_id).tick(self.reading(node)))
            self._check_invariants()
        return until is None or until()

    def _deliver(self) -> None:
        due = sorted(flight for flight in self._flights if flight[0] <= self.now_ns)
        self._flights = [flight for flight in self._flights if flight[0] > self.now_ns]
        for _, _, sender, to, payload in due:
            self.hand_over(sender, to, payload)

    def hand_over(self, sender: int, to: int, payload: bytes) -> None:
        node = self.nodes[to]
        if not node.running:
            return
        if node.paused:
            node.inbox_while_paused.append((sender, payload))
        else:
            self.run(node, self.core(to).receive(sender, payload, self.reading(node)))

    def pause(self, raft_id: int) -> None:
        self.nodes[raft_id].paused = True

    def resume(self, raft_id: int) -> None:
        """The kernel hands over what queued in the sockets, in the order in which it came."""
        node = self.nodes[raft_id]
        node.paused = False
        waiting, node.inbox_while_paused = node.inbox_while_paused, []
        for sender, payload in waiting:
            self.hand_over(sender, raft_id, payload)

    # -- effects ----------------------------------------------------------------------------------------------------

    def run(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            self.trace.append((self.now_ns, node.raft_id, effect))
            match effect:
                case Send(peer, payload):
                    self._send(node.raft_id, peer, payload)
                case Persist():
                    node.pending_persist = effect
                    if not node.hold_persist or not (effect.must_sync or effect.entries):
                        self.finish_persist(node)
                case Grant():
                    node.granted, node.span = effect, effect.span if effect.leased else None
                    node.grants.append(effect)
                case Renewed(span, leased):
                    node.span = span if leased else None
                case Revoke():
                    node.revoked.append(effect.reason)
                    node.granted, node.span = None, None
                case ReadFence(request):
                    self.after(self.fence_delay_ms, lambda r=request: self._answer_read(node, r))
                case RaiseFence():
                    self.after(self.fence_delay_ms, lambda e=effect: self._answer_raise(node, e))
                case _:
                    pass

    def finish_persist(self, node: Node) -> None:
        effect, node.pending_persist = node.pending_persist, None
        assert effect is not None
        if effect.entries:
            node.batches.append(effect.entries)
        if effect.hard_state is not None:
            node.hard_state = effect.hard_state
        self.run(node, self.core(node.raft_id).persisted(self.reading(node)))

    def return_body(self, raft_id: int) -> None:
        node = self.nodes[raft_id]
        node.granted = None
        self.run(node, self.core(raft_id).body_returned(self.reading(node)))

    def _send(self, sender: int, to: int, payload: bytes) -> None:
        if (sender, to) in self.cut or not self.filter(sender, to, payload):
            return
        self._order += 1
        due = self.now_ns + self.delay_ms.get((sender, to), 1) * NS_PER_MS
        self._flights.append((due, self._order, sender, to, payload))

    def _answer_read(self, node: Node, request: int) -> None:
        if node.running and not node.paused:
            answer = FloorRead(token=self.fence.token, expected=self.fence.version)
            self.run(node, self.core(node.raft_id).fence_read(request, answer, self.reading(node)))

    def _answer_raise(self, node: Node, effect: RaiseFence) -> None:
        if node.running and not node.paused:
            answer = self.fence.raise_to(effect.credential, effect.expected)
            self.run(node, self.core(node.raft_id).fence_raised(effect.request, answer, self.reading(node)))

    # -- what is asked and checked ----------------------------------------------------------------------------------

    def isolate(self, raft_id: int) -> None:
        self.cut |= {pair for other in self.nodes for pair in ((raft_id, other), (other, raft_id))}

    def heal(self) -> None:
        self.cut.clear()

    def leaders(self) -> list[int]:
        return [
            node.raft_id
            for node in self.nodes.values()
            if node.core is not None and node.core.view().shown_state(self.reading(node)) is State.LEADER
        ]

    def lease_holders(self) -> list[int]:
        """Who may believe in its lease at this very instant, by its own clock, running or paused."""
        return [
            node.raft_id
            for node in self.nodes.values()
            if node.running
            and node.granted is not None
            and node.span is not None
            and node.span.remaining_ns(self.reading(node)) > 0
        ]

    def elect(self, within_ms: int = 15_000) -> int:
        """Advance until exactly one member leads; its raft id."""
        assert self.advance(within_ms, until=lambda: len(self.leaders()) == 1), "no leader within the bound"
        return self.leaders()[0]

    def _check_invariants(self) -> None:
        holders = self.lease_holders()
        assert len(holders) <= 1, f"G2: {holders} hold a valid lease at the same instant"
        assert self.fence.raises == sorted(set(self.fence.raises)), "G4: a token went back"
