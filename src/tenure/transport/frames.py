"""Frames on a peer connection and their bounds (R3). Pure: bytes in, values out.

::

    length u32 | kind u8 | cluster id 16 bytes | sender u64 | incarnation u64 | payload
               |<---------------------- head ----------------------->|

Every frame names its cluster, its sender and the sender's incarnation, so that a frame of a stranger, of another
cluster or of an earlier life is dropped wherever it turns up. ``length`` counts all that follows it and is bounded
before anything is allocated. This layout, and the field ``protocol`` of a hello, are the same in every version, so
that two versions which do not understand each other can say so.
"""

from __future__ import annotations

import enum
import struct
from typing import Any, NamedTuple

import msgspec

from tenure.core.founding import PROTOCOL_VERSION, Hello

#: The largest frame that is taken: the engine splits what it sends below 4 MiB, the header fits above that.
FRAME_LIMIT = (4 << 20) + 4096
HELLO_LIMIT = 64 << 10
#: Of the reason of a refusal, this much is told and read.
REFUSAL_BYTES_MAX = 4096
NO_CLUSTER = bytes(16)
_LENGTH = struct.Struct(">I")
_HEAD = struct.Struct(">B16sQQ")
LENGTH_BYTES = _LENGTH.size
HEAD_BYTES = _HEAD.size
#: Of a name that a peer says of itself, this much is repeated in a text.
_NAME_SHOWN_CHARACTERS_MAX = 100


class Kind(enum.IntEnum):
    """What a frame carries."""

    HELLO = 1
    REFUSED = 2
    MESSAGES = 3


class FrameError(Exception):
    """The bytes are no frame of ours: the connection is closed, nothing else happens."""


class OtherProtocol(FrameError):
    """A hello of another version: its protocol number is all that is understood of it."""

    def __init__(self, name: str, protocol: int) -> None:
        super().__init__(f"{name} speaks protocol {protocol}, this version speaks {PROTOCOL_VERSION}")
        self.name = name


class Frame(NamedTuple):
    """One frame as it came: its header is checked against the connection by the transport."""

    kind: Kind
    cluster: bytes
    sender: int
    incarnation: int
    payload: bytes


def encode(kind: Kind, *, cluster: bytes, sender: int, incarnation: int, payload: bytes) -> bytes:
    """The bytes of one frame."""
    return encode_behind(encode_head(kind, cluster=cluster, sender=sender, incarnation=incarnation), payload)


def encode_head(kind: Kind, *, cluster: bytes, sender: int, incarnation: int) -> bytes:
    """The head of a frame; all messages of one stream have the same."""
    return _HEAD.pack(kind, cluster, sender, incarnation)


def encode_behind(head: bytes, payload: bytes) -> bytes:
    """The bytes of the frame with that head."""
    return _LENGTH.pack(HEAD_BYTES + len(payload)) + head + payload


def decode_length(buffer: bytes | bytearray, offset: int = 0, *, limit: int) -> int:
    """The bounded length that the four bytes at ``offset`` announce; :class:`FrameError` if no frame has it."""
    length: int = _LENGTH.unpack_from(buffer, offset)[0]
    if not HEAD_BYTES <= length <= limit:
        raise FrameError(f"a frame of {length} bytes is outside {HEAD_BYTES} to {limit}")
    return length


def decode(body: bytes) -> Frame:
    """The frame behind its length; :class:`FrameError` if its kind is unknown or its header is short."""
    if len(body) < HEAD_BYTES:
        raise FrameError("the frame is shorter than its header")
    kind, cluster, sender, incarnation = _HEAD.unpack_from(body)
    try:
        return Frame(Kind(kind), cluster, sender, incarnation, body[HEAD_BYTES:])
    except ValueError:
        raise FrameError(f"a frame of the unknown kind {kind} came: the other side may be of a newer version") from None


class _Spoken(msgspec.Struct):
    """What is understood of every version's hello."""

    protocol: int
    name: Any = None


_spoken_decoder = msgspec.msgpack.Decoder(_Spoken)
_hello_decoder = msgspec.msgpack.Decoder(Hello)


def encode_hello(hello: Hello) -> bytes:
    """The payload of a HELLO frame."""
    return msgspec.msgpack.encode(hello)


def decode_hello(payload: bytes) -> Hello:
    """Read a HELLO payload back.

    Raises:
        OtherProtocol: it is of another version, whatever else is in it.
        FrameError: it is malformed.
    """
    try:
        spoken = _spoken_decoder.decode(payload)
        if spoken.protocol == PROTOCOL_VERSION:
            return _hello_decoder.decode(payload)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
        raise FrameError(f"malformed hello: {error}") from None
    name = spoken.name[:_NAME_SHOWN_CHARACTERS_MAX] if isinstance(spoken.name, str) else "the peer"
    raise OtherProtocol(name, spoken.protocol)
