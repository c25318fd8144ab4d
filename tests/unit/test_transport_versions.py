"""Two versions that do not understand each other say so, each in its log: never "malformed" (rolling upgrades, R3)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from tenure.core.founding import PROTOCOL_VERSION
from tenure.testing import Endpoint
from tenure.transport import TcpTransport, frames
from tenure.transport.frames import FrameError, Kind, OtherProtocol

CLUSTER = bytes(range(16))
NEWER = PROTOCOL_VERSION + 7
#: A hello as a later version may write it: fields of other types, fields that nobody knows yet.
OF_A_NEWER_VERSION = {
    "name": "b",
    "cluster_name": ["test", 1],
    "settings": msgspec.msgpack.Ext(7, b"\x00\xff"),
    "protocol": NEWER,
    "future": {"a": [None, 2.5, {"deep": b"\x01"}]},
}


def frame(kind: int, payload: bytes) -> bytes:
    """The layout that every version has, written by hand."""
    head = bytes([kind]) + CLUSTER + (2).to_bytes(8, "big") + (1).to_bytes(8, "big")
    return (len(head) + len(payload)).to_bytes(4, "big") + head + payload


def hello(fields: dict[str, Any]) -> bytes:
    return frame(1, msgspec.msgpack.encode(fields))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - what the other side of a socket does leaves no event here.
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def listening(end: Endpoint, peers: dict[str, str] | None = None) -> AsyncIterator[tuple[TcpTransport, int]]:
    transport = TcpTransport(listen="127.0.0.1:0", peers=peers or {}, hooks=end.hooks)
    try:
        yield transport, await transport.start()
    finally:
        await transport.close()


@contextlib.asynccontextmanager
async def answering(answer: bytes) -> AsyncIterator[int]:
    """A member of another version: it answers every hello with these bytes and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError), contextlib.closing(writer):
            await reader.readexactly(4)
            writer.write(answer)
            await writer.drain()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.asyncio
async def test_acceptor_names_both_versions_when_a_newer_one_dials(caplog: pytest.LogCaptureFixture):
    """The dialler is told, the operator of this side reads it, and nothing else of that hello counts."""
    end = Endpoint("a")
    text = f"b speaks protocol {NEWER}, this version speaks {PROTOCOL_VERSION}"
    async with listening(end) as (_, port), asyncio.timeout(10):
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(hello(OF_A_NEWER_VERSION))
            answer = await reader.read()
            assert frames.decode(answer[4:])[0] is Kind.REFUSED
            assert answer.endswith(text.encode())
            writer.close()
    assert complaints(caplog) == [f"a connection from b is closed: {text}"]
    assert (end.received, end.hellos, end.applicants) == ([], [], [])


@pytest.mark.asyncio
async def test_dialler_names_both_versions_when_a_newer_one_answers():
    """Whether the newer side answers with its hello or refuses this one."""
    text = f"a speaks protocol {NEWER}, this version speaks {PROTOCOL_VERSION}"
    end = Endpoint("b")
    async with (
        answering(hello(OF_A_NEWER_VERSION | {"name": "a"})) as port,
        listening(end, {"a": f"127.0.0.1:{port}"}) as (transport, _),
    ):
        await until(lambda: transport.problems.get("a") == text)
    refusal = f"b speaks protocol {PROTOCOL_VERSION}, this version speaks {NEWER}"
    async with (
        answering(frame(2, refusal.encode())) as port,
        listening(end, {"a": f"127.0.0.1:{port}"}) as (transport, _),
    ):
        await until(lambda: transport.problems.get("a") == f"a refuses this node: {refusal}")
    assert end.hellos == []


@pytest.mark.parametrize("name", [None, 5, ["b"], {"b": 1}])
def test_hello_of_another_version_is_told_apart_when_its_name_is_of_another_type(name: object):
    """The number is all that every version shares."""
    with pytest.raises(OtherProtocol, match=f"^the peer speaks protocol {NEWER}, this version"):
        frames.decode_hello(msgspec.msgpack.encode({"protocol": NEWER, "name": name}))


def test_hello_of_another_version_is_named_briefly_when_its_name_is_long():
    """What a stranger says of itself does not fill a log."""
    with pytest.raises(OtherProtocol) as caught:
        frames.decode_hello(msgspec.msgpack.encode({"protocol": NEWER, "name": "b" * 60_000}))
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("protocol", [None, "2", [], 2.5])
def test_hello_is_malformed_when_it_has_no_protocol_number(protocol: object):
    """Then there is no version to name."""
    with pytest.raises(FrameError, match="malformed hello"):
        frames.decode_hello(msgspec.msgpack.encode({"protocol": protocol, "name": "b"}))


@pytest.mark.asyncio
async def test_stream_is_closed_with_a_clear_line_when_a_frame_is_of_an_unknown_kind(caplog: pytest.LogCaptureFixture):
    """What came before it was taken; what comes behind it is not."""
    end, dialler = Endpoint("a"), Endpoint("b")
    greeting = frame(1, frames.encode_hello(dialler.hooks.identity().hello))
    async with listening(end) as (_, port), asyncio.timeout(10):
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(greeting + frame(3, b"before") + frame(9, b"unknown") + frame(3, b"behind"))
            with contextlib.suppress(ConnectionError):
                await reader.read()
            writer.close()
        await until(lambda: len(end.received) == 3)
    assert end.received == 3 * [(2, b"before")]
    assert complaints(caplog) == [
        "a connection from b is closed: a frame of the unknown kind 9 came: the other side may be of a newer version"
    ]


@pytest.mark.asyncio
async def test_dialler_says_so_when_the_answer_is_of_an_unknown_kind():
    """A later version may answer with something that this one does not know."""
    async with (
        answering(frame(9, b"")) as port,
        listening(Endpoint("b"), {"a": f"127.0.0.1:{port}"}) as (transport, _),
    ):
        await until(lambda: "the unknown kind 9" in transport.problems.get("a", ""))
