"""Several real nodes of one replicated log in one process: real engines, real sockets, real files."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from typing import Any

import tenure
from support.services import free_ports
from tenure.config import from_mapping
from tenure.raft import Node, Ports

BOUND_SECONDS = 30.0


class Numbers:
    """Appends what it is told and returns how many there are."""

    def __init__(self) -> None:
        self.seen: list[bytes] = []
        self.restored = 0

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        if data == b"fail":
            raise ZeroDivisionError("the state machine broke")
        self.seen.append(data)
        return len(self.seen)

    def snapshot(self) -> Iterable[bytes]:
        seen = list(self.seen)
        return (json.dumps(data.decode()).encode() + b"\n" for data in seen)

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.restored += 1
        self.seen = [json.loads(line).encode() for line in b"".join(chunks).splitlines()]


class Replicas:
    """Nodes by name. A name beyond the founders joins: its file lists the founders and itself."""

    def __init__(self, folder: Path, names: Iterable[str] = "abc", *, spare: Iterable[str] = (), **raft: Any) -> None:
        self.folder = folder
        self.founders = tuple(names)
        spare = tuple(spare)
        self.ports = dict(zip((*self.founders, *spare), free_ports(len(self.founders) + len(spare)), strict=True))
        self.raft = raft
        self.lease: dict[str, Any] = {}
        self.nodes: dict[str, Node] = {}
        self.machines: dict[str, Any] = {}
        self.make_machine: Callable[[], Any] = Numbers
        #: Makes the stores and the transport of a node, by name.
        self.make_ports: Callable[[str], Ports | None] = lambda name: None

    def config(self, name: str, *, directory: str | None = None) -> tenure.Config:
        """The configuration of that node."""
        listed = {*self.founders, name}
        peers = {p: {"raft": f"127.0.0.1:{self.ports[p]}", "url": f"http://{p}.test"} for p in sorted(listed)}
        return from_mapping(
            {
                "node": {"name": name, "data_dir": str(self.folder / (directory or name))},
                "raft": {"listen": f"127.0.0.1:{self.ports[name]}", "peers": peers, **self.raft},
                "lease": self.lease,
            }
        )

    async def start(self, name: str, *, directory: str | None = None) -> Node:
        config = self.config(name, directory=directory)
        machine = self.make_machine()
        node = await Node.open(config, machine, ports=self.make_ports(name)).__aenter__()
        self.machines[name], self.nodes[name] = machine, node
        return node

    async def stop(self, name: str) -> None:
        await self.nodes.pop(name).close()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds():  # noqa: ASYNC110 - polled: the condition spans several nodes.
                await asyncio.sleep(0.01)

    async def leader(self) -> Node:
        """The leader, once it has committed something in its term."""
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                for node in list(self.nodes.values()):
                    with contextlib.suppress(
                        tenure.NotLeader, tenure.ProposalDropped, tenure.QuorumUnavailable, tenure.NodeClosed
                    ):
                        await node.verify_leader(timeout_ms=500)
                        return node
                await asyncio.sleep(0.02)

    async def apply(self, data: bytes) -> Any:
        """Have whoever leads apply ``data``; surely not done means again."""
        async with asyncio.timeout(BOUND_SECONDS):
            while True:
                leader = await self.leader()
                with contextlib.suppress(tenure.NotLeader, tenure.ProposalDropped):
                    return await leader.apply(data)

    async def agree(self) -> None:
        """Wait until every running node has applied the same."""
        await self.until(lambda: len({tuple(self.machines[name].seen) for name in self.nodes}) == 1)

    async def until_leads(self, name: str) -> None:
        """Hand leadership on until that member has it: for one election timeout after its start it takes none (R6)."""
        async with asyncio.timeout(BOUND_SECONDS):
            while (leader := await self.leader()).name != name:
                with contextlib.suppress(tenure.NotLeader, tenure.OutcomeUnknown):
                    await leader.transfer_leadership(to=name, timeout_ms=5000)

    def cut(self, name: str) -> None:
        """The member hears and reaches nobody any more; its sockets stay open."""
        links = self.nodes[name]._driver._links
        links.transport.send = lambda peer, payload: None
        links.route = lambda sender, payload: None
        self.nodes[name]._driver._receive = lambda sender, payload: None


@contextlib.asynccontextmanager
async def running(
    folder: Path, names: Iterable[str] = "abc", *, spare: Iterable[str] = (), **raft: Any
) -> AsyncIterator[Replicas]:
    """The founders, started; whatever runs at the end is closed."""
    replicas = Replicas(folder, names, spare=spare, **raft)
    try:
        await asyncio.gather(*(replicas.start(name) for name in replicas.founders))
        yield replicas
    finally:
        await asyncio.gather(*(replicas.stop(name) for name in list(replicas.nodes)))
