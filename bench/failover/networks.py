"""One network for each node, with a cable that can be pulled: namespaces, joined by bridges in a private one.

The whole benchmark runs in a network namespace of its own, so nothing of the machine's network is touched and nothing
is left behind when it ends. Each node has a namespace with two cables: one to the other nodes, which the fault pulls,
and one to the database, which stays. It needs root; without it the benchmark runs on loopback and makes no cuts.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from subprocess import DEVNULL
from typing import Self

from tenure.demo import child

#: Set in the process that runs inside the private namespace.
INSIDE = "TENURE_BENCH_FAILOVER_INSIDE"
DATABASE_ADDRESS = "10.78.0.1"


def can_cut() -> str | None:
    """Why cables cannot be pulled here; None if they can."""
    if os.geteuid() != 0:
        return "cutting a network needs root (network namespaces)"
    for tool in ("ip", "unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"there is no {tool}: apt-get install iproute2 util-linux"
    return None


def enter(module: str, arguments: Sequence[str]) -> None:
    """Become the same program in a private network namespace; returns at once if this is it."""
    if INSIDE in os.environ:
        _ip("link", "set", "lo", "up")
        for bridge, address in (("raft", "10.77.0.1"), ("data", DATABASE_ADDRESS)):
            _ip("link", "add", bridge, "type", "bridge")
            _ip("addr", "add", f"{address}/24", "dev", bridge)
            _ip("link", "set", bridge, "up")
        return
    os.environ[INSIDE] = "1"
    os.execvp("unshare", ["unshare", "--net", sys.executable, "-m", module, *arguments])


class Cables:
    """The namespaces of some nodes. A context manager; what it made ends with it."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._holders: list[subprocess.Popen[bytes]] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as made:
            for index in range(self._count):
                # It ends with this process, whatever ends that, and its namespace ends with it.
                holder = child.start(["unshare", "--net", "sleep", "infinity"], stdin=DEVNULL, stdout=DEVNULL)
                self._holders.append(holder)
                made.callback(holder.wait)
                made.callback(holder.kill)
                self._wait_for_namespace(holder.pid)
                for bridge, network in (("raft", "10.77.0"), ("data", "10.78.0")):
                    outer, inner = f"{bridge}{index}", f"{bridge}-in"
                    _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", str(holder.pid))
                    # By itself it goes some time after the namespace, and the next one wants its name.
                    made.callback(_ip, "link", "del", outer)
                    _ip("link", "set", outer, "master", bridge, "up")
                    self._inside(index, "ip", "addr", "add", f"{network}.{11 + index}/24", "dev", inner)
                    self._inside(index, "ip", "link", "set", inner, "up")
                self._inside(index, "ip", "link", "set", "lo", "up")
            self._stack = made.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def address(self, index: int) -> str:
        """The node's address among the nodes."""
        return f"10.77.0.{11 + index}"

    def prefix(self, index: int) -> list[str]:
        """What stands before the command of a node."""
        return ["nsenter", f"--net=/proc/{self._holders[index].pid}/ns/net"]

    def pull(self, index: int) -> None:
        """From now on no packet passes between this node and the others."""
        _ip("link", "set", f"raft{index}", "down")

    def plug(self, index: int) -> None:
        """Let packets pass again."""
        _ip("link", "set", f"raft{index}", "up")

    def _inside(self, index: int, *command: str) -> None:
        _run([*self.prefix(index), *command])

    @staticmethod
    def _wait_for_namespace(pid: int) -> None:
        """The holder has left our namespace once its link is another one."""
        own = Path("/proc/self/ns/net").readlink()
        while Path(f"/proc/{pid}/ns/net").readlink() == own:
            os.sched_yield()


def _ip(*arguments: str) -> None:
    _run(["ip", *arguments])


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}` failed: {done.stderr.strip()}")
