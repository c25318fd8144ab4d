"""A disk under the log store in segments that tells what a power cut may leave of it, and fails at any call.

The files are real. Beside them it keeps what is surely on the disk: what a call with O_DSYNC has written, a name whose
folder was synced, a length that a durable write needs. After a cut everything else may be there or not: each sector,
each name, each length for itself. A write that failed stays visible to who reads the file, because the system has it
in memory, and never reaches the disk unless it is written again.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from tenure.storage import folders, segments

SECTOR = 512
#: The bytes of each file by its path; None for a folder.
Image = dict[str, bytes | None]
_MKDIR, _UNLINK = Path.mkdir, Path.unlink


class Killed(BaseException):
    """The process ends here; the system goes on."""


class File:
    """What everybody sees of a file, what is surely on the disk, and which sectors are on their way there."""

    def __init__(self, content: bytes, sector: int) -> None:
        self.seen = bytearray(content)
        self.durable = bytearray(content)
        self._sector = sector
        self._underway: set[int] = set()

    def write(self, data: bytes, offset: int) -> set[int]:
        """The sectors that this changes."""
        end = offset + len(data)
        self.seen += bytes(max(0, end - len(self.seen)))
        self.seen[offset:end] = data
        touched = set(range(offset // self._sector, -(-end // self._sector)))
        self._underway |= touched
        return touched

    def end(self, sectors: set[int], *, written: bool) -> None:
        """They are on the disk now; or the disk said no, and nothing will ever write them again."""
        self._underway -= sectors
        for sector in sorted(sectors) if written else ():
            self._write_through(self.durable, sector)

    def sync(self) -> None:
        self.end(set(self._underway), written=True)
        self.durable += bytes(len(self.seen) - len(self.durable))

    def after_a_cut(self, source: random.Random | None) -> bytes:
        """What may be left; without ``source`` only what is surely there."""
        data = bytearray(self.durable)
        if source is None:
            return bytes(data)
        if source.random() < 0.5:
            data += bytes(len(self.seen) - len(data))
        underway = sorted(self._underway)
        edge = source.randint(0, len(underway))
        some = [sector for sector in underway if source.random() < 0.5]
        for sector in source.choice(([], underway, underway[:edge], underway[edge:], some)):
            self._write_through(data, sector)
        return bytes(data)

    def _write_through(self, data: bytearray, sector: int) -> None:
        start = sector * self._sector
        piece = self.seen[start : start + self._sector]
        data += bytes(max(0, start + len(piece) - len(data)))
        data[start : start + len(piece)] = piece


Entry = File | None | Literal["gone"]


class Disk:
    """Everything below ``root``, which is durable when this begins.

    ``at_call`` is told the name of each call while its effect is under way: it may look at images, or raise OSError or
    ``Killed`` in its stead.
    """

    def __init__(self, root: Path, at_call: Callable[[str], None] = lambda _: None, *, sector: int = SECTOR) -> None:
        self.root = root
        self.at_call = at_call
        self._sector = sector
        self._seen: dict[str, File | None] = {}
        for path in sorted(root.rglob("*")):
            self._seen[self._key(path)] = None if path.is_dir() else File(path.read_bytes(), sector)
        self._durable = dict(self._seen)
        #: What names were since their folder was synced: a cut may leave any of it.
        self._changes: dict[str, list[Entry]] = {}
        self._open: dict[int, tuple[str, bool]] = {}

    def image(self, source: random.Random | None = None) -> Image:
        """What a power cut now may leave; without ``source`` only what is surely there."""
        names: dict[str, Entry] = dict(self._durable)
        for key, changes in self._changes.items():
            if source is not None:
                names[key] = source.choice([names.get(key, "gone"), *changes])
        there = {key: entry for key, entry in sorted(names.items()) if not isinstance(entry, str)}
        return {
            key: None if entry is None else entry.after_a_cut(source)
            for key, entry in there.items()
            if all(str(parent) in there for parent in Path(key).parents if str(parent) != ".")
        }

    def forget_descriptors(self) -> None:
        """What the end of a process does."""
        for descriptor in list(self._open):
            self.close(descriptor)

    # -- the system calls ---------------------------------------------------------------------------------------------

    def mkdir(self, path: Path) -> None:
        if path.exists():
            return
        self.at_call("mkdir")
        _MKDIR(path, mode=0o700)
        self._change(self._key(path), None)

    def unlink(self, path: Path) -> None:
        if path.exists():
            self.at_call("unlink")
            _UNLINK(path)
            self._change(self._key(path), "gone")

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        # The real disk is not waited for.
        if not path.is_relative_to(self.root):
            return os.open(path, flags & ~os.O_DSYNC, mode)
        key = self._key(path)
        if not path.exists():
            self.at_call("create")
        descriptor = os.open(path, flags & ~os.O_DSYNC, mode)
        if key not in self._seen and key != ".":
            self._change(key, File(b"", self._sector))
        self._open[descriptor] = (key, bool(flags & os.O_DSYNC))
        return descriptor

    def close(self, descriptor: int) -> None:
        self._open.pop(descriptor, None)
        os.close(descriptor)

    def posix_fallocate(self, descriptor: int, offset: int, size: int) -> None:
        if descriptor not in self._open:
            os.posix_fallocate(descriptor, offset, size)
            return
        self.at_call("fallocate")
        os.posix_fallocate(descriptor, offset, size)
        file = self._file(descriptor)
        file.seen += bytes(max(0, offset + size - len(file.seen)))

    def pwrite(self, descriptor: int, data: bytes, offset: int) -> int:
        if descriptor not in self._open:
            return os.pwrite(descriptor, data, offset)
        file, is_through = self._file(descriptor), self._open[descriptor][1]
        before = bytes(file.seen)
        touched = file.write(data, offset)
        try:
            self.at_call("pwrite")
        except OSError:
            os.pwrite(descriptor, data, offset)
            file.end(touched, written=False)
            raise
        except Killed:
            # The copying into memory ends at a page, and what is there is on its way.
            end = min(offset + len(data), (offset // 4096 + 1) * 4096)
            file.seen[:] = before
            file.write(data[: end - offset], offset)
            os.pwrite(descriptor, data[: end - offset], offset)
            raise
        written = os.pwrite(descriptor, data, offset)
        if is_through:
            file.end(touched, written=True)
        return written

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        if descriptor not in self._open:
            return
        raise AssertionError("what a cut in the middle of this leaves is not described here")

    def fsync(self, descriptor: int) -> None:
        if descriptor not in self._open:
            return
        self.at_call("fsync")
        key, _ = self._open[descriptor]
        entry = self._seen.get(key)
        if isinstance(entry, File):
            entry.sync()
            return
        for name in [name for name in self._changes if str(Path(name).parent) == key]:
            del self._changes[name]
            self._durable.pop(name, None)
            if name in self._seen:
                self._durable[name] = self._seen[name]

    def _file(self, descriptor: int) -> File:
        entry = self._seen[self._open[descriptor][0]]
        assert entry is not None
        return entry

    def _change(self, key: str, entry: Entry) -> None:
        self._changes.setdefault(key, []).append(entry)
        if isinstance(entry, str):
            del self._seen[key]
        else:
            self._seen[key] = entry

    def _key(self, path: Path) -> str:
        return str(Path(path).relative_to(self.root))


@contextlib.contextmanager
def under(disk: Disk, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the stores in segments below its root that are used meanwhile work on ``disk``."""
    names = ("open", "close", "pwrite", "ftruncate", "fsync", "fdatasync", "posix_fallocate")
    calls: dict[str, Any] = {name: getattr(disk, name, disk.fsync) for name in names}

    def unlink(path: Path, missing_ok: bool = False) -> None:
        disk.unlink(path) if path.is_relative_to(disk.root) else _UNLINK(path, missing_ok)

    def mkdir(path: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        disk.mkdir(path) if path.is_relative_to(disk.root) else _MKDIR(path, mode, parents, exist_ok)

    with patch.context() as patched:
        for module in (segments, folders):
            patched.setattr(module, "os", SimpleNamespace(**{**vars(os), **calls}))
        patched.setattr(Path, "unlink", unlink)
        patched.setattr(Path, "mkdir", mkdir)
        yield


def laid_out(image: Image, root: Path) -> Path:
    """A folder that holds ``image``."""
    _MKDIR(root, parents=True)
    for key, content in sorted(image.items()):
        if content is None:
            _MKDIR(root / key)
        else:
            (root / key).write_bytes(content)
    return root


def contents(root: Path) -> Image:
    """What lies in a folder now."""
    paths = sorted(root.rglob("*"))
    return {str(path.relative_to(root)): None if path.is_dir() else path.read_bytes() for path in paths}
