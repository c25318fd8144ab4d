"""Tells a damaged write-ahead log of SQLite from one that ends in a torn transaction.

SQLite reads the frames of the file up to the first one that fails its checksum, and takes that for the place where the
power went: a single bit flipped early in the file silently takes back every transaction behind it, votes that were
given among them. But each transaction is synced before the next one is written (``synchronous=FULL``), so only the
last one can be torn. Frames of a later transaction behind a frame that fails prove damage. Damage within the very last
transaction looks like a torn one, here as in any log.

It must run before SQLite opens the file, and it never changes it. Format: https://www.sqlite.org/fileformat2.html
"""

from __future__ import annotations

import struct
import sys
from array import array
from pathlib import Path
from typing import BinaryIO

_HEADER = struct.Struct(">8I")
_FRAME = struct.Struct(">6I")
_MAGIC = 0x377F0682
_WORD = (1 << 32) - 1


def is_damaged(path: Path) -> bool:
    """Whether ``path`` (which need not exist) holds frames of a transaction behind one that fails its checksum."""
    try:
        with path.open("rb") as file:
            return _judge(file)
    except FileNotFoundError:
        return False


def _judge(file: BinaryIO) -> bool:
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return False
    magic, _, page_size, _, *salts, sum_1, sum_2 = _HEADER.unpack(header)
    swapped = (magic & 1 == 1) != (sys.byteorder == "big")
    total = _sum(header[: _HEADER.size - 8], (0, 0), swapped=swapped)
    if magic | 1 != _MAGIC | 1 or total != (sum_1, sum_2):
        # The header is synced before a frame of its generation is written: with such a frame it was whole once.
        return _is_of(salts, file.read(_FRAME.size))
    whole, committed = True, False
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        page = file.read(page_size)
        _, size_after_commit, salt_1, salt_2, *expected = _FRAME.unpack(head)
        if whole:
            total = _sum(head[:8] + page, total, swapped=swapped) if len(page) == page_size else (-1, -1)
            whole = [salt_1, salt_2] == salts and list(total) == expected
        if not whole and _is_of(salts, head):
            if committed:
                return True
            committed = size_after_commit != 0
    return False


def _is_of(salts: list[int], frame: bytes) -> bool:
    """Whether the frame is of the generation of these salts. Another one's differ both; a flipped bit changes one."""
    return len(frame) >= _FRAME.size and any(a == b for a, b in zip(salts, _FRAME.unpack(frame)[2:4], strict=True))


def _sum(data: bytes, total: tuple[int, int], *, swapped: bool) -> tuple[int, int]:
    """SQLite's checksum over pairs of 32-bit words, continued from ``total``."""
    words = array("I", data)
    if swapped:
        words.byteswap()
    one, two = total
    pairs = iter(words)
    for first, second in zip(pairs, pairs, strict=True):
        one = (one + first + two) & _WORD
        two = (two + second + one) & _WORD
    return one, two
