"""The accepting side: who dials this member, is greeted or refused, and hands in frames until the stream ends (R3).

::

    accepted --TLS--> hello --judged--> admitted: frames of that member and that incarnation only
                                    --> founding: answered with a hello, and closed
                                    --> refused: told why (and, if of this cluster, who its members are), and closed

Whoever has not been admitted holds one of a few places, for a short time, and the place of the one that has held it
longest is given to the next. So silent strangers neither cost memory nor keep a member out, which needs milliseconds.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from datetime import UTC, datetime
from typing import NamedTuple

from tenure.core.founding import Hello
from tenure.transport import frames, sockets
from tenure.transport.frames import FRAME_LIMIT, REFUSAL_BYTES_MAX, FrameError, Kind, OtherProtocol
from tenure.transport.greeting import NotAdmitted, answer_hello
from tenure.transport.protocol import TransportHooks
from tenure.transport.receiving import FrameReceiver
from tenure.transport.tls import Certificates

#: Accepted connections that have not been admitted, at most.
UNGREETED_LIMIT = 64
#: After a failed accept (no free descriptor, most likely) the next one waits this long.
ACCEPT_RETRY_SECONDS = 0.5
#: What is wrong with the connections of one member, or of all strangers together, is logged at most this often.
COMPLAINT_SECONDS = 10.0

logger = logging.getLogger("tenure.transport")


class Incoming(NamedTuple):
    """The stream that one member's frames are taken from, and which life of which data directory is behind it."""

    name: str
    stream: FrameReceiver
    directory_id: str
    incarnation: int
    since: datetime


class Acceptor:
    """Takes connections and what arrives on them. One event loop owns it."""

    def __init__(self, hooks: TransportHooks, certificates: Certificates | None) -> None:
        self._hooks = hooks
        self._certificates = certificates
        self._listeners: list[socket.socket] = []
        self._tasks: set[asyncio.Task[None]] = set()
        #: Those that have not been admitted; the oldest is the first.
        self._ungreeted: dict[asyncio.Task[None], None] = {}
        #: By raft id.
        self._streams: dict[int, Incoming] = {}
        self._complained: dict[str, float] = {}
        #: Accepted connections that ended before this member took frames from them.
        self.refused_connections = 0

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the bound port. :class:`OSError` if an address cannot be bound."""
        self._listeners = await sockets.listen(host, port)
        for listener in self._listeners:
            self._listen(listener)
        bound: int = self._listeners[0].getsockname()[1]
        return bound

    async def close(self) -> None:
        """Stop listening, end every connection. Cancellation-safe; idempotent."""
        for listener in self._listeners:
            asyncio.get_running_loop().remove_reader(listener)
            listener.close()
        self._listeners = []
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close_streams_of_strangers(self) -> None:
        """End the streams of those who are no members any more, or who are members anew under another raft id."""
        for sender, incoming in self._streams.items():
            if self._hooks.raft_id_of(incoming.name) != sender:
                incoming.stream.abort(FrameError(f"{incoming.name} is no member any more"))

    # -- a connection from its accept to its end ---------------------------------------------------------------------

    def _listen(self, listener: socket.socket) -> None:
        if listener.fileno() != -1:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)

    def _accept(self, listener: socket.socket) -> None:
        """Take one connection that waits. Not by a task: one that is cancelled may have accepted, and would lose it."""
        loop = asyncio.get_running_loop()
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            logger.warning("no connection is accepted for now: %s", error)
            loop.remove_reader(listener)
            loop.call_later(ACCEPT_RETRY_SECONDS, self._listen, listener)
            return
        connection.setblocking(False)
        if len(self._ungreeted) >= UNGREETED_LIMIT:
            oldest = next(iter(self._ungreeted))
            self._leave_place(oldest, admitted=False)
            oldest.cancel()
        task = asyncio.create_task(self._serve(connection))
        self._ungreeted[task] = None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: connection.close())

    def _leave_place(self, task: asyncio.Task[None] | None, *, admitted: bool) -> None:
        if task in self._ungreeted:
            del self._ungreeted[task]
            self.refused_connections += not admitted

    async def _serve(self, connection: socket.socket) -> None:
        stream = FrameReceiver(self._greet)
        admitted = False
        try:
            try:
                async with asyncio.timeout(sockets.HANDSHAKE_TIMEOUT_SECONDS):
                    await self._take(connection, stream)
                    admitted = await stream.greeted
            finally:
                self._leave_place(asyncio.current_task(), admitted=admitted)
            error = await stream.ended
        except (OSError, TimeoutError) as failure:
            error = failure
        finally:
            stream.abort()
        if error is not None:
            logger.debug("peer connection ended: %s", str(error) or type(error).__name__)

    async def _take(self, connection: socket.socket, stream: FrameReceiver) -> None:
        """Have ``stream`` get what the connection brings, behind the handshake of TLS where there are certificates."""
        # Not start_server: it hides a handshake that fails, and under uvloop no accepted stream can begin TLS later.
        tls = sockets.tls_options(self._certificates.contexts.server) if self._certificates is not None else {}
        await asyncio.get_running_loop().connect_accepted_socket(lambda: stream, connection, **tls)

    # -- what arrives ------------------------------------------------------------------------------------------------

    def _greet(self, stream: FrameReceiver, head: bytes, payload: bytes) -> None:
        """Judge the first frame of a connection, answer it, and take what follows if it is a member's."""
        if head[0] != Kind.HELLO:
            raise FrameError("the first frame is no hello")
        try:
            hello = frames.decode_hello(payload)
        except OtherProtocol as error:
            self._complain(error.name, str(error))
            self._refuse(stream, str(error))
            return
        try:
            if self._certificates is not None:
                self._certificates.check(stream.certificate(), hello.name)
            answer = answer_hello(self._hooks, hello)
        except NotAdmitted as error:
            twin = self._twin_of(hello) if error.hello is not None else None
            self._refuse(stream, twin or str(error), told=error.hello)
            return
        self._answer(stream, Kind.HELLO, frames.encode_hello(answer.hello))
        if answer.sender is None:
            stream.close()
        else:
            self._admit(stream, answer.sender, hello)

    def _admit(self, stream: FrameReceiver, sender: int, hello: Hello) -> None:
        """Take the frames of this stream, and no longer those of an older one of the same member."""
        name = hello.name
        older = self._streams.get(sender)
        self._streams[sender] = Incoming(name, stream, hello.directory_id, hello.incarnation, datetime.now(UTC))
        stream.ended.add_done_callback(lambda _: self._forget(sender, stream))
        if older is not None:
            older.stream.abort()
        # A founded member's cluster does not change while its process lives, nor does the incarnation of a stream.
        cluster = self._hooks.identity().cluster
        expected = frames.encode_head(Kind.MESSAGES, cluster=cluster, sender=sender, incarnation=hello.incarnation)

        def take(head: bytes, payload: bytes) -> None:
            if head != expected:
                self._complain(name, problem := _problem_of(head, payload))
                raise FrameError(problem)
            if self._hooks.raft_id_of(name) != sender:
                raise FrameError(f"{name} is no member any more")
            self._hooks.on_payload(sender, payload)

        stream.expect_messages(take, limit=FRAME_LIMIT)

    def _forget(self, sender: int, stream: FrameReceiver) -> None:
        incoming = self._streams.get(sender)
        if incoming is not None and incoming.stream is stream:
            del self._streams[sender]

    def _twin_of(self, hello: Hello) -> str | None:
        """What to say to a process that is refused while another one on the same data directory is connected.

        Which of the two is the copy cannot be told from here: whoever came last may have opened the directory later.
        """
        for incoming in self._streams.values():
            if incoming.directory_id == hello.directory_id and incoming.incarnation != hello.incarnation:
                return (
                    f"another process with the same data directory (id {hello.directory_id}) is connected from "
                    f"{incoming.stream.peer_address()} since {incoming.since:%Y-%m-%dT%H:%M:%SZ}: stop one of the two; "
                    "if one is a copy, remove that one"
                )
        return None

    # -- answers -----------------------------------------------------------------------------------------------------

    def _refuse(self, stream: FrameReceiver, problem: str, told: Hello | None = None) -> None:
        logger.debug("peer connection refused: %s", problem)
        self._answer(stream, Kind.REFUSED, problem.encode()[:REFUSAL_BYTES_MAX])
        if told is not None:
            # Behind the refusal: a version that does not look for it has closed by then.
            self._answer(stream, Kind.HELLO, frames.encode_hello(told))
        stream.close()

    def _answer(self, stream: FrameReceiver, kind: Kind, payload: bytes) -> None:
        stream.answer(self._hooks.identity().frame(kind, payload))

    def _complain(self, name: str, problem: str) -> None:
        """Log what the operator should know of, without letting anybody fill the log with it."""
        source = name if self._hooks.raft_id_of(name) is not None else ""
        now = asyncio.get_running_loop().time()
        if now >= self._complained.get(source, now):
            self._complained[source] = now + COMPLAINT_SECONDS
            logger.warning("a connection from %s is closed: %s", source or "no member", problem)


def _problem_of(head: bytes, payload: bytes) -> str:
    """Why a frame is not the one that its stream may bring."""
    try:
        frame = frames.decode(head + payload)
    except FrameError as error:
        return str(error)
    if frame.kind is not Kind.MESSAGES:
        return f"a frame of kind {frame.kind.name} came after the hello"
    return "a frame of another cluster, sender or incarnation came"
