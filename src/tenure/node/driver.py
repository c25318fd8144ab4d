"""Runs one member's core on a thread and an event loop of its own, so that a busy application costs no heartbeat.

::

    application's loop                     node's thread
      member.status()   <-- published --     core.step(event, now) -> effects
      HeldLeadership    <-- renew/revoke --  disk, snapshots (a thread of their own), transport, fence
      post(event)       --------------->     timers

It holds no policy: every decision is the core's. Its own rules are R2 (one owner; a storage error, a broken engine or
a bug ends the node, and nothing is sent afterwards) and R1's other half (what stands behind a Persist waits for it).
Frames are only queued when they come: one step takes all that came meanwhile, and one fsync covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import msgspec

from tenure.config import Config
from tenure.core.effects import (
    Apply,
    Compact,
    Declined,
    Effect,
    Grant,
    MembersChanged,
    Persist,
    Proposed,
    Proved,
    RaiseFence,
    ReadFence,
    Rejected,
    Renewed,
    RestoreSnapshot,
    Revoke,
    Send,
    SettingsChanged,
    TakeSnapshot,
)
from tenure.core.founding import Hello
from tenure.core.fsm import Enrolment, Membership
from tenure.core.manifest import Manifest
from tenure.core.member import MemberCore
from tenure.core.membership import MemberState
from tenure.core.roles import Phase
from tenure.core.roster import Roster
from tenure.core.view import View
from tenure.errors import InvariantViolated, NodeClosed, StorageError
from tenure.fence import FenceStore
from tenure.instants import NS_PER_SECOND
from tenure.node.clocks import read_clocks
from tenure.node.database import watch_database
from tenure.node.disk import DISK_STALL_SECONDS, Disk
from tenure.node.exchange import SnapshotExchange
from tenure.node.fencing import FenceAdapter
from tenure.node.founding import Founding, removal
from tenure.node.links import Links
from tenure.node.listener import Listener
from tenure.node.opening import Stores, build_core, limits_of
from tenure.node.ports import Ports
from tenure.node.thread import NodeThread, as_failure, required
from tenure.transport import load_certificates
from tenure.types import State

logger = logging.getLogger("tenure.node")
T = TypeVar("T")

#: A member that was removed goes on for so long, so that who asked for it hears the answer.
REMOVED_SECONDS = 0.5


class Driver(NodeThread):
    """One node's thread. ``start`` opens it, ``stop`` ends it; everything else is posted to it."""

    def __init__(self, config: Config, listener: Listener, *, dsn: str, ports: Ports | None = None) -> None:
        super().__init__(config.node.data_dir)
        self._config = config
        self._listener = listener
        self._dsn = dsn
        self._ports = Ports() if ports is None else ports
        self._disk = Disk(config.node.data_dir, self.fail, stall_seconds=DISK_STALL_SECONDS)
        self._files = ThreadPoolExecutor(1, thread_name_prefix="tenure-snapshots")
        self._core: MemberCore | None = None
        self._links: Links | None = None
        self._stores: Stores | None = None
        self._fence: FenceAdapter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._leaving: list[Future[None]] = []
        self._failing = threading.Lock()
        self._frames: list[tuple[int, bytes]] = []
        # Most acknowledgements complete no quorum: without an effect there is nothing to show before the next tick.
        self._step_frames = partial(self._feed, self._take_frames, shows=False)
        self._last_standing: tuple[Phase, str, int, str | None] | None = None
        self._last_shown: tuple[State, int, str | None] = (State.FOLLOWER, 0, None)
        self.incarnation = secrets.randbits(63) | 1
        self.roster = Roster()
        self.published = View()

    # -- called by the application's loop -----------------------------------------------------------------------------

    def is_stuck(self) -> bool:
        """See :class:`NodeThread`."""
        return self._disk.stalled

    @property
    def stores(self) -> Stores:
        """The stores: the log belongs to the node's thread, the snapshots to the thread of :meth:`on_files`, alone."""
        return required(self._stores)

    def url_of(self, name: str) -> str | None:
        """The base URL of a member: the own file says it, else the member itself said it when it came."""
        peer = self._config.raft.peers.get(name)
        if peer is not None:
            return peer.url
        record = self.roster.find(name)
        return record.url if record is not None else None

    # -- called by other threads ------------------------------------------------------------------------------------

    def post(self, event: Callable[[MemberCore], list[Effect]]) -> None:
        """Feed an event to the core from any thread. Dropped once the node has stopped."""
        self.call(partial(self._feed, event))

    def ask(self, question: Callable[[MemberCore], T]) -> Future[T]:
        """Ask the core from any thread; :class:`NodeClosed` while it is not there."""
        return self.ask_thread(lambda: question(required(self._core)))

    def ask_members(self) -> Future[tuple[list[MemberState], Membership | None, dict[str, Hello]]]:
        """The members, what the roster knows, and the new directories that called."""

        def answer() -> tuple[list[MemberState], Membership | None, dict[str, Hello]]:
            states = self._core.members() if self._core is not None else []
            return states, self.roster.membership(), dict(self.roster.applicants)

        return self.ask_thread(answer)

    def note_refused(self, token: int, why: str) -> None:
        """Write a refusal into the fence's ledger, as well as it goes. Any thread."""
        if (fence := self._fence) is not None:
            self.call(lambda: self._spawn(fence.note_refused(sent=token, why=why)))

    def reload_certificates(self) -> None:
        """Have the transport look at the files of ``raft.tls`` now. Any thread."""
        if self._links is not None:
            self.call(self._links.reload_certificates)

    def content_taken(self, taken: Manifest | None) -> None:
        """The user's part of a snapshot is durable, or (None) could not be taken. Any thread."""
        self.post(lambda core: core.snapshot_taken(taken, read_clocks()))

    def on_files(self, work: Callable[[], T]) -> Future[T]:
        """Run ``work`` on the thread of the snapshot files. Any thread; :class:`tenure.NodeClosed` if it has ended."""
        try:
            return self._files.submit(work)
        except RuntimeError:
            raise NodeClosed from None

    def out_of_office(self) -> Future[None]:
        """Resolves once this member neither leads nor is on its way in or out of office. Any thread."""
        future: Future[None] = Future()

        def note(_: MemberCore) -> list[Effect]:
            self._leaving.append(future)
            return []

        self.post(note)
        return future

    # -- the thread -------------------------------------------------------------------------------------------------

    async def main(self) -> None:
        """See :class:`NodeThread`."""
        stopping = self.begin_stopping()
        try:
            await self._open()
            self._opened.set_result(None)
            await self._enrol_and_run(stopping)
        except BaseException as error:  # noqa: BLE001 - R2: storage errors, engine panics and bugs all end the node.
            self.fail(error)
        finally:
            await self._close()

    async def _open(self) -> None:
        config = self._config
        self._stores = stores = await self._disk.run(lambda: Stores.open(config, self._ports, self.incarnation))
        enrolment, seen = await self._disk.run(lambda: (stores.directory.enrolment, stores.directory.peers_seen))
        if enrolment is not None and enrolment.removed:
            raise removal(config.node.name)
        self.roster = Roster(
            enrolment,
            acknowledged=lambda raft_id: self._core.acknowledged_by(raft_id) if self._core is not None else 0,
            seen=seen,
        )
        last_index = await self._build_core(enrolment) if enrolment is not None else 0
        self._founding = Founding(
            config,
            self.roster,
            directory_id=stores.directory.directory_id,
            incarnation=self.incarnation,
            openings=stores.openings,
            last_index=last_index,
        )
        self._links = links = Links(
            config,
            self.roster,
            self._founding,
            receive=self._receive,
            gone=lambda raft_id: self._feed(lambda core: core.suspect(raft_id, read_clocks())),
            seen=self._note_seen,
            vouch=lambda ids: self._feed(lambda core: core.vouch_for(ids, read_clocks())),
        )
        links.exchange = self._exchange(links, stores)
        certificates = await self._disk.run(lambda: load_certificates(config))
        await links.open(self._ports.transport, certificates)

    def _exchange(self, links: Links, stores: Stores) -> SnapshotExchange:
        loop = asyncio.get_running_loop()
        return SnapshotExchange(
            stores.snapshots,
            run=lambda work: loop.run_in_executor(self._files, work),
            spawn=self._spawn,
            send=lambda peer, payload: required(links.transport).send(peer, payload),
            deliver=self._receive,
            lost=lambda peer: self._feed(lambda core: core.snapshot_lost(peer, read_clocks())),
            clock=loop.time,
        )

    async def _enrol_and_run(self, stopping: asyncio.Event) -> None:
        stopped = asyncio.ensure_future(stopping.wait())
        try:
            if self.roster.enrolment is None:
                enrolment = await self._founding.enrol(stopped, on_reason=lambda why: self._show(reason=why))
                if enrolment is None:
                    return
                stores = required(self._stores)
                await self._disk.run(lambda: stores.directory.enrol(enrolment))
                await self._build_core(enrolment)
                # Only now: who is let in is noted durably, and the disk's thread has just read the same store.
                self.roster.enrol(enrolment)
                logger.info("this node belongs to cluster %s now", enrolment.record.cluster_id)
            required(self._links).members_changed()
            if self._fence is not None:
                self._spawn(watch_database(self._fence, required(self._links), self._feed, self._config))
            self._tick()
            await stopped
        finally:
            stopped.cancel()

    async def _build_core(self, enrolment: Enrolment) -> int:
        """The core over what the disk kept; the index of the last entry of its log."""
        config, stores = self._config, required(self._stores)
        if self._dsn:
            self._fence = FenceAdapter(
                FenceStore(self._dsn, config.fence.resource),
                cluster_id=enrolment.record.cluster_id,
                resource=config.fence.resource,
                holder=config.node.name,
            )
        self._core, last_index = await self._disk.run(
            lambda: build_core(config, stores, enrolment, incarnation=self.incarnation, fenced=self._fence is not None)
        )
        # Behind a snapshot the log may never tell again who was added before it.
        self.roster.applied(required(self._core).membership())
        return last_index

    def reload(self, config: Config) -> None:
        """Go on with ``config``, which was judged before."""
        self._config = config
        if self._core is not None:
            self._core.snapshots.limits = limits_of(config)
        if self._links is not None:
            self._links.reload(config)

    # -- events and effects -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        core, loop = self._core, self._loop
        if core is None or loop is None or self._error is not None:
            return
        loop.call_later(core.tick_ns / NS_PER_SECOND, self._tick)
        self._last_standing = None  # A lease that lapses changes what is shown: each tick looks.
        core.holding.application_at = self._listener.application_at
        self._feed(lambda running: running.tick(read_clocks()))
        if self._links is not None:
            self._links.tick(self.published.leader_id)
            if self._links.is_let_go():
                self._feed(self._go)

    def _receive(self, sender: int, payload: bytes) -> None:
        if self._core is None:
            return
        if not self._frames and self._loop is not None:
            self._loop.call_soon(self._step_frames)
        self._frames.append((sender, payload))

    def _take_frames(self, core: MemberCore) -> list[Effect]:
        frames, self._frames = self._frames, []
        return core.receive_all(frames, read_clocks())

    def _note_seen(self, hello: Hello) -> None:
        directory = self.stores.directory
        try:
            self._disk.watched(lambda: directory.note_seen(hello.directory_id, hello.starts, hello.incarnation))
        except BaseException as error:
            self.fail(error)  # R2: the transport would take it for a handshake that failed.
            raise

    def _feed(self, event: Callable[[MemberCore], list[Effect]], *, shows: bool = True) -> None:
        """Step the core and run its effects; whatever goes wrong ends the node (R2)."""
        core = self._core
        if core is None or self._error is not None:
            return
        try:
            if effects := event(core):
                self._run(core, effects)
            if effects or shows:
                self._publish(core)
        except BaseException as error:  # noqa: BLE001 - an engine panic is a BaseException, and so is a broken invariant.
            self.fail(error)

    def _run(self, core: MemberCore, effects: list[Effect]) -> None:
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            match effect:
                case Send():
                    if self._links is not None:
                        self._links.send(effect.peer, effect.payload)
                case Persist():
                    # It is the last one: the core hands nothing out while it waits for it. What was sent before it
                    # is in the sockets by now, so the peers write while this disk does.
                    queue.extend(self._persist(effect, core))
                case Proposed() | Apply():
                    self._listener.user_effect(effect)
                case TakeSnapshot(taken) if not self._listener.has_content:
                    queue.extendleft(reversed(core.snapshot_taken(taken, read_clocks())))
                case ReadFence() | RaiseFence():
                    self._begin_fence(core, effect)
                case Compact(taken):
                    asyncio.get_running_loop().call_soon(self._feed, partial(self._compact, taken))
                case _:
                    self._tell(core, effect)

    def _tell(self, core: MemberCore, effect: Effect) -> None:
        """Effects that are news for the application's side."""
        match effect:
            case Grant():
                # Who hears of it looks at what is published as soon as it does.
                self.published = core.view()
                self._listener.granted(effect)
            case Renewed():
                self.published = core.view()
                self._listener.renewed(effect)
            case Revoke():
                self._listener.revoked(effect.reason)
            case MembersChanged() | SettingsChanged():
                self._note_change(core, effect)
                self.published = core.view()
                self._listener.user_effect(effect)
            case Proved():
                self.published = core.view()
                self._listener.user_effect(effect)
            case Rejected() | Declined() | TakeSnapshot() | RestoreSnapshot():
                self._listener.user_effect(effect)
            case _:
                pass

    def _persist(self, effect: Persist, core: MemberCore) -> list[Effect]:
        if effect.must_sync or effect.entries:
            self._disk.save(required(self._stores).log, effect)
        return core.persisted(read_clocks())

    def _compact(self, taken: Manifest, core: MemberCore) -> list[Effect]:
        """Make the manifest durable in place of the log behind it, then let the engine and the older files go."""
        stores = required(self._stores)
        if taken.index > core.snapshot_index:
            # Else a snapshot of the leader came in between, and its content is the one that is needed.
            self._disk.watched(lambda: stores.compact(taken))
            needed = taken.content.id if taken.content is not None else None
            self.on_files(lambda: stores.snapshots.prune(needed=needed))
        return core.compacted(taken, read_clocks())

    def _note_change(self, core: MemberCore, effect: MembersChanged | SettingsChanged) -> None:
        if isinstance(effect, SettingsChanged):
            self._disk.watched(lambda: self.stores.directory.keep_settings(effect.settings))
            return
        # Whoever is refused from now on may go: that must not be forgotten, or its vote would be needed again.
        self._disk.watched(lambda: self.stores.keep_commit(core.applied_hard_state()))
        self.roster.applied(effect.membership)
        if self._links is not None and self._links.transport is not None:
            # The core is being stepped right now: what it is told of this waits until it is done.
            self.soon(self._links.members_changed)

    def _go(self, _: MemberCore) -> list[Effect]:
        """This member is removed, and most voters have applied it: nobody asks for its vote any more."""
        self._disk.watched(self.stores.retire)
        self.soon(partial(self.fail, removal(self._config.node.name)), delay_seconds=REMOVED_SECONDS)
        return []

    def _begin_fence(self, core: MemberCore, effect: ReadFence | RaiseFence) -> None:
        if self._fence is None:
            raise InvariantViolated("the core asked for a fence that was not configured")
        self._spawn(self._ask_fence(self._fence, core, effect))

    async def _ask_fence(self, fence: FenceAdapter, core: MemberCore, effect: ReadFence | RaiseFence) -> None:
        if isinstance(effect, ReadFence):
            read = await fence.read(core.state)
            self._feed(lambda running: running.fence_read(effect.request, read, read_clocks()))
            return
        raised = await fence.raise_token(
            effect.credential, effect.expected, generation=effect.generation, lineage=core.state.lineage
        )
        self._feed(lambda running: running.fence_raised(effect.request, raised, read_clocks()))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)

    def _show(self, **changed: Any) -> None:
        self.published = msgspec.structs.replace(self.published, **changed)

    def _publish(self, core: MemberCore) -> None:
        view = self.published = core.view() if self._links is None else self._links.explain(core.view())
        self._listener.published(view)
        if self._leaving and view.phase is Phase.FOLLOWING:
            for future in self._leaving:
                if not future.done():
                    future.set_result(None)
            self._leaving.clear()
        standing = (view.phase, view.raft_role, view.term, view.reason)
        if standing == self._last_standing:
            return
        self._last_standing = standing
        state = view.shown_state(read_clocks())
        shown = (state, view.term, view.reason)
        if shown != self._last_shown:
            self._last_shown = shown
            self._listener.changed(state, view)

    # -- the end ----------------------------------------------------------------------------------------------------

    def fail(self, error: BaseException) -> None:
        """R2: the node is unusable. Leadership ends, nothing more is sent, the owner is told to exit. Any thread."""
        error = as_failure(error)
        with self._failing:
            if self._error is not None:
                return
            self._error = error
        self._show(phase=Phase.FOLLOWING, span=None, reason=str(error))
        if not self._opened.done():
            self._opened.set_exception(error)
        self._listener.on_failure(error)
        self.stop()

    def _keep_commit(self) -> None:
        """In good order a node stops with its commit index durable: the next start need not be told of it."""
        core = self._core
        if core is not None and self._error is None:
            with contextlib.suppress(StorageError):  # Nothing was promised that is lost without it.
                self._disk.watched(lambda: self.stores.keep_commit(core.applied_hard_state()))

    async def _close(self) -> None:
        self._keep_commit()
        # Nothing is fed to the core any more, or it could ask the fence for something after that was closed.
        self._core = None
        self._show(phase=Phase.FOLLOWING, raft_role="follower", leader_id=0, span=None)
        closers: list[Awaitable[None]] = []
        for task in list(self._tasks):
            task.cancel()
        if self._links is not None and self._links.transport is not None:
            closers.append(self._links.transport.close())
        if self._fence is not None:
            closers.append(self._fence.close())
        await asyncio.gather(*closers, return_exceptions=True)
        if self._links is not None and self._links.exchange is not None:
            self._files.submit(self._links.exchange.end)
        # What is written there ends before the lock is given up: the next life must not meet it.
        await asyncio.get_running_loop().run_in_executor(None, self._files.shutdown)
        if self._stores is not None:
            await self._disk.run(self._stores.close)
        self._disk.close()
