"""The adapter of our own node: everything of the benchmark that knows ``tenure.raft`` is in this file.

    python -m bench.raft.ours --index 0 --voters A,B,C --directory DIR

is one voter of three processes in directories of their own. It speaks the protocol of ``bench/raft/README.md``, its FSM
counts, and the leader drives the closed loop through the public ``apply`` from the application's own event loop, so
that what is measured is what a user gets: ``python -m bench.raft.measure ours --directories A B C --in-flight N
--seconds S --payload-bytes B`` founds the three and prints one line of JSON, as for every other system. It must never
reach past the public names of ``tenure.raft``.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from bench.raft.preparation import Unavailable
from bench.raft.speech import Window

Apply = Callable[[bytes], Awaitable[object]]


def prepare() -> None:
    """Our own package is installed by ``make setup``.

    Raises:
        Unavailable: this version of tenure has no public node to drive.
    """
    raise Unavailable("not available yet: this version of tenure has no public tenure.raft.Node with apply()")


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


if __name__ == "__main__":
    prepare()
