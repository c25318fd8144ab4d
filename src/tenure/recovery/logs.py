"""Reads in the nodes' logs who wrote last: the lines that contain ``INSERT INTO payment_events``.

Only the end of each file is read, so that a log of gigabytes costs no more than a small one. Lines are JSON as
the payment service writes them, or any text; what cannot be told from a line stays unknown.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from tenure.core.verdict import LogWrite

MARK = b"INSERT INTO payment_events"
TAIL_BYTES = 1_048_576
_TOKEN = re.compile(r"\b(?:fencing_)?token\b\W{1,4}(\d{1,16})\b")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d)?")


def read_logs(patterns: Sequence[str]) -> tuple[list[LogWrite], list[str]]:
    """The last write of each node that the files tell of, and what is missing, in sentences. Blocks on the disk."""
    writes: dict[str, LogWrite] = {}
    missing: list[str] = []
    for pattern in patterns:
        paths = sorted(glob.glob(pattern))  # noqa: PTH207 - the pattern may be absolute, which Path.glob refuses
        if not paths:
            missing.append(f"logs: no file matches {pattern}")
        for path in paths:
            try:
                lines = list(_marked_lines(Path(path)))
            except OSError as error:
                missing.append(f"logs: {path} cannot be read ({error.strerror})")
                continue
            if not lines:
                missing.append(f"logs: {path} has no {MARK.decode()} in its last {TAIL_BYTES // 1024} KiB")
            # Later lines and later files replace earlier ones of the same node.
            writes |= {write.node: write for write in (_read_line(line, path) for line in lines)}
    return list(writes.values()), missing


def _marked_lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - TAIL_BYTES))
        for line in file.read(TAIL_BYTES).splitlines():
            if MARK in line:
                yield line


def _read_line(line: bytes, path: str) -> LogWrite:
    try:
        facts: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
    except msgspec.DecodeError:
        facts = {}
    text = line.decode(errors="replace")
    token, time = _TOKEN.search(text), _TIME.search(text)
    node = facts.get("node") or facts.get("node_id")
    return LogWrite(
        node=node if isinstance(node, str) and node.isprintable() else Path(path).stem,
        path=path,
        at=time[0] if time else None,
        token=int(token[1]) if token else None,
    )
