"""Any bytes at the port, from anyone: no crash, no memory that grows, no change of state (R3)."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenure.testing import Endpoint
from tenure.transport import TcpTransport, accepting, frames, receiving, sockets
from tenure.transport.frames import FRAME_LIMIT, HEAD_BYTES, HELLO_LIMIT, LENGTH_BYTES, FrameError, Kind
from tenure.transport.receiving import FrameReceiver

CLUSTER = bytes(range(16))
OTHER_CLUSTER = bytes(16)
BOUND_SECONDS = 20.0

Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Run]:
    """Run scenarios to their end, each within a bound, on one loop."""

    async def bounded(scenario: Coroutine[Any, Any, None]) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            await scenario

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda scenario: runner.run(bounded(scenario))


@contextlib.asynccontextmanager
async def listening(end: Endpoint, peers: dict[str, str] | None = None) -> AsyncIterator[tuple[TcpTransport, int]]:
    transport = TcpTransport(listen="127.0.0.1:0", peers=peers or {}, hooks=end.hooks)
    try:
        yield transport, await transport.start()
    finally:
        await transport.close()


async def connect(stack: contextlib.AsyncExitStack, port: int) -> socket.socket:
    """A stranger's connection, which stays until the stack ends."""
    connection = stack.enter_context(socket.socket())
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
    return connection


async def until(holds: Callable[[], bool]) -> None:
    while not holds():  # noqa: ASYNC110 - what the other side of a socket does leaves no event here.
        await asyncio.sleep(0.002)


def frame(kind: int, payload: bytes, *, cluster: bytes = CLUSTER, sender: int = 2, incarnation: int = 1) -> bytes:
    """A frame written by hand, so that the kind may be any."""
    head = bytes([kind]) + cluster + sender.to_bytes(8, "big") + incarnation.to_bytes(8, "big")
    return (len(head) + len(payload)).to_bytes(4, "big") + head + payload


GREETING = frame(1, frames.encode_hello(Endpoint("b").hooks.identity().hello))


# -- the cutting of frames, without a socket ---------------------------------------------------------------------------


class Socket(asyncio.Transport):
    """As much of a transport as a receiver needs; it says whether it was aborted."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


class Taken:
    """A receiver with what it handed out, fed in pieces."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(sockets, "bound_silence", lambda transport: None)
        self.frames: list[bytes] = []
        self.sizes: set[int] = set()
        self.socket = Socket()
        self.receiver = FrameReceiver(lambda _, head, payload: self.frames.append(head + payload))
        self.receiver.connection_made(self.socket)

    def feed(self, data: bytes, sizes: Iterator[int]) -> None:
        while data and not self.socket.aborted:
            buffer = self.receiver.get_buffer(-1)
            self.sizes.add(len(self.receiver._buffer))
            count = min(next(sizes), len(buffer), len(data))
            buffer[:count] = data[:count]
            self.receiver.buffer_updated(count)
            data = data[count:]


def endlessly(sizes: list[int]) -> Iterator[int]:
    while True:
        yield from sizes


#: A length, right or wrong, and a body.
ANNOUNCED = st.builds(
    lambda length, body: (len(body) if length is None else length).to_bytes(4, "big") + body,
    st.none() | st.integers(0, 2 * HEAD_BYTES) | st.sampled_from([HELLO_LIMIT, HELLO_LIMIT + 1, 2**32 - 1]),
    st.binary(min_size=HEAD_BYTES, max_size=80),
)
PIECES = st.lists(st.integers(1, 5000) | st.integers(1, 5), min_size=1, max_size=8)


@pytest.mark.asyncio
@given(payloads=st.lists(st.integers(0, 40_000) | st.integers(0, 40), max_size=12), pieces=PIECES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
async def test_R3_frames_are_the_same_when_they_come_in_any_pieces(
    monkeypatch: pytest.MonkeyPatch, payloads: list[int], pieces: list[int]
):
    """However the network cuts them, each is handed out whole, once and in order, from a buffer with a bound."""
    sent = [bytes([number]) * size for number, size in enumerate(payloads)]
    taken = Taken(monkeypatch)
    taken.feed(b"".join(frame(3, payload) for payload in sent), endlessly(pieces))
    assert taken.frames == [frame(3, payload)[4:] for payload in sent]
    assert max(taken.sizes, default=0) <= HELLO_LIMIT + LENGTH_BYTES


@pytest.mark.asyncio
@given(data=st.lists(ANNOUNCED | st.binary(max_size=80), max_size=6).map(b"".join), pieces=PIECES)
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_R3_any_bytes_are_frames_or_end_the_connection(
    monkeypatch: pytest.MonkeyPatch, data: bytes, pieces: list[int]
):
    """A length outside the bounds ends it at once, and nothing is handed out afterwards."""
    whole, rest = [], data
    while len(rest) >= LENGTH_BYTES and HEAD_BYTES <= int.from_bytes(rest[:4], "big") <= len(rest) - LENGTH_BYTES:
        end = LENGTH_BYTES + int.from_bytes(rest[:4], "big")
        whole.append(rest[LENGTH_BYTES:end])
        rest = rest[end:]
    taken = Taken(monkeypatch)
    taken.feed(data, endlessly(pieces))
    assert taken.frames == whole
    bad = len(rest) >= LENGTH_BYTES and not HEAD_BYTES <= int.from_bytes(rest[:4], "big") <= HELLO_LIMIT
    assert taken.socket.aborted == bad
    assert not bad or isinstance(taken.receiver.ended.result(), FrameError)


@pytest.mark.asyncio
async def test_R3_buffer_follows_what_came_when_a_large_frame_is_announced(monkeypatch: pytest.MonkeyPatch):
    """Four bytes reserve nothing; the frame itself is taken, and its room is given back."""
    taken = Taken(monkeypatch)
    taken.receiver.expect_messages(lambda head, payload: taken.frames.append(payload), limit=FRAME_LIMIT)
    payload = bytes(FRAME_LIMIT - HEAD_BYTES)
    data = frame(3, payload)
    begun = 2 * receiving.SMALL_BUFFER_BYTES
    taken.feed(data[:begun], endlessly([1 << 20]))
    assert max(taken.sizes) == receiving.BUFFER_BYTES
    taken.feed(data[begun:], endlessly([1 << 20]))
    assert taken.frames == [payload]
    assert max(taken.sizes) == LENGTH_BYTES + FRAME_LIMIT
    assert len(taken.receiver._buffer) == receiving.BUFFER_BYTES


@pytest.mark.asyncio
async def test_connection_ends_and_the_log_says_why_when_taking_a_frame_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """A bug behind the hook is not hidden, and what comes behind that frame is not taken."""
    taken = Taken(monkeypatch)

    def fail(head: bytes, payload: bytes) -> None:
        raise RuntimeError("a bug")

    taken.receiver.expect_messages(fail, limit=FRAME_LIMIT)
    taken.feed(frame(3, b"x") + frame(3, b"y"), endlessly([1000]))
    assert taken.socket.aborted
    assert [record.exc_info[1].args for record in caplog.records] == [("a bug",)]


# -- real sockets ------------------------------------------------------------------------------------------------------

MESSAGES = st.builds(
    frame,
    st.sampled_from([3, 3, 3, 1, 2, 0, 9]),
    st.binary(max_size=60),
    cluster=st.sampled_from([CLUSTER, CLUSTER, OTHER_CLUSTER]),
    sender=st.sampled_from([2, 2, 2, 1, 77]),
    incarnation=st.sampled_from([1, 1, 1, 2]),
)


@st.composite
def damaged_greeting(draw: st.DrawFn) -> bytes:
    data = bytearray(GREETING)
    data[draw(st.integers(0, len(data) - 1))] ^= 1 << draw(st.integers(0, 7))
    return bytes(data)


CONVERSATIONS = st.lists(
    st.just(GREETING) | damaged_greeting() | MESSAGES | st.binary(max_size=50), max_size=6
).flatmap(lambda parts: st.tuples(st.sampled_from([b"", GREETING, GREETING]), st.just(b"".join(parts))))


def expected_of(data: bytes) -> list[tuple[int, bytes]]:
    """What a member ``a`` may take of these bytes: nothing but the messages of the member that greeted."""
    taken: list[tuple[int, bytes]] = []
    head = None
    while len(data) >= LENGTH_BYTES:
        length = int.from_bytes(data[:4], "big")
        body = data[4 : 4 + length]
        if not HEAD_BYTES <= length <= (FRAME_LIMIT if head else HELLO_LIMIT) or len(body) < length:
            break
        if head is None:
            try:
                hello = frames.decode_hello(body[HEAD_BYTES:])
            except FrameError:
                break
            members = {"a": 1, "b": 2, "c": 3}
            if body[0] != Kind.HELLO or not hello.cluster_id or hello.name not in members:
                break
            sender = members[hello.name]
            head = b"\x03" + CLUSTER + sender.to_bytes(8, "big") + hello.incarnation.to_bytes(8, "big", signed=False)
        elif body[:HEAD_BYTES] != head:
            break
        else:
            taken.append((sender, body[HEAD_BYTES:]))
        data = data[4 + length :]
    return taken


def test_R3_any_conversation_delivers_only_what_its_greeting_allows(run: Run):
    """Against a model of the rule, over real sockets, in pieces; the transport goes on as if nothing had been."""
    end = Endpoint("a")

    async def converse(port: int, data: bytes, pieces: list[int]) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        with contextlib.closing(writer), contextlib.suppress(ConnectionError):
            for size in endlessly(pieces):
                writer.write(data[:size])
                await writer.drain()
                data = data[size:]
                if not data:
                    break
            writer.write_eof()
            await reader.read()

    @given(conversation=CONVERSATIONS, pieces=PIECES)
    @settings(deadline=None, max_examples=120)
    def check(conversation: tuple[bytes, bytes], pieces: list[int]) -> None:
        data = b"".join(conversation)

        async def scenario() -> None:
            async with listening(end) as (transport, port):
                end.received.clear()
                await converse(port, data, pieces)
                # Its own end is the last of a connection: then everything that it brought has been judged.
                await until(lambda: not transport._acceptor._tasks)
                assert end.received == expected_of(data)
                assert not transport._acceptor._ungreeted
                assert not transport._acceptor._streams

        run(scenario())

    check()


def test_R3_memory_stays_when_hundreds_connect_and_say_little(run: Run, monkeypatch: pytest.MonkeyPatch):
    """Each announces a hello of 64 KiB, sends most of it and then nothing; a few places hold what they hold."""
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 60.0)
    slow = (60_000).to_bytes(4, "big") + bytes(50_000)

    async def scenario() -> None:
        async with listening(Endpoint("a")) as (transport, port), contextlib.AsyncExitStack() as stack:
            acceptor = transport._acceptor
            tracemalloc.start()
            stack.callback(tracemalloc.stop)
            for number in range(400):
                connection = await connect(stack, port)
                await asyncio.get_running_loop().sock_sendall(connection, slow)
                await until(lambda number=number: acceptor.refused_connections + len(acceptor._ungreeted) > number)
            await until(lambda: len(acceptor._tasks) == accepting.UNGREETED_LIMIT)
            held = sum(
                found.size
                for found in tracemalloc.take_snapshot().statistics("filename")
                if found.traceback[0].filename == receiving.__file__
            )
            assert len(acceptor._ungreeted) == accepting.UNGREETED_LIMIT
            assert acceptor.refused_connections == 400 - accepting.UNGREETED_LIMIT
            assert held < 2 * accepting.UNGREETED_LIMIT * HELLO_LIMIT

    run(scenario())


def test_R3_member_is_let_in_when_strangers_hold_every_place(run: Run, monkeypatch: pytest.MonkeyPatch):
    """The stranger that has been silent longest goes: a member needs its place for milliseconds only."""
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 60.0)
    end = Endpoint("a")

    async def scenario() -> None:
        async with listening(end) as (transport, port), contextlib.AsyncExitStack() as stack:
            for _ in range(accepting.UNGREETED_LIMIT):
                await connect(stack, port)
            await until(lambda: len(transport._acceptor._ungreeted) == accepting.UNGREETED_LIMIT)
            async with listening(Endpoint("b"), {"a": f"127.0.0.1:{port}"}) as (member, _):
                await until(lambda: member.connected() == {1})
                member.send(1, b"let in")
                await until(lambda: end.received == [(2, b"let in")])

    run(scenario())


def test_R3_memory_stays_when_a_member_sends_faster_than_it_is_heard(run: Run):
    """64 MiB to a member that takes its time with each frame: they wait in the sender's socket, not here."""
    payload = bytes(60_000)
    count = (64 << 20) // len(payload)
    heard = 0

    def take(sender: int, payload: bytes) -> None:
        nonlocal heard
        heard += 1
        if heard % 200 == 0:
            # The member's loop is busy for a while: whatever can pile up piles up now.
            deadline = asyncio.get_running_loop().time() + 0.01
            while asyncio.get_running_loop().time() < deadline:
                pass

    async def scenario() -> None:
        end = Endpoint("a")
        hooks = end.hooks
        object.__setattr__(hooks, "on_payload", take)
        transport = TcpTransport(listen="127.0.0.1:0", peers={}, hooks=hooks)
        port = await transport.start()
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.transport.set_write_buffer_limits(high=1 << 16)
        try:
            writer.write(GREETING)
            tracemalloc.start()
            for _ in range(count):
                writer.write(frame(3, payload))
                await writer.drain()
            await until(lambda: heard == count)
            _, peak = tracemalloc.get_traced_memory()
            assert peak < 4 << 20
        finally:
            tracemalloc.stop()
            writer.transport.abort()
            await transport.close()

    run(scenario())


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        bytes(100),
        (HELLO_LIMIT + 1).to_bytes(4, "big") + bytes(HELLO_LIMIT),
        frame(1, b"malformed"),
        frame(3, frames.encode_hello(Endpoint("b").hooks.identity().hello)),
        frame(2, b"\xff" * 50_000),
        GREETING[:-1],
        frame(1, frames.encode_hello(Endpoint("c").hooks.identity().hello)),
    ],
    ids=lambda answer: f"{len(answer)}-{answer[4:6].hex()}",
)
def test_R3_dialler_goes_on_when_a_stranger_answers(run: Run, answer: bytes):
    """Whatever it says, nobody is believed, nothing is opened, the reason is short, and the dialler tries again."""
    end, dialled = Endpoint("a"), []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        dialled.append(writer)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            await reader.read(4)
            writer.write(answer)
            await writer.drain()

    async def scenario() -> None:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            peers = {"b": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"}
            async with listening(end, peers) as (transport, _):
                await until(lambda: len(dialled) >= 3)
                assert transport.connected() == set()
                assert end.hellos == []
                assert 0 < len(transport.problems["b"]) < 5000

    run(scenario())


def test_connections_are_taken_again_when_accepting_failed_for_a_while(run: Run, monkeypatch: pytest.MonkeyPatch):
    """No descriptor is left, most likely: it waits instead of turning round and round, and then goes on."""
    monkeypatch.setattr(accepting, "ACCEPT_RETRY_SECONDS", 0.05)
    end, tries = Endpoint("a"), []

    class Exhausted(socket.socket):
        def accept(self) -> tuple[socket.socket, Any]:
            tries.append(self)
            if len(tries) <= 3:
                raise OSError(errno.EMFILE, "too many open files")
            return super().accept()

    async def scenario() -> None:
        monkeypatch.setattr(socket, "socket", Exhausted)
        began = asyncio.get_running_loop().time()
        async with listening(end) as (_, port):
            monkeypatch.undo()
            monkeypatch.setattr(accepting, "ACCEPT_RETRY_SECONDS", 0.05)
            async with listening(Endpoint("b"), {"a": f"127.0.0.1:{port}"}) as (member, _):
                await until(lambda: member.connected() == {1})
                assert len(tries) == 4
                assert asyncio.get_running_loop().time() - began >= 0.14

    run(scenario())
