"""The peer transport: one ordered TCP stream from each member to each other one, with a handshake before any frame.

::

    dialer:    connect -> HELLO -> wait for HELLO or REFUSED -> frames, one way only
    acceptor:  HELLO -> answer -> frames of that sender and incarnation until the stream ends

Each member dials every other one and only sends on the stream that it dialled. A newer stream of the same sender
replaces the older one, whose frames are then dropped (raft-rs 0.7.0 wants no reordered replies). What cannot be sent
now is dropped: Raft repeats what matters. Plain TCP: ``config`` refuses it outside loopback unless told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tenure.config import parse_address
from tenure.core.founding import Hello
from tenure.transport import frames
from tenure.transport.frames import FRAME_LIMIT, HELLO_LIMIT, NO_CLUSTER, Frame, FrameError, Kind

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
    ) -> None:
        self._listen = parse_address(listen)
        self._peers = {name: parse_address(address) for name, address in peers.items()}
        self._identity = identity
        self._admit = admit
        self._raft_id_of = raft_id_of
        self._on_payload = on_payload
        self._on_hello = on_hello
        self._server: asyncio.Server | None = None
        self._dialers: list[asyncio.Task[None]] = []
        self._outgoing: dict[int, asyncio.StreamWriter] = {}
        self._incoming: dict[int, asyncio.StreamWriter] = {}
        self._handlers: set[asyncio.Task[None]] = set()
        self._ungreeted = 0
        self.dropped_frames = 0
        #: Why the last handshake with a member failed, by name; empty once it is connected.
        self.problems: dict[str, str] = {}

    async def start(self) -> int:
        """Listen and begin to dial; returns the bound port. :class:`OSError` if the address cannot be bound."""
        host, port = self._listen
        self._server = await asyncio.start_server(self._accept, host, port)
        self._dialers = [asyncio.create_task(self._dial(name), name=f"dial {name}") for name in self._peers]
        bound: int = self._server.sockets[0].getsockname()[1]
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

    async def close(self) -> None:
        """Stop listening and dialling, close every stream. Cancellation-safe; idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        tasks = [*self._dialers, *self._handlers]
        self._dialers = []
        for writer in self._outgoing.values():
            # A peer that does not read would keep a closed stream open until all is sent.
            writer.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # -- the dialling side ----------------------------------------------------------------------------------------

    async def _dial(self, name: str) -> None:
        delay = RECONNECT_SECONDS_MIN
        while True:
            try:
                if await self._converse(name):
                    delay = RECONNECT_SECONDS_MIN
            except (OSError, FrameError, TimeoutError, asyncio.IncompleteReadError) as error:
                self.problems[name] = str(error) or type(error).__name__
            except Exception as error:
                # A dialler must not end, since nobody starts it again. A host name that cannot be encoded gets here.
                if name not in self.problems:
                    logger.exception("dialling %s failed", name)
                self.problems[name] = str(error) or type(error).__name__
            await asyncio.sleep(delay)
            delay = min(delay * 2, RECONNECT_SECONDS_MAX)

    async def _converse(self, name: str) -> bool:
        """One connection to ``name`` from connect to end; True if it was admitted."""
        host, port = self._peers[name]
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_SECONDS):
            reader, writer = await asyncio.open_connection(host, port)
            _bound_silence(writer)
            with _closing_on_failure(writer):
                writer.write(self._frame(Kind.HELLO, frames.encode_hello(self._identity().hello)))
                answer = await _read_frame(reader, limit=HELLO_LIMIT)
        with contextlib.closing(writer):
            if answer.kind is Kind.REFUSED:
                self.problems[name] = f"{name} refuses this node: {answer.payload.decode(errors='replace')}"
                return False
            hello = frames.decode_hello(answer.payload)
            if hello.name == name:
                # Only the configured address speaks for a member; what dials in may call itself anything.
                self._on_hello(hello)
            problem = self._admit(hello, name)
            raft_id = self._raft_id_of(name)
            if problem is not None or raft_id is None:
                self.problems[name] = problem or f"{name} is not a member"
                return False
            self.problems.pop(name, None)
            self._outgoing[raft_id] = writer
            try:
                # The acceptor never answers: the read ends when the connection does.
                await reader.read(1)
            finally:
                if self._outgoing.get(raft_id) is writer:
                    del self._outgoing[raft_id]
            return True

    # -- the accepting side -----------------------------------------------------------------------------------------

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._ungreeted >= UNGREETED_LIMIT or self._server is None:
            writer.transport.abort()
            return
        task = asyncio.create_task(self._serve(reader, writer), name="peer connection")
        self._handlers.add(task)
        task.add_done_callback(self._handlers.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer):
            try:
                _bound_silence(writer)
                hello = await self._greet(reader, writer)
                if hello is not None:
                    await self._read_frames(hello, reader, writer)
            except (OSError, FrameError, TimeoutError, asyncio.IncompleteReadError) as error:
                logger.debug("peer connection ended: %s", error)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Hello | None:
        self._ungreeted += 1
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_SECONDS):
                frame = await _read_frame(reader, limit=HELLO_LIMIT)
        finally:
            self._ungreeted -= 1
        if frame.kind is not Kind.HELLO:
            raise FrameError("the first frame is no hello")
        hello = frames.decode_hello(frame.payload)
        problem = self._admit(hello, None)
        own = self._identity().hello
        if problem is not None and own.cluster_id and hello.cluster_id:
            writer.write(self._frame(Kind.REFUSED, problem.encode()))
            await writer.drain()
            return None
        writer.write(self._frame(Kind.HELLO, frames.encode_hello(own)))
        await writer.drain()
        return None if problem is not None else hello

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
def _closing_on_failure(writer: asyncio.StreamWriter) -> Iterator[None]:
    try:
        yield
    except BaseException:
        writer.close()
        raise
