"""The peer transport: one ordered TCP stream from each member to each other one, with a handshake before any frame.

::

    dialer:    connect -> TLS -> HELLO -> wait for HELLO or REFUSED -> frames, one way only
    acceptor:  TLS -> HELLO -> answer -> frames of that sender and incarnation until the stream ends

Each member dials every other one and only sends on the stream that it dialled. A newer stream of the same sender
replaces the older one, whose frames are then dropped (raft-rs 0.7.0 wants no reordered replies). What cannot be sent
now is dropped: Raft repeats what matters. With certificates it speaks TLS 1.3 alone, and nothing that a peer says of
itself is believed that its certificate does not say, too (R3); without them it is plain TCP, which ``config`` refuses
outside loopback unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tenure.config import parse_address
from tenure.core.founding import Hello
from tenure.transport import frames
from tenure.transport.frames import FRAME_LIMIT, HELLO_LIMIT, NO_CLUSTER, Frame, FrameError, Kind
from tenure.transport.tls import Certificates

#: What may wait in one peer's socket before further frames to it are dropped.
SEND_BUFFER_LIMIT = 16 << 20
HANDSHAKE_TIMEOUT_SECONDS = 3.0
RECONNECT_SECONDS_MIN = 0.02
RECONNECT_SECONDS_MAX = 0.5
#: A peer that acknowledges nothing for so long is given up and dialled again. Left to itself, TCP would repeat more and
#: more rarely, and after a long cut some of the members would not hear of one another for minutes.
SILENCE_SECONDS_MAX = 3
#: Accepted connections that have not said hello yet; more are closed at once.
UNGREETED_LIMIT = 64
#: How long a finished connection waits for the farewell of the other side's TLS.
TLS_SHUTDOWN_SECONDS = 1.0
#: After a failed accept (no free descriptor, most likely) the next one waits this long.
ACCEPT_RETRY_SECONDS = 0.5
#: How often the files of the certificate are looked at.
RELOAD_SECONDS = 5.0

logger = logging.getLogger("tenure.transport")


@dataclass(frozen=True, slots=True)
class Identity:
    """How this member presents itself now: its hello, and the header of its frames once it is founded."""

    hello: Hello
    cluster: bytes
    sender: int


class TcpTransport:
    """Carries payloads between founded members, and hellos between new ones. One event loop owns it."""

    def __init__(
        self,
        *,
        listen: str,
        peers: Mapping[str, str],
        identity: Callable[[], Identity],
        admit: Callable[[Hello, str | None], str | None],
        raft_id_of: Callable[[str], int | None],
        on_payload: Callable[[int, bytes], None],
        on_hello: Callable[[Hello], None],
        on_gone: Callable[[int], None] = lambda _: None,
        certificates: Certificates | None = None,
        reload_seconds: float = RELOAD_SECONDS,
    ) -> None:
        self._listen = parse_address(listen)
        self._peers = {name: parse_address(address) for name, address in peers.items()}
        self._identity = identity
        self._admit = admit
        self._raft_id_of = raft_id_of
        self._on_payload = on_payload
        self._on_hello = on_hello
        self._on_gone = on_gone
        #: The incarnation of each member that this one was last connected to: what it means to be gone.
        self._lives: dict[str, int] = {}
        self._certificates = certificates
        self._reload_seconds = reload_seconds
        self._reload_now = asyncio.Event()
        self._listeners: list[socket.socket] = []
        self._background: list[asyncio.Task[None]] = []
        self._outgoing: dict[int, asyncio.StreamWriter] = {}
        self._incoming: dict[int, asyncio.StreamWriter] = {}
        self._handlers: set[asyncio.Task[None]] = set()
        self._ungreeted = 0
        self.dropped_frames = 0
        #: Accepted connections that ended before this member took frames from them.
        self.refused_connections = 0
        #: Why the last handshake with a member failed, by name; empty once it is connected.
        self.problems: dict[str, str] = {}

    async def start(self) -> int:
        """Listen and begin to dial; returns the bound port. :class:`OSError` if the address cannot be bound."""
        host, port = self._listen
        self._listeners = await _listen(host, port)
        works = [self._accept(listener) for listener in self._listeners] + [self._dial(name) for name in self._peers]
        if self._certificates is not None:
            works.append(self._watch_certificates(self._certificates))
        self._background = [asyncio.create_task(work) for work in works]
        bound: int = self._listeners[0].getsockname()[1]
        return bound

    def send(self, peer: int, payload: bytes) -> None:
        """Send to the member ``peer``, or drop: it is not connected, or it does not read."""
        writer = self._outgoing.get(peer)
        if writer is None or writer.transport.get_write_buffer_size() > SEND_BUFFER_LIMIT:
            self.dropped_frames += 1
            return
        writer.write(self._frame(Kind.MESSAGES, payload))

    def connected(self) -> set[int]:
        """The members that this one can send to now."""
        return set(self._outgoing)

    def reload_certificates(self) -> None:
        """Look at the files of the certificate now. New connections use what is good; open ones stay as they are."""
        self._reload_now.set()

    async def close(self) -> None:
        """Stop listening and dialling, close every stream. Cancellation-safe; idempotent."""
        tasks = [*self._background, *self._handlers]
        self._background = []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self._listeners:
            listener.close()

    async def _watch_certificates(self, certificates: Certificates) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._reload_seconds):
                    await self._reload_now.wait()
            self._reload_now.clear()
            await asyncio.to_thread(certificates.refresh)

    # -- the dialling side ----------------------------------------------------------------------------------------

    async def _dial(self, name: str) -> None:
        delay = RECONNECT_SECONDS_MIN
        while True:
            try:
                if await self._converse(name):
                    delay = RECONNECT_SECONDS_MIN
            except ConnectionRefusedError as error:
                # Nobody listens where a member was: its process has ended. A reset alone says nothing of the kind.
                self._note_problem(name, str(error))
                self._tell_gone(name)
            except asyncio.IncompleteReadError:
                self._note_problem(
                    name, "it closes the connection in the handshake; is raft.tls the same on both sides?"
                )
            except (OSError, FrameError, TimeoutError) as error:
                self._note_problem(name, str(error) or type(error).__name__)
            except Exception as error:
                # A dialler must not end, since nobody starts it again. A host name that cannot be encoded gets here.
                if name not in self.problems:
                    logger.exception("dialling %s failed", name)
                self._note_problem(name, str(error) or type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RECONNECT_SECONDS_MAX)

    async def _converse(self, name: str) -> bool:
        """One connection to ``name`` from connect to end; True if it was admitted."""
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_SECONDS):
            reader, writer = await self._connect(name)
            _bound_silence(writer)
            with _aborting_on_failure(writer):
                writer.write(self._frame(Kind.HELLO, frames.encode_hello(self._identity().hello)))
                answer = await _read_frame(reader, limit=HELLO_LIMIT)
        with contextlib.closing(writer), _aborting_on_failure(writer):
            if answer.kind is Kind.REFUSED:
                reason = answer.payload.decode(errors="replace")
                self._note_problem(name, f"{name} refuses this node: {reason}")
                return False
            hello = frames.decode_hello(answer.payload)
            problem = self._certificate_problem(writer, hello)
            if problem is None:
                if hello.name == name:
                    # Only the configured address speaks for a member; what dials in may call itself anything.
                    self._on_hello(hello)
                problem = self._admit(hello, name)
            raft_id = self._raft_id_of(name)
            if problem is not None or raft_id is None:
                self._note_problem(name, problem or f"{name} is not a member")
                return False
            self.problems.pop(name, None)
            if self._lives.get(name, hello.incarnation) != hello.incarnation:
                self._tell_gone(name)
            self._lives[name] = hello.incarnation
            self._outgoing[raft_id] = writer
            try:
                # The acceptor never answers: the read ends when the connection does, whichever way it ends.
                with contextlib.suppress(OSError):
                    await reader.read(1)
            finally:
                if self._outgoing.get(raft_id) is writer:
                    del self._outgoing[raft_id]
            return True

    def _tell_gone(self, name: str) -> None:
        """Once for each life of a member that this one was connected to: that life is over."""
        raft_id = self._raft_id_of(name)
        if self._lives.pop(name, None) is not None and raft_id is not None:
            self._on_gone(raft_id)

    async def _connect(self, name: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._peers[name]
        if self._certificates is None:
            return await asyncio.open_connection(host, port)
        # No name is announced (the empty one): members are told apart by their certificates alone.
        tls = _tls(self._certificates.contexts.client)
        return await asyncio.open_connection(host, port, server_hostname="", **tls)

    def _certificate_problem(self, writer: asyncio.StreamWriter, hello: Hello) -> str | None:
        """Why the peer's certificate does not let it say this hello; None also without TLS."""
        if self._certificates is None:
            return None
        return self._certificates.problem_of(writer.get_extra_info("peercert"), hello.name)

    def _note_problem(self, name: str, problem: str) -> None:
        if self.problems.get(name) != problem:
            logger.info("no connection to %s: %s", name, problem)
        self.problems[name] = problem

    # -- the accepting side -----------------------------------------------------------------------------------------

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(listener)
            except OSError as error:
                logger.warning("no connection is accepted for now: %s", error)
                await asyncio.sleep(ACCEPT_RETRY_SECONDS)
                continue
            if self._ungreeted >= UNGREETED_LIMIT:
                self.refused_connections += 1
                connection.close()
                continue
            self._ungreeted += 1
            task = asyncio.create_task(self._serve(connection), name="peer connection")
            self._handlers.add(task)
            task.add_done_callback(self._handlers.discard)

    async def _serve(self, connection: socket.socket) -> None:
        admitted: Hello | None = None
        try:
            try:
                async with asyncio.timeout(HANDSHAKE_TIMEOUT_SECONDS):
                    reader, writer = await self._take(connection)
                    with _aborting_on_failure(writer):
                        _bound_silence(writer)
                        admitted = await self._greet(reader, writer)
            finally:
                self._ungreeted -= 1
                self.refused_connections += admitted is None
            with contextlib.closing(writer), _aborting_on_failure(writer):
                if admitted is not None:
                    await self._read_frames(admitted, reader, writer)
        except (OSError, FrameError, TimeoutError, asyncio.IncompleteReadError) as error:
            logger.debug("peer connection ended: %s", str(error) or type(error).__name__)

    async def _take(self, connection: socket.socket) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The streams of an accepted connection, behind the handshake of TLS where there are certificates."""
        # Not start_server: it hides a handshake that fails, and under uvloop no accepted stream can begin TLS later.
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
        tls = _tls(self._certificates.contexts.server) if self._certificates is not None else {}
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, **tls)
        return reader, asyncio.StreamWriter(transport, protocol, reader, loop)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello | None:
        frame = await _read_frame(reader, limit=HELLO_LIMIT)
        if frame.kind is not Kind.HELLO:
            raise FrameError("the first frame is no hello")
        hello = frames.decode_hello(frame.payload)
        own = self._identity().hello
        problem = self._certificate_problem(writer, hello)
        if problem is not None:
            logger.debug("peer connection refused: %s", problem)
        else:
            problem = self._admit(hello, None)
            if problem is None or not own.cluster_id or not hello.cluster_id:
                writer.write(self._frame(Kind.HELLO, frames.encode_hello(own)))
                await writer.drain()
                return None if problem is not None else hello
        writer.write(self._frame(Kind.REFUSED, problem.encode()))
        await writer.drain()
        return None

    async def _read_frames(self, hello: Hello, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sender = self._raft_id_of(hello.name)
        if sender is None:
            return
        older = self._incoming.get(sender)
        self._incoming[sender] = writer
        if older is not None:
            older.transport.abort()
        try:
            while True:
                frame = await _read_frame(reader, limit=FRAME_LIMIT)
                if self._incoming.get(sender) is not writer:
                    return
                expected = (Kind.MESSAGES, self._identity().cluster, sender, hello.incarnation)
                if (frame.kind, frame.cluster, frame.sender, frame.incarnation) != expected:
                    raise FrameError(f"a frame of another cluster, sender or incarnation came from {hello.name}")
                self._on_payload(sender, frame.payload)
        finally:
            if self._incoming.get(sender) is writer:
                del self._incoming[sender]

    def _frame(self, kind: Kind, payload: bytes) -> bytes:
        identity = self._identity()
        return frames.encode(
            kind,
            cluster=identity.cluster or NO_CLUSTER,
            sender=identity.sender,
            incarnation=identity.hello.incarnation,
            payload=payload,
        )


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Bind every address of ``host``; :class:`OSError` if one of them cannot be had."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            listeners.append(socket.create_server(address, family=family))
            listeners[-1].setblocking(False)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _tls(context: ssl.SSLContext) -> dict[str, Any]:
    return {
        "ssl": context,
        "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_SECONDS,
        "ssl_shutdown_timeout": TLS_SHUTDOWN_SECONDS,
    }


async def _read_frame(reader: asyncio.StreamReader, *, limit: int) -> Frame:
    length = frames.decode_length(await reader.readexactly(4), limit=limit)
    return frames.decode(await reader.readexactly(length))


def _bound_silence(writer: asyncio.StreamWriter) -> None:
    """End the connection when its other side vanished without a word."""
    connection = writer.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS_MAX * 1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)


@contextlib.contextmanager
def _aborting_on_failure(writer: asyncio.StreamWriter) -> Iterator[None]:
    """Where something went wrong nobody waits for a farewell of TLS, which the other side may never send."""
    try:
        yield
    except BaseException:
        writer.transport.abort()
        raise
