"""A replicated log for a state machine of the user's own: the nouns and the power of hashicorp/raft, for asyncio.

::

    application's loop                              node's thread
      apply(data) --> outbox  -- one wake-up -->      propose the whole outbox at once
      fsm.apply   <-- inbox   <-- one wake-up --      committed entries of a Ready, fates of proposals, snapshots

Each direction has at most one wake-up outstanding, so that the cost is paid per batch. The user's state machine runs
on the application's loop, in log order, and on every member alike; where no call waits, on a follower above all, it is
fed in larger steps.

The outcome of a command is one of three and never guessed: applied, surely not applied (``NotLeader``,
``ProposalDropped``), unknown (``OutcomeUnknown``). A leader that lost office goes on waiting until it knows what
became of its entry, within the caller's timeout: another leader may still have committed it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec

from tenure.config import Config
from tenure.core.commands import BARRIER, USER, RestorePart
from tenure.core.effects import (
    Apply,
    Effect,
    Proposed,
    RestoreSnapshot,
    TakeSnapshot,
)
from tenure.core.manifest import Manifest
from tenure.core.member import MemberCore
from tenure.core.state_machine import StateMachine
from tenure.core.view import View
from tenure.errors import NodeClosed, OutcomeUnknown, ProposalDropped, QuorumUnavailable
from tenure.node.administration import Administration
from tenure.node.clocks import read_clocks
from tenure.node.contents import ContentKeeper
from tenure.node.driver import Driver
from tenure.node.engine import require_engine
from tenure.node.listener import UserEffect
from tenure.node.observing import Observers
from tenure.node.ports import Ports
from tenure.node.requests import Requests
from tenure.node.restoring import Restoring
from tenure.types import LossReason

logger = logging.getLogger("tenure.raft")

APPLY_TIMEOUT_MS = 5000
RESTORE_TIMEOUT_MS = 600_000
#: Commands that wait to be proposed or committed; more are refused at once, so that a slow quorum bounds memory.
PENDING_MAX = 65_536
COMMAND_BYTES_MAX = (1 << 20) - 1
#: How long committed entries for which no call waits are gathered before the application's loop is woken for them.
_GATHER_SECONDS = 0.005
_USER = bytes([USER])
_BARRIER = bytes([BARRIER])


class Stats(msgspec.Struct, frozen=True):
    """A member's numbers at one instant; ``reason`` says what keeps it from the cluster, None if nothing does."""

    role: str
    term: int
    leader_name: str | None
    commit_index: int
    applied_index: int
    fsm_index: int
    snapshot_index: int
    voters: int
    pending: int
    elections_observed: int
    reason: str | None


class RaftNode(Administration):
    """One member of a replicated log; made by :meth:`open`. One event loop owns it."""

    has_content = True

    @classmethod
    def open(cls, config: Config, fsm: StateMachine, *, ports: Ports | None = None) -> RaftNode:
        """A member of a replicated log over ``fsm``, to be entered with ``async with``.

        ``ports`` brings a log store, a snapshot store or a transport of the user's own.
        """
        return cls(config, fsm, ports=ports)

    def __init__(self, config: Config, fsm: StateMachine, *, ports: Ports | None = None) -> None:
        for method in ("apply", "snapshot", "restore"):
            if not callable(getattr(fsm, method, None)):
                raise TypeError(
                    f"a state machine needs apply, snapshot and restore: {type(fsm).__name__} lacks {method}"
                )
        self._config = config
        self._fsm = fsm
        self._driver = Driver(config, self, dsn="", ports=ports)
        self._requests = Requests()
        self._contents = ContentKeeper(self._driver)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._outbox: deque[tuple[bytes, object]] = deque()
        self._outbox_woken = False
        self._inbox: deque[UserEffect] = deque()
        self._inbox_due = self._inbox_woken = False
        self._gathering = False
        self._restoring: asyncio.Task[None] | None = None
        self._brought = Restoring(Path(config.node.data_dir), fsm, self._driver)
        self._observers = Observers(self._on_loop, self._leader_name)
        self._fsm_index = 0
        self._error: BaseException | None = None
        self._closed = self._ended = False
        self.failed: asyncio.Future[BaseException] | None = None

    # -- life -------------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> RaftNode:
        """Open the node: lock its directory, bind its port, begin to found, to join or to run.

        Raises:
            ConfigError: the engine is not installed.
            StorageError: the directory is in use, damaged, full, or belongs to another node or cluster.
        """
        require_engine()
        self._loop = asyncio.get_running_loop()
        self.failed = self._loop.create_future()
        await self._driver.open()
        self._requests.start(self._loop)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the node; see :meth:`close`."""
        await self.close()

    async def close(self) -> None:
        """Hand leadership over if one election timeout suffices, stop the node, end every waiting call. Idempotent."""
        try:
            if not self._closed:
                self._closed = True
                self._driver.post(lambda core: core.step_down(LossReason.CLOSED, read_clocks()))
                with contextlib.suppress(TimeoutError):
                    out = asyncio.wrap_future(self._driver.out_of_office())
                    await asyncio.wait_for(out, self._config.raft.election_timeout_ms / 1000)
        finally:
            if self._restoring is not None:
                self._restoring.cancel()
            try:
                await self._driver.close()
            finally:
                self._end(NodeClosed())

    # -- commands ---------------------------------------------------------------------------------------------------

    async def apply(self, data: bytes, *, timeout_ms: int = APPLY_TIMEOUT_MS) -> Any:
        """Replicate ``data`` (at most 1 MiB) and return what the own state machine returned for it.

        Cancelling the call does not take the command back: its outcome is then unknown to the caller.

        Raises:
            NotLeader, ProposalDropped: surely not applied, now or later.
            OutcomeUnknown: it may or may not be applied, now or later; ``timeout_ms`` passed first.
            NodeClosed: the node is closed or failed; a command that stood in the log may still be applied by others.
            ValueError: ``data`` is too long.
        """
        if len(data) > COMMAND_BYTES_MAX:
            raise ValueError(f"a command has at most {COMMAND_BYTES_MAX} bytes, this one has {len(data)}")
        return await self._submit(_USER + data, timeout_ms)

    async def barrier(self, *, timeout_ms: int = APPLY_TIMEOUT_MS) -> None:
        """Return once every command that was committed before the call is applied here; raises as ``apply`` does."""
        await self._submit(_BARRIER, timeout_ms)

    async def restore(self, chunks: Iterable[bytes], *, timeout_ms: int = RESTORE_TIMEOUT_MS) -> None:
        """Replace the state of the whole cluster by ``chunks``: what a state machine's ``snapshot`` once gave.

        On the leader. It passes through the log, so that every member, also one that is away, replaces its state at the
        same place, as a whole or not at all; what was applied before that place is gone. ``chunks`` is read on another
        thread. Until the snapshot that follows, it takes its size in memory on every member. Cancelling the call takes
        it back unless the last part is on its way.

        Raises:
            NotLeader, ProposalDropped, NodeClosed: surely not restored, unless the last part stood in the log.
            OutcomeUnknown: it may or may not be restored, now or later; ``timeout_ms`` passed first.
            Whatever reading ``chunks`` raised: surely not restored.
        """
        self._require_open()
        view = self._driver.published
        if view.raft_role != "leader":
            raise self._not_leader()
        await self._brought.bring(chunks, self._submit, term=view.term, timeout_ms=timeout_ms)

    async def verify_leader(self, *, timeout_ms: int = APPLY_TIMEOUT_MS) -> None:
        """Return once a quorum has confirmed, after the call, that this member leads (read_index, thesis 6.4).

        What was read from the state machine *before* this call returned is then not stale (read, then verify).

        Raises:
            NotLeader: it does not lead.
            QuorumUnavailable: no quorum answered within ``timeout_ms``.
        """
        self._require_founded()
        pending = self._requests.track(timeout_ms)
        self._driver.post(lambda core: core.prove_leadership(pending, read_clocks()))
        try:
            await pending.future
        except OutcomeUnknown:
            view = self._driver.published
            raise QuorumUnavailable(reachable=0, needed=view.voters // 2 + 1) from None

    # -- what it knows ----------------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """This member's name."""
        return self._config.node.name

    def is_leader_hint(self) -> bool:
        """Whether this member led when its engine last moved: a hint for routing, never a licence to act (R14)."""
        return self._driver.published.raft_role == "leader"

    def stats(self) -> Stats:
        """The member's numbers now."""
        view = self._driver.published
        return Stats(
            role=view.raft_role,
            term=view.term,
            leader_name=self._leader_name(view),
            commit_index=view.commit_index,
            applied_index=view.applied_index,
            fsm_index=self._fsm_index,
            snapshot_index=view.snapshot_index,
            voters=view.voters,
            pending=self._requests.waiting,
            elections_observed=view.elections_observed,
            reason=view.reason,
        )

    # -- the node's thread calls these --------------------------------------------------------------------------------

    def revoked(self, reason: LossReason) -> None:
        """See :class:`Listener`. There is no scope here whose body could be outstanding."""
        self._driver.post(lambda core: core.body_returned(read_clocks()))

    def user_effect(self, effect: UserEffect) -> None:
        """See :class:`Listener`."""
        if isinstance(effect, Apply) and not effect.entries and self._requests.is_idle() and not self._inbox:
            return
        self._inbox.append(effect)
        if self._inbox_woken or isinstance(effect, Proposed):
            # Where a command stands in the log is of use only to what comes after it.
            return
        if not isinstance(effect, Apply) or not self._requests.is_idle():
            self._inbox_due = True
        elif not self._gathering:
            self._gathering = True
            self._driver.soon(self._end_gathering, delay_seconds=_GATHER_SECONDS)

    def published(self, view: View) -> None:
        """See :class:`Listener`. The step is over: a woken application takes the interpreter's lock."""
        self._observers.note(view)
        if self._inbox_due:
            self._wake_for_inbox()

    def _end_gathering(self) -> None:
        self._gathering = False
        if self._inbox and not self._inbox_woken:
            self._wake_for_inbox()

    def _wake_for_inbox(self) -> None:
        self._inbox_due, self._inbox_woken = False, True
        self._on_loop(self._take_inbox)

    def on_failure(self, error: BaseException) -> None:
        """See :class:`Listener`."""
        self._on_loop(lambda: self._fail(error))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _submit(self, payload: bytes, timeout_ms: int) -> asyncio.Future[Any]:
        self._require_open()
        if self._driver.published.raft_role != "leader":
            raise self._not_leader()
        if self._requests.waiting >= PENDING_MAX:
            raise ProposalDropped(f"{PENDING_MAX} commands wait already: nothing was proposed")
        pending = self._requests.track(timeout_ms)
        self._outbox.append((payload, pending))
        if not self._outbox_woken:
            self._outbox_woken = True
            self._driver.post(self._propose)
        return pending.future

    def _require_open(self) -> asyncio.AbstractEventLoop:
        if self._closed or self._error is not None or self._loop is None:
            raise NodeClosed("the node is closed" if self._error is None else f"the node failed: {self._error}")
        return self._loop

    def _propose(self, core: MemberCore) -> list[Effect]:
        """On the node's thread: everything that waits goes out as one proposal."""
        self._outbox_woken = False
        # What comes from now on wakes the thread again.
        batch = [self._outbox.popleft() for _ in range(len(self._outbox))]
        return core.propose(batch, read_clocks())

    def _take_inbox(self) -> None:
        self._inbox_woken = False
        while self._inbox and self._restoring is None and not self._ended:
            self._take(self._inbox.popleft())

    def _take(self, effect: UserEffect) -> None:
        match effect:
            case Apply(entries, through):
                self._apply(entries)
                if entries:
                    self._brought.reached(entries[-1][1])
                self._requests.overtaken_through(through)
            case Proposed(first, term, tickets):
                self._requests.enter_in_log(first, term, tickets)
            case TakeSnapshot(taken):
                self._snapshot(taken)
            case RestoreSnapshot(restored):
                self._requests.take(effect, not_leader=self._not_leader())
                if self._loop is not None:
                    self._restoring = self._loop.create_task(self._restore(restored))
            case _:
                self._requests.take(effect, not_leader=self._not_leader())

    def _apply(self, entries: list[tuple[int, int, bytes | RestorePart | None]]) -> None:
        apply, applied = self._fsm.apply, self._requests.applied
        for index, term, data in entries:
            if self._error is not None:
                return
            result: Any = None
            try:
                if isinstance(data, bytes):
                    result = apply(data, index=index, term=term)
                elif data is not None:
                    result = self._brought.apply(data, term=term)
            except Exception as error:  # noqa: BLE001 - whatever it is, this member is no replica any more.
                self._fail_and_stop(error)
                return
            self._fsm_index = index
            applied(index, term, result)

    def _snapshot(self, taken: Manifest) -> None:
        if self._brought.declines(taken):
            self._driver.content_taken(None)
            return
        try:
            chunks = self._fsm.snapshot()
        except Exception as error:  # noqa: BLE001 - see _apply.
            self._fail_and_stop(error)
            return
        self._contents.keep(taken, chunks)

    async def _restore(self, restored: Manifest) -> None:
        """Nothing is applied until the state machine has taken the snapshot over."""
        self._brought.drop()
        try:
            if restored.content is not None:
                with await self._contents.open(restored.content) as chunks:
                    self._fsm.restore(chunks)
            self._fsm_index = restored.index
        except Exception as error:  # noqa: BLE001 - see _apply.
            self._fail_and_stop(error)
            return
        self._restoring = None
        self._take_inbox()

    def _fail_and_stop(self, error: BaseException) -> None:
        self._fail(error)
        self._driver.stop()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
            if self.failed is not None and not self.failed.done():
                self.failed.set_result(error)
            self._end(NodeClosed(f"the node failed: {error}"))

    def _end(self, error: NodeClosed) -> None:
        self._ended = True
        self._brought.end()
        self._requests.end(error)
        self._observers.end()

    def _on_loop(self, call: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(call)
            except RuntimeError:
                # It has closed between the check and the call: nobody is left to tell.
                return
