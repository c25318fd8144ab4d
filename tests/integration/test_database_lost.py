"""A leader whose own way to the database is cut hands over to a member that reaches it; if none does, nobody moves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import tenure
from support.member_cluster import BOUND_SECONDS, Cluster
from tenure import LossReason, State
from tenure.fence import install


class Wire:
    """A TCP port in front of the database that can be cut."""

    def __init__(self, dsn: str) -> None:
        self._there = urlsplit(dsn)
        self._cut = False
        self._writers: set[asyncio.StreamWriter] = set()
        self.dsn = ""

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.dsn = self._there._replace(
            netloc=f"{self._there.username}:{self._there.password}@127.0.0.1:{port}"
        ).geturl()

    def cut(self) -> None:
        """Nothing comes through any more: what is open stays open and is silent, as in a network that was cut."""
        self._cut = True

    async def close(self) -> None:
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await asyncio.open_connection(self._there.hostname, self._there.port)
        self._writers |= {writer, there[1]}
        await asyncio.gather(self._forward(reader, there[1]), self._forward(there[0], writer))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if not self._cut:
                    writer.write(data)
                    await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def wired(folder: Path, dsn: str) -> AsyncIterator[tuple[Cluster, dict[str, Wire]]]:
    """Three members, each with a wire of its own to the database, and one second without it until they give up."""
    cluster = Cluster(folder, dsn)
    wires = {name: Wire(dsn) for name in cluster.ports}
    try:
        for name, wire in wires.items():
            await wire.open()
            await cluster.start(name, database={"dsn": wire.dsn}, lease={"database_timeout_ms": 1000})
        yield cluster, wires
    finally:
        await cluster.close()
        for wire in wires.values():
            await wire.close()


@pytest.mark.asyncio
async def test_leader_hands_over_to_a_member_that_reaches_the_database_when_it_alone_has_lost_it(
    tmp_path: Path, database: str
):
    await asyncio.to_thread(install, database, "payments", tables=[])
    async with wired(tmp_path, database) as (cluster, wires), asyncio.timeout(BOUND_SECONDS):
        name, leadership = await cluster.leader()
        wires[name].cut()
        assert await leadership.lost is LossReason.DATABASE_LOST
        successor, second = await cluster.leader()
        assert successor != name
        assert second.token > leadership.token
        await cluster.until(lambda: cluster.members[name].status().leader_name == successor)
        ended = next(change for change in reversed(cluster.members[name].journal) if change.reason is not None)
        assert (ended.state, ended.reason) == (State.FOLLOWER, "database_lost")


@pytest.mark.asyncio
async def test_member_that_is_elected_without_the_database_hands_over_before_it_leads(tmp_path: Path, database: str):
    """It cannot read the floor, so it never leads; the office does not stay with it either."""
    await asyncio.to_thread(install, database, "payments", tables=[])
    async with wired(tmp_path, database) as (cluster, wires), asyncio.timeout(BOUND_SECONDS):
        name, _ = await cluster.leader()
        unlucky = next(other for other in cluster.members if other != name)
        wires[unlucky].cut()
        with contextlib.suppress(tenure.TenureError):
            await cluster.members[name].transfer_leadership(unlucky)
        successor, _ = await cluster.leader()
        assert successor != unlucky
        assert all(change.state is not State.LEADER for change in cluster.members[unlucky].journal)


@pytest.mark.asyncio
async def test_leader_keeps_the_office_when_nobody_reaches_the_database(tmp_path: Path, database: str):
    await asyncio.to_thread(install, database, "payments", tables=[])
    async with wired(tmp_path, database) as (cluster, wires), asyncio.timeout(BOUND_SECONDS):
        name, leadership = await cluster.leader()
        for wire in wires.values():
            wire.cut()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(leadership.lost), 3.0)
        assert leadership.reason is None
        assert cluster.members[name].status().state is State.LEADER


@pytest.mark.asyncio
async def test_leadership_stays_when_every_member_reaches_the_database(tmp_path: Path, database: str):
    await asyncio.to_thread(install, database, "payments", tables=[])
    async with wired(tmp_path, database) as (cluster, _), asyncio.timeout(BOUND_SECONDS):
        _, leadership = await cluster.leader()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(leadership.lost), 2.0)
        assert leadership.reason is None
        assert isinstance(leadership, tenure.HeldLeadership)
