"""The adapter of our own node: everything of the benchmark that knows ``tenure.raft`` is in this file.

    python -m bench.raft.ours --index 0 --voters A,B,C --directory DIR

is one voter of three processes in directories of their own. It speaks the protocol of ``bench/raft/README.md``, its FSM
counts, and the leader drives the closed loop through the public ``apply`` from the application's own event loop, so
that what is measured is what a user gets: ``python -m bench.raft.measure ours --directories A B C --in-flight N
--seconds S --payload-bytes B`` founds the three and prints one line of JSON, as for every other system. It must never
reach past the public names of ``tenure.raft``.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import os
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bench.raft.preparation import Unavailable
from bench.raft.speech import Window, report, requests

Apply = Callable[[bytes], Awaitable[object]]
#: After how long a leader that could not serve yet is asked again.
RETRY_SECONDS = 0.05


def prepare() -> None:
    """Our own package is installed by ``make setup``.

    Raises:
        Unavailable: it is not, or its compiled binding is missing.
    """
    for module in ("tenure", "tenure_raft"):
        if importlib.util.find_spec(module) is None:
            raise Unavailable(f"{module} is not installed here: make setup")


def command(index: int, voters: Sequence[str], directory: Path) -> list[str]:
    """The command line of one voter."""
    place = [f"--index={index}", f"--voters={','.join(voters)}", f"--directory={directory}"]
    return [sys.executable, "-m", "bench.raft.ours", *place]


async def drive(apply: Apply, request: dict[str, Any]) -> None:
    """Keep ``in_flight`` calls of ``apply`` under way and report what was answered after the warm-up.

    An error of ``apply`` ends the load and is raised.
    """
    window, payload = Window(), os.urandom(request["payload_bytes"])

    async def client() -> None:
        while not window.closed:
            asked_ns = time.perf_counter_ns()
            await apply(payload)
            window.answered(asked_ns)

    async def clock() -> None:
        await asyncio.sleep(request["warm_up_seconds"])
        window.open()
        await asyncio.sleep(request["seconds"])
        window.close()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(clock())
        for _ in range(request["in_flight"]):
            tasks.create_task(client())
    window.report()


async def fill(apply: Apply, request: dict[str, Any]) -> None:
    """Put ``count`` operations into the log, ``in_flight`` under way; nothing of it is measured here.

    An error of ``apply`` ends it and is raised.
    """
    payload, clients = os.urandom(request["payload_bytes"]), request["in_flight"]

    async def client(share: int) -> None:
        for _ in range(share):
            await apply(payload)

    each, more = divmod(request["count"], clients)
    async with asyncio.TaskGroup() as tasks:
        for number in range(clients):
            tasks.create_task(client(each + (number < more)))
    report("filled")


class Counter:
    """The state machine: counts what was applied."""

    def __init__(self) -> None:
        self.applied = 0

    def apply(self, data: bytes, *, index: int, term: int) -> int:
        """One operation; the payload is only carried."""
        self.applied += 1
        return self.applied

    def snapshot(self) -> list[bytes]:
        """The count."""
        return [b"%d" % self.applied]

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Take a count over."""
        self.applied = int(b"".join(chunks))


async def run(index: int, voters: Sequence[str], directory: Path) -> None:
    """One voter, until the benchmark closes the input."""
    from tenure.config import from_mapping
    from tenure.raft import Node

    names = [f"node-{position}" for position in range(len(voters))]
    peers = {name: {"raft": address, "url": "http://unused"} for name, address in zip(names, voters, strict=True)}
    config = from_mapping(
        {
            "cluster": {"name": "bench"},
            "node": {"name": names[index], "data_dir": str(directory)},
            "raft": {"listen": voters[index], "peers": peers},
        }
    )
    counter = Counter()
    loop = asyncio.get_running_loop()
    inbox: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()

    def read() -> None:
        for request in requests():
            loop.call_soon_threadsafe(inbox.put_nowait, request)
        loop.call_soon_threadsafe(inbox.put_nowait, None)

    async with Node.open(config, counter) as node:
        threading.Thread(target=read, daemon=True).start()
        announcing = asyncio.create_task(announce(node))
        while (request := await inbox.get()) is not None:
            match request["do"]:
                case "load":
                    await drive(node.apply, request)
                case "fill":
                    await fill(node.apply, request)
                case "log":
                    stats, every = node.stats(), config.raft.snapshot_entries
                    places = {"commit_index": stats.commit_index, "snapshot_index": stats.snapshot_index}
                    report("log", **places, snapshot_entries=every)
                case _:
                    report("applied", count=counter.applied)
        announcing.cancel()


async def announce(node: Any) -> None:
    """Say once, as the first leader of the run, that this node leads: the benchmark fails a run that changes it.

    An error that no leadership explains is said too: nobody awaits this task, and silence would look like no leader.
    """
    try:
        async for event in node.observe():
            if event.role == "leader" and await _serves(node):
                report("leader")
                return
    except Exception as error:
        report("failed", problem=f"waiting for the leadership: {error!r}")
        raise


async def _serves(node: Any) -> bool:
    """Whether this leader has applied all that came before it; False once it leads no more."""
    from tenure import NotLeader, OutcomeUnknown, ProposalDropped

    while node.is_leader_hint():
        try:
            await node.barrier()
        except (NotLeader, OutcomeUnknown, ProposalDropped):
            await asyncio.sleep(RETRY_SECONDS)
        else:
            return True
    return False


def main() -> None:
    """Read the command line of one voter and run it, on uvloop as the extra installs it."""
    import uvloop

    parser = argparse.ArgumentParser()
    parser.add_argument("--index", type=int, required=True)
    parser.add_argument("--voters", required=True)
    parser.add_argument("--directory", type=Path, required=True)
    arguments = parser.parse_args()
    uvloop.run(run(arguments.index, arguments.voters.split(","), arguments.directory))


if __name__ == "__main__":
    main()
