"""Runs one member's core on a thread and an event loop of its own, so that a busy application costs no heartbeat.

::

    application's loop                     node's thread
      member.status()   <-- published --     core.step(event, now) -> effects
      HeldLeadership    <-- renew/revoke --  disk (one thread), transport, fence
      post(event)       --------------->     timers

It holds no policy: every decision is the core's. Its own rules are R2 (one owner; a storage error, a broken engine or
a bug ends the node, and nothing is sent afterwards) and R1's other half (what stands behind a Persist waits for it).
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
from typing import Any

import msgspec

from tenure.config import Config
from tenure.core.effects import (
    Apply,
    Effect,
    Grant,
    Persist,
    Proposed,
    Proved,
    RaiseFence,
    ReadFence,
    Rejected,
    Renewed,
    Revoke,
    Send,
)
from tenure.core.fsm import ClusterRecord
from tenure.core.member import MemberCore, View
from tenure.core.roles import Phase
from tenure.errors import EngineFailed, InvariantViolated, NodeClosed, StorageError, SyncFailed, TenureError
from tenure.fence import FenceStore
from tenure.instants import NS_PER_MS, NS_PER_SECOND, LeaseSpan
from tenure.node.clocks import read_clocks
from tenure.node.engine import build_engine, proposal_dropped
from tenure.node.fencing import FenceAdapter
from tenure.node.founding import Founding
from tenure.storage import DataDirectory
from tenure.transport import TcpTransport, TransportHooks, load_certificates
from tenure.types import Credential, LossReason, State

logger = logging.getLogger("tenure.node")

#: A write that is not durable after this long ends the node: its lease has lapsed long before (R2, R13).
DISK_STALL_SECONDS = 10.0
#: A call that the node's thread must answer (open, close) waits at most this long.
CALL_TIMEOUT_SECONDS = 10.0


class Listener:
    """What the member does with the driver's news; called on the node's thread."""

    def granted(self, term: int, credential: Credential, span: LeaseSpan) -> None:
        """A leadership was won."""

    def renewed(self, span: LeaseSpan) -> None:
        """The running leadership's lease was renewed."""

    def revoked(self, reason: LossReason) -> None:
        """The running leadership is over."""

    def changed(self, state: State, view: View) -> None:
        """The state, the term or the reason that the status shows has changed."""

    def published(self, view: View) -> None:
        """The core was stepped; ``view`` is what it shows now."""

    def user_effect(self, effect: Proposed | Rejected | Apply | Proved) -> None:
        """The fate of the user's commands and proofs, and committed entries for the user's state machine, in order."""

    def on_failure(self, error: BaseException) -> None:
        """The node must stop (R2)."""


class Driver:
    """One node's thread. ``start`` opens it, ``stop`` ends it; everything else is posted to it."""

    def __init__(self, config: Config, listener: Listener, *, dsn: str) -> None:
        self._config = config
        self._listener = listener
        self._dsn = dsn
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: Future[None] = Future()
        self._stopping: asyncio.Event | None = None
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="tenure-disk")
        self._core: MemberCore | None = None
        self._transport: TcpTransport | None = None
        self._directory: DataDirectory | None = None
        self._fence: FenceAdapter | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._error: BaseException | None = None
        self._leaving: list[Future[None]] = []
        self._persisting_since: float | None = None
        self._disk_hangs = False
        self._last_shown: tuple[State, int, str | None] = (State.FOLLOWER, 0, None)
        self.incarnation = secrets.randbits(63) | 1
        self.record: ClusterRecord | None = None
        self.published = View()

    # -- called by the application's loop -----------------------------------------------------------------------------

    async def open(self) -> None:
        """Start the thread; returns once the directory is locked and the port is bound.

        Raises:
            ConfigError: a file of ``raft.tls`` is no good.
            StorageError: the directory or the port cannot be had. After this, another error or a cancellation nothing
                is left running.
        """
        try:
            await asyncio.wait_for(asyncio.wrap_future(self.start()), CALL_TIMEOUT_SECONDS)
        except TimeoutError as error:
            await self.close()
            folder = self._config.node.data_dir
            raise StorageError(f"node.data_dir {folder} was not opened in {CALL_TIMEOUT_SECONDS} s") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the thread and wait for it. Idempotent; a cancellation only ends the waiting."""
        self.stop()
        if not await asyncio.get_running_loop().run_in_executor(None, self.join, CALL_TIMEOUT_SECONDS):
            logger.error("the node's thread did not end in %s s: its disk does not answer", CALL_TIMEOUT_SECONDS)

    # -- called by other threads ------------------------------------------------------------------------------------

    def start(self) -> Future[None]:
        """Start the thread. The future resolves once the directory is locked and the port is bound, or fails."""
        self._thread = threading.Thread(target=self._run_thread, name="tenure-node", daemon=True)
        self._thread.start()
        return self._opened

    def post(self, event: Callable[[MemberCore], list[Effect]]) -> None:
        """Feed an event to the core from any thread. Dropped once the node has stopped."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._feed, event)

    def note_refused(self, token: int, why: str) -> None:
        """Write a refusal into the fence's ledger, as well as it goes. Any thread."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._begin_note, token, why)

    def reload_certificates(self) -> None:
        """Have the transport look at the files of ``raft.tls`` now. Any thread."""
        loop, transport = self._loop, self._transport
        if loop is not None and transport is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(transport.reload_certificates)

    def out_of_office(self) -> Future[None]:
        """Resolves once this member neither leads nor is on its way in or out of office. Any thread."""
        future: Future[None] = Future()

        def note(_: MemberCore) -> list[Effect]:
            self._leaving.append(future)
            return []

        self.post(note)
        return future

    def stop(self) -> None:
        """Ask the thread to end; it closes the transport, the disk and the directory."""
        loop = self._loop
        if loop is not None and self._stopping is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._stopping.set)

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread; False if it did not end in time."""
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run_thread(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the thread's last word: whatever it was must reach the owner.
            self._fail(error)

    async def _main(self) -> None:
        self._stopping = asyncio.Event()
        try:
            await self._open()
            self._opened.set_result(None)
            await self._found_and_run()
        except BaseException as error:  # noqa: BLE001 - R2: storage errors, engine panics and bugs all end the node.
            self._fail(error)
        finally:
            await self._close()

    async def _open(self) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        self._directory = await loop.run_in_executor(self._disk, self._open_directory)
        self.record = await loop.run_in_executor(self._disk, lambda: self._require_directory().record)
        self._founding = Founding(
            config,
            directory_id=self._require_directory().directory_id,
            incarnation=self.incarnation,
            record=self.record,
        )
        self._transport = TcpTransport(
            listen=config.raft.listen,
            peers={name: peer.raft for name, peer in config.raft.peers.items() if name != config.node.name},
            hooks=TransportHooks(
                identity=self._founding.identity,
                admit=self._founding.admit,
                raft_id_of=self._founding.raft_id_of,
                on_payload=self._on_payload,
                on_hello=self._founding.on_hello,
                on_gone=self._on_gone,
            ),
            certificates=await loop.run_in_executor(self._disk, load_certificates, config),
        )
        try:
            await self._transport.start()
        except OSError as error:
            raise StorageError(
                f"raft.listen {config.raft.listen} cannot be bound ({error.strerror}): "
                "stop what uses it, or name another address"
            ) from error

    def _open_directory(self) -> DataDirectory:
        config = self._config
        return DataDirectory.open(config.node.data_dir, node_name=config.node.name, cluster_name=config.cluster.name)

    def _require_directory(self) -> DataDirectory:
        if self._directory is None:
            raise NodeClosed
        return self._directory

    async def _found_and_run(self) -> None:
        stopping = asyncio.ensure_future(self._require_stopping().wait())
        try:
            if self.record is None:
                record = await self._founding.found(stopping, on_reason=self._waiting)
                if record is None:
                    return
                directory = self._require_directory()
                await asyncio.get_running_loop().run_in_executor(self._disk, directory.found, record)
                self.record = record
                self._founding.record = record
            await self._build_core(self.record)
            await stopping
        finally:
            stopping.cancel()

    def _require_stopping(self) -> asyncio.Event:
        if self._stopping is None:
            raise NodeClosed
        return self._stopping

    async def _build_core(self, record: ClusterRecord) -> None:
        config = self._config
        loop = asyncio.get_running_loop()
        stored = await loop.run_in_executor(self._disk, self._require_directory().store.load)
        raft_id = next(member.raft_id for member in record.members if member.name == config.node.name)
        if self._dsn:
            store = FenceStore(self._dsn, config.fence.resource)
            self._fence = FenceAdapter(
                store, cluster_id=record.cluster_id, resource=config.fence.resource, holder=config.node.name
            )
        self._core = MemberCore(
            build_engine(record, raft_id, stored),
            record=record,
            raft_id=raft_id,
            incarnation=self.incarnation,
            fenced=self._fence is not None,
            margin_ns=config.lease.margin_ms * NS_PER_MS,
            nonce=lambda: secrets.token_hex(16),
            started=read_clocks(),
            proposal_dropped=proposal_dropped(),
        )
        if stored_settings_differ := self._founding.settings_differences(record):
            logger.warning("the log's settings are used, this file differs: %s", "; ".join(stored_settings_differ))
        self._tick()

    def _waiting(self, reason: str) -> None:
        self.published = msgspec.structs.replace(self.published, reason=reason)

    # -- events and effects -----------------------------------------------------------------------------------------

    def _tick(self) -> None:
        core, loop = self._core, self._loop
        if core is None or loop is None or self._error is not None:
            return
        loop.call_later(core.tick_ns / NS_PER_SECOND, self._tick)
        if self._persisting_since is not None and loop.time() - self._persisting_since > DISK_STALL_SECONDS:
            self._disk_hangs = True
            self._fail(
                SyncFailed(
                    f"the disk of {self._config.node.data_dir} has not finished a write for {DISK_STALL_SECONDS:g} s: "
                    "this node must stop; look at the disk before it is started again"
                )
            )
            return
        self._feed(lambda running: running.tick(read_clocks()))

    def _on_gone(self, raft_id: int) -> None:
        self._feed(lambda core: core.suspect(raft_id, read_clocks()))

    def _on_payload(self, sender: int, payload: bytes) -> None:
        if self._core is not None:
            self._feed(lambda core: core.receive(sender, payload, read_clocks()))

    def _feed(self, event: Callable[[MemberCore], list[Effect]]) -> None:
        """Step the core and run its effects; whatever goes wrong ends the node (R2)."""
        core = self._core
        if core is None or self._error is not None:
            return
        try:
            self._run(core, event(core))
            self._publish(core)
        except BaseException as error:  # noqa: BLE001 - an engine panic is a BaseException, and so is a broken invariant.
            self._fail(error)

    def _run(self, core: MemberCore, effects: list[Effect]) -> None:
        queue = deque(effects)
        while queue:
            effect = queue.popleft()
            match effect:
                case Send(peer, payload):
                    if self._transport is not None:
                        self._transport.send(peer, payload)
                case Persist():
                    if effect.must_sync or effect.entries:
                        self._begin_persist(effect)
                    else:
                        queue.extend(core.persisted(read_clocks()))
                case Grant(term, credential, span):
                    self._listener.granted(term, credential, span)
                case Renewed(span):
                    self._listener.renewed(span)
                case Revoke():
                    self._listener.revoked(effect.reason)
                case ReadFence() | RaiseFence():
                    self._begin_fence(core, effect)
                case Proposed() | Rejected() | Apply() | Proved():
                    self._listener.user_effect(effect)
                case _:
                    pass

    def _begin_persist(self, effect: Persist) -> None:
        store = self._require_directory().store
        future = asyncio.get_running_loop().run_in_executor(
            self._disk,
            lambda: store.save(first=effect.first, entries=effect.entries, hard_state=effect.hard_state),
        )
        self._persisting_since = asyncio.get_running_loop().time()
        future.add_done_callback(self._end_persist)

    def _end_persist(self, future: asyncio.Future[None]) -> None:
        self._persisting_since = None
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._fail(error)
        else:
            self._feed(lambda core: core.persisted(read_clocks()))

    def _begin_fence(self, core: MemberCore, effect: ReadFence | RaiseFence) -> None:
        fence = self._fence
        if fence is None:
            raise InvariantViolated("the core asked for a fence that was not configured")
        if isinstance(effect, ReadFence):
            self._spawn(self._read_fence(fence, core, effect.request))
        else:
            self._spawn(self._raise_fence(fence, core, effect))

    async def _read_fence(self, fence: FenceAdapter, core: MemberCore, request: int) -> None:
        answer = await fence.read(core.state)
        self._feed(lambda running: running.fence_read(request, answer, read_clocks()))

    async def _raise_fence(self, fence: FenceAdapter, core: MemberCore, effect: RaiseFence) -> None:
        answer = await fence.raise_token(
            effect.credential, effect.expected, generation=effect.generation, lineage=core.state.lineage
        )
        self._feed(lambda running: running.fence_raised(effect.request, answer, read_clocks()))

    def _begin_note(self, token: int, why: str) -> None:
        if self._fence is not None:
            self._spawn(self._fence.note_refused(sent=token, why=why))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end_task)

    def _end_task(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _publish(self, core: MemberCore) -> None:
        self.published = core.view()
        self._listener.published(self.published)
        if self._leaving and self.published.phase is Phase.FOLLOWING:
            for future in self._leaving:
                if not future.done():
                    future.set_result(None)
            self._leaving.clear()
        state = self.published.shown_state(read_clocks())
        shown = (state, self.published.term, self.published.reason)
        if shown != self._last_shown:
            self._last_shown = shown
            self._listener.changed(state, self.published)

    # -- the end ----------------------------------------------------------------------------------------------------

    def _fail(self, error: BaseException) -> None:
        """R2: the node is unusable. Leadership ends, nothing more is sent, the owner is told to exit."""
        if self._error is not None:
            return
        if not isinstance(error, TenureError | InvariantViolated | asyncio.CancelledError):
            wrapped = EngineFailed(f"{type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        self._error = error
        self.published = msgspec.structs.replace(self.published, phase=Phase.FOLLOWING, span=None, reason=str(error))
        if not self._opened.done():
            self._opened.set_exception(error)
        self._listener.on_failure(error)
        if self._stopping is not None:
            self._stopping.set()

    async def _close(self) -> None:
        # Nothing is fed to the core any more, or it could ask the fence for something after that was closed.
        self._core = None
        self.published = msgspec.structs.replace(
            self.published, phase=Phase.FOLLOWING, raft_role="follower", leader_id=0, span=None
        )
        closers: list[Awaitable[None]] = []
        for task in list(self._tasks):
            task.cancel()
        if self._transport is not None:
            closers.append(self._transport.close())
        if self._fence is not None:
            closers.append(self._fence.close())
        await asyncio.gather(*closers, return_exceptions=True)
        if self._disk_hangs:
            # The disk hangs: its thread cannot be waited for. The lock on the directory ends with the process.
            self._disk.shutdown(wait=False)
            return
        if self._directory is not None:
            await asyncio.get_running_loop().run_in_executor(self._disk, self._directory.close)
        self._disk.shutdown(wait=True)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Use uvloop where it is installed: it halves the cost of a wake-up."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
