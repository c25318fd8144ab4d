"""The records of a segment file, and how a write that the power cut is told from damage. Pure: bytes in, values out.

::

    record   head 104 bytes | snapshot | entries | padding to 8 bytes | end mark 8 bytes
    head     mark | sizes | zero sectors | checksum of what follows | kind | sequence | first, last | term, vote, commit
             | snapshot's index, term | checksum of the head and its place

A segment is zeros wherever nothing was written yet, and a disk writes whole sectors. So a record that was cut has a
sector of zeros where the record has none, and one that rotted has not: the head counts the sectors of zeros that it
came with, and both ends of a record are marks. Only a record that nothing valid follows can have been cut, because the
next one is written after its save has returned. It must never take damage for a cut: a save that was acknowledged
would be lost in silence. Sectors of the last record that turned to zeros by themselves are the exception: nothing in a
log can tell them from a cut.
"""

from __future__ import annotations

import enum
import itertools
import struct
import zlib
from typing import NamedTuple

from tenure.storage.log_store import StoredSnapshot

FORMAT = 1
#: The last digits are the format; what stands before them is for ever, so that a newer format is told from damage.
MARK = b"TNRLOG%02d" % FORMAT
END_MARK = b"TNREND%02d" % FORMAT
SECTOR = 512
_HEAD = struct.Struct("<8sIIIIII8Q")
_HEAD_CHECKSUM = struct.Struct("<II")
_PLACE = struct.Struct("<QQ")
HEAD_SIZE = _HEAD.size + _HEAD_CHECKSUM.size
#: A seal has no content.
SEAL_SIZE = HEAD_SIZE + len(END_MARK)
_ZEROS = bytes(SECTOR)


class Kind(enum.IntEnum):
    """What a record says."""

    #: The start of a segment: the newest snapshot and the hard state, so that no earlier segment is needed for them,
    #: as ``first`` the number of the first segment that counted when it was written, as ``last`` the file's length.
    HEAD = 1
    #: One call of ``save``; with a snapshot it replaces everything before it.
    SAVE = 2
    #: One call of ``compact``.
    COMPACT = 3
    #: The end of a segment: the next one exists.
    SEAL = 4


class Ending(enum.Enum):
    """What comes after the last whole record of a segment."""

    CLEAN = "nothing"
    CUT = "a record that was not finished"
    DAMAGED = "a record that fails its checksum"


class Record(NamedTuple):
    """One record. Every one carries the whole hard state."""

    kind: Kind
    sequence: int
    hard_state: tuple[int, int, int]
    first: int = 0
    last: int = 0
    entries: bytes = b""
    snapshot: StoredSnapshot | None = None


class Scan(NamedTuple):
    """The whole records of a segment, where they end, and what comes then."""

    records: list[Record]
    #: Where the last of them begins, and where it ends.
    last: int
    end: int
    ending: Ending


def size_of(record: Record) -> int:
    """How many bytes ``record`` takes."""
    size = HEAD_SIZE + len(record.entries) + len(END_MARK)
    size += 0 if record.snapshot is None else len(record.snapshot.data)
    return size + -size % 8


def encode(record: Record, *, segment: int, offset: int) -> bytes:
    """The bytes of ``record`` at its place: they are valid nowhere else."""
    snapshot = record.snapshot
    place, term, data = (0, 0, b"") if snapshot is None else (snapshot.index, snapshot.term, snapshot.data)
    size = size_of(record)
    padding = size - HEAD_SIZE - len(data) - len(record.entries) - len(END_MARK)
    content = b"".join((data, record.entries, bytes(padding), END_MARK))
    zeros = _zero_sectors(bytes(HEAD_SIZE) + content, offset, skip=HEAD_SIZE) if _ZEROS in content else 0
    numbers = (record.sequence, record.first, record.last, *record.hard_state, place, term)
    head = _HEAD.pack(MARK, size, len(data), len(record.entries), zeros, zlib.crc32(content), record.kind, *numbers)
    return head + _HEAD_CHECKSUM.pack(_head_checksum(head, segment, offset), 0) + content


def scan(data: bytes, *, segment: int) -> Scan:
    """Read the segment number ``segment`` from its start to its last whole record."""
    records: list[Record] = []
    last = offset = 0
    while isinstance(found := read(data, segment, offset), tuple):
        record, size = found
        records.append(record)
        last, offset = offset, offset + size
    if found is Ending.CLEAN and data.count(0, offset) != len(data) - offset:
        # The first sector of a record is missing, later ones are there.
        found = Ending.CUT
    if found is Ending.CUT and _is_followed(data, segment, offset):
        found = Ending.DAMAGED
    return Scan(records, last, offset, found)


def newer_format(data: bytes) -> int | None:
    """The format of a segment that a newer version wrote, or None."""
    name, digits = data[:6], data[6:8]
    if name == MARK[:6] and digits.isdigit() and int(digits) > FORMAT:
        return int(digits)
    return None


def read(data: bytes, segment: int, offset: int) -> tuple[Record, int] | Ending:
    """The record at ``offset`` with its size, or what stands there instead."""
    mark = data[offset : offset + len(MARK)]
    if not any(mark):
        return Ending.CLEAN
    head = data[offset : offset + HEAD_SIZE]
    if mark != MARK or len(head) < HEAD_SIZE:
        return Ending.DAMAGED if mark != MARK else _beyond_the_end(offset)
    if not _head_is_whole(head, segment, offset):
        # A head lies in one sector or in two; of a cut one the second is missing.
        rest = head[SECTOR - offset % SECTOR :]
        return Ending.CUT if rest and not any(rest) else Ending.DAMAGED
    _, size, data_size, entries_size, zeros, checksum, kind, *numbers = _HEAD.unpack_from(head)
    sequence, first, last, term, vote, commit, place, snapshot_term = numbers
    record = data[offset : offset + size]
    content = memoryview(record)[HEAD_SIZE:]
    if len(record) < size:
        return _beyond_the_end(offset)
    if zlib.crc32(content) != checksum:
        return Ending.CUT if _zero_sectors(record, offset) > zeros else Ending.DAMAGED
    snapshot = StoredSnapshot(index=place, term=snapshot_term, data=bytes(content[:data_size])) if place else None
    entries = bytes(content[data_size : data_size + entries_size])
    return Record(Kind(kind), sequence, (term, vote, commit), first, last, entries, snapshot), size


def _beyond_the_end(offset: int) -> Ending:
    """What a record is that the file is too short for: its length is durable once the first one is, not before."""
    return Ending.CUT if offset == 0 else Ending.DAMAGED


def _head_is_whole(head: bytes, segment: int, offset: int) -> bool:
    stored, _ = _HEAD_CHECKSUM.unpack_from(head, _HEAD.size)
    return bool(stored == _head_checksum(head[: _HEAD.size], segment, offset))


def _head_checksum(head: bytes, segment: int, offset: int) -> int:
    return zlib.crc32(head, zlib.crc32(_PLACE.pack(segment, offset)))


def _zero_sectors(record: bytes, offset: int, *, skip: int = 0) -> int:
    """How many pieces of the record at ``offset``, cut at the borders of sectors, are zeros and lie behind ``skip``."""
    borders = [0, *range(SECTOR - offset % SECTOR, len(record), SECTOR), len(record)]
    pieces = itertools.pairwise(borders)
    return sum(start >= skip and record.count(0, start, end) == end - start for start, end in pieces)


def _is_followed(data: bytes, segment: int, offset: int) -> bool:
    """Whether anything stands behind the record at ``offset``: then that one was written to its end once."""
    head = data[offset : offset + HEAD_SIZE]
    if len(head) == HEAD_SIZE and _head_is_whole(head, segment, offset):
        end: int = offset + _HEAD.unpack_from(head)[1]
        return data.count(0, end) < len(data) - end
    # Its size is not known. A whole head behind it tells.
    place = data.find(MARK, offset + len(MARK))
    while place >= 0:
        head = data[place : place + HEAD_SIZE]
        if len(head) == HEAD_SIZE and _head_is_whole(head, segment, place):
            return True
        place = data.find(MARK, place + len(MARK))
    return False
