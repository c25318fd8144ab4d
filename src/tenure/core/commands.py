"""The commands that the cluster's own log carries, and their bounded encoding. Pure.

Every command is MessagePack with a one-letter tag and a version byte before it, so that a file or a peer of a newer
version is refused by name instead of being misread.
"""

from __future__ import annotations

import msgspec

from tenure.errors import LogCorrupt

FORMAT = 1
#: First byte of an entry that carries the user's own bytes for the user's own state machine.
USER = 2
#: The one byte of a barrier: an entry that only marks a place in the log.
BARRIER = 3


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The times of the cluster: founded from the files, then kept in the log and changed only through it (R4)."""

    heartbeat_interval_ms: int
    election_timeout_ms: int
    lease_duration_ms: int
    clock_rate_error_ppm: int


class Acquire(msgspec.Struct, frozen=True, tag="A", array_like=True):
    """A leader of ``term`` takes the lease: the state machine mints its token above ``floor`` (R15).

    ``cover_ns`` is a bound on every lease that may still run when this entry is the last ACQUIRE of a log: the
    holder's own duration once its own wait is over, else the larger of its own and the last cover (R9).
    """

    holder: int
    term: int
    incarnation: int
    floor: int
    duration_ns: int
    rate_error_ppm: int
    cover_ns: int
    cover_rate_error_ppm: int


class Settled(msgspec.Struct, frozen=True, tag="S", array_like=True):
    """The holder's own wait is over: older leases have ended, its own duration covers all that may run (R9)."""

    holder: int
    term: int
    incarnation: int


class Release(msgspec.Struct, frozen=True, tag="R", array_like=True):
    """The holder has stopped for good in this term, its wait was over and its work has returned (R9, R10)."""

    holder: int
    term: int
    incarnation: int


class ChangeSettings(msgspec.Struct, frozen=True, tag="C", array_like=True):
    """New times of the cluster. A running holding keeps the ones in its own ACQUIRE (R8)."""

    settings: Settings


Command = Acquire | Settled | Release | ChangeSettings

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)


def encode(command: Command) -> bytes:
    """The bytes of one log entry."""
    return bytes([FORMAT]) + _encoder.encode(command)


def decode(data: bytes, *, index: int) -> Command:
    """Read one log entry back; :class:`tenure.LogCorrupt` naming ``index`` if it is not one of ours."""
    if not data or data[0] != FORMAT:
        found = data[0] if data else "nothing"
        raise LogCorrupt(
            f"log entry {index} has format {found}, this version reads {FORMAT}: a newer Tenure wrote it",
            path="log",
            index=index,
        )
    try:
        return _decoder.decode(data[1:])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LogCorrupt(f"log entry {index} is malformed: {error}", path="log", index=index) from None
