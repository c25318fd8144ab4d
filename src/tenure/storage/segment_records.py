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
from collections.abc import Iterator
from typing import NamedTuple

from tenure.storage.log_store import StoredSnapshot

FORMAT = 2
#: The last digits are the format; what stands before them is for ever, so that another format is told from damage.
MARK = b"TNRLOG%02d" % FORMAT
END_MARK = b"TNREND%02d" % FORMAT
SECTOR = 512
_HEAD = struct.Struct("<8sIIIIII8Q")
#: Behind it, with four bytes of padding.
_HEAD_CHECKSUM = struct.Struct("<I4x")
_WHOLE_HEAD = struct.Struct(f"{_HEAD.format}{_HEAD_CHECKSUM.format[1:]}")
_PLACE = struct.Struct("<QQ")
HEAD_SIZE = _WHOLE_HEAD.size
#: A seal has no content.
SEAL_SIZE = HEAD_SIZE + len(END_MARK)
_ZEROS = bytes(SECTOR)


class Kind(enum.IntEnum):
    """What a record says."""

    #: The start of a segment: the newest snapshot and the hard state, so that no earlier segment is needed for them,
    #: as ``first`` the number of the first segment that counted when it was written, as ``last`` the file's length, as
    #: ``entries`` the id of the data directory that the log belongs to.
    HEAD = 1
    #: One call of ``save``; with a snapshot it replaces everything before it.
    SAVE = 2
    #: One call of ``compact``.
    COMPACT = 3
    #: The end of a segment: the next one exists.
    SEAL = 4


#: Asking the enumeration itself takes as long as the rest of reading a record.
_KINDS = {int(kind): kind for kind in Kind}


class Ending(enum.Enum):
    """What comes after the last whole record of a segment."""

    CLEAN = "nothing"
    CUT = "a record that was not finished"
    SHORT = "the end of the file, before the length that its first record tells"
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


class Scan:
    """The whole records of a segment from its start; once they are read, where they end and what comes there."""

    def __init__(self, segment: int) -> None:
        self._segment = segment
        self.count = 0
        #: The kind of the last of them, where it begins, and where it ends.
        self.kind: Kind | None = None
        self.last = self.end = 0
        self.ending = Ending.CLEAN
        #: The first log index of which what comes then may be, where that is known.
        self.next_index: int | None = None

    def records(self, data: bytes) -> Iterator[Record]:
        """Each record that ``data`` begins with. A first one in a file that is too short for it is none."""
        while isinstance(found := read(data, self._segment, self.end), tuple):
            record, size = found
            if not self.count and len(data) < record.last and record.kind is Kind.HEAD:
                # Its length is durable before anything follows its first record.
                is_followed = isinstance(read(data, self._segment, size), tuple)
                self.ending = Ending.SHORT if is_followed else Ending.CUT
                return
            self.count += 1
            self.kind = record.kind
            self.last, self.end = self.end, self.end + size
            if record.kind is Kind.SAVE and record.last:
                self.next_index = record.last + 1
            yield record
        if found is Ending.CLEAN and data.count(0, self.end) != len(data) - self.end:
            # The first sector of a record is missing, later ones are there.
            found = Ending.CUT
        if found is Ending.CUT and _is_followed(data, self._segment, self.end):
            found = Ending.DAMAGED
        self.ending = found


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
    return head + _HEAD_CHECKSUM.pack(_head_checksum(head, segment, offset)) + content


def other_format(data: bytes) -> int | None:
    """The format of a segment that another version wrote, or None."""
    name, digits = data[:6], data[6:8]
    if name == MARK[:6] and digits.isdigit() and int(digits) != FORMAT:
        return int(digits)
    return None


def read(data: bytes, segment: int, offset: int) -> tuple[Record, int] | Ending:
    """The record at ``offset`` with its size, or what stands there instead."""
    mark = data[offset : offset + len(MARK)]
    if mark != MARK:
        return Ending.DAMAGED if any(mark) else Ending.CLEAN
    head = data[offset : offset + HEAD_SIZE]
    if len(head) < HEAD_SIZE:
        return _beyond_the_end(offset)
    (
        _, size, data_size, entries_size, zeros, checksum, kind,
        sequence, first, last, term, vote, commit, place, snapshot_term, head_checksum,
    ) = _WHOLE_HEAD.unpack(head)  # fmt: skip
    if head_checksum != _head_checksum(head[: _HEAD.size], segment, offset):
        # A head lies in one sector or in two; of a cut one the second is missing.
        rest = head[SECTOR - offset % SECTOR :]
        return Ending.CUT if rest and not any(rest) else Ending.DAMAGED
    content = data[offset + HEAD_SIZE : offset + size]
    if len(content) < size - HEAD_SIZE:
        return _beyond_the_end(offset)
    if zlib.crc32(content) != checksum:
        return Ending.CUT if _zero_sectors(head + content, offset) > zeros else Ending.DAMAGED
    snapshot = StoredSnapshot(index=place, term=snapshot_term, data=content[:data_size]) if place else None
    entries = content[data_size : data_size + entries_size]
    return Record(_KINDS[kind], sequence, (term, vote, commit), first, last, entries, snapshot), size


def _beyond_the_end(offset: int) -> Ending:
    """What a record is that the file is too short for: its length is durable once the first one is, not before."""
    return Ending.CUT if offset == 0 else Ending.DAMAGED


def _head_is_whole(head: bytes, segment: int, offset: int) -> bool:
    return bool(_WHOLE_HEAD.unpack(head)[-1] == _head_checksum(head[: _HEAD.size], segment, offset))


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
