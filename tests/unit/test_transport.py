"""The peer transport: frames and their bounds, the handshake, and bytes from strangers."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from support.virtual_cluster import SETTINGS
from tenure.core.founding import PROTOCOL_VERSION, Hello
from tenure.transport import Identity, TcpTransport, TransportHooks, frames
from tenure.transport.frames import FRAME_LIMIT, FrameError, Kind

CLUSTER = bytes(range(16))
IDS = {"a": 1, "b": 2}


def hello(name: str, *, cluster: bytes = CLUSTER, incarnation: int = 5) -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION,
        cluster_name="test",
        cluster_id=cluster.hex(),
        name=name,
        directory_id=name,
        incarnation=incarnation,
        member_names=("a", "b"),
        settings=SETTINGS,
    )


@given(st.binary(max_size=300))
def test_R3_any_bytes_are_a_frame_or_a_frame_error(data: bytes):
    """The decoder answers every input with a value or FrameError, nothing else."""
    with contextlib.suppress(FrameError):
        frame = frames.decode(data)
        if frame.kind is Kind.HELLO:
            frames.decode_hello(frame.payload)


@given(st.binary(max_size=300))
@example(b"\x81\xa3\x00\x00\x80")  # a key that is no text
def test_R3_any_hello_is_a_hello_or_a_frame_error(data: bytes):
    """The MessagePack inside is bounded by its frame and its shape."""
    with contextlib.suppress(FrameError):
        frames.decode_hello(data)


@pytest.mark.parametrize("length", [0, 1, 32, FRAME_LIMIT + 1, 2**32 - 1])
def test_R3_length_outside_the_bounds_is_refused_before_anything_is_allocated(length: int):
    """Four bytes from a stranger never reserve memory."""
    with pytest.raises(FrameError):
        frames.decode_length(struct.pack(">I", length), limit=FRAME_LIMIT)


class Peer:
    """One transport and what it received."""

    def __init__(self, name: str, peers: dict[str, str], *, listen: str = "127.0.0.1:0") -> None:
        self.received: asyncio.Queue[tuple[int, bytes]] = asyncio.Queue()
        self.gone: list[int] = []
        self.hello = hello(name)
        self.transport = TcpTransport(
            listen=listen,
            peers=peers,
            hooks=TransportHooks(
                identity=lambda: Identity(self.hello, CLUSTER, IDS[name]),
                admit=lambda other, _: None if other.cluster_id == CLUSTER.hex() else "another cluster",
                raft_id_of=IDS.get,
                on_payload=lambda sender, payload: self.received.put_nowait((sender, payload)),
                on_gone=self.gone.append,
            ),
        )


@contextlib.asynccontextmanager
async def pair() -> AsyncIterator[tuple[Peer, Peer, int]]:
    """Two connected transports: ``b`` dials ``a``."""
    a = Peer("a", {})
    port = await a.transport.start()
    b = Peer("b", {"a": f"127.0.0.1:{port}"})
    await b.transport.start()
    try:
        async with asyncio.timeout(10):
            while 1 not in b.transport.connected():  # noqa: ASYNC110 - a handshake leaves no event behind.
                await asyncio.sleep(0.005)
        yield a, b, port
    finally:
        await b.transport.close()
        await a.transport.close()


@pytest.mark.asyncio
async def test_payloads_arrive_in_order():
    """One ordered stream for each pair."""
    async with pair() as (a, b, _), asyncio.timeout(10):
        for number in range(200):
            b.transport.send(1, b"%d" % number)
        assert [await a.received.get() for _ in range(200)] == [(2, b"%d" % number) for number in range(200)]


@pytest.mark.asyncio
async def test_send_to_a_member_that_is_not_connected_is_dropped_and_counted():
    """A queue that nobody reads is not kept."""
    async with pair() as (a, _, _):
        a.transport.send(2, b"nobody dialled")
        assert a.transport.dropped_frames == 1


async def stranger(port: int, *blobs: bytes) -> bytes:
    """Send raw bytes and read until the other side closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.closing(writer), contextlib.suppress(ConnectionError):
        for blob in blobs:
            writer.write(blob)
        await writer.drain()
        writer.write_eof()
        return await reader.read()
    return b""


def frame(kind: Kind, payload: bytes, *, cluster: bytes = CLUSTER, sender: int = 2, incarnation: int = 5) -> bytes:
    return frames.encode(kind, cluster=cluster, sender=sender, incarnation=incarnation, payload=payload)


GREETING = frame(Kind.HELLO, frames.encode_hello(hello("b")))


@pytest.mark.asyncio
@pytest.mark.parametrize(
    "blobs",
    [
        [b"GET / HTTP/1.1\r\n\r\n"],
        [b"\x00" * 64],
        [frame(Kind.MESSAGES, b"no hello first")],
        [frame(Kind.HELLO, b"malformed")],
        [GREETING, frame(Kind.MESSAGES, b"x", sender=1)],
        [GREETING, frame(Kind.MESSAGES, b"x", sender=77)],
        [GREETING, frame(Kind.MESSAGES, b"x", incarnation=4)],
        [GREETING, frame(Kind.MESSAGES, b"x", cluster=bytes(16))],
        [GREETING, struct.pack(">I", FRAME_LIMIT + 1)],
        [frame(Kind.HELLO, frames.encode_hello(hello("b", cluster=bytes(16)))), frame(Kind.MESSAGES, b"x")],
    ],
)
async def test_R3_frames_of_strangers_deliver_nothing(blobs: list[bytes]):
    """No hello, another sender, another incarnation, another cluster, too long: the stream ends, nothing arrives."""
    async with pair() as (a, b, port), asyncio.timeout(10):
        await stranger(port, *blobs)
        b.transport.send(1, b"still here")
        # A stranger that greets as ``b`` replaces its stream; ``b`` dials again, so its frame may need another try.
        while a.received.empty():
            b.transport.send(1, b"still here")
            await asyncio.sleep(0.01)
        assert await a.received.get() == (2, b"still here")


@pytest.mark.asyncio
async def test_newer_stream_of_a_sender_replaces_the_older():
    """Frames of an old connection are dropped: raft-rs 0.7.0 wants no reordered replies."""
    async with pair() as (a, b, port), asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GREETING + frame(Kind.MESSAGES, b"newer"))
        assert await a.received.get() == (2, b"newer")
        while 1 in b.transport.connected():  # noqa: ASYNC110 - the old stream ends when the other side aborts it.
            await asyncio.sleep(0.005)
        writer.close()
        del reader


def reset(peer: Peer) -> None:
    """End the streams on which the peer is sent to, as a network would."""
    for incoming in peer.transport._acceptor._streams.values():
        incoming.stream.abort()


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what the other side of a socket does leaves no event here.
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
async def test_member_is_gone_when_nobody_listens_where_it_was():
    """Told once for each life; a member that was never reached is not gone."""
    async with pair() as (a, b, _):
        await a.transport.close()
        await until(lambda: b.gone == [1])
        await asyncio.sleep(0.1)
        assert b.gone == [1]
        assert a.gone == []


@pytest.mark.asyncio
async def test_member_is_not_gone_when_its_connections_are_reset():
    """A reset with the process alive is no suspicion: the dialler connects again, and that is all."""
    async with pair() as (a, b, _):
        for _ in range(3):
            reset(a)
            await until(lambda: 1 not in b.transport.connected())
            await until(lambda: 1 in b.transport.connected())
        assert b.gone == []


@pytest.mark.asyncio
async def test_member_is_gone_when_another_incarnation_answers():
    """It was restarted so quickly that no connection was refused: its earlier life is over all the same."""
    async with pair() as (a, b, _):
        a.hello = hello("a", incarnation=6)
        reset(a)
        await until(lambda: b.gone == [1])
        await until(lambda: 1 in b.transport.connected())


@pytest.mark.asyncio
async def test_others_are_dialled_when_the_address_of_a_peer_is_none(caplog: pytest.LogCaptureFixture):
    """It may come from the log: no member may fail for it, and the reason can be read."""
    async with pair() as (_, b, _):
        stream = b.transport._outgoing[1]
        b.transport.set_peers(b.transport._peers | {"c": "nowhere"})
        await until(lambda: "'nowhere' is not HOST:PORT" in b.transport.problems.get("c", ""))
        assert b.transport._outgoing[1] is stream
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.asyncio
async def test_dialler_takes_its_time_when_every_stream_is_closed_as_soon_as_it_opens():
    """A peer that greets and then hangs up is not dialled fifty times a second."""
    greeted = []

    async def greet_and_close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        greeted.append(writer)
        await reader.readexactly(4)
        writer.write(frame(Kind.HELLO, frames.encode_hello(hello("a")), sender=1))
        writer.close()

    async with await asyncio.start_server(greet_and_close, "127.0.0.1", 0) as server:
        b = Peer("b", {"a": f"127.0.0.1:{server.sockets[0].getsockname()[1]}"})
        await b.transport.start()
        await asyncio.sleep(1.0)
        await b.transport.close()
    assert 2 <= len(greeted) <= 8


class _Closed:
    """A stream whose connection has just died, as uvloop shows it: every call of its transport raises."""

    head = b""

    class writer:  # noqa: N801 - stands where a StreamWriter is.
        class transport:  # noqa: N801
            @staticmethod
            def is_closing() -> bool:
                return False

            @staticmethod
            def get_write_buffer_size() -> int:
                raise RuntimeError("the handler is closed")


def test_send_drops_and_does_not_raise_when_the_connection_has_just_died():
    """What it raised ended the node: a peer that dies must never do that."""
    transport = TcpTransport.__new__(TcpTransport)
    transport._outgoing, transport.dropped_frames = {2: _Closed()}, 0  # type: ignore[dict-item]
    transport.send(2, b"x")
    assert transport.dropped_frames == 1
