"""Several node processes of one replicated log, as one test drives them; and what must hold of them in the end.

``Processes`` starts, kills and asks them. ``Clients`` apply numbered commands through whoever leads and remember each
outcome. ``check_end`` judges: the same state and log everywhere, one leader per term as seen at the transport, each
vote given once, every acknowledged command exactly once at the place that was told, and what was called "surely not
applied" nowhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import subprocess
import sys
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

from support.raft_process_faults import stored_log
from support.services import free_ports
from tenure.demo import child
from tenure.node.engine import entries_of

BOUND_SECONDS = 30.0
TESTS = Path(__file__).parents[1]
#: Short times, and yet room for a busy machine.
TIMES = {"heartbeat_interval_ms": 50, "election_timeout_ms": 500}


Found = TypeVar("Found")


class ProcessEnded(Exception):
    """The process ended before it answered."""


class Process:
    """One node's process. Requests are answered in any order."""

    def __init__(self, name: str, settings: dict[str, Any], errors: Path) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        self.opened = asyncio.Event()
        self.ended = asyncio.Event()
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        with errors.open("ab") as stderr:
            self.popen = child.start(
                [sys.executable, "-m", "support.raft_process", json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path])},
            )
        self._reading = asyncio.create_task(self._read())

    @property
    def pid(self) -> int:
        return self.popen.pid

    async def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer; an error of the node comes as ``error`` and ``text``. Raises ProcessEnded."""
        if self.ended.is_set():
            raise ProcessEnded(self.name)
        self._number += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = future
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps({"id": self._number, "do": do, **arguments}).encode() + b"\n")
            self.popen.stdin.flush()
        except OSError:
            raise ProcessEnded(self.name) from None
        return await future

    async def do(self, do: str, **arguments: Any) -> dict[str, Any]:
        """As ``ask``, where an error of the node fails the test."""
        answer = await self.ask(do, **arguments)
        assert "error" not in answer, f"{self.name} {do}: {answer}"
        return answer

    async def end(self, *, kill: bool = False) -> int:
        """Stop the process, politely or not, and return its code."""
        if kill:
            self.popen.kill()
        else:
            with contextlib.suppress(ProcessEnded):
                await self.ask("stop")
        async with asyncio.timeout(BOUND_SECONDS):
            await self.ended.wait()
        return self.popen.wait()

    async def _read(self) -> None:
        stdout = self.popen.stdout
        assert stdout is not None
        reader = asyncio.StreamReader(limit=1 << 26)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), stdout
        )
        while line := await reader.readline():
            said = json.loads(line) if line.endswith(b"\n") else {}
            if said.get("event") == "open":
                self.opened.set()
            if "event" in said:
                self.events.append(said)
            elif (future := self._waiting.pop(said.get("id", 0), None)) is not None and not future.done():
                future.set_result(said)
        transport.close()
        await asyncio.get_running_loop().run_in_executor(None, self.popen.wait)
        if self.popen.stdin is not None:
            with contextlib.suppress(OSError):
                self.popen.stdin.close()
        self.ended.set()
        self.opened.set()
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(ProcessEnded(self.name))
                # Nobody may be left to ask for it.
                future.exception()


class Processes:
    """The processes by name, all with their files below ``folder``."""

    def __init__(
        self, folder: Path, names: str = "abc", *, spare: str = "", store: str = "sqlite", **raft: Any
    ) -> None:
        self.folder, self.founders, self.store = folder, names, store
        self.ports = dict(zip(names + spare, free_ports(len(names + spare)), strict=True))
        self.raft = {**TIMES, **raft}
        self.running: dict[str, Process] = {}
        self.directories: dict[str, str] = {}

    def start(self, name: str, *, directory: str | None = None, **switches: Any) -> Process:
        """Start a process. ``directory`` is the name of another data directory from now on."""
        self.directories[name] = directory or self.directories.get(name, name)
        listed = sorted({*self.founders, name})
        config = {
            "node": {"name": name, "data_dir": str(self.folder_of(name))},
            "raft": {
                "listen": f"127.0.0.1:{self.ports[name]}",
                "peers": {p: {"raft": f"127.0.0.1:{self.ports[p]}", "url": f"http://{p}.test"} for p in listed},
                **self.raft,
            },
            "lease": {"duration_ms": 400},
        }
        journal = str(self.folder / f"{self.directories[name]}.journal")
        settings = {"name": name, "config": config, "journal": journal, "store": self.store, **switches}
        process = self.running[name] = Process(name, settings, self.folder / f"{name}.stderr")
        return process

    def folder_of(self, name: str) -> Path:
        return self.folder / self.directories[name]

    def start_all(self) -> None:
        for name in self.founders:
            self.start(name)

    @property
    def alive(self) -> dict[str, Process]:
        return {name: process for name, process in self.running.items() if not process.ended.is_set()}

    async def states(self) -> dict[str, dict[str, Any]]:
        """The state of every process that answers."""

        async def one(process: Process) -> dict[str, Any] | None:
            with contextlib.suppress(ProcessEnded, TimeoutError):
                await process.opened.wait()
                return await asyncio.wait_for(process.ask("state"), 5)
            return None

        alive = self.alive
        found = await asyncio.gather(*(one(process) for process in alive.values()))
        return {name: state for name, state in zip(alive, found, strict=True) if state is not None}

    async def leader(self, *, among: Iterable[str] | None = None) -> Process:
        """Who leads and was confirmed by a quorum just now."""
        allowed = None if among is None else set(among)

        async def find() -> Process | None:
            for name, state in (await self.states()).items():
                if state["role"] == "leader" and (allowed is None or name in allowed):
                    with contextlib.suppress(ProcessEnded):
                        process = self.running[name]
                        if "error" not in await process.ask("verify", timeout_ms=1000):
                            return process
            return None

        return await until("a leader", find)

    async def agree(self, *, count: int = 0) -> dict[str, dict[str, Any]]:
        """Wait until every running process has the same state, of at least so many entries."""

        async def same() -> dict[str, dict[str, Any]] | None:
            states = await self.states()
            alike = len({(state["digest"], state["count"]) for state in states.values()}) == 1
            enough = all(state["count"] >= count for state in states.values())
            return states if alike and enough and len(states) == len(self.alive) else None

        return await until("the same state everywhere", same, seconds=60.0)

    async def stop(self) -> None:
        """End whatever still runs."""
        await asyncio.gather(*(process.end(kill=True) for process in self.alive.values()))

    # -- what is left on the disks --------------------------------------------------------------------------------

    def journal(self) -> list[dict[str, Any]]:
        """Every line of every journal, each with the directory that it belongs to."""
        lines = []
        for path in sorted(self.folder.glob("*.journal")):
            for line in path.read_text().splitlines():
                lines.append({"directory": path.stem, **json.loads(line)})
        return lines

    def check_journals(self) -> None:
        """R1: no term is led twice, no vote is given twice, nothing left before it was durable."""
        leads: dict[int, set[tuple[str, int]]] = defaultdict(set)
        votes: dict[tuple[str, int], set[int]] = defaultdict(set)
        for line in self.journal():
            if line["what"] == "leads":
                leads[line["term"]].add((line["directory"], line["pid"]))
            elif line["what"] == "granted":
                votes[line["directory"], line["term"]].add(line["to"])
            elif line["what"] == "durable" and line["vote"]:
                votes[line["directory"], line["term"]].add(line["vote"])
            assert line["what"] != "problem", line
        assert leads
        assert not {term: who for term, who in leads.items() if len(who) > 1}, "a term was led twice"
        assert not {who: given for who, given in votes.items() if len(given) > 1}, "a vote was given twice"

    def check_logs(self, names: Iterable[str]) -> None:
        """The committed entries on the disks of stopped nodes: wherever two hold the same index, the same entry."""
        known: dict[int, tuple[int, str, bytes]] = {}
        for name in names:
            stored = stored_log(self.folder_of(name), self.store)
            entries: dict[int, tuple[int, str, bytes]] = {}
            for batch in stored.batches:
                found = entries_of(batch)
                for index in [index for index in entries if index >= found[0][0]]:
                    del entries[index]
                entries.update({index: (term, kind, data) for index, term, kind, data in found})
            for index, entry in entries.items():
                if index <= stored.commit:
                    assert known.setdefault(index, entry) == entry, f"{name} holds another entry at index {index}"


async def until(
    what: str, ask: Callable[[], Coroutine[Any, Any, Found | None]], *, seconds: float = BOUND_SECONDS
) -> Found:
    """Ask until the answer is true; fails with ``what`` after the bound."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while loop.time() < deadline:
        if found := await ask():
            return found
        await asyncio.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")


class Clients:
    """Apply commands, so many at a time, each with a name of its own: what was not done is tried under a new one."""

    def __init__(self, processes: Processes, *, seed: int = 0, in_flight: int = 16, timeout_ms: int = 2000) -> None:
        self._processes = processes
        self._randomness = random.Random(seed)
        self._in_flight = in_flight
        self._timeout_ms = timeout_ms
        self._number = 0
        self._target: str | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._grew = asyncio.Event()
        self.acknowledged: dict[str, int] = {}
        self.nowhere: set[str] = set()
        self.unknown: set[str] = set()

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._work()) for _ in range(self._in_flight)]

    async def stop(self) -> None:
        """No new command; those on their way are waited for."""
        tasks, self._tasks = self._tasks, []
        await asyncio.gather(*tasks)

    async def reach(self, count: int, *, seconds: float = BOUND_SECONDS) -> None:
        """Return once so many commands were acknowledged."""
        try:
            async with asyncio.timeout(seconds):
                while len(self.acknowledged) < count:
                    self._grew.clear()
                    watch = asyncio.create_task(self._grew.wait())
                    await asyncio.wait({watch, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
                    watch.cancel()
                    for task in self._tasks:
                        if task.done():
                            task.result()
        except TimeoutError:
            states: dict[str, Any] = await self._processes.states()
            states |= {name: process.events for name, process in self._processes.running.items() if name not in states}
            raise AssertionError(
                f"{len(self.acknowledged)} of {count} commands were acknowledged within {seconds:g} s "
                f"({len(self.nowhere)} nowhere, {len(self.unknown)} unknown); the members: {states}"
            ) from None

    async def more(self, count: int) -> None:
        """Return once so many more were acknowledged than now."""
        await self.reach(len(self.acknowledged) + count)

    async def _work(self) -> None:
        while self._tasks:
            alive = self._processes.alive
            if not alive:
                await asyncio.sleep(0.02)
                continue
            target = self._target if self._target in alive else self._randomness.choice(sorted(alive))
            assert target is not None
            self._number += 1
            name = f"c{self._number}"
            process = alive[target]
            try:
                answer = await process.ask("apply", data=name, timeout_ms=self._timeout_ms)
            except ProcessEnded:
                self.unknown.add(name)
                self._target = None
                await asyncio.sleep(0.01)
                continue
            if not await self._note(name, target, answer):
                await asyncio.sleep(0.01)

    async def _note(self, name: str, target: str, answer: dict[str, Any]) -> bool:
        match answer.get("outcome"):
            case "applied":
                assert name not in self.acknowledged
                self.acknowledged[name] = answer["place"]
                self._target = target
                self._grew.set()
                return True
            case "nowhere":
                self.nowhere.add(name)
                self._target = answer["leader"]
            case "unknown":
                self.unknown.add(name)
                self._target = None
            case _:
                raise AssertionError(f"{target} answered {answer}")
        return False


def check_contents(clients: Clients, contents: list[str]) -> None:
    """Every acknowledged command once, at the place that was told; what was surely not applied nowhere."""
    assert len(set(contents)) == len(contents), "a command was applied twice"
    places = {name: place for place, name in enumerate(contents, start=1)}
    lost = {name for name in clients.acknowledged if name not in places}
    assert not lost, f"acknowledged and lost: {sorted(lost)[:5]}"
    moved = {name: place for name, place in clients.acknowledged.items() if places[name] != place}
    assert not moved, f"acknowledged at another place: {dict(list(moved.items())[:5])}"
    lied = clients.nowhere & places.keys()
    assert not lied, f"told to be surely not applied, and there: {sorted(lied)[:5]}"
    strangers = places.keys() - clients.acknowledged.keys() - clients.unknown
    assert not strangers, f"applied and never sent: {sorted(strangers)[:5]}"


async def check_end(processes: Processes, clients: Clients) -> None:
    """Judge a run once its faults are over: all processes that run are members."""
    await clients.stop()
    leader = await processes.leader()
    await leader.do("barrier")
    states = await processes.agree(count=len(clients.acknowledged))
    check_contents(clients, (await leader.do("contents"))["contents"])
    codes = await asyncio.gather(*(processes.running[name].end() for name in states))
    assert set(codes) == {0}
    processes.check_journals()
    processes.check_logs(states)


@contextlib.asynccontextmanager
async def running(
    folder: Path, names: str = "abc", *, spare: str = "", store: str = "sqlite", start: bool = True, **raft: Any
) -> AsyncIterator[Processes]:
    """The founders, started; whatever runs at the end is killed."""
    processes = Processes(folder, names, spare=spare, store=store, **raft)
    try:
        if start:
            processes.start_all()
        yield processes
    finally:
        await processes.stop()
