"""The log store in segment files: preallocated, one synchronous write for each call, whole segments removed.

::

    00000000000000000007.segment:   HEAD  owner, snapshot, hard state | SAVE | SAVE | COMPACT | ... | SEAL | zeros
    00000000000000000008.segment:   HEAD  | SAVE | ...                                                        | zeros

The files are opened with O_DSYNC, so that one system call writes a record and returns once it is on the disk; they
have their length from the start, so that the disk need not write down a new one each time. Records are numbered through
all segments. A segment begins with all that the log needs besides its batches, so the older ones can go once a
snapshot stands for their entries. The next segment is durable before this one is sealed: a sealed one without a
successor is damage, and so is a record that anything follows. Only the last record of the last segment may have been
cut by a crash (``segment_records`` tells that from damage); it was never acknowledged, and is cut off.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tenure.errors import LogCorrupt, StorageError, StorageFull, SyncFailed
from tenure.storage.folders import sync_folder
from tenure.storage.log_store import StoredLog, StoredSnapshot
from tenure.storage.segment_records import (
    FORMAT,
    MARK,
    SEAL_SIZE,
    Ending,
    Kind,
    Record,
    Scan,
    encode,
    other_format,
    read,
    size_of,
)

#: The length of a segment, but for one whose first record needs more.
SEGMENT_BYTES = 16 << 20
#: What one call removes of compacted segments at most. A segment takes many calls to fill, so the debt is paid.
REMOVE_SEGMENTS_MAX = 2
#: What one step of ``verify`` checks at most: records, and bytes once it has checked one record.
VERIFY_RECORDS_MAX = 256
VERIFY_BYTES_MAX = 1 << 20
_WRITE_THROUGH = os.O_RDWR | os.O_DSYNC | os.O_CLOEXEC
_ZEROS_AT_ONCE = 1 << 20
#: What a file system says that cannot allocate.
_CANNOT_ALLOCATE = (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_NAME = re.compile(r"(\d{20})\.segment")


class _Replay:
    """What the records come to, in their order."""

    def __init__(self) -> None:
        self.sequence = 0
        self.hard_state = (0, 0, 0)
        self.snapshot: StoredSnapshot | None = None
        #: The first segment that counts, and for each segment the lowest index that a batch in it begins with.
        self.floor = 1
        self.lowest: dict[int, int] = {}
        #: The batches, where each begins, and where the newest ends. Numbers and bytes only: of long lists of anything
        #: else the garbage collector takes a look at each, again and again.
        self._batches: list[bytes] = []
        self._firsts: list[int] = []
        self._last = 0

    def take(self, segment: int, record: Record, *, is_first: bool) -> bool:
        """Take the next record; False if it is not the next one."""
        if is_first:
            self.floor = record.first
        elif record.sequence != self.sequence + 1:
            return False
        self.note(segment, record)
        if record.snapshot is not None:
            self._drop(everything=record.kind is Kind.SAVE)
        if record.entries and record.kind is Kind.SAVE:
            self._batches.append(record.entries)
            self._firsts.append(record.first)
            self._last = record.last
        return True

    def note(self, segment: int, record: Record) -> None:
        """What a record in ``segment`` changes, but for its batch."""
        kind = record.kind
        self.hard_state = record.hard_state
        if kind is Kind.SEAL:
            return
        self.sequence = record.sequence
        if record.snapshot is not None:
            self.snapshot = record.snapshot
            if kind is Kind.SAVE:
                # It stands for everything before it.
                self.floor = segment
                self.lowest.clear()
            elif kind is Kind.COMPACT:
                self._raise_floor(record.snapshot.index)
        if record.entries and kind is Kind.SAVE:
            self.lowest[segment] = min(record.first, self.lowest.get(segment, record.first))

    def stored(self) -> StoredLog:
        """All that counts."""
        self._drop()
        term, vote, commit = self.hard_state
        batches = tuple(self._batches)
        return StoredLog(term=term, vote=vote, commit=commit, batches=batches, snapshot=self.snapshot)

    def forget_batches(self) -> None:
        """Let the memory go that they take."""
        self._drop(everything=True)

    def _drop(self, *, everything: bool = False) -> None:
        """Drop what the snapshot stands for: what was before the newest batch that begins at or below its next index.

        Where it stands for all, that batch as well.
        """
        index = 0 if self.snapshot is None else self.snapshot.index
        if everything:
            count = len(self._firsts)
        elif not index:
            return
        else:
            starts = (place for place in range(len(self._firsts) - 1, -1, -1) if self._firsts[place] <= index + 1)
            count = next(starts, 0)
            if count == len(self._firsts) - 1 and 0 < self._last <= index:
                count += 1
        del self._batches[:count], self._firsts[:count]

    def _raise_floor(self, index: int) -> None:
        """A batch that begins at or below ``index + 1`` drops all before it, so segments before its own are free."""
        self.floor = max((segment for segment, low in self.lowest.items() if low <= index + 1), default=self.floor)
        self.lowest = {segment: low for segment, low in self.lowest.items() if segment >= self.floor}


class SegmentLogStore:
    """See :class:`tenure.storage.LogStore`. It may be used from any one thread at a time."""

    def __init__(
        self,
        folder: Path,
        *,
        owner: str = "",
        segment_bytes: int = SEGMENT_BYTES,
        known_as: Path | None = None,
        least: int = 0,
    ) -> None:
        """Open the segments in ``folder``, made if absent, and cut off a record that a crash left unfinished.

        Args:
            folder: Theirs alone.
            owner: The id of the data directory that the log belongs to. Every segment carries it, and those of another
                owner are refused (R7).
            segment_bytes: How long a new segment is, unless one record needs more.
            known_as: The path that errors name instead, where ``folder`` is a copy.
            least: The number of a record that it had: a log that ends before it is damage, or an older one. 0 if it may
                be new.

        Raises:
            LogCorrupt: a record is damaged or missing, or the log belongs to another owner; it is named.
            StorageFull: there is no room for a segment.
            StorageError: it is of another format, or cannot be opened.
        """
        self._folder = folder
        self._known_as = folder if known_as is None else known_as
        self._owner = owner.encode()
        self._segment_bytes = segment_bytes
        #: What opening has read, until it is asked for or something is written.
        self._read: StoredLog | None = None
        self._unusable: str | None = None
        self._descriptor = -1
        self._places = _Replay()
        self._oldest = 1
        self._segment = self._offset = self._size = 0
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            # An earlier life may have ended before its names were durable, and what is saved now relies on them.
            sync_folder(folder.parent)
            sync_folder(folder)
            self._open(least)
        except OSError as error:
            self.close()
            raise self._explain(error) from error
        except BaseException:
            self.close()
            raise

    @property
    def end(self) -> int:
        """The number of its last record. Every record up to it is on the disk."""
        return self._places.sequence

    @property
    def holds_log(self) -> bool:
        """Whether anything was ever saved in it."""
        return self._places.sequence > 1

    # -- what the protocol promises ---------------------------------------------------------------------------------

    def load(self) -> StoredLog:
        """See :meth:`LogStore.load`."""
        found, self._read = self._read, None
        if found is None:
            try:
                found = self._replay(self._segments())[0].stored()
            except OSError as error:
                raise self._explain(error) from error
        return found

    def save(
        self,
        *,
        first: int,
        last: int,
        entries: bytes,
        hard_state: tuple[int, int, int] | None,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        """See :meth:`LogStore.save`. One write, which the disk has taken when it returns."""
        state = self._places.hard_state if hard_state is None else hard_state
        is_new = entries or snapshot is not None or state != self._places.hard_state
        record = Record(Kind.SAVE, self._places.sequence + 1, state, first, last, entries, snapshot)
        self._append(record if is_new else None)

    def compact(self, snapshot: StoredSnapshot) -> None:
        """See :meth:`LogStore.compact`."""
        places = self._places
        if places.snapshot is None or snapshot.index >= places.snapshot.index:
            self._append(Record(Kind.COMPACT, places.sequence + 1, places.hard_state, snapshot=snapshot))

    def verify(self) -> Iterator[int]:
        """See :meth:`tenure.storage.Verifiable.verify`. Reading a segment is a step of its own."""
        last, end = self._segment, self._offset
        segment, sequence = self._oldest, 0
        while segment <= last:
            try:
                data = self._path(segment).read_bytes()
            except FileNotFoundError:
                raise self._corrupt(segment, "it is missing", None) from None
            except OSError as error:
                raise self._explain(error) from error
            yield 0
            sealed, offset, checked, begin = False, 0, 0, 0
            while not (sealed or (segment == last and offset == end)):
                found = read(data, segment, offset)
                if not isinstance(found, tuple):
                    raise self._corrupt(segment, f"the record at byte {offset} fails its checksum", None)
                record, size = found
                sealed, offset, checked = record.kind is Kind.SEAL, offset + size, checked + 1
                if record.kind is Kind.HEAD:
                    self._check_head(segment, record)
                if sequence and record.sequence != sequence + 1:
                    raise self._corrupt(segment, f"the record {sequence + 1} is missing", None)
                sequence = record.sequence - sealed
                if checked == VERIFY_RECORDS_MAX or offset - begin >= VERIFY_BYTES_MAX:
                    yield checked
                    checked, begin = 0, offset
            yield checked
            if segment + 1 < self._oldest:
                # Compacted meanwhile: what follows is not the next one.
                sequence = 0
            segment = max(segment + 1, self._oldest)

    def close(self) -> None:
        """See :meth:`LogStore.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    # -- writing ------------------------------------------------------------------------------------------------------

    def _append(self, record: Record | None) -> None:
        """One durable step; None only asks the disk for a sign of life, by zeros where zeros are (R13).

        After any failure the store takes no further one: what it left is not known (R2).
        """
        if self._unusable is not None:
            raise SyncFailed(f"{self._known_as}: an earlier write failed ({self._unusable}); open the store again")
        self._read = None
        try:
            if record is None:
                self._write(self._descriptor, bytes(len(MARK)), self._offset)
                return
            data = encode(record, segment=self._segment, offset=self._offset)
            if self._offset + len(data) + SEAL_SIZE > self._size:
                self._roll(len(data))
                record = record._replace(sequence=self._places.sequence + 1)
                data = encode(record, segment=self._segment, offset=self._offset)
            self._write(self._descriptor, data, self._offset)
            self._offset += len(data)
            self._places.note(self._segment, record)
            if self._oldest < self._places.floor:
                self._remove_some()
        except BaseException as error:
            self._unusable = str(error)
            if isinstance(error, OSError):
                raise self._explain(error) from error
            raise

    def _roll(self, needed: int) -> None:
        """Go on in the next segment, with room for a record of ``needed`` bytes."""
        older, offset, segment = self._descriptor, self._offset, self._segment
        try:
            self._begin(segment + 1, needed)
            self._seal(older, offset, segment)
        finally:
            if self._descriptor != older:
                os.close(older)

    def _begin(self, segment: int, needed: int) -> None:
        """Make ``segment`` durable with its first record, and write into it from now on."""
        places = self._places
        head = Record(
            Kind.HEAD, places.sequence + 1, places.hard_state, places.floor, 0, self._owner, snapshot=places.snapshot
        )
        size = max(self._segment_bytes, size_of(head) + needed + SEAL_SIZE)
        data = encode(head._replace(last=size), segment=segment, offset=0)
        path = self._path(segment)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, size)
            self._write(descriptor, data, 0)
            # A synchronous write would make durable only as much of the length as it needs itself.
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        sync_folder(self._folder)
        descriptor = os.open(path, _WRITE_THROUGH)
        self._descriptor, self._segment, self._offset, self._size = descriptor, segment, len(data), size
        places.note(segment, head)

    def _seal(self, descriptor: int, offset: int, segment: int) -> None:
        """Say at the end of ``segment`` that the next one exists, which it does by now."""
        seal = Record(Kind.SEAL, self._places.sequence, self._places.hard_state)
        self._write(descriptor, encode(seal, segment=segment, offset=offset), offset)

    def _write(self, descriptor: int, data: bytes, offset: int) -> None:
        """One synchronous write."""
        written = os.pwrite(descriptor, data, offset)
        if written != len(data):
            raise OSError(errno.EIO, f"{written} of {len(data)} bytes were written")

    def _remove_some(self) -> None:
        """Remove a bounded piece of what no longer counts, oldest first."""
        for segment in range(self._oldest, min(self._oldest + REMOVE_SEGMENTS_MAX, self._places.floor)):
            self._path(segment).unlink(missing_ok=True)
            self._oldest = segment + 1

    # -- opening and reading ------------------------------------------------------------------------------------------

    def _open(self, least: int) -> None:
        segments = self._segments()
        if not segments:
            if least:
                raise self._corrupt(1, "it is missing, and so are all that followed it", None)
            self._begin(1, 0)
            return
        self._places, ends = self._replay(segments)
        self._read = self._places.stored()
        self._places.forget_batches()
        if least and not ends[0].count:
            raise self._corrupt(1, "its first record is missing", None)
        if self.end < least:
            what = f"it ends with the record {self.end}, and it had {least}: it is an older copy, or its end is gone"
            raise self._corrupt(segments[-1], what, ends[-1].next_index)
        for stray in set(self._numbers()) - set(segments):
            # Removed, and back after a power cut: the removal of a newer one was durable, and this one was not.
            self._path(stray).unlink()
        self._oldest = segments[0]
        if not ends[-1].count:
            # The crash came while this segment was made: the one before it goes on.
            self._path(segments.pop()).unlink()
            ends.pop()
        if not segments:
            self._begin(1, 0)
            return
        self._segment, self._offset = segments[-1], ends[-1].end
        self._descriptor = self._reopen(segments[-1], ends[-1])
        self._size = os.fstat(self._descriptor).st_size
        if len(segments) > 1:
            # Only now, for it says that the last one is durable. Where the crash came in between, it is not said yet.
            older, found = segments[-2], ends[-2]
            descriptor = self._reopen(older, found)
            try:
                if found.kind is not Kind.SEAL:
                    self._seal(descriptor, found.end, older)
            finally:
                os.close(descriptor)

    def _reopen(self, segment: int, found: Scan) -> int:
        """A descriptor to go on writing behind the last whole record of ``segment``, which is durable by then.

        Reading shows what is in memory: a write that failed, or that the end of the process cut short, is there and
        need not be on the disk, and a sync would not bring it there any more. So the last record is written again, and
        zeros over what follows it: a later cut could not be told from damage else.
        """
        data = self._path(segment).read_bytes()
        rest = len(data[found.end :].rstrip(b"\0"))
        descriptor = os.open(self._path(segment), _WRITE_THROUGH)
        try:
            self._write(descriptor, data[found.last : found.end] + bytes(rest), found.last)
            os.fsync(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _replay(self, segments: list[int]) -> tuple[_Replay, list[Scan]]:
        """Everything that is stored, and how the segments end; :class:`tenure.LogCorrupt` names what is wrong."""
        replay, ends = _Replay(), list[Scan]()
        for segment in segments:
            found, is_first = Scan(segment), not ends
            data = self._content(segment)
            for record in found.records(data):
                if found.count == 1:
                    self._check_head(segment, record)
                if not replay.take(segment, record, is_first=is_first):
                    raise self._corrupt(segment, f"the record {replay.sequence + 1} is missing", None)
                is_first = False
            if found.ending is Ending.SHORT:
                raise self._corrupt(segment, f"it ends at byte {len(data)}", None)
            if found.ending is Ending.DAMAGED:
                what = f"the record at byte {found.end} fails its checksum"
                raise self._corrupt(segment, what, found.next_index)
            ends.append(found)
        for place, (segment, found) in enumerate(zip(segments, ends, strict=True)):
            later = ends[place + 1 :]
            followed = later[0].count if later else 0
            if found.kind is Kind.SEAL:
                if not followed:
                    raise self._corrupt(segment + 1, "it, or its first record, is missing", None)
            elif later and (len(later) > 1 or followed > 1 or not found.count):
                # Without a seal only the first record of the next one can be there.
                raise self._corrupt(segment, f"the record at byte {found.end} is missing", found.next_index)
        if segments[0] > replay.floor or (not ends[0].count and segments[0] > 1):
            raise self._corrupt(segments[0] - 1, "it is missing, and no snapshot stands for its entries", None)
        return replay, ends

    def _content(self, segment: int) -> bytes:
        data = self._path(segment).read_bytes()
        other = other_format(data)
        if other is not None:
            path = self._named(segment)
            raise StorageError(
                f"{path} has format {other}, and this version reads {FORMAT}: use the Tenure that wrote it"
            )
        return data

    def _check_head(self, segment: int, record: Record) -> None:
        if record.kind is not Kind.HEAD:
            raise self._corrupt(segment, "its first record is missing", None)
        if record.entries != self._owner:
            theirs, ours = (repr(owner.decode(errors="replace")) for owner in (record.entries, self._owner))
            what = f"it belongs to the data directory {theirs}, and this is {ours}"
            raise self._corrupt(segment, f"{what}: the log, or the database beside it, was exchanged or lost", None)

    def _numbers(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self._folder.iterdir())
        return sorted(int(match[1]) for match in matches if match)

    def _segments(self) -> list[int]:
        """The newest segments that follow one another without a hole."""
        numbers = self._numbers()
        place = len(numbers) - 1
        while place > 0 and numbers[place - 1] == numbers[place] - 1:
            place -= 1
        return numbers[place:] if numbers else []

    def _path(self, segment: int) -> Path:
        return self._folder / f"{segment:020d}.segment"

    def _named(self, segment: int) -> Path:
        return self._known_as / self._path(segment).name

    def _corrupt(self, segment: int, what: str, index: int | None) -> LogCorrupt:
        path = self._named(segment)
        return LogCorrupt(
            f"{path}: {what}; it was not applied. Replace this member's data directory", path=str(path), index=index
        )

    def _explain(self, error: OSError) -> StorageError:
        """The storage error that says what its reader can do."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StorageFull(f"{self._known_as}: the disk is full; free space and start this node again")
        return SyncFailed(f"{self._known_as}: {error}; what is on the disk is no longer known, so this node must stop")


def _allocate(descriptor: int, size: int) -> None:
    """Give the empty file its length, in zeros and with room on the disk for all of them."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _CANNOT_ALLOCATE:
            raise
        for offset in range(0, size, _ZEROS_AT_ONCE):
            zeros = bytes(min(_ZEROS_AT_ONCE, size - offset))
            if os.pwrite(descriptor, zeros, offset) < len(zeros):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
