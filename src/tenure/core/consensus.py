"""Drives the Raft engine: ticks, messages, proposals in; what to persist, send and apply out. Pure.

::

    tick / receive / propose / read_index        (queued while a Ready is being made durable: R2)
          |
       ready() --> [Send early]  only a leader's, only if neither term nor vote changes and it has other voters (R1)
          |    --> Persist
       persisted() --> advance --> [Send the rest] --> committed entries, read states

Rules kept here: R1 (order), R2 (nothing between ready and advance), R3 with the engine's filter (what is dropped),
R5 (owed ticks run before queued messages), R6 (vote embargo after start), R12 (own removal ends leadership at once).
Time rule: a tick is owed for each whole ``tick_ns`` of the waiter's clock; a long pause owes at most one election
timeout of ticks, which is enough to depose a leader that slept (P2).
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from tenure.core.effects import Declined, Effect, Persist, Proposed, Rejected, Send
from tenure.core.engine import Binding, Engine, Ready
from tenure.errors import InvariantViolated, MembershipRefused, ProposalDropped
from tenure.instants import NS_PER_MS, Reading, elapsed_for_waiter

#: Received payloads that may wait while a Ready is being made durable. More are dropped: Raft repeats them.
INBOX_LIMIT = 4096
INBOX_BYTES_MAX = 64 << 20
#: The user's commands that go to the engine as one proposal: more of them would only delay the first.
PROPOSAL_COMMANDS_MAX = 4096
PROPOSAL_BYTES_MAX = 4 << 20
#: After the leader's process was seen to be gone, the voters campaign one after the other, this far apart.
SUSPICION_RANK_NS = 30 * NS_PER_MS
TICKS_PER_HEARTBEAT = 4
TICK_MS_MIN = 5


@dataclass(frozen=True, slots=True)
class Cadence:
    """The cluster's times in ticks: a tick is a quarter of a heartbeat, at least 5 ms (design 13)."""

    tick_ns: int
    heartbeat_tick: int
    election_tick: int

    @classmethod
    def of(cls, heartbeat_interval_ms: int, election_timeout_ms: int) -> Cadence:
        """Ticks for the settings; the election timeout is never rounded down."""
        tick_ms = max(TICK_MS_MIN, heartbeat_interval_ms // TICKS_PER_HEARTBEAT)
        return cls(
            tick_ns=tick_ms * NS_PER_MS,
            heartbeat_tick=max(1, heartbeat_interval_ms // tick_ms),
            election_tick=-(-election_timeout_ms // tick_ms),
        )


class Progress(msgspec.Struct, frozen=True):
    """What one ``persisted`` brought: effects, a snapshot, the entries after it, answered read_index contexts."""

    effects: list[Effect]
    snapshot: tuple[int, int, bytes] | None
    committed: list[tuple[int, int, str, bytes]]
    read_states: list[tuple[int, bytes]]
    #: Whether the disk has proved with it that it works (R13).
    synced: bool


class Consensus:
    """One engine and its queue. The owner calls ``pump`` after each event and ``persisted`` after each Persist."""

    def __init__(self, engine: Engine, *, raft_id: int, cadence: Cadence, started: Reading, binding: Binding) -> None:
        self.engine = engine
        self._proposal_dropped = binding.ProposalDropped
        self._raft_id = raft_id
        self._cadence = cadence
        self._started = started
        self._embargoed = True
        self._ticked_until = started
        #: Before this no tick is owed by one of the two clocks, so there is nothing to count.
        self._tick_due_raw_ns = started.raw_ns + cadence.tick_ns
        #: Whether anything waits for the engine: most steps behind a save bring nothing.
        self._waiting = False
        self._inbox: deque[tuple[int, bytes]] = deque()
        self._inbox_bytes = 0
        self._proposals: list[bytes] = []
        self._reads: list[bytes] = []
        self._user: deque[tuple[bytes, object]] = deque()
        self._changes: list[tuple[Callable[[], tuple[list[tuple[str, int]], bytes]], object]] = []
        #: Calls that only wait until the engine may be touched again.
        self._errands: list[Callable[[], None]] = []
        #: A durable snapshot that stands for the log up to its index, and how many entries stay all the same.
        self._compaction: tuple[int, bytes, int] | None = None
        self._timeout_set_for: tuple[int, str, int] | None = None
        self._commit_told = 0
        self._suspected = 0
        self._suspected_at: Reading | None = None
        self._ready: Ready | None = None
        #: Whether the messages of that Ready wait until it is durable (R1).
        self._held_back = False
        self._proving_disk = False
        self.dropped_payloads = 0

    @property
    def persisting(self) -> bool:
        """True between a Persist effect and its ``persisted``: the engine must not be touched (R2)."""
        return self._ready is not None or self._proving_disk

    def receive(self, sender: int, payload: bytes) -> None:
        """Queue the messages of one frame."""
        if len(self._inbox) >= INBOX_LIMIT or self._inbox_bytes + len(payload) > INBOX_BYTES_MAX:
            self.dropped_payloads += 1
            return
        self._inbox_bytes += len(payload)
        self._inbox.append((sender, payload))
        self._waiting = True

    def propose(self, command: bytes) -> None:
        """Queue a command for the log; it is dropped silently unless this member still leads when it is taken."""
        self._proposals.append(command)
        self._waiting = True

    def propose_for_user(self, commands: Iterable[tuple[bytes, object]]) -> None:
        """Queue the user's commands, each with the ticket under which its fate is told."""
        self._user.extend(commands)
        self._waiting = True

    def propose_members(self, plan: Callable[[], tuple[list[tuple[str, int]], bytes]], ticket: object) -> None:
        """Queue one change of the configuration; answered by Proposed, Rejected or Declined.

        ``plan`` gives it, with its context, when the engine takes it: another change may be applied until then (R7).
        """
        self._changes.append((plan, ticket))
        self._waiting = True

    def vouch_for(self, ids: list[int]) -> None:
        """Let frames of these members in, although the applied configuration does not name them yet."""
        self._errands.append(lambda: self.engine.vouch_for(ids))
        self._waiting = True

    def snapshot_lost(self, peer: int) -> None:
        """The snapshot that was sent to ``peer`` did not get there: the engine tries again."""
        self._errands.append(lambda: self.engine.report_snapshot(peer, received=False))
        self._waiting = True

    def compact(self, index: int, data: bytes, *, keep: int) -> None:
        """Let ``data``, which is durable, stand for the log up to ``index``; keep some entries for those that lag."""
        self._compaction = (index, data, keep)
        self._waiting = True

    def read_index(self, context: bytes) -> None:
        """Queue a proof of leadership. The caller read its clock before this call (R8)."""
        self._reads.append(context)
        self._waiting = True

    def suspect(self, peer: int, now: Reading) -> None:
        """The process of ``peer`` is gone: nobody listens at its address, or another incarnation does (design 5).

        If it is the leader that this follower knows, it is forgotten, and the voters campaign by rank. This only
        shortens the detection: the term moves by a vote of a quorum alone (pre-vote), and the lease is waited out.
        """
        if self._suspected_at is None:
            self._suspected, self._suspected_at = peer, now
            self._waiting = True

    def refuses_votes(self, now: Reading) -> bool:
        """R6: for one election timeout after its start a member neither votes nor is made to campaign."""
        embargo_ns = self._cadence.tick_ns * self._cadence.election_tick
        return elapsed_for_waiter(self._started, now) < embargo_ns

    def pump(self, now: Reading, *, stands: bool = True, prove_disk: bool = False) -> list[Effect]:
        """Feed the engine what is queued, owed ticks first (R5), and begin the next Ready if there is one.

        Unless it ``stands`` for election, this member neither campaigns nor takes office by a transfer, but votes. To
        ``prove_disk`` something durable is written even if nothing is to be (R13).
        """
        if self._ready is not None or self._proving_disk:
            return []
        if now.raw_ns >= self._tick_due_raw_ns:
            self._run_owed_ticks(now)
        effects = self._feed_engine(now, stands=stands) if self._waiting else []
        if not stands and self.engine.role in ("pre_candidate", "candidate"):
            self.engine.become_follower(0)
        if self.engine.has_ready():
            effects += self._begin_ready()
        elif prove_disk:
            effects.append(self._prove_disk())
        return effects

    def _feed_engine(self, now: Reading, *, stands: bool) -> list[Effect]:
        """Everything that waits, in the order of R5: what a leader must know before it takes a proposal comes first."""
        for errand in self._errands:
            errand()
        self._errands = []
        if self._compaction is not None:
            index, data, keep = self._compaction
            self.engine.compact(index, data, keep=keep)
            self._compaction = None
        # Once it is over it is over.
        self._embargoed = refuse_votes = self._embargoed and self.refuses_votes(now)
        if self._inbox:
            self._feed_messages(refuse_votes=refuse_votes, refuse_campaign=not stands)
        if self._suspected_at is not None:
            self._follow_suspicion(self._suspected_at, now, stands=stands and not refuse_votes)
        # A suspicion stays until it is acted upon or refuted.
        self._waiting = self._suspected_at is not None
        return self._feed_requests() if self._proposals or self._reads or self._user or self._changes else []

    def _feed_messages(self, *, refuse_votes: bool, refuse_campaign: bool) -> None:
        engine, inbox = self.engine, self._inbox
        while inbox:
            sender, payload = inbox.popleft()
            try:
                _, dropped = engine.receive(sender, payload, refuse_votes=refuse_votes, refuse_campaign=refuse_campaign)
            except ValueError:
                dropped = 1
            self.dropped_payloads += dropped
        self._inbox_bytes = 0

    def persisted(self) -> Progress:
        """The last Persist is durable: advance the engine and hand out what may leave and be applied."""
        if self._proving_disk:
            self._proving_disk = False
            return Progress([], None, [], [], synced=True)
        ready, self._ready = self._ready, None
        if ready is None:
            raise InvariantViolated("persisted() without a Persist in flight")
        messages = ready.messages if self._held_back else []
        if ready.snapshot is not None:
            # The leader's snapshot has taken the place of the log that was to be compacted.
            self._compaction = None
        advanced = self.engine.advance(ready)
        for _, _, kind, data in advanced.committed:
            if kind == "conf_change":
                self._apply_conf_change(data)
        if advanced.committed:
            self.engine.applied_to(advanced.committed[-1][0])
        messages = messages + advanced.messages
        effects: list[Effect] = [Send(peer, payload) for peer, payload in messages] if messages else []
        return Progress(effects, ready.snapshot, advanced.committed, ready.read_states, ready.must_sync)

    def _follow_suspicion(self, since: Reading, now: Reading, *, stands: bool) -> None:
        engine = self.engine
        if engine.role == "follower" and engine.leader_id == self._suspected:
            # Without a leader this voter is free to vote at once: its promise was to the one that is gone.
            engine.become_follower(0)
        if engine.role != "follower" or engine.leader_id != 0:
            self._suspected_at = None
            return
        others = [voter for voter in engine.voters if voter != self._suspected]
        if self._raft_id not in others or not stands:
            return
        rank = 1 + sorted(others).index(self._raft_id)
        if elapsed_for_waiter(since, now) >= rank * SUSPICION_RANK_NS:
            self._suspected_at = None
            engine.campaign()

    def election_timeout_ticks(self) -> int:
        """The own election timeout in the present term: each voter has a slot of its own between one and two timeouts.

        raft-rs draws it at random, and two that draw nearly the same split the vote and cost another timeout. Slots
        that rotate with the term never meet, and favour nobody for long.
        """
        voters = sorted(self.engine.voters)
        if self._raft_id not in voters:
            return self._cadence.election_tick
        slot = (voters.index(self._raft_id) + self.engine.term) % len(voters)
        return self._cadence.election_tick + slot * self._cadence.election_tick // len(voters)

    def _space_elections(self) -> None:
        """Replace what the engine drew at its last change of term, role or leader."""
        standing = (self.engine.term, self.engine.role, self.engine.leader_id)
        if standing != self._timeout_set_for:
            self._timeout_set_for = standing
            self.engine.set_randomized_election_timeout(self.election_timeout_ticks())

    def _run_owed_ticks(self, now: Reading) -> None:
        owed = elapsed_for_waiter(self._ticked_until, now) // self._cadence.tick_ns
        if owed <= 0:
            return
        if owed > self._cadence.election_tick:
            self._ticked_until = now
            owed = self._cadence.election_tick
        else:
            step = owed * self._cadence.tick_ns
            self._ticked_until = Reading(self._ticked_until.raw_ns + step, self._ticked_until.boottime_ns + step)
        self._tick_due_raw_ns = self._ticked_until.raw_ns + self._cadence.tick_ns
        self._space_elections()
        self.engine.tick(owed)
        self._tell_commit()

    def _tell_commit(self) -> None:
        """A commit travels with the next entries; where none follow within a tick it is told by a heartbeat."""
        engine = self.engine
        commit = engine.commit
        if commit != self._commit_told and engine.role == "leader" and engine.last_index == commit:
            self._commit_told = commit
            engine.ping()

    def _feed_requests(self) -> list[Effect]:
        leads = self.engine.role == "leader"
        if self._proposals:
            # Only a leader proposes: a follower's proposal would be forwarded (raft-rs 0.7.0), and is dropped here.
            if leads:
                # A dropped proposal is the proposer's to repeat: the holding ends itself when it waits in vain.
                with contextlib.suppress(self._proposal_dropped):
                    self.engine.propose(self._proposals)
            self._proposals = []
        if self._reads:
            if leads:
                for context in self._reads:
                    self.engine.read_index(context)
            self._reads = []
        effects: list[Effect] = []
        while self._user:
            effects.append(self._propose_for_user(leads=leads))
        for plan, ticket in self._changes:
            effects.append(self._propose_members(plan, ticket, leads=leads))
        self._changes = []
        return effects

    def _propose_members(
        self, plan: Callable[[], tuple[list[tuple[str, int]], bytes]], ticket: object, *, leads: bool
    ) -> Effect:
        if not leads:
            return Rejected([ticket])
        try:
            changes, context = plan()
            return Proposed(self.engine.propose_conf_change(changes, context), self.engine.term, [ticket])
        except self._proposal_dropped as error:
            return Declined(ticket, ProposalDropped(str(error)))
        except MembershipRefused as error:
            return Declined(ticket, error)
        except ValueError as error:
            return Declined(ticket, MembershipRefused(f"the members cannot be changed so: {error}"))

    def _propose_for_user(self, *, leads: bool) -> Effect:
        """Hand the front of the user's queue to the engine as one proposal: the cost is paid per proposal."""
        waiting = self._user
        taken = list(itertools.islice(waiting, PROPOSAL_COMMANDS_MAX))
        payloads, tickets = [payload for payload, _ in taken], [ticket for _, ticket in taken]
        if sum(map(len, payloads)) > PROPOSAL_BYTES_MAX:
            sizes = itertools.accumulate(map(len, payloads))
            count = 1 + sum(1 for _ in itertools.takewhile(PROPOSAL_BYTES_MAX.__gt__, sizes))
            del payloads[count:], tickets[count:]
        for _ in tickets:
            waiting.popleft()
        if not leads:
            return Rejected(tickets)
        try:
            return Proposed(self.engine.propose(payloads), self.engine.term, tickets)
        except self._proposal_dropped:
            return Rejected(tickets)

    def _prove_disk(self) -> Effect:
        """Something durable although nothing is to be made so: until it is, the engine is not touched (R13)."""
        self._proving_disk = True
        standing = (self.engine.term, self.engine.vote, self.engine.commit)
        return Persist(first=0, last=0, entries=b"", hard_state=standing, must_sync=True)

    def _begin_ready(self) -> list[Effect]:
        self._ready = ready = self.engine.ready()
        messages, count, first, snapshot = ready.messages, ready.entries_count, ready.entries_first, ready.snapshot
        self._held_back = bool(messages) and not self._may_send_before_fsync(ready)
        effects: list[Effect] = []
        if messages and not self._held_back:
            effects += [Send(peer, payload) for peer, payload in messages]
        effects.append(
            Persist(
                first=first if count else 0,
                last=first + count - 1 if count else 0,
                entries=ready.entries,
                hard_state=ready.hard_state,
                must_sync=ready.must_sync or snapshot is not None,
                snapshot=snapshot,
            )
        )
        return effects

    def _may_send_before_fsync(self, ready: Ready) -> bool:
        """R1: a leader's messages may overtake its fsync only if term and vote are durable and it is not alone."""
        return not ready.term_or_vote_changed and len(self.engine.voters) > 1

    def _apply_conf_change(self, data: bytes) -> None:
        voters, *_ = self.engine.apply_conf_change(data)
        if self._raft_id not in voters and self.engine.role == "leader":
            # R12: raft-rs leaves a removed leader in office, and its next commit would panic (P11).
            self.engine.become_follower(0)
