"""One cluster of real processes under load: founds it in empty directories, drives it from inside its leader, measures.

Every system speaks the protocol of ``bench/raft/README.md`` on its
standard input and output, so all are started, driven and measured alike; processor time is read from outside, by the
same clock for all. It must never report a load whose operations were not applied by every node: a system that lost
some, or whose leader changed under the load, raises MeasurementFailed.
"""

from __future__ import annotations

import json
import queue
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.raft.figures import Idle, Measured

ELECTION_SECONDS_MAX = 30.0
CATCH_UP_SECONDS_MAX = 30.0
SHUTDOWN_SECONDS_MAX = 10.0
#: How long after its process a node's last event may still arrive.
END_SECONDS_MAX = 5.0
#: What a load may take beyond its own length before it counts as hung.
LOAD_SLACK_SECONDS = 30.0
#: A log that is filled more slowly than this counts as hung.
FILL_RATE_MIN = 500

#: From this node's index, the addresses of all voters and an empty directory to the command that runs the node.
NodeCommand = Callable[[int, Sequence[str], Path], list[str]]


#: What the nodes say, each with the index of the node.
Events = queue.Queue[tuple[int, dict[str, Any]]]


class MeasurementFailed(Exception):
    """The system did not do what was asked; the figures of this load do not exist."""


@dataclass(frozen=True)
class Load:
    """A closed loop inside the leader: ``in_flight`` operations under way, measured after the warm-up."""

    in_flight: int
    seconds: float
    warm_up_seconds: float
    payload_bytes: int


@dataclass(frozen=True)
class Footprint:
    """What one node holds at one instant. ``disk_mb``: what its files occupy, by first name in its directory."""

    memory_mb: float
    disk_mb: dict[str, float]
    commit_index: int
    snapshot_index: int
    #: After how many entries this node is set to take a snapshot.
    snapshot_entries: int


class Cluster:
    """The running processes of one system. A context manager: on entering it has a leader that all voters follow.

    Raises:
        MeasurementFailed: a process ended, said that it failed, or did not answer in time.
    """

    def __init__(self, command: NodeCommand, directories: Sequence[Path]) -> None:
        self._command = command
        self._directories = directories
        self._events: Events = queue.Queue()
        self._nodes: list[_Node] = []
        self._leader = -1
        self._acknowledged = 0

    def __enter__(self) -> Self:
        addresses = free_addresses(len(self._directories))
        try:
            for index, directory in enumerate(self._directories):
                command = self._command(index, addresses, directory)
                self._nodes.append(_Node(command, index, directory / "node.log", self._events))
            self._leader, _ = self._wait("leader", seconds=ELECTION_SECONDS_MAX)
            self.drive(Load(in_flight=1, seconds=0.1, warm_up_seconds=0.0, payload_bytes=16))
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def drive(self, load: Load) -> Measured:
        """Run one load and check afterwards that every node applied all that was acknowledged so far."""
        self._nodes[self._leader].ask(do="load", **vars(load))
        limit = load.warm_up_seconds + load.seconds + LOAD_SLACK_SECONDS
        self._wait("measuring", seconds=limit)
        before = self._cpu_ns()
        self._wait("stopped", seconds=limit)
        spent = [after - earlier for after, earlier in zip(self._cpu_ns(), before, strict=True)]
        _, result = self._wait("measured", seconds=limit)
        self._acknowledged += result["acknowledged"]
        self._verify_applied()

        if not result["ops"]:
            raise MeasurementFailed(f"nothing was acknowledged within {load.seconds} s")
        leader = spent.pop(self._leader)
        return Measured(
            in_flight=load.in_flight,
            payload_bytes=load.payload_bytes,
            ops=result["ops"],
            seconds=result["seconds"],
            p50_ms=result["p50_ms"],
            p99_ms=result["p99_ms"],
            leader_cpu_us_per_op=leader / 1000 / result["ops"],
            follower_cpu_us_per_op=_mean(spent) / 1000 / result["ops"],
        )

    def fill(self, count: int, *, in_flight: int, payload_bytes: int) -> float:
        """Put ``count`` operations into the log, check that every node applied them, and tell the seconds it took."""
        began = time.monotonic()
        self._nodes[self._leader].ask(do="fill", count=count, in_flight=in_flight, payload_bytes=payload_bytes)
        self._wait("filled", seconds=LOAD_SLACK_SECONDS + count / FILL_RATE_MIN)
        span = time.monotonic() - began
        self._acknowledged += count
        self._verify_applied()
        return span

    def footprints(self) -> list[Footprint]:
        """What each node holds now, the leader's first."""
        order = sorted(range(len(self._nodes)), key=lambda index: index != self._leader)
        return [self._footprint(index) for index in order]

    def idle(self, seconds: float) -> Idle:
        """Do nothing for a while and tell what that cost."""
        began, before = time.monotonic(), self._cpu_ns()
        time.sleep(seconds)
        after, span = self._cpu_ns(), time.monotonic() - began
        percent = [(now - earlier) / span / 1e7 for now, earlier in zip(after, before, strict=True)]
        memory = [_resident_mb(node.pid) for node in self._nodes]
        return Idle(
            leader_memory_mb=memory.pop(self._leader),
            leader_cpu_percent=percent.pop(self._leader),
            follower_memory_mb=_mean(memory),
            follower_cpu_percent=_mean(percent),
        )

    def _close(self) -> None:
        """All inputs are closed before any end is awaited: a cluster that loses nodes one by one holds elections."""
        for node in self._nodes:
            node.close_input()
        for node in self._nodes:
            node.wait()

    def _wait(self, event: str, *, seconds: float) -> tuple[int, dict[str, Any]]:
        """The next event must be this one: whatever else a node says, another leader included, ends the measurement."""
        try:
            index, said = self._events.get(timeout=seconds)
        except queue.Empty:
            logs = "".join(_tail(directory / "node.log") for directory in self._directories)
            raise MeasurementFailed(f"no node said {event!r} within {seconds:.0f} s{logs}") from None
        if said["event"] != event:
            log = self._directories[index] / "node.log"
            detail = said.get("problem", "")
            raise MeasurementFailed(f"node {index} said {said['event']!r} instead of {event!r}: {detail}{_tail(log)}")
        return index, said

    def _verify_applied(self) -> None:
        deadline = time.monotonic() + CATCH_UP_SECONDS_MAX
        for index in range(len(self._nodes)):
            applied = -1
            while applied < self._acknowledged:
                if time.monotonic() > deadline:
                    raise MeasurementFailed(
                        f"node {index} applied {applied} of {self._acknowledged} acknowledged operations "
                        f"within {CATCH_UP_SECONDS_MAX:.0f} s"
                    )
                if applied >= 0:
                    time.sleep(0.02)
                self._nodes[index].ask(do="applied")
                applied = self._wait("applied", seconds=CATCH_UP_SECONDS_MAX)[1]["count"]

    def _footprint(self, index: int) -> Footprint:
        self._nodes[index].ask(do="log")
        _, log = self._wait("log", seconds=CATCH_UP_SECONDS_MAX)
        return Footprint(
            memory_mb=_resident_mb(self._nodes[index].pid),
            disk_mb=occupied_mb(self._directories[index]),
            commit_index=log["commit_index"],
            snapshot_index=log["snapshot_index"],
            snapshot_entries=log["snapshot_entries"],
        )

    def _cpu_ns(self) -> list[int]:
        try:
            return [_cpu_ns(node.pid) for node in self._nodes]
        except MeasurementFailed:
            # The end of a node is an event of its own, and tells the reason: wait for it rather than guess.
            self._wait("running", seconds=END_SECONDS_MAX)
            raise


class _Node:
    """One process, its log file and the thread that turns its output into events. The process ends with its input."""

    def __init__(self, command: Sequence[str], index: int, log: Path, events: Events) -> None:
        self._index = index
        self._events = events
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def ask(self, **request: object) -> None:
        """Send one request. A process that is gone is noticed by its end, which is an event of its own."""
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def close_input(self) -> None:
        """Tell the process to end."""
        if self._process.stdin is not None:
            with suppress(BrokenPipeError):
                self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the process has ended; one that does not end is killed."""
        try:
            self._process.wait(SHUTDOWN_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            try:
                said = json.loads(line)
            except ValueError:
                said = {"event": "failed", "problem": f"this line is not JSON: {line!r}"}
            self._events.put((self._index, said))
        self._events.put((self._index, {"event": "ended", "problem": f"exit code {self._process.wait()}"}))


def free_addresses(count: int) -> list[str]:
    """Loopback addresses that nobody listens on at this moment."""
    with ExitStack() as open_sockets:
        ports = []
        for _ in range(count):
            listener = open_sockets.enter_context(socket.socket())
            listener.bind(("127.0.0.1", 0))
            ports.append(listener.getsockname()[1])
    return [f"127.0.0.1:{port}" for port in ports]


def occupied_mb(directory: Path) -> dict[str, float]:
    """What all files below occupy on the disk, summed by the first part of their path, in millions of bytes."""
    sums: dict[str, float] = {}
    for path in directory.rglob("*"):
        with suppress(FileNotFoundError):  # A running node removes what it has compacted.
            first = path.relative_to(directory).parts[0]
            sums[first] = sums.get(first, 0.0) + path.stat().st_blocks * 512 / 1e6
    return dict(sorted(sums.items()))


def _cpu_ns(pid: int) -> int:
    """Processor time of a whole process, ended threads included, by Linux's clock for that process.

    The number of the clock is what clock_getcpuclockid(3) computes, which Python offers for threads only.
    """
    try:
        return time.clock_gettime_ns((~pid << 3) | 2)
    except OSError:
        raise MeasurementFailed(f"process {pid} is gone") from None


def _resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _mean(samples: Sequence[float]) -> float:
    return sum(samples) / len(samples) if samples else 0.0


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:]
    return "".join(f"\n    {line}" for line in lines)
