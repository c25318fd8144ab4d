"""The node's thread: an event loop of its own, and how other threads talk to it. It knows nothing of Raft."""

from __future__ import annotations

import abc
import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from tenure.errors import EngineFailed, InvariantViolated, NodeClosed, StorageError, TenureError

T = TypeVar("T")
logger = logging.getLogger("tenure.node")

#: A call that the thread must answer (open, close) waits at most this long.
CALL_TIMEOUT_SECONDS = 10.0


class NodeThread(abc.ABC):
    """Runs ``main`` on a thread and a loop of its own until ``stop`` is asked for. Everything else is posted to it."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: Future[None] = Future()
        self._stopping: asyncio.Event | None = None
        self._stop_asked = False
        self._questions: set[Future[Any]] = set()
        self._ended = False

    @abc.abstractmethod
    async def main(self) -> None:
        """What the thread does; it resolves ``_opened`` and ends after ``_stopping``."""

    @abc.abstractmethod
    def fail(self, error: BaseException) -> None:
        """The thread's last word, if ``main`` could not catch it."""

    @abc.abstractmethod
    def is_stuck(self) -> bool:
        """Whether the thread is known to hang: then nobody waits for its end."""

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
            raise StorageError(f"node.data_dir {self._folder} was not opened in {CALL_TIMEOUT_SECONDS} s") from error
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End the thread and wait for it. Idempotent; a cancellation only ends the waiting."""
        self.stop()
        patience = 0.0 if self.is_stuck() else CALL_TIMEOUT_SECONDS
        if not await asyncio.get_running_loop().run_in_executor(None, self.join, patience):
            logger.error("the node's thread did not end in %s s: its disk does not answer", patience)

    def start(self) -> Future[None]:
        """Start the thread. The future resolves once it is open, or fails."""
        self._thread = threading.Thread(target=self._run_thread, name="tenure-node", daemon=True)
        self._thread.start()
        return self._opened

    def stop(self) -> None:
        """Ask the thread to end. Any thread."""
        self._stop_asked = True
        if self._stopping is not None:
            self.call(self._stopping.set)

    def begin_stopping(self) -> asyncio.Event:
        """Called once by ``main``, first of all: set when the thread has to end, also if that was asked for before."""
        self._stopping = stopping = asyncio.Event()
        if self._stop_asked:
            stopping.set()
        return stopping

    def join(self, timeout_seconds: float) -> bool:
        """Wait for the thread; False if it did not end in time."""
        if self._thread is None:
            return True
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    def call(self, work: Callable[[], None]) -> None:
        """Run ``work`` on the thread's loop, soon. Any thread; dropped once the thread has ended."""
        loop = self._loop
        if loop is not None and not loop.is_closed():
            try:
                loop.call_soon_threadsafe(work)
            except RuntimeError:
                # The loop has closed between the check and the call: nobody is left to do it.
                return

    def soon(self, work: Callable[[], None], *, delay_seconds: float = 0.0) -> None:
        """Called on the thread: run ``work`` there later, after what is being sent now has left at the least."""
        loop = asyncio.get_running_loop()
        if delay_seconds > 0:
            loop.call_later(delay_seconds, work)
        else:
            loop.call_soon(work)

    def ask_thread(self, question: Callable[[], T]) -> Future[T]:
        """Answer ``question`` on the thread. Any thread; :class:`tenure.NodeClosed` if it has ended."""
        future: Future[T] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(question())
            except BaseException as error:  # noqa: BLE001 - whatever it is belongs to who asked.
                future.set_exception(error)

        # Noted before the look at the end, which looks at what is noted: one of the two always answers.
        self._questions.add(future)
        future.add_done_callback(self._questions.discard)
        if self._loop is None or self._ended:
            _refuse(future)
        else:
            self.call(answer)
        return future

    def _run_thread(self) -> None:
        try:
            with asyncio.Runner(loop_factory=_loop_factory()) as runner:
                self._loop = runner.get_loop()
                runner.run(self.main())
        except BaseException as error:  # noqa: BLE001 - the thread's last word: whatever it was must reach the owner.
            self.fail(error)
        finally:
            self._ended = True
            for future in list(self._questions):
                _refuse(future)


def required(part: T | None) -> T:
    """A part that is there while the node is open."""
    if part is None:
        raise NodeClosed
    return part


def _refuse(future: Future[Any]) -> None:
    """Nobody is left to answer."""
    with contextlib.suppress(InvalidStateError):
        future.set_exception(NodeClosed())


def as_failure(error: BaseException) -> BaseException:
    """The error that a failed node is told of by: an engine's panic, and whatever nobody thought of, get a name."""
    if isinstance(error, TenureError | InvariantViolated | asyncio.CancelledError):
        return error
    named = EngineFailed(f"{type(error).__name__}: {error}")
    named.__cause__ = error
    return named


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Use uvloop where it is installed: it halves the cost of a wake-up."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop
