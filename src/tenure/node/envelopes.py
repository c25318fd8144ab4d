"""What members tell one another beside the engine's messages, over the same transport. Pure: bytes in, values out.

An engine's payload begins with the kind of its first message, a small number; these begin with a byte from 0xF0 on.
"""

from __future__ import annotations

import msgspec

from tenure.core.fsm import Membership

FIRST = 0xF0
_MEMBERSHIP = 0xF0
_CHUNK_REQUEST = 0xF1
_CHUNK = 0xF2
_DATABASE_SEEN = 0xF3


class ChunkRequest(msgspec.Struct, frozen=True, array_like=True):
    """Ask for the chunk ``number`` (from 0) of the content of the snapshot ``id`` with that SHA-256."""

    id: str
    sha256: str
    number: int


class Chunk(msgspec.Struct, frozen=True, array_like=True):
    """The answer: None for ``data`` where the sender does not have that content, or no such chunk."""

    id: str
    sha256: str
    number: int
    data: bytes | None
    last: bool


class DatabaseSeen(msgspec.Struct, frozen=True, array_like=True):
    """For how long the database has not answered the sender, told to its leader."""

    silent_ns: int


Envelope = Membership | ChunkRequest | Chunk | DatabaseSeen

_KINDS: dict[int, type[Membership] | type[ChunkRequest] | type[Chunk] | type[DatabaseSeen]] = {
    _MEMBERSHIP: Membership,
    _CHUNK_REQUEST: ChunkRequest,
    _CHUNK: Chunk,
    _DATABASE_SEEN: DatabaseSeen,
}
_CODES = {kind: code for code, kind in _KINDS.items()}
_encoder = msgspec.msgpack.Encoder()


def encode(envelope: Envelope) -> bytes:
    """The payload."""
    return bytes([_CODES[type(envelope)]]) + _encoder.encode(envelope)


def is_envelope(payload: bytes) -> bool:
    """Whether it is one of these and no engine's."""
    return bool(payload) and payload[0] >= FIRST


def decode(payload: bytes) -> Envelope | None:
    """Read a payload back; None if it is malformed or of a kind that this version does not know."""
    kind = _KINDS.get(payload[0])
    if kind is None:
        return None
    try:
        return msgspec.msgpack.decode(payload[1:], type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
