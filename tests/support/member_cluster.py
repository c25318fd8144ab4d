"""Members in one process, with real sockets and real disks: started and stopped by name, with what they won."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import tenure
from support.services import free_ports
from tenure.config import from_mapping
from tenure.node.member import Member

BOUND_SECONDS = 20.0


class Cluster:
    """Three members; each keeps the leaderships that it won."""

    def __init__(self, folder: Path, dsn: str, names: str = "abc") -> None:
        self.folder, self.dsn = folder, dsn
        self.ports = dict(zip(names, free_ports(len(names)), strict=True))
        self.members: dict[str, Member] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.won: asyncio.Queue[tuple[str, tenure.HeldLeadership]] = asyncio.Queue()

    def config(self, name: str, **sections: dict[str, object]) -> tenure.Config:
        peers = {peer: {"raft": f"127.0.0.1:{port}", "url": f"http://{peer}.test"} for peer, port in self.ports.items()}
        values: dict[str, dict[str, object]] = {
            "node": {"name": name, "data_dir": str(self.folder / name)},
            "raft": {"listen": f"127.0.0.1:{self.ports[name]}", "peers": peers},
            "database": {"dsn": self.dsn},
        }
        for section, extra in sections.items():
            values.setdefault(section, {}).update(extra)
        return from_mapping(values)

    async def start(self, name: str, **sections: dict[str, object]) -> Member:
        opened: asyncio.Future[Member] = asyncio.get_running_loop().create_future()
        self.tasks[name] = asyncio.create_task(self._run(name, self.config(name, **sections), opened))
        await asyncio.wait({opened, self.tasks[name]}, return_when=asyncio.FIRST_COMPLETED)
        if not opened.done():
            await self.tasks.pop(name)
        return opened.result()

    async def _run(self, name: str, config: tenure.Config, opened: asyncio.Future[Member]) -> None:
        async with tenure.open(config) as member:
            self.members[name] = member
            opened.set_result(member)
            async for leadership in member.terms():
                async with leadership:
                    self.won.put_nowait((name, leadership))
                    await asyncio.Event().wait()

    async def leader(self) -> tuple[str, tenure.HeldLeadership]:
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                name, leadership = await self.won.get()
                if leadership.remaining() > 0:
                    return name, leadership

    async def stop(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        self.members.pop(name, None)

    async def close(self) -> None:
        for name in list(self.tasks):
            await self.stop(name)

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds():  # noqa: ASYNC110 - the status is computed when asked; there is no event to wait for.
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def running(folder: Path, dsn: str) -> AsyncIterator[Cluster]:
    cluster = Cluster(folder, dsn)
    try:
        for name in cluster.ports:
            await cluster.start(name)
        yield cluster
    finally:
        await cluster.close()
