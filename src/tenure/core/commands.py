"""The commands that the cluster's own log carries, and their bounded encoding. Pure.

Every command is MessagePack with a one-letter tag and a version byte before it, so that a file or a peer of a newer
version is refused by name instead of being misread.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from tenure.errors import LogCorrupt

T = TypeVar("T")

FORMAT = 1
#: First byte of an entry that carries the user's own bytes for the user's own state machine.
USER = 2
USER_PREFIX = bytes([USER])
#: The one byte of a barrier: an entry that only marks a place in the log.
BARRIER = 3
#: First byte of an entry that carries a part of a state that a user brings to all members.
RESTORE = 4
#: The values of ``Settings.wait_out``.
ALWAYS, FENCED_ONLY = "always", "fenced-only"


class MemberRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A member by its raft id (never used again), its name and the id of its data directory (R7), and where it is."""

    raft_id: int
    name: str
    directory_id: str
    #: HOST:PORT of its Raft port and the base URL of its HTTP port, as the member itself gave them.
    address: str = ""
    url: str = ""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The times of the cluster: founded from the files, then kept in the log and changed only through it (R4)."""

    heartbeat_interval_ms: int
    election_timeout_ms: int
    lease_duration_ms: int
    clock_rate_error_ppm: int
    #: What waits for the older leases to be over: all of a leadership, or only its lease, not its fenced transactions.
    wait_out: str = ALWAYS


def problem_of(settings: Settings) -> str | None:
    """Why these times may not be the cluster's, or None: the same relations that a file must keep (R4)."""
    heartbeat, election, lease = (
        settings.heartbeat_interval_ms,
        settings.election_timeout_ms,
        settings.lease_duration_ms,
    )
    if not 20 <= heartbeat <= 60_000:
        return f"heartbeat_interval_ms: {heartbeat} is outside 20 to 60000"
    if not 100 <= election <= 600_000 or heartbeat * 5 > election:
        return f"election_timeout_ms: {election} must lie between five heartbeats ({5 * heartbeat}) and 600000"
    if not max(60, 3 * heartbeat) <= lease <= 3_600_000:
        return f"lease_duration_ms: {lease} must lie between three heartbeats ({3 * heartbeat}) and 3600000"
    if not 0 <= settings.clock_rate_error_ppm < 200_000:
        return f"clock_rate_error_ppm: {settings.clock_rate_error_ppm} is outside 0 to 200000"
    if settings.wait_out not in {ALWAYS, FENCED_ONLY}:
        return f"wait_out: {settings.wait_out!r} is neither {ALWAYS!r} nor {FENCED_ONLY!r}"
    return None


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


class Recover(msgspec.Struct, frozen=True, tag="F", array_like=True):
    """A lost majority was given up by an operator's word: a higher generation under a lineage of its own (R16)."""

    generation: int
    lineage: str


class MembersChange(msgspec.Struct, frozen=True, array_like=True):
    """What a configuration change means beyond its ids: the records that come, and the raft ids that go."""

    added: tuple[MemberRecord, ...] = ()
    removed: tuple[int, ...] = ()


class RestorePart(msgspec.Struct, frozen=True, array_like=True):
    """Part ``number`` (from 0) of a state that takes the place of the user's own with its ``last`` part.

    With ``given_up`` it is none: what came of that restore before is to be forgotten.
    """

    restore_id: bytes
    number: int
    data: bytes
    last: bool = False
    given_up: bool = False


Command = Acquire | Settled | Release | ChangeSettings | Recover

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(Command)
_members_decoder = msgspec.msgpack.Decoder(MembersChange)
_part_decoder = msgspec.msgpack.Decoder(RestorePart)


def encode(command: Command) -> bytes:
    """The bytes of one log entry."""
    return bytes([FORMAT]) + _encoder.encode(command)


def encode_members(change: MembersChange) -> bytes:
    """The context of a configuration change."""
    return bytes([FORMAT]) + _encoder.encode(change)


def encode_part(part: RestorePart) -> bytes:
    """The bytes of one log entry."""
    return bytes([RESTORE, FORMAT]) + _encoder.encode(part)


def is_of_user(data: bytes) -> bool:
    """Whether an entry is for the user's state machine, and none of the cluster's own."""
    return bool(data) and data[0] in (USER, BARRIER, RESTORE)


def user_payload(data: bytes, *, index: int) -> bytes | RestorePart | None:
    """What an entry that :func:`is_of_user` has for the user's state machine; None for a barrier.

    Raises:
        LogCorrupt: it is a part of a restore, and malformed or of a newer version.
    """
    if data[0] == RESTORE:
        return _read(_part_decoder, data[1:], index)
    return data[1:] if data[0] == USER else None


def decode(data: bytes, *, index: int) -> Command:
    """Read one log entry back; :class:`tenure.LogCorrupt` naming ``index`` if it is not one of ours."""
    return _read(_decoder, data, index)


def decode_members(context: bytes, *, index: int) -> MembersChange:
    """Read the context of a configuration change back; the same error as :func:`decode`."""
    return _read(_members_decoder, context, index)


def _read(decoder: msgspec.msgpack.Decoder[T], data: bytes, index: int) -> T:
    if not data or data[0] != FORMAT:
        found = data[0] if data else "nothing"
        raise LogCorrupt(
            f"log entry {index} has format {found}, this version reads {FORMAT}: a newer Tenure wrote it",
            path="log",
            index=index,
        )
    try:
        return decoder.decode(data[1:])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LogCorrupt(f"log entry {index} is malformed: {error}", path="log", index=index) from None
