"""Faults for one real node process, set by tests alone: stores and a transport that wrap the real ones.

Nothing of this is reachable from the product: it comes in by ``tenure.raft.Ports``. A *point* is a named step of the
persist order; a test arms one of them, and the process kills itself there by SIGKILL, or stops itself by SIGSTOP. What
matters for R1 is written to a journal beside the data directory, by one ``write`` each, so that it outlives the kill:
who led a term, which votes were given, and anything that left before it was durable.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import signal
import struct
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import tenure_raft

from tenure.errors import StorageFull, SyncFailed
from tenure.raft import Ports
from tenure.storage import LogStore, SnapshotStore, StoredLog, StoredSnapshot
from tenure.storage.segment_records import SECTOR
from tenure.storage.segments import SegmentLogStore
from tenure.storage.snapshot_files import FileLayer, FileSnapshotStore
from tenure.storage.sqlite import SqliteLogStore
from tenure.transport import TcpTransport, Transport, TransportHooks

CHUNK_REQUEST, CHUNK, ENVELOPES = 0xF1, 0xF2, 0xF0
#: The head of one message in a payload: kind, refusal, eight numbers (sender, receiver and term first), context.
_HEAD = struct.Struct("<BB8QH")
_NAMED = ("append", "append_response", "request_vote", "request_vote_response", "snapshot", "heartbeat")
_VOTES = ("request_vote", "request_vote_response", "request_pre_vote", "request_pre_vote_response")


def _code(kind: str) -> int:
    return tenure_raft.encode_message(kind, sender=1, to=2, term=1)[0]


_KINDS = {_code(kind): kind for kind in {*_NAMED, *_VOTES} - {"snapshot"}} | {7: "snapshot"}


class Journal:
    """Lines that outlive the process."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def note(self, what: str, **fields: object) -> None:
        os.write(self._file, json.dumps({"what": what, "pid": os.getpid(), **fields}).encode() + b"\n")


class Faults:
    """What is armed in this process, and what its disk and its links do at present."""

    def __init__(self, journal: Journal, *, die_at: str | None = None, after: int = 0, action: str = "kill") -> None:
        self.journal = journal
        self._point, self._left, self._action = die_at, after, action
        self.disk: str | None = None
        self.stall_seconds = 0.0
        self.deaf_to: frozenset[str] = frozenset()
        self.mute_to: frozenset[str] = frozenset()
        self.slow_votes: tuple[float, float] | None = None
        self.randomness = random.Random(0)
        self.chunks_sent = 0
        #: The last hard state that is durable.
        self.durable = (0, 0)

    def arm(self, point: str, *, after: int = 0, action: str = "kill") -> None:
        """Let the process end (``kill``) or stop (``stop``) at ``point``, when it comes there after so many times."""
        self._point, self._left, self._action = point, after, action

    def comes(self, point: str) -> bool:
        """Whether it is to happen here and now."""
        if self._point != point:
            return False
        self._left -= 1
        return self._left < 0

    def hit(self, point: str) -> None:
        """The process comes to ``point``; it may not come any further."""
        if self.comes(point):
            self.act(point)

    def act(self, point: str) -> None:
        self.journal.note("died" if self._action == "kill" else "stopped", point=point)
        self._point = None
        os.kill(os.getpid(), signal.SIGKILL if self._action == "kill" else signal.SIGSTOP)

    def write(self) -> None:
        """The disk is written: it may be full, broken or slow."""
        if self.disk == "full":
            raise StorageFull("the disk is full (by the test); free space and start this node again")
        if self.disk == "broken":
            raise SyncFailed("a write failed with EIO (by the test): look at the disk")
        if self.disk == "stalled":
            time.sleep(self.stall_seconds)


class TearingSegments(SegmentLogStore):
    """Writes about half of a record, in whole sectors as every disk does, and dies."""

    faults: Faults
    tear: str | None = None

    def _write(self, descriptor: int, data: bytes, offset: int) -> None:
        if self.tear is not None:
            end = (offset + (len(data) + SECTOR) // 2) // SECTOR * SECTOR
            if end > offset:
                super()._write(descriptor, data[: end - offset], offset)
            self.faults.act(self.tear)
        super()._write(descriptor, data, offset)


class FaultyLogStore:
    """A log store with the faults of :class:`Faults` around it. Steps with a vote in them are points of their own."""

    def __init__(self, faults: Faults, folder: Path, kind: str) -> None:
        self._faults = faults
        self._inner: LogStore
        if kind == "segments":
            self._inner = TearingSegments(folder / "segments", segment_bytes=1 << 18)
            self._inner.faults = faults
        else:
            self._path = folder / "log.sqlite3"
            self._inner = SqliteLogStore(self._path)
        self._term_and_vote: tuple[int, int] = (0, 0)

    def load(self) -> StoredLog:
        stored = self._inner.load()
        self._term_and_vote = self._faults.durable = (stored.term, stored.vote)
        self._faults.hit("founding.enrolled")
        return stored

    def save(
        self,
        *,
        first: int,
        last: int,
        entries: bytes,
        hard_state: tuple[int, int, int] | None,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        point = "save" if entries else "commit"
        if hard_state is not None and hard_state[:2] != self._term_and_vote:
            point = "vote"
        if snapshot is not None:
            point = "restore"
        self._step(
            point,
            lambda: self._inner.save(first=first, last=last, entries=entries, hard_state=hard_state, snapshot=snapshot),
            hard_state,
        )

    def compact(self, snapshot: StoredSnapshot) -> None:
        self._step("compact", lambda: self._inner.compact(snapshot), None)

    def close(self) -> None:
        self._inner.close()

    def _step(self, point: str, write: Callable[[], None], hard_state: tuple[int, int, int] | None) -> None:
        self._faults.write()
        self._faults.hit(f"{point}.before")
        if self._faults.comes(f"{point}.torn"):
            self._tear(f"{point}.torn", write)
        write()
        if hard_state is not None:
            self._term_and_vote = self._faults.durable = hard_state[:2]
            self._faults.journal.note("durable", term=hard_state[0], vote=hard_state[1])
        self._faults.hit(f"{point}.after")

    def _tear(self, point: str, write: Callable[[], None]) -> None:
        """Have only the first half of what ``write`` changes on the disk, and die."""
        if isinstance(self._inner, TearingSegments):
            self._inner.tear = point
            write()
            return
        wal = self._path.with_name(f"{self._path.name}-wal")
        before, untouched = wal.read_bytes(), self._path.stat().st_mtime_ns
        write()
        after = wal.read_bytes()
        if self._path.stat().st_mtime_ns != untouched:
            # SQLite moved its log into the file meanwhile: what is there cannot be torn any more.
            self._faults.arm(point)
            return
        changed = next((i for i in range(0, len(after), 512) if after[i : i + 512] != before[i : i + 512]), len(after))
        middle = (changed + len(after)) // 2
        with wal.open("r+b") as file:
            file.seek(middle)
            file.write(before[middle:])
            file.truncate(max(len(before), middle))
        self._faults.act(point)


class FaultyFiles(FileLayer):
    """The calls that change the files of snapshots, each a point."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults

    def write(self, file: BinaryIO, data: bytes) -> None:
        self._faults.write()
        if self._faults.comes("snapshot.torn"):
            super().write(file, data[: len(data) // 2])
            file.flush()
            self._faults.act("snapshot.torn")
        super().write(file, data)

    def sync(self, file: BinaryIO) -> None:
        self._faults.hit("snapshot.before_sync")
        super().sync(file)

    def rename(self, source: Path, target: Path) -> None:
        self._faults.hit("snapshot.before_rename")
        super().rename(source, target)

    def sync_folder(self, folder: Path) -> None:
        self._faults.hit("snapshot.renamed")
        super().sync_folder(folder)


class FaultyTransport:
    """The real transport with links that can be cut by name, slow votes, and a witness of terms and votes."""

    def __init__(self, faults: Faults, listen: str, hooks: TransportHooks) -> None:
        self._faults = faults
        self._hooks = hooks
        self._inner: Transport = TcpTransport(
            listen=listen, peers={}, hooks=dataclasses.replace(hooks, on_payload=self._take), certificates=None
        )
        self._led: set[int] = set()

    @property
    def dropped_frames(self) -> int:
        return self._inner.dropped_frames

    async def start(self) -> int:
        return await self._inner.start()

    def set_peers(self, peers: Mapping[str, str]) -> None:
        self._inner.set_peers(peers)

    def connected(self) -> set[int]:
        return self._inner.connected()

    async def close(self) -> None:
        await self._inner.close()

    def send(self, peer: int, payload: bytes) -> None:
        if self._is_cut(self._faults.mute_to, peer):
            return
        first = payload[0] if payload else 0
        if first >= ENVELOPES:
            if first == CHUNK:
                self._faults.chunks_sent += 1
            self._faults.hit({CHUNK_REQUEST: "chunk.asked", CHUNK: "chunk.sent"}.get(first, "told"))
        elif self._witness(payload) and self._faults.slow_votes is not None:
            delay = self._faults.randomness.uniform(*self._faults.slow_votes)
            asyncio.get_running_loop().call_later(delay, self._inner.send, peer, payload)
            return
        self._inner.send(peer, payload)
        if (
            first < ENVELOPES
            and _KINDS.get(first) in ("append", "append_response")
            and self._faults.comes("send.after")
        ):
            # The bytes leave when the loop comes round.
            loop = asyncio.get_running_loop()
            loop.call_soon(lambda: loop.call_soon(self._faults.act, "send.after"))

    def _take(self, sender: int, payload: bytes) -> None:
        if not self._is_cut(self._faults.deaf_to, sender):
            self._hooks.on_payload(sender, payload)

    def _is_cut(self, names: frozenset[str], raft_id: int) -> bool:
        return bool(names) and any(self._hooks.raft_id_of(name) == raft_id for name in names)

    def _witness(self, payload: bytes) -> bool:
        """Note who leads which term and what is granted (R1); whether the payload is about votes."""
        offset, about_votes = 0, False
        while offset + _HEAD.size <= len(payload):
            code, refused, _, to, term, *_, context = _HEAD.unpack_from(payload, offset)
            kind = _KINDS.get(code)
            about_votes = about_votes or kind in _VOTES
            if kind in ("append", "heartbeat", "snapshot") and term not in self._led:
                self._led.add(term)
                self._faults.journal.note("leads", term=term)
                self._demand(self._faults.durable[0] == term, "leads before its term is durable", term)
            elif kind == "request_vote":
                self._demand(self._faults.durable[0] == term, "asks for votes before its own is durable", term)
            elif kind == "request_vote_response" and not refused:
                self._faults.journal.note("granted", term=term, to=to)
                self._demand(self._faults.durable == (term, to), "grants a vote that is not durable", term)
            if kind in ("append", "snapshot"):
                break
            offset += _HEAD.size + context
        return about_votes

    def _demand(self, holds: bool, what: str, term: int) -> None:
        if not holds:
            self._faults.journal.note("problem", problem=what, term=term, durable=self._faults.durable)


def faulty_ports(faults: Faults, *, listen: str, store: str) -> Ports:
    """The real stores and the real transport, with faults around them."""

    def log_store(folder: Path) -> LogStore:
        faults.hit("founding.identity")
        return FaultyLogStore(faults, folder, store)

    def snapshot_store(folder: Path) -> SnapshotStore:
        return FileSnapshotStore(folder / "snapshots", layer=FaultyFiles(faults))

    return Ports(
        log_store=log_store,
        snapshot_store=snapshot_store,
        transport=lambda hooks: FaultyTransport(faults, listen, hooks),
    )


def stored_log(folder: Path, store: str) -> StoredLog:
    """What a stopped node has on its disk."""
    if store == "segments":
        segments = SegmentLogStore(folder / "segments", segment_bytes=1 << 18)
        with contextlib.closing(segments):
            return segments.load()
    sqlite = SqliteLogStore(folder / "log.sqlite3")
    with contextlib.closing(sqlite):
        return sqlite.load()


def resident_mb(field: str = "VmRSS") -> float:
    """This process's memory now, or its highest (``VmHWM``), in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = next(line for line in lines if line.startswith(f"{field}:"))
    return int(found.split()[1]) / 1024


def describe(error: BaseException) -> dict[str, Any]:
    """An error as a test wants to see it."""
    return {"error": type(error).__name__, "text": str(error)}
