"""Frames on a peer connection and their bounds (R3). Pure: bytes in, values out.

::

    length u32 | kind u8 | cluster id 16 bytes | sender u64 | incarnation u64 | payload

Every frame names its cluster, its sender and the sender's incarnation, so that a frame of a stranger, of another
cluster or of an earlier life is dropped wherever it turns up. ``length`` counts all that follows it and is bounded
before anything is allocated.
"""

from __future__ import annotations

import enum
import struct
from typing import NamedTuple

import msgspec

from tenure.core.founding import Hello

#: The largest frame that is taken: the engine splits what it sends below 4 MiB, the header fits above that.
FRAME_LIMIT = (4 << 20) + 4096
HELLO_LIMIT = 64 << 10
NO_CLUSTER = bytes(16)
_HEADER = struct.Struct(">IB16sQQ")
_LENGTH = struct.Struct(">I")
_REST = struct.Struct(">B16sQQ")


class Kind(enum.IntEnum):
    """What a frame carries."""

    HELLO = 1
    REFUSED = 2
    MESSAGES = 3


class FrameError(Exception):
    """The bytes are no frame of ours: the connection is closed, nothing else happens."""


class Frame(NamedTuple):
    """One frame as it came: its header is checked against the connection by the transport."""

    kind: Kind
    cluster: bytes
    sender: int
    incarnation: int
    payload: bytes


def encode(kind: Kind, *, cluster: bytes, sender: int, incarnation: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return _HEADER.pack(_REST.size + len(payload), kind, cluster, sender, incarnation) + payload


def decode_length(head: bytes, *, limit: int) -> int:
    """The bounded length that the first four bytes announce; :class:`FrameError` if no frame has it."""
    (length,) = _LENGTH.unpack(head)
    if not _REST.size <= length <= limit:
        raise FrameError(f"a frame of {length} bytes is outside {_REST.size} to {limit}")
    return int(length)


def decode(body: bytes) -> Frame:
    """The frame behind its length; :class:`FrameError` if its kind is unknown or its header is short."""
    if len(body) < _REST.size:
        raise FrameError("the frame is shorter than its header")
    kind, cluster, sender, incarnation = _REST.unpack_from(body)
    try:
        return Frame(Kind(kind), cluster, sender, incarnation, body[_REST.size :])
    except ValueError:
        raise FrameError(f"unknown frame kind {kind}") from None


_hello_decoder = msgspec.msgpack.Decoder(Hello)


def encode_hello(hello: Hello) -> bytes:
    """The payload of a HELLO frame."""
    return msgspec.msgpack.encode(hello)


def decode_hello(payload: bytes) -> Hello:
    """Read a HELLO payload back; :class:`FrameError` if it is malformed or of an unknown shape."""
    try:
        return _hello_decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"malformed hello: {error}") from None
