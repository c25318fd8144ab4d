"""What crashes and disks do to the files of a store. It changes copies and files under test, and nothing else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def flip_bit(folder: Path, marker: bytes) -> int:
    """Flip one bit in the middle of each place where ``marker`` stands in a file under ``folder``; their number."""
    flipped = 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        data = bytearray(path.read_bytes())
        place = data.find(marker)
        while place >= 0:
            data[place + len(marker) // 2] ^= 1
            flipped += 1
            place = data.find(marker, place + len(marker))
        path.write_bytes(data)
    return flipped


def copied(folder: Path, name: str) -> Path:
    """A copy of ``folder`` beside it, as a kill -9 at this moment would leave it. Its name begins with ``name``."""
    target = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=folder.parent)) / "copy"
    shutil.copytree(folder, target)
    return target


def torn_copies(before: Path, after: Path, *, count: int = 8) -> Iterator[Path]:
    """Copies of ``after`` in which what was appended since ``before`` is cut off at ``count`` places.

    That is what a power cut leaves of an append that was not synced yet, one copy at a time; each is removed when the
    next one is asked for.
    """
    for path in sorted(path for path in after.rglob("*") if path.is_file()):
        older = before / path.relative_to(after)
        start = older.stat().st_size if older.exists() else 0
        end = path.stat().st_size
        for place in sorted({start + (end - start) * step // count for step in range(count)} if end > start else ()):
            torn = copied(after, "torn")
            with (torn / path.relative_to(after)).open("r+b") as file:
                file.truncate(place)
            yield torn
            shutil.rmtree(torn.parent)
