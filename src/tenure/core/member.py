"""The whole pure core of one member: consensus, state machine and holding behind one door. Pure.

Every method takes an event with the instant at which it happened and returns the effects to run, in order. The driver
(``tenure.node``) and the simulator call nothing else. R1 is visible in the list: what stands behind a Persist waits
for it, because nothing is handed out before ``persisted``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence

import msgspec

from tenure.core import commands, manifest
from tenure.core.commands import RestorePart, Settings
from tenure.core.consensus import Cadence, Consensus
from tenure.core.effects import (
    Apply,
    Compact,
    Declined,
    Effect,
    MembersChanged,
    Proved,
    Rejected,
    RestoreSnapshot,
    SettingsChanged,
    StateChanged,
    TakeSnapshot,
)
from tenure.core.engine import Binding, Engine
from tenure.core.fsm import ClusterRecord, ClusterState, Membership, apply_entry, apply_members, initial_state
from tenure.core.holding import (
    FenceRefused,
    FenceUnavailable,
    FloorRead,
    HoldingMachine,
    Raised,
    RaiseMoved,
)
from tenure.core.manifest import Manifest
from tenure.core.membership import Change, MemberState, Standing, member_states, plan
from tenure.core.roles import Phase
from tenure.core.snapshots import SnapshotLimits, SnapshotSchedule
from tenure.core.view import View
from tenure.errors import MembershipRefused, SnapshotRefused
from tenure.instants import NS_PER_MS, Reading
from tenure.types import LossReason

#: Context of a proof that the user asked for: incarnation, term, number, and a mark apart from the lease's own.
PROOF = struct.Struct(">QQQc")


class MemberCore:
    """One member. ``nonce`` is called once for each election won and must give 128 secret random bits as text."""

    def __init__(
        self,
        engine: Engine,
        *,
        record: ClusterRecord,
        raft_id: int,
        incarnation: int,
        fenced: bool,
        margin_ns: int,
        nonce: Callable[[], str],
        started: Reading,
        binding: Binding,
        settings: Settings | None = None,
        restored: Manifest | None = None,
        snapshot_limits: SnapshotLimits | None = None,
        application_timeout_ns: int = 0,
    ) -> None:
        """Start where ``engine`` starts: at the snapshot of ``restored``, if there is one, else at the founding.

        ``settings`` are the last times that this member learned from the log; by default those of the founding.
        """
        settings = record.settings if settings is None else settings
        cadence = Cadence.of(settings.heartbeat_interval_ms, settings.election_timeout_ms)
        self.tick_ns = cadence.tick_ns
        self.consensus = Consensus(engine, raft_id=raft_id, cadence=cadence, started=started, binding=binding)
        self._binding = binding
        self.state: ClusterState = initial_state(record)
        self.snapshots = SnapshotSchedule(SnapshotLimits() if snapshot_limits is None else snapshot_limits)
        #: The index up to which the log is compacted.
        self.snapshot_index = self._members_index = 0
        self._transfer_to: int | None = None
        self.holding = HoldingMachine(
            raft_id=raft_id,
            incarnation=incarnation,
            fenced=fenced,
            heartbeat_ns=settings.heartbeat_interval_ms * NS_PER_MS,
            election_ns=settings.election_timeout_ms * NS_PER_MS,
            margin_ns=margin_ns,
            application_timeout_ns=application_timeout_ns,
        )
        self._engine = engine
        self._raft_id = raft_id
        self._incarnation = incarnation
        self._nonce = nonce
        self._removed = False
        #: Whether something was applied that the holding may have waited for.
        self._holding_has_news = False
        self._holding_ticked_ns = started.raw_ns
        self._user_entries: list[tuple[int, int, bytes | RestorePart | None]] = []
        self._proofs: dict[bytes, object] = {}
        self._proofs_asked = 0
        self._term_seen = engine.term
        #: The highest term whose hard state is durable: what the status shows.
        self.durable_term = engine.term
        self.applied_index = self._applied_term = 0
        #: Every change of the term that this member observed since it started (``raft_election_count``).
        self.elections_observed = 0
        self._commit_at_start = engine.commit
        #: With the first event. A crash may have come between the snapshot and what it says of times and members.
        self._first_effects: list[Effect] = [] if restored is None else self._restore(restored)

    # -- events ---------------------------------------------------------------------------------------------------

    def tick(self, now: Reading) -> list[Effect]:
        """Time has passed. Call it several times a heartbeat."""
        # While a Ready is being made durable nobody may act on what it says (R1).
        effects = [] if self.consensus.persisting else self._settle(now)
        if self._engine.snapshot_wanted:
            # A new member throws a snapshot away that does not name it: it needs one of after it was added.
            self.snapshots.need(now)
        effects += self._take_snapshot_if_due()
        self._holding_ticked_ns = now.raw_ns
        self.holding.tick(self.state, now)
        return effects + self._collect(now)

    def receive(self, sender: int, payload: bytes, now: Reading) -> list[Effect]:
        """A frame of the member ``sender`` arrived; its bytes are not trusted."""
        return self.receive_all([(sender, payload)], now)

    def receive_all(self, frames: Iterable[tuple[int, bytes]], now: Reading) -> list[Effect]:
        """Frames arrived together, each with its sender: what they bring becomes durable by one save."""
        for sender, payload in frames:
            self.consensus.receive(sender, payload)
        return self._collect(now)

    def suspect(self, peer: int, now: Reading) -> list[Effect]:
        """The process of the member ``peer`` was seen to be gone; see :meth:`Consensus.suspect`."""
        self.consensus.suspect(peer, now)
        return self._collect(now)

    def persisted(self, now: Reading) -> list[Effect]:
        """The last Persist effect is durable."""
        machine, phase = self.holding, self.holding.phase
        progress = self.consensus.persisted()
        self.durable_term = max(self.durable_term, self._engine.term)
        if progress.synced:
            machine.disk_proved(now)
        effects = progress.effects + self._settle(now)
        if progress.snapshot is not None:
            effects += self._restore(manifest.decode(progress.snapshot[2]))
        if progress.committed:
            effects += self._apply_all(progress.committed, now)
        for _, context in progress.read_states:
            if context in self._proofs:
                # The engine can hand a proof out after stepping down (P8b): the term in the context decides.
                effects.append(self._judge_proof(context))
            else:
                machine.read_state(context, now)
        overdue = now.raw_ns - self._holding_ticked_ns >= self.tick_ns
        if overdue or self._holding_has_news or progress.read_states or machine.phase is not phase:
            # Behind a save it hears of time alone only if a tick is late, as after a pause.
            self._holding_has_news, self._holding_ticked_ns = False, now.raw_ns
            machine.tick(self.state, now)
        return effects + self._collect(now)

    def fence_read(
        self, request: int, answer: FloorRead | FenceRefused | FenceUnavailable, now: Reading
    ) -> list[Effect]:
        """The answer to a ReadFence effect."""
        self.holding.fence_read(request, answer, self.state, now)
        return self._collect(now)

    def fence_raised(
        self, request: int, answer: Raised | RaiseMoved | FenceRefused | FenceUnavailable, now: Reading
    ) -> list[Effect]:
        """The answer to a RaiseFence effect."""
        self.holding.fence_raised(request, answer, now)
        self.holding.tick(self.state, now)
        return self._collect(now)

    def refused(self, token: int, reason: LossReason, now: Reading) -> list[Effect]:
        """The database refused a write under ``token``."""
        self.holding.refused(token, reason, now)
        return self._collect(now)

    def body_returned(self, now: Reading) -> list[Effect]:
        """The body of the scope that was granted last has returned."""
        self.holding.end(LossReason.STEPPED_DOWN, now)
        self.holding.body_returned(now)
        return self._collect(now)

    def step_down(self, reason: LossReason, now: Reading, *, to: int | None = None) -> list[Effect]:
        """Leave office if this member holds it or is on the way to it, in favour of ``to`` if that voter is active."""
        self._transfer_to = to
        self.holding.end(reason, now)
        return self._collect(now)

    def change_settings(self, settings: Settings, now: Reading, ticket: object = None) -> list[Effect]:
        """Propose new times of the cluster (R4); a running holding keeps those of its ACQUIRE (R8)."""
        problem = commands.problem_of(settings)
        if problem is not None:
            return [Declined(ticket, MembershipRefused(problem))]
        self.consensus.propose_for_user([(commands.encode(commands.ChangeSettings(settings)), ticket)])
        return self._collect(now)

    def change_members(self, changes: Sequence[Change], ticket: object, now: Reading) -> list[Effect]:
        """Propose a change of the members; answered by Proposed, Rejected or Declined, later by MembersChanged."""
        self.consensus.propose_members(lambda: plan(changes, self.state, self._standing()), ticket)
        return self._collect(now)

    def vouch_for(self, ids: list[int], now: Reading) -> list[Effect]:
        """Let frames of these members in, although this one has not applied that they are members."""
        self.consensus.vouch_for(ids)
        return self._collect(now)

    def ask_snapshot(self, ticket: object, now: Reading) -> list[Effect]:
        """Take a snapshot at the next chance; answered by Compact's end (``compacted``) or Declined."""
        if self.applied_index <= self.snapshot_index and not self.snapshots.under_way:
            return [Declined(ticket, SnapshotRefused("nothing was applied since the last snapshot"))]
        self.snapshots.ask(ticket, self.applied_index)
        return self._take_snapshot_if_due()

    def snapshot_taken(self, taken: Manifest | None, now: Reading) -> list[Effect]:
        """The user's part of the snapshot is durable, or (None) it could not be taken."""
        if taken is None:
            refusal = SnapshotRefused("the snapshot could not be taken; the node's log says why")
            return [Declined(ticket, refusal) for ticket in self.snapshots.failed(now)]
        return [Compact(taken)] if taken.index > self.snapshot_index else self.compacted(taken, now)

    def compacted(self, taken: Manifest, now: Reading) -> list[Effect]:
        """The manifest stands durably for the log up to its index."""
        if taken.index > self.snapshot_index:
            self.snapshot_index = taken.index
            keep = self.snapshots.kept_behind(taken.index)
            self.consensus.compact(taken.index, manifest.encode(taken), keep=keep)
            self.snapshots.end(size_bytes=0 if taken.content is None else taken.content.size)
        # A snapshot of the leader may have come in between: then the log is compacted further than was asked.
        self.snapshots.end(size_bytes=None)
        effects: list[Effect] = [Proved(ticket) for ticket in self.snapshots.answered(self.snapshot_index)]
        # What was applied meanwhile may be enough for the next one.
        return effects + self._take_snapshot_if_due() + self._collect(now)

    def snapshot_lost(self, peer: int, now: Reading) -> list[Effect]:
        """The snapshot that was sent to ``peer`` did not arrive there."""
        self.consensus.snapshot_lost(peer)
        return self._collect(now)

    def propose(self, commands: Iterable[tuple[bytes, object]], now: Reading) -> list[Effect]:
        """Propose the user's commands, each with a ticket; answered by Proposed or Rejected, later by Apply."""
        self.consensus.propose_for_user(commands)
        return self._collect(now)

    def prove_leadership(self, ticket: object, now: Reading) -> list[Effect]:
        """Ask a quorum whether this member leads now; answered by Proved or Rejected."""
        if self._engine.role != "leader":
            return [Rejected([ticket])]
        self._proofs_asked += 1
        context = PROOF.pack(self._incarnation, self._engine.term, self._proofs_asked, b"p")
        self._proofs[context] = ticket
        self.consensus.read_index(context)
        return self._collect(now)

    # -- what the status shows --------------------------------------------------------------------------------------

    def view(self) -> View:
        """What the status is made of, now."""
        engine, machine = self._engine, self.holding
        # At every step, so without names, which would cost more than the values.
        return View(
            machine.phase,
            engine.role,
            self.durable_term,
            engine.leader_id,
            machine.span,
            machine.token or None,
            engine.granted_votes,
            len(engine.voters),
            engine.commit,
            self.applied_index,
            self.elections_observed,
            self.snapshot_index,
            self._members_index,
            machine.reason,
        )

    def membership(self) -> Membership:
        """Who belongs to the cluster after what is applied here."""
        return Membership(
            index=self._members_index,
            members=self.state.members,
            voters=tuple(self._engine.voters),
            learners=tuple(self._engine.learners),
            generation=self.state.generation,
            lineage=self.state.lineage,
        )

    def members(self) -> list[MemberState]:
        """Every member as this one sees it now."""
        return member_states(self.state, self._standing(), leader=self._engine.leader_id, own=self._raft_id)

    def _standing(self) -> Standing:
        engine = self._engine
        return Standing(engine.voters, engine.learners, engine.commit, engine.progress())

    def acknowledged_by(self, raft_id: int) -> int:
        """The last log entry that this member acknowledged to this leader; 0 if this one does not lead."""
        return next((entry[1] for entry in self._engine.progress() if entry[0] == raft_id), 0)

    def applied_hard_state(self) -> tuple[int, int, int]:
        """Term, vote, and how far the log is applied, so committed and durable."""
        return self._engine.term, self._engine.vote, max(self.applied_index, self._commit_at_start)

    @property
    def removed(self) -> bool:
        """True once this member has applied its own removal."""
        return self._removed

    # -- inside ---------------------------------------------------------------------------------------------------

    def _apply_all(self, committed: list[tuple[int, int, str, bytes]], now: Reading) -> list[Effect]:
        settings, changes = self.state.settings, []
        effects: list[Effect] = []
        for index, term, kind, data in committed:
            self.snapshots.applied(len(data))
            if data[:1] == commands.USER_PREFIX and kind == "command" and not self.state.released:
                self._user_entries.append((index, term, data[1:]))
            elif kind == "conf_change":
                steps, context = self._binding.decode_conf_change(data)
                self.state = apply_members(self.state, context, joint=len(steps) > 1, index=index)
                self._members_index = index
                changes.append((index, term))
            else:
                lineage = self.state.lineage
                self._apply(index, term, data, now)
                if self.state.settings is not settings:
                    settings = self.state.settings
                    effects.append(SettingsChanged(settings, index, term))
                if self.state.lineage != lineage:
                    self._members_index = index
                    changes.append((index, term))
        self.applied_index, self._applied_term = committed[-1][0], committed[-1][1]
        if changes:
            effects.append(self._members_changed(tuple(changes)))
        # Behind the news of members and settings: what is at or below ``through`` and was not told is overtaken.
        entries, self._user_entries = self._user_entries, []
        effects.append(Apply(entries, self.applied_index))
        return effects + self._take_snapshot_if_due()

    def _members_changed(self, entries: tuple[tuple[int, int], ...]) -> Effect:
        configured = {*self._engine.voters, *self._engine.learners}
        # One that joins is not configured either, until it has applied that its id was given.
        self._removed = self._raft_id not in configured and self._raft_id <= self.state.last_raft_id
        return MembersChanged(self.membership(), self._engine.joint, entries)

    def _restore(self, restored: Manifest) -> list[Effect]:
        """A snapshot, a leader's or at the start, takes the place of the log and of both state machines."""
        self.state = restored.state
        self.applied_index, self._applied_term = restored.index, restored.term
        self.snapshot_index = self._members_index = restored.index
        self.snapshots.restored(0 if restored.content is None else restored.content.size)
        return [
            RestoreSnapshot(restored),
            self._members_changed(()),
            SettingsChanged(self.state.settings, restored.index, restored.term),
            *(Proved(ticket) for ticket in self.snapshots.answered(restored.index)),
        ]

    def _take_snapshot_if_due(self) -> list[Effect]:
        # What is applied ends between two entries here, and a configuration in between is never snapshotted.
        # While a Ready is being made durable the engine may show the members of a snapshot that is not applied yet.
        if not self.snapshots.is_due() or self._engine.joint or self.consensus.persisting:
            return []
        self.snapshots.begin()
        return [
            TakeSnapshot(
                Manifest(
                    index=self.applied_index,
                    term=self._applied_term,
                    state=self.state,
                    voters=tuple(self._engine.voters),
                    learners=tuple(self._engine.learners),
                )
            )
        ]

    def _apply(self, index: int, term: int, data: bytes, now: Reading) -> None:
        if commands.is_of_user(data):
            payload = commands.user_payload(data, index=index)
            self._user_entries.append((index, term, payload))
            if isinstance(payload, RestorePart):
                self.snapshots.part_applied(index)
            if self.state.released:
                self.state = msgspec.structs.replace(self.state, released=False)
            return
        self._holding_has_news = True
        before = self.state
        self.state = apply_entry(before, data, index=index)
        machine = self.holding
        if term != machine.term or machine.phase is Phase.FOLLOWING:
            return
        if not data:
            if machine.phase is Phase.ELECTED:
                machine.own_entry_applied(before, now)
            return
        command = commands.decode(data, index=index)
        if isinstance(command, commands.Acquire | commands.Release) and command.incarnation == self._incarnation:
            if isinstance(command, commands.Acquire):
                machine.acquired(self.state, now)
            else:
                machine.released(now)

    def _settle(self, now: Reading) -> list[Effect]:
        """Hold the holding against the engine's role, once what the engine says is durable (R1)."""
        engine, machine = self._engine, self.holding
        before, self._term_seen = self._term_seen, engine.term
        changed = self._term_seen != before
        self.elections_observed += self._term_seen - before
        if machine.phase is not Phase.FOLLOWING:
            self._watch_loss(now)
        if machine.phase is Phase.FOLLOWING and engine.role == "leader" and not self._removed:
            machine.elected(engine.term, self._nonce(), now)
        return [StateChanged(self.state)] if changed else []

    def _watch_loss(self, now: Reading) -> None:
        """R12: an engine that does not lead this term any more ends the lease at once, before any fsync."""
        machine = self.holding
        if self._engine.role != "leader" or self._engine.term != machine.term:
            removed = self._raft_id not in self._engine.voters
            machine.deposed(now, LossReason.REMOVED if removed else LossReason.DEPOSED)

    def _collect(self, now: Reading) -> list[Effect]:
        """Hand the holding's wishes to the engine, run it, and gather every effect."""
        machine = self.holding
        if machine.proposals or machine.reads:
            for proposal in machine.proposals:
                self.consensus.propose(proposal)
            for context in machine.reads:
                self.consensus.read_index(context)
            machine.proposals, machine.reads = [], []
        if machine.leave is not None and not self.consensus.persisting:
            self._leave_office(transfer=machine.leave)
            machine.leave = self._transfer_to = None
        # R10, R13: whose earlier work has not returned, or whose application hangs, must not keep others from office.
        pumped = self.consensus.pump(now, stands=machine.may_stand(now), prove_disk=machine.disk_wanted)
        if pumped and machine.phase is not Phase.FOLLOWING:
            # An engine that was moved out of office has something to say.
            self._watch_loss(now)
        # With the first event, whichever it is: the engine may hand out what follows the snapshot with the same one.
        effects, machine.effects = machine.effects, []
        if self._first_effects:
            effects, self._first_effects = self._first_effects + effects, []
        if self._proofs and self._engine.role != "leader":
            effects.append(Rejected(list(self._proofs.values())))
            self._proofs.clear()
        return effects + pumped

    def _judge_proof(self, context: bytes) -> Effect:
        ticket = self._proofs.pop(context)
        _, term, _, _ = PROOF.unpack(context)
        leads = self._engine.role == "leader" and self._engine.term == term
        return Proved(ticket) if leads else Rejected([ticket])

    def _leave_office(self, *, transfer: bool) -> None:
        if self._engine.role != "leader":
            return
        candidates = [
            (matched, -peer)
            for peer, matched, _, active in self._engine.progress()
            if active and peer != self._raft_id and peer in self._engine.voters
        ]
        if transfer and candidates:
            wanted = [-peer for _, peer in candidates if -peer == self._transfer_to]
            self._engine.transfer_leader(wanted[0] if wanted else -max(candidates)[1])
        else:
            self._engine.become_follower(0)
