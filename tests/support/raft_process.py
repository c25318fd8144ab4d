"""A node of a replicated log as a process of its own, driven by lines of JSON: for tests with real crashes.

Run as ``python -m support.raft_process '{"name": ...}'``. A request is ``{"id": 1, "do": "apply", ...}`` on the
standard input, its answer a line with the same id on the standard output, in whatever order they are done. The state
machine is a list that only grows, each entry with its index and term, under one running SHA-256. Faults are those of
:mod:`support.raft_process_faults`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import random
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import tenure
from support.raft_process_faults import Faults, Journal, describe, faulty_ports, resident_mb
from tenure.config import from_mapping
from tenure.node import driver as node_driver
from tenure.raft import Demote, Node, Promote

_ENTRY = struct.Struct("<IQQ")
SLICE = 4096
#: The outcomes of a command, by the error that tells it.
OUTCOMES: dict[type[BaseException], str] = {
    tenure.NotLeader: "nowhere",
    tenure.ProposalDropped: "nowhere",
    tenure.OutcomeUnknown: "unknown",
    tenure.NodeClosed: "unknown",
}


class GrowingList:
    """Appends what it is told, with its place in the log, and returns how many there are."""

    def __init__(self, faults: Faults) -> None:
        self._faults = faults
        self.seen: list[bytes] = []
        self.digest = hashlib.sha256()
        self.restored = 0

    def apply(self, data: bytes, *, index: int, term: int) -> int:
        self._faults.hit("apply.before")
        entry = _ENTRY.pack(len(data), index, term) + data
        self.seen.append(entry)
        self.digest.update(entry)
        return len(self.seen)

    def snapshot(self) -> Iterable[bytes]:
        # The list only grows, and a restore puts another one in its place: what is read here does not change.
        seen, count = self.seen, len(self.seen)
        return (b"".join(seen[start : min(start + SLICE, count)]) for start in range(0, count, SLICE))

    def restore(self, chunks: Iterable[bytes]) -> None:
        seen: list[bytes] = []
        digest, rest = hashlib.sha256(), b""
        for chunk in chunks:
            digest.update(chunk)
            rest += chunk
            place = 0
            while place + _ENTRY.size <= len(rest):
                end = place + _ENTRY.size + _ENTRY.unpack_from(rest, place)[0]
                if end > len(rest):
                    break
                seen.append(rest[place:end])
                place = end
            rest = rest[place:]
        if rest:
            raise ValueError("the snapshot ends within an entry")
        self.seen, self.digest = seen, digest
        self.restored += 1

    def contents(self) -> Iterator[tuple[int, int, bytes]]:
        """Index, term and data of each entry."""
        for entry in self.seen:
            _, index, term = _ENTRY.unpack_from(entry)
            yield index, term, entry[_ENTRY.size :]


class Program:
    """The node, its state machine, and the requests."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.name: str = settings["name"]
        die = settings.get("die", {})
        self.faults = Faults(Journal(Path(settings["journal"])), **die)
        self.machine = GrowingList(self.faults)
        self.node: Node
        self.ending = asyncio.Event()
        self.load: asyncio.Task[dict[str, Any]] | None = None
        self.loading = False

    async def run(self) -> int:
        settings = self.settings
        if "stall_limit" in settings:
            vars(node_driver)["DISK_STALL_SECONDS"] = settings["stall_limit"]
        if "disk" in settings:
            self.faults.disk = settings["disk"]
        config = from_mapping(settings["config"])
        ports = None
        if settings.get("store", "sqlite") != "own":
            ports = faulty_ports(self.faults, listen=config.raft.listen, store=settings.get("store", "sqlite"))
        reader = asyncio.StreamReader(limit=1 << 26)
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        async with Node.open(config, self.machine, ports=ports) as self.node:
            say({"event": "open"})
            requests = asyncio.create_task(self._requests(reader))
            failed = self.node.failed
            assert failed is not None
            ending = asyncio.create_task(self.ending.wait())
            ends: set[asyncio.Future[Any]] = {requests, ending, failed}
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            requests.cancel()
            ending.cancel()
            if failed.done():
                say({"event": "failed", **describe(failed.result())})
                return 3
        return 0

    async def _requests(self, reader: asyncio.StreamReader) -> None:
        running: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            task = asyncio.create_task(self._answer(json.loads(line)))
            running.add(task)
            task.add_done_callback(running.discard)

    async def _answer(self, request: dict[str, Any]) -> None:
        number, do = request.pop("id"), request.pop("do")
        try:
            answer = await getattr(self, f"do_{do}")(**request)
        except Exception as error:  # noqa: BLE001 - whatever it is, who asked is told.
            answer = describe(error)
        say({"id": number, **(answer or {})})

    # -- requests ---------------------------------------------------------------------------------------------------

    async def do_apply(self, data: str, timeout_ms: int = 2000) -> dict[str, Any]:
        try:
            place = await self.node.apply(data.encode(), timeout_ms=timeout_ms)
        except tuple(OUTCOMES) as error:
            leader = getattr(error, "leader_name", None)
            return {"outcome": OUTCOMES[type(error)], "leader": leader, **describe(error)}
        return {"outcome": "applied", "place": place}

    async def do_fill(
        self, first: int, count: int, size: int, in_flight: int, pause_ms: int = 0, timeout_ms: int = 60_000
    ) -> dict[str, Any]:
        """Apply ``count`` commands named by their numbers, so many at a time; what was acknowledged, and how fast."""
        numbers = iter(range(first, first + count))
        acknowledged, others, began = 0, 0, time.monotonic()
        padding = b"." * size
        self.loading = True

        async def work() -> None:
            nonlocal acknowledged, others
            for number in numbers:
                if not self.loading:
                    return
                try:
                    await self.node.apply((b"n%d " % number + padding)[:size], timeout_ms=timeout_ms)
                    acknowledged += 1
                except tuple(OUTCOMES):
                    others += 1
                    await asyncio.sleep(0.05)
                if pause_ms:
                    await asyncio.sleep(pause_ms / 1000)

        await asyncio.gather(*(work() for _ in range(in_flight)))
        return {"acknowledged": acknowledged, "others": others, "seconds": time.monotonic() - began}

    async def do_enough(self) -> None:
        """End a fill early."""
        self.loading = False

    async def do_state(self) -> dict[str, Any]:
        stats = self.node.stats()
        return {
            "role": stats.role,
            "term": stats.term,
            "leader": stats.leader_name,
            "index": stats.fsm_index,
            "commit": stats.commit_index,
            "snapshot": stats.snapshot_index,
            "voters": stats.voters,
            "count": len(self.machine.seen),
            "digest": self.machine.digest.hexdigest(),
            "restored": self.machine.restored,
            "rss_mb": resident_mb(),
            "peak_mb": resident_mb("VmHWM"),
            "chunks_sent": self.faults.chunks_sent,
            "reason": self.node._driver.published.reason,
        }

    async def do_contents(self) -> dict[str, Any]:
        return {"contents": [data.decode() for _, _, data in self.machine.contents()]}

    async def do_repeated(self) -> dict[str, Any]:
        """Which commands are here more than once, by the word they start with."""
        words = [data.split(b" ", 1)[0] for _, _, data in self.machine.contents()]
        return {"repeated": len(words) - len(set(words)), "count": len(words)}

    async def do_verify(self, timeout_ms: int = 500) -> None:
        await self.node.verify_leader(timeout_ms=timeout_ms)

    async def do_barrier(self) -> None:
        await self.node.barrier()

    async def do_members(self) -> dict[str, Any]:
        listed = await self.node.members()
        members = {member.name: str(member.role) for member in listed.members}
        return {"cluster": listed.cluster_id, "members": members, "applicants": list(listed.applicants)}

    async def do_add(self, name: str, voter: bool = True, timeout_ms: int = 30_000) -> None:
        if voter:
            await self.node.add_voter(name, timeout_ms=timeout_ms)
        else:
            await self.node.add_learner(name, timeout_ms=timeout_ms)

    async def do_change(self, promote: list[str] | None = None, demote: list[str] | None = None) -> None:
        changes = [Promote(name) for name in promote or []] + [Demote(name) for name in demote or []]
        await self.node.change_members(changes, timeout_ms=5000)

    async def do_remove(self, name: str) -> None:
        await self.node.remove(name, timeout_ms=5000)

    async def do_transfer(self, to: str | None = None) -> dict[str, Any]:
        return {"leader": await self.node.transfer_leadership(to=to, timeout_ms=3000)}

    async def do_snapshot(self) -> dict[str, Any]:
        return {"snapshot": await self.node.snapshot()}

    async def do_cut(self, deaf_to: Iterable[str] = (), mute_to: Iterable[str] = ()) -> None:
        """Neither hear nor reach these members any more; all others again."""
        self.faults.deaf_to, self.faults.mute_to = frozenset(deaf_to), frozenset(mute_to)

    async def do_slow_votes(self, seconds: tuple[float, float] | None, seed: int = 0) -> None:
        self.faults.randomness = random.Random(seed)
        self.faults.slow_votes = None if seconds is None else (seconds[0], seconds[1])

    async def do_arm(self, point: str, after: int = 0, action: str = "kill") -> None:
        self.faults.arm(point, after=after, action=action)

    async def do_disk(self, state: str | None, stall_seconds: float = 0.0) -> None:
        self.faults.stall_seconds = stall_seconds
        self.faults.disk = state

    async def do_stop(self) -> None:
        self.ending.set()


def say(line: dict[str, Any]) -> None:
    """One line, whole: the standard output is a pipe that is read all the time."""
    data = json.dumps(line).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def main() -> None:
    settings = json.loads(sys.argv[1])
    with contextlib.suppress(KeyboardInterrupt):
        try:
            code = asyncio.run(Program(settings).run())
        except tenure.TenureError as error:
            say({"event": "failed", **describe(error)})
            code = 3
        sys.stdout.flush()
        # A disk that hangs holds a thread: the process ends all the same (R2).
        os._exit(code)


if __name__ == "__main__":
    main()
