"""The member as its application sees it: opens the node, hands out leaderships, tells the status.

Everything here runs on the application's event loop, except the listener's methods, which the node's thread calls and
which only post or replace one reference.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import cast

import msgspec

from tenure.config import Config
from tenure.core.effects import Grant, Renewed
from tenure.core.roles import Phase
from tenure.core.view import View
from tenure.errors import NodeClosed
from tenure.instants import NS_PER_MS, LeaseSpan, Reading, margin_within
from tenure.leadership import Forkable, HeldLeadership, Scope
from tenure.node.administration import Administration
from tenure.node.clocks import boottime_ns, raw_ns, read_clocks
from tenure.node.driver import Driver
from tenure.node.engine import require_engine
from tenure.node.listener import UserEffect
from tenure.node.observing import Observers
from tenure.node.requests import Requests
from tenure.types import Credential, LossReason, PeerInfo, State, Status

journal_logger = logging.getLogger("tenure.journal")
JOURNAL_LIMIT = 1000
#: So often within ``lease.application_heartbeat_timeout_ms`` the application's loop says that it runs.
BEATS_IN_TIMEOUT = 10
FORKED = "this process was forked after the member was opened, which stayed with the parent: open one after the fork"


class RoleChange(msgspec.Struct, frozen=True):
    """One line of the role journal. ``at`` is wall time (seconds since 1970), for reading only."""

    at: float
    state: State
    term: int
    token: int | None
    reason: str | None


class Member(Administration, Forkable):
    """One member of a cluster; made by :func:`tenure.open`. Bound to the event loop on which it was entered.

    In a forked child it is void: everything but :meth:`close` raises :class:`tenure.NodeClosed` and names the fork.
    """

    def __init__(self, config: Config, *, dsn: str, handle: Callable[..., Scope] = HeldLeadership) -> None:
        super().__init__()
        self._config = config
        self._make_handle = handle
        self._driver = Driver(config, self, dsn=dsn)
        self._requests = Requests()
        self._observers = Observers(self._on_loop, self._leader_name)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._current: Scope | None = None
        self._proved = Renewed(LeaseSpan(Reading(0, 0), 0))
        self._beats: asyncio.TimerHandle | None = None
        self._offers: asyncio.Queue[Scope | None] = asyncio.Queue()
        self._failed: asyncio.Future[BaseException] | None = None
        self._error: BaseException | None = None
        self._closed = False
        self._forked = False
        self._refused_token = 0
        self._loss_reason: str | None = None
        #: Why the last leadership ended, until the journal's next line has told it.
        self._untold_end: str | None = None
        self.refusals = 0
        #: Where the work of an ended leadership hangs that has not returned in time; None while there is none (R10).
        self.work_overdue: str | None = None
        self.journal: deque[RoleChange] = deque(maxlen=JOURNAL_LIMIT)

    # -- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Member:
        """Open the node: lock its directory, bind its port, begin to found or to run.

        Raises:
            ConfigError: the engine is not installed, or a file of ``raft.tls`` is no good.
            StorageError: the directory is in use, damaged, full, or belongs to another node or cluster.
        """
        self.require_own_process()
        require_engine()
        self._loop = asyncio.get_running_loop()
        self._failed = self._loop.create_future()
        self._beat()
        try:
            await self._driver.open()
        except BaseException:
            if self._beats is not None:
                self._beats.cancel()
            raise
        self._requests.start(self._loop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the node; see :meth:`close`."""
        await self.close()

    async def close(self) -> None:
        """Give up leadership, hand it over if one election timeout suffices, and stop the node. Idempotent.

        A cancellation, that of a body which closes its own member among them, cuts the hand-over short; the node stops.
        In a forked child it does nothing: the node is the parent's.
        """
        if self._forked:
            return
        try:
            if not self._closed:
                self._closed = True
                await self._hand_over()
        finally:
            self._offers.put_nowait(None)
            try:
                await self._driver.close()
            finally:
                if self._beats is not None:
                    self._beats.cancel()
                self._requests.end(NodeClosed())
                self._observers.end()

    async def _hand_over(self) -> None:
        if self._current is not None:
            self._current.revoke(LossReason.CLOSED)
        self._driver.post(lambda core: core.step_down(LossReason.CLOSED, read_clocks()))
        if self._driver.published.phase is not Phase.FOLLOWING:
            # The body returns, RELEASE is committed, the office is handed over; a lost quorum must not delay the exit.
            with contextlib.suppress(TimeoutError):
                out = asyncio.wrap_future(self._driver.out_of_office())
                await asyncio.wait_for(out, self._config.raft.election_timeout_ms / 1000)

    # -- leadership -------------------------------------------------------------------------------------------------

    async def terms(self) -> AsyncGenerator[HeldLeadership, None]:
        """Each leadership that this member wins, one at a time; ends when the member closes.

        Raises:
            TenureError: the node had to stop (R2); the process should exit.
        """
        while True:
            self.require_own_process()
            leadership = await self._offers.get()
            if leadership is None:
                # It stands for every other reader, too, and for whoever asks again.
                self._offers.put_nowait(None)
                if self._error is not None:
                    raise self._error
                return
            if not leadership.offered:
                continue
            try:
                yield cast("HeldLeadership", leadership)
            finally:
                # Also when the loop over the terms was left before the scope was entered: nobody would serve.
                leadership.abandon()

    @property
    def leadership(self) -> Scope | None:
        """The present leadership while its ``check`` passes, for request handlers; else None. Any thread."""
        self.require_own_process()
        current = self._current
        return current if current is not None and current.holds else None

    async def step_down(self) -> bool:
        """Give up leadership and hand it to another member if one is ready. False if this member does not lead."""
        current = self.leadership
        if current is None:
            return False
        current.revoke(LossReason.STEPPED_DOWN)
        self._driver.post(lambda core: core.step_down(LossReason.STEPPED_DOWN, read_clocks()))
        return True

    def reload_certificates(self) -> None:
        """Look at the files of ``raft.tls`` now instead of within seconds; what was found is logged. Any thread.

        New connections use the new certificate, open ones go on: it changes no term. Files that are no good change
        nothing, and neither does a call without ``raft.tls``.
        """
        self._driver.reload_certificates()

    # -- status -----------------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """This member's name."""
        return self._config.node.name

    @property
    def cluster_id(self) -> str | None:
        """The id of the cluster, once it is founded."""
        enrolment = self._driver.roster.enrolment
        return enrolment.record.cluster_id if enrolment else None

    @property
    def incarnation(self) -> int:
        """A random number of this life of the node."""
        return self._driver.incarnation

    @property
    def failed(self) -> asyncio.Future[BaseException]:
        """Resolves with the error if the node must stop (R2): the process must then exit with a failure."""
        if self._failed is None:
            raise NodeClosed("the member is not open")
        return self._failed

    def cluster(self) -> list[PeerInfo]:
        """The members as this node knows them, by name; while its directory is new, those of its configuration."""
        peers = {name: (peer.raft, peer.url) for name, peer in self._config.raft.peers.items()}
        membership = self._driver.roster.membership()
        if membership is not None:
            peers = {record.name: peers.get(record.name, (record.address, record.url)) for record in membership.members}
        return [PeerInfo(name=name, raft_address=raft, url=url) for name, (raft, url) in sorted(peers.items())]

    def status(self) -> Status:
        """This member's own view at this instant, judged against the lease's deadline now. Any thread."""
        self.require_own_process()
        view, now = self._driver.published, read_clocks()
        state = view.shown_state(now)
        if state is State.LEADER and self._current is not None and self._current.reason is not None:
            state = State.FOLLOWER
        leader_name = self._shown_leader(view, state)
        # Under wait_out "fenced-only" a member is shown as leader before its lease starts (R9).
        leased = state is State.LEADER and view.phase is Phase.LEADING
        remaining_ns = view.span.remaining_ns(now) if view.span is not None and leased else 0
        return Status(
            state=state,
            term=view.term,
            name=self.name,
            cluster=self._config.cluster.name,
            cluster_id=self.cluster_id,
            raft_role=view.raft_role,
            leader_name=leader_name,
            leader_url=self._driver.url_of(leader_name) if leader_name else None,
            fencing_token=view.token if state is State.LEADER else None,
            lease_remaining_ms=remaining_ns // NS_PER_MS,
            votes_for_me=view.votes_for_me,
            votes_needed=view.voters // 2 + 1,
            voters=view.voters,
            commit_index=view.commit_index,
            applied_index=view.applied_index,
            elections_observed=view.elections_observed,
            stale_token_refusals=self.refusals,
            reason=view.reason or (self._loss_reason if state is not State.LEADER else None),
            work_overdue=self.work_overdue,
        )

    def _shown_leader(self, view: View, state: State) -> str | None:
        if state is State.LEADER:
            return self.name
        name = self._leader_name(view)
        return None if name == self.name else name

    # -- the node's thread calls these --------------------------------------------------------------------------------

    def granted(self, grant: Grant) -> None:
        """See :class:`Listener`."""
        self._proved = Renewed(grant.span, grant.leased)
        self._on_loop(lambda: self._offer(grant.term, grant.credential))

    def renewed(self, renewed: Renewed) -> None:
        """See :class:`Listener`."""
        # The grant may still be on its way to a busy loop: it then starts with the newest span.
        self._proved = renewed
        if self._current is not None:
            self._current.renew(renewed.span, leased=renewed.leased)

    def revoked(self, reason: LossReason) -> None:
        """See :class:`Listener`."""
        self._untold_end = str(reason)
        current = self._current
        if current is not None:
            current.revoke(reason)
        # A grant may still be on its way to the application's loop: the revocation follows it there.
        self._on_loop(lambda: self._revoke_current(reason))

    def changed(self, state: State, view: View) -> None:
        """See :class:`Listener`."""
        token = view.token if state is State.LEADER else None
        reason = view.reason
        if state is not State.LEADER:
            reason, self._untold_end = reason or self._untold_end, None
        change = RoleChange(at=time.time(), state=state, term=view.term, token=token, reason=reason)
        self.journal.append(change)
        journal_logger.info("role_changed", extra={"tenure": msgspec.structs.asdict(change)})

    def user_effect(self, effect: UserEffect) -> None:
        """See :class:`Listener`. There is no state machine here, only callers that wait."""
        if not self._requests.is_idle():
            self._on_loop(lambda: self._requests.take(effect, not_leader=self._not_leader()))

    def on_failure(self, error: BaseException) -> None:
        """See :class:`Listener`."""
        self.revoked(LossReason.FAILED)
        self._on_loop(lambda: self._fail(error))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _on_loop(self, call: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            # The loop may close between the check and the call: then nobody is left to tell.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(call)

    def _fail(self, error: BaseException) -> None:
        """Tell the application once that the node must stop."""
        self._error = error
        if self._failed is not None and not self._failed.done():
            self._failed.set_result(error)
        self._requests.end(NodeClosed(f"the node failed: {error}"))
        self._observers.end()
        self._offers.put_nowait(None)

    def _end_work(self) -> None:
        """See :class:`Administration`: the running leadership's body is cancelled."""
        self._revoke_current(LossReason.STEPPED_DOWN)

    def void_after_fork(self) -> None:
        """See :class:`Forkable`."""
        self._forked = self._closed = True

    @property
    def forked(self) -> bool:
        """Whether this is a forked child's copy, which is void."""
        return self._forked

    def require_own_process(self) -> None:
        """Raise :class:`tenure.NodeClosed` in a forked child."""
        if self._forked:
            raise NodeClosed(FORKED)

    def _require_open(self) -> asyncio.AbstractEventLoop:
        self.require_own_process()
        if self._closed or self._error is not None or self._loop is None:
            raise NodeClosed("the member is closed" if self._error is None else f"the node failed: {self._error}")
        return self._loop

    def _offer(self, term: int, credential: Credential) -> None:
        loop, span = asyncio.get_running_loop(), self._proved.span
        leadership = self._make_handle(
            term=term,
            credential=credential,
            span=span,
            margin_ns=margin_within(span.duration_ns, self._config.lease.margin_ms * NS_PER_MS),
            clocks=(raw_ns, boottime_ns),
            loop=loop,
            on_exit=lambda: self._driver.post(lambda core: core.body_returned(read_clocks())),
            on_loss=lambda reason: self._lost(credential.token, reason),
            on_overdue=self._note_overdue,
            leased=self._proved.leased,
        )
        self._loss_reason = None
        self._current = leadership
        self._offers.put_nowait(leadership)
        loop.call_later(self._config.lease.application_timeout_ms / 1000, self._give_up_idle, leadership)

    def _give_up_idle(self, leadership: Scope) -> None:
        """R13: nobody has entered the scope for as long as the application may hang, so nobody works under it."""
        if not leadership.entered:
            self._lost(leadership.token, LossReason.APPLICATION_STALLED)
            leadership.abandon(LossReason.APPLICATION_STALLED)

    def _beat(self) -> None:
        """R13: this loop runs. A leadership whose work says of itself that it gets on is held to that instead."""
        current, loop = self._current, asyncio.get_running_loop()
        beaten_at = current.beaten_at if current is not None and current.holds else None
        self.application_at = read_clocks() if beaten_at is None else beaten_at
        interval_s = min(1.0, self._config.lease.application_timeout_ms / 1000 / BEATS_IN_TIMEOUT)
        self._beats = loop.call_later(interval_s, self._beat)

    def _revoke_current(self, reason: LossReason) -> None:
        if self._current is not None:
            self._current.revoke(reason)

    def _note_overdue(self, place: str | None) -> None:
        self.work_overdue = place

    def _lost(self, token: int, reason: LossReason) -> None:
        """The leadership itself found out that it is over: a refusal by the database, or its own clock."""
        self._loss_reason = str(reason)
        if reason in (LossReason.REFUSED, LossReason.SERVER_CHANGED):
            self.refusals += 1
            if token != self._refused_token:
                self._refused_token = token
                self._driver.note_refused(token, str(reason))
        self._driver.post(lambda core: core.refused(token, reason, read_clocks()))
