"""A state that a user brings takes the place of the state on all members, in the order of the log.

::

    restore(chunks) --cut--> parts, a few in flight --log--> every member: spool --last part--> fsm.restore(spool)

What a member has of it is decided by the log alone, so that it is the same on all of them: a part counts if it follows
the one before it in the same restore and the same term. A leader that is lost in the middle therefore leaves nothing:
the next term drops the spool. Nothing of a restore reaches the state machine before its last part is committed.

The spool is a file without a name in the data directory: it ends with the process, and a restart fills it again from
the log. For that no snapshot may be taken in the middle of a restore.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import secrets
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from tenure.core.commands import RestorePart, encode_part
from tenure.core.manifest import Manifest
from tenure.core.state_machine import StateMachine
from tenure.errors import (
    LogCorrupt,
    NodeClosed,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    StorageError,
    StorageFull,
)
from tenure.node.clocks import read_clocks
from tenure.node.driver import Driver

logger = logging.getLogger("tenure.raft")

PART_BYTES_MAX = 512 << 10
#: Parts that may be on their way at once: heartbeats pass between them, and slow members bound the leader's memory.
IN_FLIGHT_MAX = 3
_GIVE_UP_TIMEOUT_MS = 5000
_TRY_AGAIN_SECONDS = 0.1

Submit = Callable[[bytes, int], Awaitable[Any]]


class Spool:
    """One member's copy of a restore that is on its way. One thread owns it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._id = b""
        self._parts = 0
        self._checksum = 0
        #: The term in which the restore goes on; 0 if there is none.
        self.term = 0

    def take(self, part: RestorePart, *, term: int) -> bool:
        """Add a part that was committed in ``term``; False if it continues nothing that is here.

        Raises:
            StorageError: it could not be written: this member cannot follow the log any more.
        """
        if part.given_up:
            if part.restore_id == self._id:
                self.drop()
            return True
        if part.number == 0:
            self.drop()
            self._id, self.term = part.restore_id, term
        elif (part.restore_id, part.number, term) != (self._id, self._parts, self.term):
            return False
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - see ``drop``.
            _write(self._file, part.data)
        except OSError as error:
            kind = StorageFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else StorageError
            raise kind(f"a state that is being restored cannot be kept in {self._folder}: {error.strerror}") from error
        self._checksum = zlib.crc32(part.data, self._checksum)
        self._parts += 1
        return True

    def chunks(self) -> Iterator[bytes]:
        """All of it, from its start.

        Raises:
            LogCorrupt: the file does not give back what was written; only found at its end.
        """
        if self._file is None:
            return
        self._file.seek(0)
        checksum = 0
        while chunk := self._file.read(PART_BYTES_MAX):
            checksum = zlib.crc32(chunk, checksum)
            yield chunk
        if checksum != self._checksum:
            raise LogCorrupt("the disk gives back another state than was written to it", path=str(self._folder))

    def drop(self) -> None:
        """Forget it."""
        if self._file is not None:
            self._file.close()
        self._file, self._id, self._parts, self._checksum, self.term = None, b"", 0, 0, 0


class Restoring:
    """What one member has to do with states that users bring. The application's loop owns it."""

    def __init__(self, folder: Path, fsm: StateMachine, driver: Driver) -> None:
        self._fsm = fsm
        self._driver = driver
        self._spool = Spool(folder)
        #: A snapshot was due in the middle of a restore.
        self._snapshot_waits = False
        self._bringer: Bringer | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def bring(self, chunks: Iterable[bytes], submit: Submit, *, term: int, timeout_ms: int) -> None:
        """As the leader of ``term``, send ``chunks`` to all members; raises as :meth:`Bringer.bring`."""
        if self._bringer is not None:
            raise ProposalDropped("another restore is under way on this member: nothing was proposed")
        self._bringer = bringer = Bringer(submit, timeout_ms=timeout_ms)
        try:
            await bringer.bring(chunks)
        except BaseException:
            task = asyncio.get_running_loop().create_task(self._give_up(bringer, term))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            raise
        finally:
            self._bringer = None

    def apply(self, part: RestorePart, *, term: int) -> bool:
        """A part was committed in ``term``; False if it continues nothing that is here.

        Raises:
            StorageError: see :class:`Spool`; and whatever the state machine raises.
        """
        taken = self._spool.take(part, term=term)
        restored = taken and part.last
        if restored:
            self._fsm.restore(self._spool.chunks())
            self._spool.drop()
        if restored or (self._snapshot_waits and not self._spool.term):
            # The log is long now, and nobody needs what it holds.
            self._snapshot_waits = False
            self._driver.post(lambda core: core.ask_snapshot(None, read_clocks()))
        return taken

    def declines(self, due: Manifest) -> bool:
        """Whether the snapshot that is due now must wait: behind it the log has the rest of an unfinished restore."""
        self.reached(due.term)
        if not self._spool.term:
            return False
        logger.info("no snapshot is taken at entry %s, in the middle of a restore", due.index)
        self._snapshot_waits = True
        return True

    def reached(self, term: int) -> None:
        """The log has come to ``term``: no part of another one can continue what is here."""
        if self._spool.term not in (0, term):
            self._spool.drop()

    def drop(self) -> None:
        """A leader's snapshot took the place of everything."""
        self._spool.drop()

    def end(self) -> None:
        """The node is closed or has failed. Idempotent."""
        self._spool.drop()
        if self._bringer is not None:
            self._bringer.end()
        for task in self._tasks:
            task.cancel()

    async def _give_up(self, bringer: Bringer, term: int) -> None:
        """End a restore that failed, for until then no member takes a snapshot. Another term ends it by itself."""
        while (view := self._driver.published).raft_role == "leader" and view.term == term:
            try:
                await bringer.give_up()
            except NodeClosed:
                return
            except (NotLeader, ProposalDropped, OutcomeUnknown):
                await asyncio.sleep(_TRY_AGAIN_SECONDS)
            else:
                return


class Bringer:
    """The caller's side of one restore, on the leader."""

    def __init__(self, submit: Submit, *, timeout_ms: int) -> None:
        self._submit = submit
        self._deadline = time.monotonic() + timeout_ms / 1000
        self._id = secrets.token_bytes(16)
        self._in_flight: deque[asyncio.Future[Any]] = deque()
        self._ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def bring(self, chunks: Iterable[bytes]) -> None:
        """Send everything; returns once the own state machine has been restored.

        Raises:
            NotLeader, ProposalDropped: surely not restored, now or later.
            NodeClosed: the node ended; surely not restored unless the last part stood in the log.
            OutcomeUnknown: the last part is on its way, and nothing is known of it at the deadline.
            Whatever reading ``chunks`` raised: surely not restored.
        """
        pieces = _pieces(chunks)
        try:
            number, piece = 0, await self._read(pieces) or b""
            while (following := await self._read(pieces)) is not None:
                while len(self._in_flight) >= IN_FLIGHT_MAX:
                    await _settle(self._in_flight.popleft())
                part = encode_part(RestorePart(self._id, number, piece))
                self._in_flight.append(asyncio.ensure_future(self._submit(part, self._left_ms())))
                number, piece = number + 1, following
            while self._in_flight:
                await _settle(self._in_flight.popleft())
        finally:
            for future in self._in_flight:
                future.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)
        last = RestorePart(self._id, number, piece, last=True)
        if not await self._submit(encode_part(last), self._left_ms()):
            raise _overtaken()

    def end(self) -> None:
        """The node is closed or has failed."""
        if not self._ended.done():
            self._ended.set_result(None)

    async def give_up(self) -> None:
        """Have every member forget what came of it; raises as ``apply`` does."""
        await self._submit(encode_part(RestorePart(self._id, 0, b"", given_up=True)), _GIVE_UP_TIMEOUT_MS)

    async def _read(self, pieces: Iterator[bytes]) -> bytes | None:
        """The next piece. Whoever reads a slow source hears at once that it is of no use any more."""
        reading = asyncio.ensure_future(asyncio.to_thread(next, pieces, None))
        try:
            while not reading.done():
                news: set[asyncio.Future[Any]] = {reading, self._ended, *self._in_flight}
                await asyncio.wait(news, timeout=self._left_ms() / 1000, return_when=asyncio.FIRST_COMPLETED)
                if self._ended.done():
                    raise NodeClosed
                for future in [future for future in self._in_flight if future.done()]:
                    self._in_flight.remove(future)
                    await _settle(future)
            return reading.result()
        finally:
            reading.cancel()

    def _left_ms(self) -> int:
        left = int(1000 * (self._deadline - time.monotonic()))
        if left <= 0:
            raise _late()
        return left


async def _settle(part: asyncio.Future[Any]) -> None:
    try:
        taken = await part
    except OutcomeUnknown:
        raise _late() from None
    if not taken:
        raise _overtaken()


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size, the last one apart; none if there are no bytes."""
    waiting = bytearray()
    for chunk in chunks:
        for start in range(0, len(chunk), PART_BYTES_MAX):
            waiting += chunk[start : start + PART_BYTES_MAX]
            while len(waiting) >= PART_BYTES_MAX:
                yield bytes(waiting[:PART_BYTES_MAX])
                del waiting[:PART_BYTES_MAX]
    if waiting:
        yield bytes(waiting)


def _write(file: IO[bytes], data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def _late() -> ProposalDropped:
    return ProposalDropped("the state did not get to the members within the timeout: nothing was restored")


def _overtaken() -> ProposalDropped:
    return ProposalDropped("another restore or another leader came in between: nothing was restored")
