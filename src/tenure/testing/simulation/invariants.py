"""What must hold at every event, judged by true time and by what is durable. It changes nothing that it looks at.

Each invariant has a stable word, which :class:`Broken` carries. An event can break only what it touches, and only that
is looked at: a step of a member looks at that member, a grant at the leases that run, a commit at the one before it.

The lease is judged as an interval of true time. A member believes in its lease from the grant on until its own clocks
say that the span is over, until it is told that the leadership is over, or until its process ends; paused or asleep it
goes on believing. Two intervals overlap only if one begins while another runs, so each beginning is compared.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tenure.core.effects import Grant, RaiseFence, Renewed
from tenure.core.fsm import ClusterState
from tenure.core.roles import Phase
from tenure.instants import LeaseSpan
from tenure.testing.simulation.engine import message_kinds

if TYPE_CHECKING:
    from tenure.testing.simulation.life import Life

ONE_VALID_LEASE = "one_valid_lease"
ONE_LEADER_PER_TERM = "one_leader_per_term"
TOKENS_RISE = "tokens_rise"
NO_STALE_WRITE = "no_stale_write"
DURABLE_BEFORE_REPLY = "durable_before_reply"
ACKNOWLEDGED_EXACTLY_ONCE = "acknowledged_exactly_once"
OUTCOME_HONEST = "outcome_honest"
CONVERGES = "converges"
SAME_HISTORY = "same_history"
OFFICE_BEFORE_LEASE = "office_before_lease"
LEASE_ENDS_IN_TIME = "lease_ends_in_time"
FENCE_BEFORE_LEASE = "fence_before_lease"
STOPPED_BEFORE_RELEASE = "stopped_before_release"
ONE_BODY = "one_body"
NO_PANIC = "no_panic"

ALL = (
    ONE_VALID_LEASE,
    ONE_LEADER_PER_TERM,
    TOKENS_RISE,
    NO_STALE_WRITE,
    DURABLE_BEFORE_REPLY,
    ACKNOWLEDGED_EXACTLY_ONCE,
    OUTCOME_HONEST,
    CONVERGES,
    SAME_HISTORY,
    OFFICE_BEFORE_LEASE,
    LEASE_ENDS_IN_TIME,
    FENCE_BEFORE_LEASE,
    STOPPED_BEFORE_RELEASE,
    ONE_BODY,
    NO_PANIC,
)


class Broken(AssertionError):
    """An invariant does not hold: its word, and what was seen."""

    def __init__(self, invariant: str, message: str) -> None:
        super().__init__(f"{invariant}: {message}")
        self.invariant = invariant
        self.message = message


def require(condition: object, invariant: str, message: str) -> None:
    """Raise :class:`Broken` unless ``condition`` holds."""
    if not condition:
        raise Broken(invariant, message)


class Invariants:
    """The memory that the invariants need, over all lives of all members."""

    def __init__(self, *, leases_bounded: bool) -> None:
        """``leases_bounded``: the clocks keep their bound, so that two leases may never overlap (G2)."""
        self.leases_bounded = leases_bounded
        self.leader_changes = 0
        self.leaders: dict[tuple[int, int], int] = {}
        #: Who has been granted a leadership of which it does not know that it is over, and whose lease runs.
        self._leading: dict[int, Life] = {}
        self._believers: dict[int, tuple[Life, LeaseSpan]] = {}
        self.history: dict[int, ClusterState] = {}
        self._minted: dict[tuple[int, int, int], int] = {}
        self._raised: set[int] = set()
        #: The highest token that the fence was ever raised to, whatever a failover has taken back.
        self.highest_token = 0

    # -- a member was stepped -----------------------------------------------------------------------------------------

    def stepped(self, life: Life) -> None:
        """Look at a member whose core has just taken an event."""
        core, engine = life.core, life.engine
        holding, role = core.holding, engine.role
        if holding.phase is not Phase.FOLLOWING:
            self._in_office(life, role)
        state = core.state
        if state is not life.state_seen:
            life.state_seen = state
            self._state_changed(life, state)

    def _in_office(self, life: Life, role: str) -> None:
        core, engine = life.core, life.engine
        term = core.holding.term
        require(
            role == "leader" and engine.term == term,
            OFFICE_BEFORE_LEASE,
            f"{life.name} is {core.holding.phase} in term {term} while its engine is {role} in term {engine.term}",
        )
        key = (core.state.generation, term)
        first = self.leaders.setdefault(key, life.raft_id)
        require(first == life.raft_id, ONE_LEADER_PER_TERM, f"{first} and {life.raft_id} both led term {term}")

    def _state_changed(self, life: Life, state: ClusterState) -> None:
        index = life.core.applied_index
        known = self.history.setdefault(index, state)
        require(known == state, SAME_HISTORY, f"{life.name} has another state at index {index}: {state} and {known}")
        holding = state.holding
        if holding is not None:
            key = (holding.holder, holding.term, holding.incarnation)
            token = self._minted.setdefault(key, holding.token)
            require(
                token == holding.token, TOKENS_RISE, f"{life.name} minted {token} and {holding.token} in one holding"
            )
        if not state.released or holding is None or holding.holder != life.raft_id:
            return
        if holding.incarnation != life.incarnation:
            return
        body = life.application.running
        require(body is None or body != holding.token, STOPPED_BEFORE_RELEASE, f"{life.name} released while it worked")
        require(
            life.raft_id not in self._believers, STOPPED_BEFORE_RELEASE, f"{life.name} released with its lease running"
        )

    # -- what leaves a member -----------------------------------------------------------------------------------------

    def sent(self, life: Life, payload: bytes) -> None:
        """R1: nothing speaks of a term that is not durable."""
        disk = life.node.disk
        if life.engine.term == disk.term:
            return
        for kind, _, to, term in message_kinds(payload):
            if not kind.startswith("request_pre_vote"):
                require(
                    term <= disk.term,
                    DURABLE_BEFORE_REPLY,
                    f"{life.name} sent {kind} of term {term} to {to}; its disk has term {disk.term}",
                )

    def saved(self, life: Life) -> None:
        """R1: term and vote of the Ready that was saved are durable."""
        disk = life.node.disk
        require(
            (disk.term, disk.vote) == life.engine.promised,
            DURABLE_BEFORE_REPLY,
            f"{life.name} goes on with term and vote {life.engine.promised}, its disk has {(disk.term, disk.vote)}",
        )

    def handing_over(self, life: Life) -> None:
        """R10: the lease is over before another member is told to campaign."""
        require(
            life.raft_id not in self._believers,
            STOPPED_BEFORE_RELEASE,
            f"{life.name} hands its office over with its lease running",
        )

    # -- leases -------------------------------------------------------------------------------------------------------

    def granted(self, life: Life, grant: Grant) -> None:
        """A leadership begins."""
        token = grant.credential.token
        require(token in self._raised, FENCE_BEFORE_LEASE, f"{life.name} leads with token {token}, never raised")
        running = life.application.running
        require(running is None, ONE_BODY, f"{life.name} leads again while its body of token {running} runs")
        self.leader_changes += 1
        self._leading[life.raft_id] = life
        self._believe(life, grant)

    def renewed(self, life: Life, renewed: Renewed) -> None:
        """The lease of a running leadership goes on; one that the application has ended by itself stays over."""
        if self._leading.get(life.raft_id) is life:
            self._believe(life, renewed)

    def _believe(self, life: Life, news: Grant | Renewed) -> None:
        if news.leased:
            self._believers[life.raft_id] = (life, news.span)
            self.compare_leases()

    def disbelieves(self, life: Life) -> None:
        """``life`` knows that its leadership is over, or its process has ended."""
        if self._leading.get(life.raft_id) is life:
            del self._leading[life.raft_id]
            self._believers.pop(life.raft_id, None)

    def compare_leases(self) -> None:
        """G2. Also to be called when a clock has changed, which may lengthen a lease in true time."""
        believers = self._believers
        if len(believers) < 2 or not self.leases_bounded:
            return
        now = [
            (life.name, span)
            for life, span in believers.values()
            if span.remaining_ns(life.node.clocks.read(life.node.world.now)) > 0
        ]
        require(len(now) < 2, ONE_VALID_LEASE, f"{' and '.join(name for name, _ in now)} hold a valid lease")

    def ticked(self, life: Life) -> None:
        """R8: after a tick no member leads whose lease is over."""
        holding = life.core.holding
        if holding.phase is Phase.LEADING:
            lasts = holding.span is not None and holding.span.remaining_ns(life.now()) > 0
            require(lasts, LEASE_ENDS_IN_TIME, f"{life.name} leads although its lease is over")

    # -- the database -------------------------------------------------------------------------------------------------

    def asked_to_raise(self, life: Life, effect: RaiseFence) -> None:
        """R15: the token of a holding is the one that its committed entry minted."""
        holding = life.core.state.holding
        minted = None if holding is None else holding.token
        token = effect.credential.token
        require(token == minted, TOKENS_RISE, f"{life.name} raises token {token}, the log minted {minted}")

    def raised(self, token: int, node: str) -> None:
        """G4: the fence was raised at this instant. A token that a failover took back counts."""
        require(
            token > self.highest_token,
            TOKENS_RISE,
            f"{node} raised token {token}, {self.highest_token} was raised before",
        )
        self.highest_token = token
        self._raised.add(token)

    # -- the end ------------------------------------------------------------------------------------------------------

    def believers(self) -> Iterable[str]:
        """Who believes in a lease that its own clocks have not ended."""
        return [
            life.name
            for life, span in self._believers.values()
            if span.remaining_ns(life.node.clocks.read(life.node.world.now)) > 0
        ]
