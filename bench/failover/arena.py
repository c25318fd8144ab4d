"""One running cluster under faults: kills, stops or cuts its leader, and tells how long nobody led.

A fault is measured from the instant before it to what the nodes say afterwards, by CLOCK_MONOTONIC; where a node gives
no time of its own, the instant at which its line was read counts. It must never count what the faulty node says.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.failover.networks import Cables
from bench.raft.cluster import free_addresses

START_SECONDS_MAX = 30.0
FAULT_SECONDS_MAX = 15.0
END_SECONDS_MAX = 10.0
NODES = 3
FAULTS = ("kill", "stop", "cut", "transfer")

#: From the index of a node, the addresses of all and its directory to the command that runs it.
NodeCommand = Callable[[int, Sequence[str], Path], list[str]]


class FaultFailed(Exception):
    """The cluster did not do what was expected of it, and there is no figure."""


@dataclass(frozen=True)
class Takeover:
    """Seconds from a fault to the next valid lease and to the next committed write; None: this system has none.

    For a planned hand-over they count from the last write of the old leader.
    """

    lease: float
    write: float | None


@dataclass(frozen=True)
class _Said:
    index: int
    event: str
    at: float
    fields: dict[str, Any]


class Arena:
    """Three nodes of one system. A context manager: on entering it, one of them leads and has written."""

    def __init__(self, command: NodeCommand, folder: Path, *, writes: bool, cables: Cables | None) -> None:
        self._command = command
        self._folder = folder
        self._writes = writes
        self._cables = cables
        self._said: queue.Queue[_Said] = queue.Queue()
        self._count = NODES
        self._nodes: dict[int, subprocess.Popen[str]] = {}
        self._readers: dict[int, threading.Thread] = {}
        self._leader = -1
        loopback = free_addresses(NODES)
        self._addresses = loopback if cables is None else [f"{cables.address(i)}:9080" for i in range(NODES)]

    def __enter__(self) -> Self:
        try:
            for index in range(self._count):
                self._start(index)
            self._await_leader(self._count, since=0.0, seconds=START_SECONDS_MAX)
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def suffer(self, fault: str, *, settle_seconds: float) -> Takeover:
        """One fault of the leader; when this returns, all nodes run again and have had time to settle."""
        old, process = self._leader, self._nodes[self._leader]
        self._drain()
        began = time.monotonic()
        match fault:
            case "kill":
                process.kill()
            case "stop":
                process.send_signal(signal.SIGSTOP)
            case "cut":
                self._cables_needed().pull(old)
            case _:
                self._ask(process, do="transfer")
        try:
            takeover = self._await_leader(old, since=began, seconds=FAULT_SECONDS_MAX)
        finally:
            self._mend(fault, old)
        time.sleep(settle_seconds)
        return takeover

    def watch(self, seconds: float) -> int:
        """Wait; how many times leadership changed meanwhile, unprovoked."""
        self._drain()
        time.sleep(seconds)
        changes = 0
        while not self._said.empty():
            changes += self._said.get_nowait().event == "lost"
        return changes

    # -- inside -----------------------------------------------------------------------------------------------------

    def _mend(self, fault: str, index: int) -> None:
        match fault:
            case "kill":
                self._forget(self._nodes[index])
                self._start(index)
            case "stop":
                self._nodes[index].send_signal(signal.SIGCONT)
            case "cut":
                self._cables_needed().plug(index)
            case _:
                pass

    def _cables_needed(self) -> Cables:
        if self._cables is None:
            raise FaultFailed("there are no cables to pull")
        return self._cables

    def _start(self, index: int) -> None:
        directory = self._folder / str(index)
        directory.mkdir(parents=True, exist_ok=True)
        command = self._command(index, self._addresses, directory)
        if self._cables is not None:
            command = [*self._cables.prefix(index), *command]
        with (directory / "node.log").open("a") as errors:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
            )
        self._nodes[index] = process
        self._readers[process.pid] = reader = threading.Thread(target=self._read, args=(index, process), daemon=True)
        reader.start()

    def _read(self, index: int, process: subprocess.Popen[str]) -> None:
        for line in process.stdout or ():
            with suppress(ValueError):
                fields = json.loads(line)
                at = fields.pop("at", None) or time.monotonic()
                self._said.put(_Said(index, fields.pop("event"), at, fields))

    def _await_leader(self, old: int, *, since: float, seconds: float) -> Takeover:
        """The next lease and write of another node than ``old``."""
        deadline = time.monotonic() + seconds
        lease: _Said | None = None
        write: _Said | None = None
        last_write = since
        while lease is None or (self._writes and write is None):
            try:
                said = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                heard = "a lease, but no write" if lease else "a write, but no lease" if write else "nothing"
                raise FaultFailed(f"within {seconds:.0f} s the other nodes told of {heard}{self._tails()}") from None
            if said.index == old:
                if said.event == "lost" and said.fields.get("last_write"):
                    last_write = max(last_write, said.fields["last_write"])
            elif said.event == "lease":
                lease = said
            elif said.event == "wrote":
                write = said
            elif said.event == "lost":
                lease = write = None
        self._leader = lease.index
        handed = write is not None and last_write > since
        return Takeover(
            lease=lease.at - (last_write if handed else since),
            write=write.at - (last_write if handed else since) if write is not None else None,
        )

    def _drain(self) -> None:
        """What was said before the fault counts only as far as it tells who leads."""
        while True:
            try:
                said = self._said.get_nowait()
            except queue.Empty:
                return
            if said.event == "lease":
                self._leader = said.index

    def _ask(self, process: subprocess.Popen[str], **request: object) -> None:
        if process.stdin is not None:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()

    def _close(self) -> None:
        for process in self._nodes.values():
            if process.stdin is not None:
                with suppress(OSError):
                    process.stdin.close()
        for process in self._nodes.values():
            try:
                process.wait(END_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                process.kill()
            self._forget(process)
        self._nodes.clear()

    def _forget(self, process: subprocess.Popen[str]) -> None:
        """Wait for the end of a process and of what reads it."""
        process.wait()
        self._readers.pop(process.pid).join()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def _tails(self) -> str:
        lines = []
        for index in range(self._count):
            log = self._folder / str(index) / "node.log"
            if log.exists():
                lines += [f"\n    {index}: {line}" for line in log.read_text(errors="replace").splitlines()[-4:]]
        return "".join(lines)
