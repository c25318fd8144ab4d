"""The demo's node processes: started, watched, brought back when they die, and always stopped with the demo.

Every node is a child of its own session with a parent-death signal, so that even ``kill -9`` of the demo leaves
nothing running. The parent-death signal belongs to the thread that forks: processes are started by the thread of
the event loop, which is the main one, and never by a worker thread.
A node's state as shown is what it answered last at ``/v1/node``, or why it does not answer: ``lost`` (no process),
``paused`` (by a fault), ``starting``, ``silent``.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Self

import httpx2

from tenure.demo import child
from tenure.demo.plan import NodePlan
from tenure.demo.problems import DemoError

POLL_SECONDS = 0.2
ANSWER_TIMEOUT_SECONDS = 0.5
RESTART_SECONDS = 3.0
STOP_TIMEOUT_SECONDS = 6.0
#: A node that ends by itself this often, each time within a few seconds, will not get better by another start.
EARLY_EXITS_MAX = 3
EARLY_SECONDS = 5.0
#: What the service ends with when its cluster refuses it.
REFUSED_CODE = 4


class Node:
    """One node process and what is known of it."""

    def __init__(self, plan: NodePlan) -> None:
        self.plan = plan
        self.process: subprocess.Popen[bytes] | None = None
        self.paused = False
        self.stopped = False
        self.answer: dict[str, Any] | None = None
        self.answered = False
        self.answered_once = False
        self.started_at = 0.0
        self.early_exits = 0
        self.refused = False

    @property
    def name(self) -> str:
        """The node's name."""
        return self.plan.name

    @property
    def pid(self) -> int | None:
        """Its process id, or None while there is no process."""
        return self.process.pid if self.process is not None else None

    @property
    def state(self) -> str:
        """What to show of it, in one word."""
        if self.stopped:
            return "stopped"
        if self.process is None:
            return "lost" if self.answered_once else "starting"
        if self.paused:
            return "paused"
        if self.answer is not None:
            return str(self.answer["state"])
        return "silent" if self.answered else "starting"

    def fact(self, key: str) -> Any:
        """One value of its last answer, or None."""
        return self.answer.get(key) if self.answer is not None else None


class Cluster:
    """Starts the nodes on entry and stops them on exit, whatever happened in between.

    ``note`` is told, in a sentence, of each event worth showing; ``changed`` is called when a process id or a
    state changes.
    """

    def __init__(
        self,
        plans: Sequence[NodePlan],
        *,
        note: Callable[[str], None],
        changed: Callable[[], None],
        environment: dict[str, str],
    ) -> None:
        self.nodes = [Node(plan) for plan in plans]
        self._note = note
        self._changed = changed
        self._environment = environment
        self._tasks: list[asyncio.Task[None]] = []
        self._shown: list[tuple[int | None, str]] = []
        loop = asyncio.get_running_loop()
        #: Resolves with the reason if a node cannot be kept running.
        self.failed: asyncio.Future[None] = loop.create_future()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._keep(node)) for node in self.nodes]
        self._tasks.append(asyncio.create_task(self._poll()))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop every node, politely first, by SIGKILL where that does not help in time. Safe to call twice."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await asyncio.gather(*(self._stop_node(node) for node in self.nodes))
        if self.failed.done():
            self.failed.exception()
        self._show()

    @property
    def leader(self) -> Node | None:
        """The node that says it leads; the one with the highest token, should two say so for an instant."""
        leaders = [node for node in self.nodes if node.state == "leader"]
        return max(leaders, key=lambda node: node.fact("fencing_token") or 0, default=None)

    @property
    def leader_from_outside(self) -> str | None:
        """The name of the leader that the nodes follow, where this demo did not start it (``tenure member add``)."""
        follows = [node for node in self.nodes if node.fact("leader_name")]
        if self.leader is not None or not follows:
            return None
        name = str(max(follows, key=lambda node: node.fact("term") or 0).fact("leader_name"))
        return None if name in {node.name for node in self.nodes} else name

    async def wait_for_leader(self, seconds: float) -> Node:
        """Wait until a node leads; what a node says about why it does not is shown as it comes.

        Raises:
            DemoError: nobody leads after ``seconds``, or a node cannot be started.
        """
        deadline = time.monotonic() + seconds
        told: set[str] = set()
        while (leader := self.leader) is None:
            reasons = {f"{node.name}: {node.fact('reason')}" for node in self.nodes if node.fact("reason")}
            for reason in sorted(reasons - told):
                self._note(reason)
            told |= reasons
            if self.failed.done():
                self.failed.result()
            if time.monotonic() > deadline:
                logs = self.nodes[0].plan.log.parent
                raise DemoError(f"no node leads after {seconds:g} s: {self._reasons()}", f"read the logs in {logs}")
            await asyncio.sleep(POLL_SECONDS / 4)
        return leader

    async def wait_until_all_answer(self, seconds: float) -> None:
        """Wait until every node answers, at most ``seconds``."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if all(node.answer is not None for node in self.nodes):
                return
            await asyncio.sleep(POLL_SECONDS / 4)

    def signal(self, node: Node, number: signal.Signals) -> None:
        """Send a signal to a node's process, if it still lives; SIGSTOP and SIGCONT are remembered as its state."""
        if node.process is None:
            return
        node.process.send_signal(number)
        if number in (signal.SIGSTOP, signal.SIGCONT):
            node.paused = number == signal.SIGSTOP
            node.answer = None
            self._show()

    async def _keep(self, node: Node) -> None:
        """Run one node, and run it again a few seconds after it ends, for as long as the demo lasts."""
        while True:
            node.started_at = time.monotonic()
            node.process, node.answered = self._spawn(node), False
            self._show()
            code = await _ended(node.process)
            node.process, node.answer, node.paused = None, None, False
            self._show()
            # A node that served before and is refused now (removed, or its disk wiped) waits for its operator: it may
            # be replaced while the demo goes on.
            refused = code == REFUSED_CODE and node.answered_once
            early = code >= 0 and not refused and time.monotonic() - node.started_at < EARLY_SECONDS
            node.early_exits = node.early_exits + 1 if early else 0
            if node.early_exits >= EARLY_EXITS_MAX or (early and not node.answered_once):
                self._give_up(node, code)
                return
            ended = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            if not (refused and node.refused):
                self._note(f"{node.name} {ended}: lost; starting it again in {RESTART_SECONDS:g} s")
            node.refused = refused
            await asyncio.sleep(RESTART_SECONDS)

    def _spawn(self, node: Node) -> subprocess.Popen[bytes]:
        # The service writes its own log file; what it says before or beside that goes to a file of another ending,
        # so that a grep over *.log sees every line once.
        with node.plan.log.with_suffix(".stderr").open("ab") as errors:
            return child.start(
                node.plan.command,
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=self._environment,
            )

    def _give_up(self, node: Node, code: int) -> None:
        errors = node.plan.log.with_suffix(".stderr")
        lines = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last = f": {lines[-1]}" if lines else ""
        if not self.failed.done():
            problem = DemoError(f"{node.name} ended with code {code}{last}", f"read {errors} and {node.plan.log}")
            self.failed.set_exception(problem)

    async def _poll(self) -> None:
        limits = httpx2.Timeout(ANSWER_TIMEOUT_SECONDS)
        async with httpx2.AsyncClient(timeout=limits, trust_env=False) as client:
            while True:
                await asyncio.gather(*(self._ask(client, node) for node in self.nodes))
                self._show()
                await asyncio.sleep(POLL_SECONDS)

    async def _ask(self, client: httpx2.AsyncClient, node: Node) -> None:
        process = node.process
        if process is None or node.paused:
            return
        try:
            response = await client.get(f"{node.plan.url}/v1/node")
            answer = response.raise_for_status().json()
        except (httpx2.HTTPError, ValueError):
            answer = None
        if node.process is not process or node.paused:
            return
        node.answer = answer if isinstance(answer, dict) and "state" in answer else None
        node.answered = node.answered or node.answer is not None
        node.answered_once = node.answered_once or node.answered

    async def _stop_node(self, node: Node) -> None:
        process, node.stopped = node.process, True
        if process is None:
            return
        process.send_signal(signal.SIGTERM)
        # A stopped process acts on SIGTERM only once it runs again.
        process.send_signal(signal.SIGCONT)
        try:
            await asyncio.wait_for(_ended(process), STOP_TIMEOUT_SECONDS)
        except TimeoutError:
            self._note(f"{node.name} does not stop; killing it")
            process.kill()
            await _ended(process)
        node.process, node.answer, node.paused = None, None, False

    def _show(self) -> None:
        shown = [(node.pid, node.state) for node in self.nodes]
        if shown != self._shown:
            self._shown = shown
            self._changed()

    def _reasons(self) -> str:
        return "; ".join(
            f"{node.name} is {node.state}" + (f" ({reason})" if (reason := node.fact("reason")) else "")
            for node in self.nodes
        )


async def _ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code (negative: the signal) once the process is gone."""
    loop, gone = asyncio.get_running_loop(), asyncio.Event()
    with suppress(ProcessLookupError):  # reaped already, by a signal that found it dead
        descriptor = os.pidfd_open(process.pid)
        try:
            loop.add_reader(descriptor, gone.set)
            await gone.wait()
        finally:
            loop.remove_reader(descriptor)
            os.close(descriptor)
    return process.wait()
