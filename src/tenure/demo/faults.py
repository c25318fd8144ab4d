"""Faults that the demo does to the present leader by itself, and how long each takeover took.

``kill`` is ``kill -9``; the cluster starts the process again some seconds later. ``stop`` is SIGSTOP, and SIGCONT
once another leader has written: the old one then wakes up believing that it leads, and the fence refuses it.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable

from tenure.demo.clients import Load
from tenure.demo.cluster import Cluster, Node
from tenure.demo.plan import Fault

TAKEOVER_TIMEOUT_SECONDS = 20.0
PAUSE_SECONDS_MAX = 10.0
RECOVERY_SECONDS = 15.0


class FaultInjector:
    """Does one kind of fault every ``every`` seconds; ``count`` and ``takeover_seconds`` tell what happened."""

    def __init__(
        self, cluster: Cluster, load: Load, *, fault: Fault, every: float, note: Callable[[str], None]
    ) -> None:
        self.count = 0
        self.takeover_seconds: list[float] = []
        self._cluster = cluster
        self._load = load
        self._fault = fault
        self._every = every
        self._note = note
        self._ending = asyncio.Event()

    async def run(self) -> None:
        """Inject faults until told to finish. A fault under way is always seen through to its takeover."""
        if self._fault is Fault.NONE:
            await self._ending.wait()
            return
        due = time.monotonic()
        while True:
            due = max(due + self._every, time.monotonic())
            try:
                await asyncio.wait_for(self._ending.wait(), max(0.0, due - time.monotonic()))
            except TimeoutError:
                await self._inject()
            else:
                return

    def finish(self) -> None:
        """Start no further fault; :meth:`run` returns once the present one is over."""
        self._ending.set()

    async def _inject(self) -> None:
        # A second fault while a node is still away would take the quorum: that is another experiment.
        await self._cluster.wait_until_all_answer(RECOVERY_SECONDS)
        leader = self._cluster.leader
        if leader is None or self._ending.is_set():
            return
        token = max(self._load.highest_token, leader.fact("fencing_token") or 0)
        successor = self._load.first_above(token)
        self.count += 1
        started = time.monotonic()
        if self._fault is Fault.KILL:
            self._note(f"fault {self.count}: kill -9 {leader.pid} ({leader.name}, the leader)")
            self._cluster.signal(leader, signal.SIGKILL)
            await self._await_takeover(successor, started, TAKEOVER_TIMEOUT_SECONDS)
        else:
            await self._stop(leader, successor, started)

    async def _stop(self, leader: Node, successor: asyncio.Future[float], started: float) -> None:
        self._note(f"fault {self.count}: kill -STOP {leader.pid} ({leader.name}, the leader)")
        self._cluster.signal(leader, signal.SIGSTOP)
        try:
            seen = await self._await_takeover(successor, started, PAUSE_SECONDS_MAX)
        finally:
            self._note(f"kill -CONT {leader.pid} ({leader.name} wakes up and still believes)")
            self._cluster.signal(leader, signal.SIGCONT)
        if not seen:
            await self._await_takeover(successor, started, TAKEOVER_TIMEOUT_SECONDS)

    async def _await_takeover(self, successor: asyncio.Future[float], started: float, seconds: float) -> bool:
        try:
            at = await asyncio.wait_for(asyncio.shield(successor), seconds)
        except TimeoutError:
            self._note(f"no payment under a higher token within {seconds:g} s")
            return False
        self.takeover_seconds.append(round(at - started, 3))
        self._note(f"takeover: first payment under a higher token after {at - started:.2f} s")
        return True
