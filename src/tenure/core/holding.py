"""One member's way through a term that it won: wait, acquire, raise the fence, renew, lead, stop, release. Pure.

Rules kept here: R8 (a lease runs from the clock before the request and only under the own, committed ACQUIRE),
R9 (wait the older leases out, cover, RELEASE), R10 (a holding that ended is over for its term, and the office is given
up within one election timeout), R12 (losing leadership or one refusal ends the lease at once), R13 (a renewal needs a
live application and a working disk), R15 (the floor is read before ACQUIRE is proposed, the token is fixed by it), R20
(the raise names what was read before the last proof).
Time rule: every instant is an argument. A holder counts the larger of two clocks, a waiter the smaller (R11).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tenure.core import commands
from tenure.core.effects import Effect, Grant, RaiseFence, ReadFence, Renewed, Revoke
from tenure.core.fsm import ClusterState, has_room
from tenure.core.roles import GRANTED, LEAVING, RENEWING, Phase, Step, advance
from tenure.instants import (
    NS_PER_MS,
    LeaseSpan,
    Reading,
    elapsed_for_holder,
    elapsed_for_waiter,
    margin_within,
    wait_out_ns,
)
from tenure.types import Credential, LossReason

#: What a new leader adds to its wait for the granularity of clocks and scheduling (the eps of R9).
WAIT_EPSILON_NS = 5 * NS_PER_MS
#: How long to wait before the fence is asked again after it could not be read or refused this elector.
FENCE_RETRY_NS = 250 * NS_PER_MS
PROOFS_PENDING_MAX = 64
_CONTEXT = struct.Struct(">QQQ")


@dataclass(frozen=True, slots=True)
class FloorRead:
    """The fence's highest token, and what a raise must still find there (opaque to the core)."""

    token: int
    expected: object


@dataclass(frozen=True, slots=True)
class FenceRefused:
    """The fence belongs to somebody else, is missing or cannot be used: do not lead, say why."""

    reason: str
    message: str
    #: For a row that a copy of this cluster may have minted: its count, to be judged after a fresh proof (R16).
    suspected_count: int | None = None


@dataclass(frozen=True, slots=True)
class FenceUnavailable:
    """The database did not answer, or the outcome of the raise is unknown: try the same again."""

    message: str


@dataclass(frozen=True, slots=True)
class Raised:
    """The fence holds this credential."""


@dataclass(frozen=True, slots=True)
class RaiseMoved:
    """The fence is not as it was read before the last proof: read again, prove again, raise again (R20)."""

    message: str


class HoldingMachine:
    """The state of one member's holding. Its owner feeds it and runs ``effects`` and ``proposals`` afterwards."""

    def __init__(
        self,
        *,
        raft_id: int,
        incarnation: int,
        fenced: bool,
        heartbeat_ns: int,
        election_ns: int,
        margin_ns: int,
        application_timeout_ns: int = 0,
    ) -> None:
        self._raft_id = raft_id
        self._incarnation = incarnation
        self._fenced = fenced
        self._heartbeat_ns = heartbeat_ns
        self._election_ns = election_ns
        self._margin_ns = margin_ns
        self._application_timeout_ns = application_timeout_ns
        #: When the application was last seen alive (R13); its owner sets it. None: there is nobody to judge.
        self.application_at: Reading | None = None
        #: When the own disk last proved that it works (R13), and whether it is to prove it now.
        self._disk_at: Reading | None = None
        self.disk_wanted = False
        self.phase = Phase.FOLLOWING
        self.reason: str | None = None
        self.body_outstanding = False
        self.effects: list[Effect] = []
        self.proposals: list[bytes] = []
        self.reads: list[bytes] = []
        #: None, or how to leave the office: True asks for a transfer, False steps down outright.
        self.leave: bool | None = None
        self._request = 0
        self._reset()

    def _reset(self) -> None:
        self.term = 0
        self.token = 0
        self.credential: Credential | None = None
        self.span: LeaseSpan | None = None
        self._nonce = ""
        self._elected_at = Reading(0, 0)
        self._left_at: Reading | None = None
        self._acquiring_at: Reading | None = None
        self._wait_ns = 0
        self._fenced_early = False
        self._duration_ns = 0
        self._generation = 0
        self._expected: object = None
        self._raised = not self._fenced
        self._raising = False
        self._settled = False
        self._retry_at: Reading | None = None
        self._raise_after_proof: int | None = None
        self._suspected: tuple[int, int, str] | None = None
        self._sequence = 0
        self._answered = 0
        self._asked_at: Reading | None = None
        self._proofs: dict[int, Reading] = {}

    # -- events of the Raft group ---------------------------------------------------------------------------------

    def elected(self, term: int, nonce: str, now: Reading) -> None:
        """The engine leads ``term``. ``now`` is read afterwards: every older lease was renewed before it (R9)."""
        self._reset()
        self.term, self._nonce, self._elected_at = term, nonce, now
        self.phase = advance(self.phase, Step.ELECTED)
        if self.body_outstanding:
            # R10: the body of an earlier holding has not returned, so this member may not lead yet.
            self.reason = "the work of an earlier leadership has not returned"
            self._end_before_leading(now)
        self._disk_at = now  # The term that was won is durable (R1).

    def deposed(self, now: Reading, reason: LossReason = LossReason.DEPOSED) -> None:
        """The engine does not lead any more, or not in the term of this holding (R12)."""
        if self.phase in GRANTED:
            self._revoke(reason)
        self.phase = advance(self.phase, Step.DEPOSED)
        self._reset()

    def own_entry_applied(self, state: ClusterState, now: Reading) -> None:
        """The own first entry of this term is committed: ``state`` is the whole log before it (R9)."""
        settings = state.settings
        self._duration_ns = settings.lease_duration_ms * NS_PER_MS
        cover, rate = self._cover(state)
        self._wait_ns = 0 if state.released else wait_out_ns(cover, rate, WAIT_EPSILON_NS)
        self._fenced_early = self._fenced and settings.wait_out == commands.FENCED_ONLY
        self.phase = advance(self.phase, Step.OWN_ENTRY_APPLIED)
        if self._fenced:
            self._ask_fence()
        else:
            self._propose_acquire(0, state, now)

    def acquired(self, state: ClusterState, now: Reading) -> None:
        """The own ACQUIRE is committed: the token is fixed for this holding (R15)."""
        holding = state.holding
        if holding is None or self.phase is not Phase.ACQUIRING:
            return
        self.phase = advance(self.phase, Step.ACQUIRED)
        self.token = holding.token
        self._generation = state.generation
        self._duration_ns = holding.duration_ns
        self.credential = Credential(token=self.token, nonce=self._nonce)
        self._settled = holding.cover_ns <= holding.duration_ns
        if self._fenced:
            self._raise_fence()

    def released(self, now: Reading) -> None:
        """The own RELEASE is committed: hand the office to another member."""
        if self.phase is Phase.RELEASING:
            self.phase = advance(self.phase, Step.RELEASED)
            self.leave = True

    def read_state(self, context: bytes, now: Reading) -> None:
        """A read_index was answered: a quorum heard this leader after the clock was read for it (R8)."""
        if len(context) != _CONTEXT.size:
            return
        incarnation, term, sequence = _CONTEXT.unpack(context)
        if incarnation != self._incarnation or term != self.term or self.phase not in RENEWING:
            return
        started = self._proofs.pop(sequence, None)
        if started is None or sequence <= self._answered:
            return
        self._answered = sequence
        for older in [number for number in self._proofs if number < sequence]:
            del self._proofs[older]
        self.span = LeaseSpan(started, self._duration_ns)
        if self.phase in GRANTED:
            self.effects.append(Renewed(self.span, leased=self.phase is Phase.LEADING))

    # -- events of the fence --------------------------------------------------------------------------------------

    def fence_read(
        self,
        request: int,
        answer: FloorRead | FenceRefused | FenceUnavailable,
        state: ClusterState,
        now: Reading,
    ) -> None:
        """The fence was read, or could not be."""
        if request != self._request or self.phase not in (Phase.READING, Phase.PREPARING):
            return
        if isinstance(answer, FenceUnavailable):
            self.reason, self._retry_at = answer.message, now
        elif isinstance(answer, FenceRefused):
            self._fence_refused(answer, now)
        elif self.phase is Phase.READING:
            self._floor_read(answer, state, now)
        elif answer.token >= self.token:
            self._refused(f"the fence holds token {answer.token}, not below our {self.token}", now)
        else:
            # R20: what was read now is good for a raise once a proof that began later is answered.
            self._expected = answer.expected
            self._raise_after_proof = self._sequence

    def fence_raised(
        self, request: int, answer: Raised | RaiseMoved | FenceRefused | FenceUnavailable, now: Reading
    ) -> None:
        """The raise was granted, refused, or its outcome is unknown."""
        if request != self._request or self.phase is not Phase.PREPARING:
            return
        self._raising = False
        if isinstance(answer, Raised):
            self._raised, self.reason = True, None
        elif isinstance(answer, RaiseMoved):
            self.reason = answer.message
            self._ask_fence()
        elif isinstance(answer, FenceRefused):
            self._refused(answer.message, now)
        else:
            self.reason, self._retry_at = answer.message, now

    def refused(self, token: int, reason: LossReason, now: Reading) -> None:
        """The database refused a write of ours: one refusal ends the holding (R12)."""
        if token == self.token and self.phase in (Phase.PREPARING, Phase.FENCED, Phase.LEADING):
            self._end(reason, now)

    # -- time and the owner ---------------------------------------------------------------------------------------

    def tick(self, state: ClusterState, now: Reading) -> None:
        """Renew when due, end a lapsed lease, leave the office in time, and lead once everything holds."""
        if self.phase in RENEWING and self._application_stalls(now):
            self._end(LossReason.APPLICATION_STALLED, now)
        self._renew(now)
        if self.phase in GRANTED and not self._lasts(now):
            self._end(LossReason.LEASE_EXPIRED, now)
        if self.phase is Phase.ACQUIRING and self._is_over(self._acquiring_at, now):
            self.reason = "the cluster did not commit the ACQUIRE within one election timeout"
            self._end_before_leading(now)
        if self.phase in LEAVING and self._is_over(self._left_at, now):
            self.leave = False
        if self._retry_at is not None and elapsed_for_waiter(self._retry_at, now) >= FENCE_RETRY_NS:
            self._retry_at = None
            if self._credential_is_ready_to_raise():
                self._raise_fence()
            else:
                self._ask_fence()
        self._judge_suspicion(state)
        if self._raise_after_proof is not None and self._answered > self._raise_after_proof:
            self._raise_after_proof = None
            self._raise_fence()
        self._lead_if_prepared(now)

    def end(self, reason: LossReason, now: Reading) -> None:
        """Leave office because the owner says so (step down, close)."""
        if self.phase in RENEWING or self.phase is Phase.ELECTED:
            self._end(reason, now)

    def body_returned(self, now: Reading) -> None:
        """The body of the scope has returned: only now may RELEASE be proposed (R9)."""
        self.body_outstanding = False
        if self.phase is Phase.STOPPING:
            self.phase = advance(self.phase, Step.BODY_RETURNED)
            release = commands.Release(self._raft_id, self.term, self._incarnation)
            self.proposals.append(commands.encode(release))

    def disk_proved(self, now: Reading) -> None:
        """A write was made durable (R13): what asks for another proof is the lack of one for a lease."""
        self._disk_at, self.disk_wanted = now, False

    def may_stand(self, now: Reading) -> bool:
        """Whether this member may be elected: earlier work has returned (R10) and the application is alive (R13)."""
        return not self.body_outstanding and not self._application_stalls(now)

    def wait_is_over(self, now: Reading) -> bool:
        """True once every lease of an earlier leader has ended by any clock within the bound (R9)."""
        return elapsed_for_waiter(self._elected_at, now) >= self._wait_ns

    # -- inside ---------------------------------------------------------------------------------------------------

    def _cover(self, state: ClusterState) -> tuple[int, int]:
        """C of R9: the larger of the own lease and the last cover, under the larger of the two rate errors.

        The own lease is that of this holding, fixed at its own entry: the setting may have shrunk since.
        """
        own, own_rate = self._duration_ns, state.settings.clock_rate_error_ppm
        if state.holding is None:
            return own, own_rate
        return (
            max(own, state.holding.cover_ns),
            max(own_rate, state.holding.cover_rate_error_ppm),
        )

    def _floor_read(self, answer: FloorRead, state: ClusterState, now: Reading) -> None:
        if not has_room(state, answer.token):
            # No member could apply such an ACQUIRE, now or at any later start: it must not get into the log.
            self.reason = f"the fence holds token {answer.token}, which leaves no room for a higher one"
            self._retry_at = now
            return
        self.reason = None
        self._expected = answer.expected
        self._propose_acquire(answer.token, state, now)

    def _propose_acquire(self, floor: int, state: ClusterState, now: Reading) -> None:
        self.phase = advance(self.phase, Step.FLOOR_READ)
        self._acquiring_at = now
        cover, cover_rate = self._cover(state)
        if self.wait_is_over(now):
            cover, cover_rate = self._duration_ns, state.settings.clock_rate_error_ppm
        acquire = commands.Acquire(
            holder=self._raft_id,
            term=self.term,
            incarnation=self._incarnation,
            floor=floor,
            duration_ns=self._duration_ns,
            rate_error_ppm=state.settings.clock_rate_error_ppm,
            cover_ns=cover,
            cover_rate_error_ppm=cover_rate,
        )
        self.proposals.append(commands.encode(acquire))

    def _ask_fence(self) -> None:
        self._request += 1
        self.effects.append(ReadFence(self._request))

    def _credential_is_ready_to_raise(self) -> bool:
        return self.phase is Phase.PREPARING and self._raise_after_proof is None and self._expected is not None

    def _raise_fence(self) -> None:
        if self.credential is None or self._raising:
            return
        self._raising = True
        self._request += 1
        self.effects.append(RaiseFence(self._request, self.credential, self._expected, self._generation))

    def _fence_refused(self, answer: FenceRefused, now: Reading) -> None:
        if answer.suspected_count is not None and self.phase is Phase.READING:
            self._suspected = (answer.suspected_count, self._sequence, answer.message)
            return
        self.reason = answer.message
        if self.phase is Phase.READING:
            # Nobody else could do better: keep the office, hold no lease, and look again until an operator acts.
            self._retry_at = now
        else:
            self._refused(answer.message, now)

    def _judge_suspicion(self, state: ClusterState) -> None:
        """R16: a count above the own, confirmed by a proof that began later, was minted by a copy of this cluster."""
        if self._suspected is None or self._answered <= self._suspected[1]:
            return
        count, _, message = self._suspected
        self._suspected = None
        if state.last_count >= count:
            self._ask_fence()
        else:
            self.reason = message
            self._retry_at = self._asked_at

    def _refused(self, message: str, now: Reading) -> None:
        self.reason = message
        self._end(LossReason.REFUSED, now)

    def _renew(self, now: Reading) -> None:
        if self.phase not in RENEWING:
            return
        if self._asked_at is not None:
            elapsed = elapsed_for_holder(self._asked_at, now)
            if elapsed is not None and elapsed < self._heartbeat_ns:
                return
        self._asked_at = now
        self._sequence += 1
        if len(self._proofs) >= PROOFS_PENDING_MAX:
            del self._proofs[min(self._proofs)]
        self._proofs[self._sequence] = now
        idle = elapsed_for_holder(self._disk_at, now) if self._disk_at is not None else None
        # While that write is under way the engine may not be touched, so a disk that hangs lets the lease lapse.
        self.disk_wanted = idle is None or idle >= self._duration_ns > 0
        self.reads.append(_CONTEXT.pack(self._incarnation, self.term, self._sequence))

    def _is_over(self, since: Reading | None, now: Reading) -> bool:
        """True once one election timeout has passed since ``since``."""
        if since is None:
            return False
        elapsed = elapsed_for_holder(since, now)
        return elapsed is None or elapsed >= self._election_ns

    def _lasts(self, now: Reading) -> bool:
        """Whether the lease runs for longer than the margin by which a holder stops early."""
        margin_ns = margin_within(self._duration_ns, self._margin_ns)
        return self.span is not None and self.span.remaining_ns(now) > margin_ns

    def _application_stalls(self, now: Reading) -> bool:
        """R13: who runs the work has not been seen alive for its timeout."""
        if self.application_at is None or not self._application_timeout_ns:
            return False
        elapsed = elapsed_for_holder(self.application_at, now)
        return elapsed is None or elapsed >= self._application_timeout_ns

    def _lead_if_prepared(self, now: Reading) -> None:
        if self.phase not in (Phase.PREPARING, Phase.FENCED):
            return
        waited = self.wait_is_over(now)
        if waited and not self._settled:
            self._settled = True
            self.proposals.append(commands.encode(commands.Settled(self._raft_id, self.term, self._incarnation)))
        if not self._raised or self.credential is None or self.span is None or not self._lasts(now):
            return
        if self.phase is Phase.FENCED:
            if waited:
                self.phase = advance(self.phase, Step.PREPARED)
                self.effects.append(Renewed(self.span))
        elif waited or self._fenced_early:
            self.phase = advance(self.phase, Step.PREPARED if waited else Step.FENCE_OPEN)
            self.body_outstanding = True
            self.reason = None
            self.effects.append(Grant(self.term, self.credential, self.span, leased=waited))

    def _end(self, reason: LossReason, now: Reading) -> None:
        if self.phase in GRANTED:
            self._revoke(reason)
        if self.phase is Phase.LEADING:
            self._left_at = now
            self.phase = advance(self.phase, Step.ENDED)
        else:
            self._end_before_leading(now)

    def _end_before_leading(self, now: Reading) -> None:
        """No lease was granted in this term, so nothing is released: the successor waits (R9)."""
        self._left_at = now
        self.phase = advance(self.phase, Step.ENDED)
        self.leave = True

    def _revoke(self, reason: LossReason) -> None:
        self.effects.append(Revoke(self.term, self.token, reason))
