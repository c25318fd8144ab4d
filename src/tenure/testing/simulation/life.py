"""One life of one member's process: the real core, and the order in which the driver runs its effects.

What ``node/driver.py`` does with each effect is done here: a save blocks the node's thread until it is durable, what
comes meanwhile waits and is taken together afterwards, what stands behind a save leaves only then (R1, R2), an answer
of the fence is an event like any other, a storage error ends the process. It is never easier on the core: time passes
where the driver would spend it, and the process may be stopped or end between any two events.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from tenure.core import manifest
from tenure.core.effects import (
    Compact,
    Effect,
    Grant,
    MembersChanged,
    Persist,
    RaiseFence,
    ReadFence,
    Renewed,
    Revoke,
    Send,
    SettingsChanged,
    TakeSnapshot,
)
from tenure.core.engine import Engine
from tenure.core.fsm import ClusterState
from tenure.core.holding import FenceRefused, FenceUnavailable, FloorRead, Raised, RaiseMoved
from tenure.core.manifest import Manifest
from tenure.core.member import MemberCore
from tenure.core.roles import Phase
from tenure.core.roster import Roster
from tenure.errors import StorageFull, SyncFailed
from tenure.instants import NS_PER_MS, NS_PER_SECOND, Reading
from tenure.node import envelopes
from tenure.node.engine import binding, build_engine, restored_at, snapshot_in
from tenure.storage import StoredSnapshot
from tenure.testing.simulation.engine import SeededEngine
from tenure.testing.simulation.network import DATABASE, Frame
from tenure.testing.simulation.parts import LOST, NOT_SENT, Application, Reply
from tenure.testing.simulation.world import Timer
from tenure.types import ElectorIdentity, LossReason

if TYPE_CHECKING:
    from tenure.testing.simulation.node import Node

#: As ``node/disk.py``: a write that takes longer ends the node.
DISK_STALL_NS = 10 * NS_PER_SECOND
#: As ``fence/store.py``: a call that takes longer has no known outcome.
FENCE_TIMEOUT_NS = 2 * NS_PER_SECOND
#: As ``node/exchange.py``: a snapshot of which nothing was heard for so long is sent again.
SNAPSHOT_SILENCE_NS = 3 * NS_PER_SECOND
#: For so long after a peer was seen to be gone every tick may matter.
SUSPICION_NS = NS_PER_SECOND

Event = Callable[[MemberCore, Reading], list[Effect]]
Runner = Callable[[Callable[[], None]], None]


class Life:
    """See the module. ``number`` is unique among all lives; nothing of one life reaches another."""

    def __init__(self, node: Node, number: int) -> None:
        """Open what the disk kept.

        Raises:
            StorageError: as a real start would.
        """
        self.node, self.world, self.number = node, node.world, number
        self.raft_id, self.name = node.raft_id, node.name
        chance = node.world.random(f"engine {node.raft_id}")
        self.alive = True
        self.saving = False
        self.frames: list[tuple[int, bytes]] = []
        self.waiting: deque[Event] = deque()
        #: Called once, after the next renewal of its lease.
        self.on_renewed: Callable[[], None] | None = None
        self.incarnation = chance.getrandbits(62) | 1
        store = node.disk.open()
        stored = store.load()
        settings = node.settings or node.record.settings
        engine = build_engine(node.record, node.raft_id, stored, settings)
        self.engine = SeededEngine(engine, settings, chance, lambda: self.node.invariants.handing_over(self))
        self.core = MemberCore(
            cast("Engine", self.engine),
            record=node.record,
            raft_id=node.raft_id,
            incarnation=self.incarnation,
            fenced=True,
            margin_ns=node.swarm.margin_ms * NS_PER_MS,
            nonce=lambda: f"{chance.getrandbits(128):032x}",
            started=self.now(),
            binding=binding(),
            settings=settings,
            restored=restored_at(stored),
            snapshot_limits=node.swarm.snapshot_limits,
            application_timeout_ns=node.swarm.application_timeout_ms * NS_PER_MS,
        )
        self.state_seen: ClusterState = self.core.state
        self.roster = Roster(node.enrolment)
        self.roster.applied(self.core.membership())
        self.application: Application = node.make_application(self)
        self._tick_due = 0
        self._last_tick = self.world.now
        self._tick_timer: Timer | None = None
        self._watchful_until = 0
        #: Each with the state of the cluster as it was when the core asked.
        self._fence_calls: deque[tuple[ReadFence | RaiseFence, ClusterState]] = deque()
        self._fence_busy = False
        self._snapshots_sent: dict[int, int] = {}
        #: What a step has decided and the process, paused since, has not done yet.
        self._held: list[Effect] = []
        #: Since when the application's loop does not turn, and what waits for it.
        self._hung_at: Reading | None = None
        self._on_turn: list[Callable[[], None]] = []

    # -- what the application may ask (see client.py) -----------------------------------------------------------------

    def now(self) -> Reading:
        """The two clocks of this machine."""
        return self.node.clocks.read(self.world.now)

    @property
    def stopped(self) -> bool:
        """Whether the process does not run at present, although it lives."""
        return self.node.stopped

    def when_awake(self, call: Callable[[], None]) -> None:
        """Run ``call`` on the application's loop now, or once the process runs and that loop turns; in this life."""
        self._when_running(lambda: self._on_turn.append(call) if self._hung_at is not None else call())

    def after(self, own_ns: int, call: Callable[[], None]) -> Timer:
        """Run ``call`` on the application's loop once ``own_ns`` have passed on this machine's clock."""
        return self._after(own_ns, call, self.when_awake)

    def statement(self, work: Callable[[Reply], None], answer: Reply, *, timeout_ns: int) -> None:
        """Send ``work`` to the database. It runs there at its arrival and may ``reply`` once, then or later.

        ``answer`` gets the reply, ``NOT_SENT`` if the server refuses the connection, or ``LOST`` once ``timeout_ns``
        have passed on the own clock: then the statement may have been carried out, or still be.
        """
        self._statement(work, answer, timeout_ns, self.when_awake)

    def body_returned(self) -> None:
        """The application's work for its last grant is over."""
        self.feed(lambda core, now: core.body_returned(now))

    def refused(self, token: int, reason: LossReason) -> None:
        """The application was refused by the database, or its own clock ended its leadership."""
        self.node.invariants.disbelieves(self)
        self.feed(lambda core, now: core.refused(token, reason, now))

    def step_down(self, reason: LossReason = LossReason.STEPPED_DOWN, *, to: int | None = None) -> None:
        """Hand the office over."""
        self.feed(lambda core, now: core.step_down(reason, now, to=to))

    def leads(self) -> bool:
        """Whether this member shows itself as the leader now."""
        span = self.core.holding.span
        return self.core.holding.phase is Phase.LEADING and span is not None and span.remaining_ns(self.now()) > 0

    def hang(self) -> None:
        """The application's loop does not turn any more: a call that never yields, or one that holds the GIL."""
        if self._hung_at is None:
            self._note("its application hangs")
            self._hung_at = self.now()

    def turn(self) -> None:
        """It turns again, and takes what has waited."""
        waiting, self._on_turn, self._hung_at = self._on_turn, [], None
        for call in waiting:
            self.when_awake(call)

    # -- what it does itself ------------------------------------------------------------------------------------------

    def _when_running(self, call: Callable[[], None]) -> None:
        """Run ``call`` now, or as soon as the process runs again; never if it has ended."""
        if not self.alive:
            return
        if self.node.stopped:
            self.node.on_wake.append(lambda: self._when_running(call))
        else:
            call()

    def _after(self, own_ns: int, call: Callable[[], None], run: Runner) -> Timer:
        kept: Timer

        def fire() -> None:
            # A cancellation may come while it waits for its turn.
            kept.call = call
            run(lambda: _fire(kept))

        kept = self.world.after(self.node.clocks.true_ns(own_ns), fire)
        return kept

    def _statement(self, work: Callable[[Reply], None], answer: Reply, timeout_ns: int, run: Runner) -> None:
        asked: list[Timer] = []

        def finish(reply: object) -> None:
            if asked:
                asked.pop().cancel()
                answer(reply)

        def arrived() -> None:
            if self.node.database.is_up():
                work(reply)
            else:
                reply(NOT_SENT)

        def reply(said: object) -> None:
            self.node.network.travel(DATABASE, self.raft_id, lambda: run(lambda: finish(said)))

        asked.append(self._after(timeout_ns, lambda: finish(LOST), run))
        self.node.network.travel(self.raft_id, DATABASE, arrived)

    # -- events -------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """The process has started."""
        self._arm_tick()
        self.node.members.known_at(self)

    def feed(self, event: Event) -> None:
        """Give the core an event, as soon as the node's thread can take it."""
        if not self.alive:
            return
        if self.saving or self.node.stopped:
            self.waiting.append(event)
        else:
            self._step(event)
            self._drain()

    def deliver(self, frames: list[Frame]) -> None:
        """Frames have arrived together."""
        for frame in frames:
            if envelopes.is_envelope(frame.payload):
                self._when_running(lambda payload=frame.payload: self.node.members.hear(self, payload))  # type: ignore[misc]
            else:
                self.frames.append((frame.sender, frame.payload))
        if self.frames and not self.saving and not self.node.stopped:
            self._take_frames()
            self._drain()

    def wake(self) -> None:
        """The process runs again: it goes on where it stood; then its tick comes, which is overdue, and the rest."""
        held, self._held = self._held, []
        self._run(held)
        self._tick()
        self._drain()

    def end(self) -> None:
        """The process is gone."""
        self.alive = False
        if self._tick_timer is not None:
            self._tick_timer.cancel()
        self.node.invariants.disbelieves(self)
        self.application.ended()

    def watch_for(self, peer: int) -> None:
        """The process of ``peer`` was seen to be gone."""
        self._watchful_until = self.world.now + SUSPICION_NS
        self.feed(lambda core, now: core.suspect(peer, now))

    def _take_frames(self) -> None:
        frames, self.frames = self.frames, []
        self._step(lambda core, now: core.receive_all(frames, now))

    def _drain(self) -> None:
        """Take what has waited: calls and answers in their order, then all frames in one step."""
        while self.alive and not self.saving and not self.node.stopped:
            if self.waiting:
                self._step(self.waiting.popleft())
            elif self.frames:
                self._take_frames()
            else:
                self._arm_tick()
                return

    def _step(self, event: Event) -> None:
        try:
            effects = event(self.core, self.now())
        except (StorageFull, SyncFailed) as error:
            self.node.fail(str(error))
            return
        if self.node.pause_in_step:
            self.node.pause()
            self._held = effects
        else:
            self._run(effects)

    def _run(self, effects: list[Effect]) -> None:
        try:
            self._run_all(effects)
        except (StorageFull, SyncFailed) as error:
            self.node.fail(str(error))

    def _run_all(self, effects: list[Effect]) -> None:
        queue = deque(effects)
        while queue and self.alive:
            effect = queue.popleft()
            if type(effect) is Send:
                self._send(effect)
            elif type(effect) is Persist:
                if effect.must_sync or effect.entries:
                    self._begin_save(effect)
                    return
                queue.extend(self.core.persisted(self.now()))
            elif type(effect) is TakeSnapshot:
                queue.extendleft(reversed(self.core.snapshot_taken(effect.manifest, self.now())))
            else:
                self._tell(effect)
        if self.alive:
            self.node.invariants.stepped(self)

    def _send(self, effect: Send) -> None:
        self.node.invariants.sent(self, effect.payload)
        self.node.send(effect.peer, effect.payload)
        if snapshot_in(effect.payload) is not None:
            self._expect_snapshot(effect.peer)

    def _expect_snapshot(self, peer: int) -> None:
        """Nobody says that a snapshot has arrived: it is lost once its receiver has been silent for long."""
        sent = self._snapshots_sent[peer] = self._snapshots_sent.get(peer, 0) + 1

        def lost() -> None:
            if self._snapshots_sent.get(peer) == sent:
                self.feed(lambda core, now: core.snapshot_lost(peer, now))

        self._after(SNAPSHOT_SILENCE_NS, lost, self._when_running)

    def _tell(self, effect: Effect) -> None:
        match effect:
            case ReadFence() | RaiseFence():
                self._fence_calls.append((effect, self.core.state))
                self._ask_fence()
            case Grant():
                self.node.invariants.granted(self, effect)
                self._note(f"leads term {effect.term} with token {effect.credential.token}")
                self.application.granted(effect)
            case Renewed():
                self.node.invariants.renewed(self, effect)
                self.application.renewed(effect)
                if self.on_renewed is not None:
                    call, self.on_renewed = self.on_renewed, None
                    self.world.after(0, call)
            case Revoke():
                self.node.invariants.disbelieves(self)
                self._note(f"leads no more: {effect.reason}")
                self.application.revoked(effect.reason)
            case Compact(taken):
                self.world.after(0, lambda: self.feed(lambda core, now: self._compact(taken, core, now)))
            case SettingsChanged(settings):
                self.node.settings = settings
            case MembersChanged(membership):
                self.node.disk.keep_commit(self.core.applied_hard_state())
                self.roster.applied(membership)
                self.node.members.known_at(self)
            case _:
                pass

    # -- the disk -----------------------------------------------------------------------------------------------------

    def _begin_save(self, effect: Persist) -> None:
        self.saving = True
        needed = self.node.disk.begin(effect)
        if needed > DISK_STALL_NS:
            self.world.after(DISK_STALL_NS, lambda: self._fail_if_saving("its disk hangs"))
        self.world.after(needed, lambda: self._when_running(self._end_save))

    def _fail_if_saving(self, why: str) -> None:
        if self.alive and self.saving:
            self.node.fail(why)

    def _end_save(self) -> None:
        self.saving = False
        try:
            self.node.disk.finish()
        except (StorageFull, SyncFailed) as error:
            self.node.fail(str(error))
            return
        self.node.invariants.saved(self)
        self._run(self.core.persisted(self.now()))
        self._drain()

    def _compact(self, taken: Manifest, core: MemberCore, now: Reading) -> list[Effect]:
        if taken.index > core.snapshot_index:
            self.node.disk.compact(StoredSnapshot(taken.index, taken.term, manifest.encode(taken)))
        return core.compacted(taken, now)

    # -- the fence ----------------------------------------------------------------------------------------------------

    def _ask_fence(self) -> None:
        """One call at a time, as the store does."""
        if self._fence_busy or not self._fence_calls:
            return
        self._fence_busy = True
        effect, state = self._fence_calls.popleft()
        database = self.node.database
        identity = ElectorIdentity(self.node.elector_id, state.generation, state.lineage)
        if isinstance(effect, ReadFence):
            self._statement(
                lambda reply: database.read(identity, state.last_count, reply),
                lambda answer: self._fence_answered(effect, answer),
                FENCE_TIMEOUT_NS,
                self._when_running,
            )
            return
        self.node.invariants.asked_to_raise(self, effect)
        self._statement(
            lambda reply: database.raise_token(
                effect.credential,
                effect.expected,
                generation=effect.generation,
                lineage=state.lineage,
                holder=self.name,
                elector_id=self.node.elector_id,
                reply=reply,
            ),
            lambda answer: self._fence_answered(effect, answer),
            FENCE_TIMEOUT_NS,
            self._when_running,
        )

    def _fence_answered(self, effect: ReadFence | RaiseFence, answer: object) -> None:
        self._fence_busy = False
        request = effect.request
        if isinstance(effect, ReadFence):
            read = answer if isinstance(answer, FloorRead | FenceRefused) else FenceUnavailable(f"database: {answer}")
            self.feed(lambda core, now: core.fence_read(request, read, now))
        else:
            known = isinstance(answer, Raised | RaiseMoved | FenceRefused)
            raised = answer if known else FenceUnavailable(f"database: {answer}")
            self.feed(lambda core, now: core.fence_raised(request, raised, now))  # type: ignore[arg-type]
        self._ask_fence()

    # -- time ---------------------------------------------------------------------------------------------------------

    def _arm_tick(self) -> None:
        """See that a tick comes when it can matter: in office each one can, else when the engine says so."""
        watchful = self.core.holding.phase is not Phase.FOLLOWING or self.world.now < self._watchful_until
        if watchful:
            self._tick_due = self._last_tick + self.node.clocks.true_ns(self.engine.tick_ns)
        else:
            ticks = self.engine.ticks_until_due()
            self._tick_due = self.world.now + self.node.clocks.true_ns(ticks * self.engine.tick_ns)
        timer = self._tick_timer
        if timer is None or timer.call is None or timer.due > self._tick_due:
            if timer is not None:
                timer.cancel()
            self._tick_timer = self.world.at(self._tick_due, self._tick_if_due)

    def _tick_if_due(self) -> None:
        if self.world.now < self._tick_due:
            # Something came meanwhile after which the next tick matters later.
            self._tick_timer = self.world.at(self._tick_due, self._tick_if_due)
        elif not self.node.stopped:
            self._tick()

    def _tick(self) -> None:
        self.feed(self._ticked)

    def _ticked(self, core: MemberCore, now: Reading) -> list[Effect]:
        self._last_tick = self.world.now
        # As the driver: the application's loop says that it turns, and the core hears it with each tick.
        core.holding.application_at = now if self._hung_at is None else self._hung_at
        effects = core.tick(now)
        self.node.invariants.ticked(self)
        return effects

    def _note(self, what: str) -> None:
        self.world.note(self.name, what)


def _fire(timer: Timer) -> None:
    call, timer.call = timer.call, None
    if call is not None:
        call()
