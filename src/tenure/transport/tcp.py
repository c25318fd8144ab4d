"""The peer transport: one ordered TCP stream from each member to each other one, with a handshake before any frame.

::

    dialer:    connect -> TLS -> HELLO -> wait for HELLO or REFUSED (and a HELLO behind it) -> frames, one way only
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
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, NamedTuple

from tenure.config import parse_address
from tenure.core.founding import Hello
from tenure.transport import frames, sockets
from tenure.transport.accepting import Acceptor
from tenure.transport.frames import HELLO_LIMIT, REFUSAL_BYTES_MAX, Frame, FrameError, Kind
from tenure.transport.greeting import Lives, NotAdmitted, hear_refusal, judge_answer
from tenure.transport.protocol import Identity, TransportHooks
from tenure.transport.tls import Certificates

__all__ = ["Identity", "TcpTransport"]

#: What may wait in one peer's socket before further frames to it are dropped.
SEND_BUFFER_LIMIT = 16 << 20
RECONNECT_SECONDS_MIN = 0.02
RECONNECT_SECONDS_MAX = 0.5
#: How often the files of the certificate are looked at.
RELOAD_SECONDS = 5.0
#: How often open streams are compared with the members; a frame of a stranger is not taken in between either.
MEMBERSHIP_SECONDS = 0.5

logger = logging.getLogger("tenure.transport")


class Outgoing(NamedTuple):
    """A stream that was dialled and admitted: to whom, and the head of each frame on it."""

    name: str
    writer: asyncio.StreamWriter
    head: bytes


class TcpTransport:
    """Carries payloads between founded members, and hellos between new ones. One event loop owns it."""

    def __init__(
        self,
        *,
        listen: str,
        peers: Mapping[str, str],
        hooks: TransportHooks,
        certificates: Certificates | None = None,
        reload_seconds: float = RELOAD_SECONDS,
    ) -> None:
        """Listens at ``listen`` and dials ``peers`` (by name), each HOST:PORT.

        :class:`ValueError` if ``listen`` is none.
        """
        self._listen = parse_address(listen)
        self._peers = dict(peers)
        self._hooks = hooks
        self._certificates = certificates
        self._acceptor = Acceptor(hooks, certificates)
        self._lives = Lives(hooks)
        self._reload_seconds = reload_seconds
        self._reload_now = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._diallers: dict[str, asyncio.Task[None]] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._running = False
        self.dropped_frames = 0
        #: Why the last handshake with a member failed, by name; empty once it is connected.
        self.problems: dict[str, str] = {}

    @property
    def refused_connections(self) -> int:
        """Accepted connections that ended before this member took frames from them."""
        return self._acceptor.refused_connections

    async def start(self) -> int:
        """Listen and begin to dial; returns the bound port. :class:`OSError` if the address cannot be bound."""
        bound = await self._acceptor.start(*self._listen)
        self._running = True
        self._begin(self._watch_members())
        if self._certificates is not None:
            self._begin(self._watch_certificates(self._certificates))
        for name in self._peers:
            self._begin_dialling(name)
        return bound

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """See :meth:`tenure.transport.Transport.set_peers`."""
        for name, address in self._peers.items():
            if peers.get(name) != address:
                self._end_dialling(name)
            if name not in peers:
                self._lives.forget(name)
        self._peers = dict(peers)
        self._close_streams_of_strangers()
        if self._running:
            for name in self._peers.keys() - self._diallers.keys():
                self._begin_dialling(name)

    def send(self, peer: int, payload: bytes) -> None:
        """Send to the member ``peer``, or drop: it is not connected, or it does not read."""
        stream = self._outgoing.get(peer)
        if stream is not None:
            # A connection that has just died is still listed until its reader wakes up, and uvloop raises for it.
            with contextlib.suppress(RuntimeError):
                transport = stream.writer.transport
                if not transport.is_closing() and transport.get_write_buffer_size() <= SEND_BUFFER_LIMIT:
                    stream.writer.write(frames.encode_behind(stream.head, payload))
                    return
        self.dropped_frames += 1

    def connected(self) -> set[int]:
        """The members that this one can send to now."""
        return set(self._outgoing)

    def reload_certificates(self) -> None:
        """Look at the files of the certificate now. New connections use what is good; open ones stay as they are."""
        self._reload_now.set()

    async def close(self) -> None:
        """Stop listening and dialling, close every stream. Cancellation-safe; idempotent."""
        self._running = False
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(self._acceptor.close(), *tasks, return_exceptions=True)

    # -- in the background -------------------------------------------------------------------------------------------

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _begin_dialling(self, name: str) -> None:
        self._diallers[name] = self._begin(self._dial(name, self._peers[name]))

    def _end_dialling(self, name: str) -> None:
        self.problems.pop(name, None)
        dialler = self._diallers.pop(name, None)
        if dialler is not None:
            dialler.cancel()
        self._close_streams(lambda stream, _: stream.name == name)

    def _close_streams(self, unwanted: Callable[[Outgoing, int], bool]) -> None:
        for raft_id, stream in list(self._outgoing.items()):
            if unwanted(stream, raft_id):
                del self._outgoing[raft_id]
                stream.writer.transport.abort()

    def _close_streams_of_strangers(self) -> None:
        self._acceptor.close_streams_of_strangers()
        self._close_streams(lambda stream, raft_id: self._hooks.raft_id_of(stream.name) != raft_id)

    async def _watch_members(self) -> None:
        while True:
            await asyncio.sleep(MEMBERSHIP_SECONDS)
            self._close_streams_of_strangers()

    async def _watch_certificates(self, certificates: Certificates) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._reload_seconds):
                    await self._reload_now.wait()
            self._reload_now.clear()
            await asyncio.to_thread(certificates.refresh)

    # -- the dialling side -------------------------------------------------------------------------------------------

    async def _dial(self, name: str, address: str) -> None:
        delay = RECONNECT_SECONDS_MIN
        while True:
            try:
                if await self._converse(name, address) >= RECONNECT_SECONDS_MAX:
                    delay = RECONNECT_SECONDS_MIN
            except ConnectionRefusedError as error:
                # Nobody listens where a member was: its process has ended. A reset alone says nothing of the kind.
                self._note_problem(name, str(error))
                self._lives.ended(name)
            except asyncio.IncompleteReadError:
                self._note_problem(
                    name, "it closes the connection in the handshake; is raft.tls the same on both sides?"
                )
            except (OSError, FrameError, NotAdmitted, TimeoutError, ValueError) as error:
                # A ValueError: the address is none, or its host is no name. It may come from the log of the cluster.
                self._note_problem(name, str(error) or type(error).__name__)
            except Exception as error:
                # A dialler must not end, since nobody starts it again.
                if name not in self.problems:
                    logger.exception("dialling %s failed", name)
                self._note_problem(name, str(error) or type(error).__name__)
            await asyncio.sleep(delay)
            delay = min(delay * 2, RECONNECT_SECONDS_MAX)

    async def _converse(self, name: str, address: str) -> float:
        """One connection to ``name`` from connect to end; how many seconds frames could be sent on it."""
        async with asyncio.timeout(sockets.HANDSHAKE_TIMEOUT_SECONDS):
            reader, writer = await self._connect(*parse_address(address))
            sockets.bound_silence(writer.transport)
            with _aborting_on_failure(writer):
                identity = self._hooks.identity()
                writer.write(identity.frame(Kind.HELLO, frames.encode_hello(identity.hello)))
                answer = await _read_frame(reader, limit=HELLO_LIMIT)
                if answer.kind is Kind.REFUSED:
                    self._check_certificate(writer, name)
                    hello = await _read_hello_if_any(reader)
                    hear_refusal(self._hooks, name, answer.payload[:REFUSAL_BYTES_MAX].decode(errors="replace"), hello)
        with contextlib.closing(writer), _aborting_on_failure(writer):
            hello = self._hello_of(answer, writer)
            raft_id = judge_answer(self._hooks, name, hello)
            self.problems.pop(name, None)
            self._lives.met(name, hello.incarnation)
            stream = Outgoing(name, writer, self._hooks.identity().head(Kind.MESSAGES))
            self._outgoing[raft_id] = stream
            loop = asyncio.get_running_loop()
            opened = loop.time()
            try:
                # The acceptor never answers: the read ends when the connection does, whichever way it ends.
                with contextlib.suppress(OSError):
                    await reader.read(1)
            finally:
                if self._outgoing.get(raft_id) is stream:
                    del self._outgoing[raft_id]
            return loop.time() - opened

    def _hello_of(self, answer: Frame, writer: asyncio.StreamWriter) -> Hello:
        if answer.kind is not Kind.HELLO:
            raise FrameError("the answer to the hello is none")
        hello = frames.decode_hello(answer.payload)
        self._check_certificate(writer, hello.name)
        return hello

    def _check_certificate(self, writer: asyncio.StreamWriter, name: str) -> None:
        if self._certificates is not None:
            self._certificates.check(writer.get_extra_info("peercert"), name)

    async def _connect(self, host: str, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if self._certificates is None:
            return await asyncio.open_connection(host, port)
        # No name is announced (the empty one): members are told apart by their certificates alone.
        tls = sockets.tls_options(self._certificates.contexts.client)
        return await asyncio.open_connection(host, port, server_hostname="", **tls)

    def _note_problem(self, name: str, problem: str) -> None:
        if self.problems.get(name) != problem:
            logger.info("no connection to %s: %s", name, problem)
        self.problems[name] = problem


async def _read_frame(reader: asyncio.StreamReader, *, limit: int) -> Frame:
    length = frames.decode_length(await reader.readexactly(frames.LENGTH_BYTES), limit=limit)
    return frames.decode(await reader.readexactly(length))


async def _read_hello_if_any(reader: asyncio.StreamReader) -> Hello | None:
    """What whoever refuses says of itself and the members; None where it closes without a word."""
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, FrameError):
        frame = await _read_frame(reader, limit=HELLO_LIMIT)
        if frame.kind is Kind.HELLO:
            return frames.decode_hello(frame.payload)
    return None


@contextlib.contextmanager
def _aborting_on_failure(writer: asyncio.StreamWriter) -> Iterator[None]:
    """Where something went wrong nobody waits for a farewell of TLS, which the other side may never send."""
    try:
        yield
    except BaseException:
        writer.transport.abort()
        raise
