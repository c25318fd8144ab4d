"""What is asked of a node that belongs to no cluster yet is refused at once, with what it waits for."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

import tenure
from support.replicas import Replicas, running
from tenure.raft import Node, Remove

AT_ONCE_SECONDS = 2.0
CALLS: dict[str, Callable[[Node], Awaitable[object]]] = {
    "apply": lambda node: node.apply(b"x"),
    "barrier": lambda node: node.barrier(),
    "verify_leader": lambda node: node.verify_leader(),
    "restore": lambda node: node.restore([b"x"]),
    "change_members": lambda node: node.change_members([Remove("b")]),
    "add_voter": lambda node: node.add_voter("d"),
    "transfer_leadership": lambda node: node.transfer_leadership(),
    "change_settings": lambda node: node.change_settings(lease_duration_ms=2000),
    "settings": lambda node: node.settings(),
    "snapshot": lambda node: node.snapshot(),
}


async def refusal_of(call: Callable[[Node], Awaitable[object]], node: Node) -> tenure.TenureError:
    with pytest.raises((tenure.NotLeader, tenure.SnapshotRefused, tenure.NodeClosed)) as caught:
        await asyncio.wait_for(call(node), AT_ONCE_SECONDS)
    return caught.value


@pytest.mark.asyncio
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
async def test_call_is_refused_at_once_with_who_is_missing_when_the_cluster_is_not_founded(
    tmp_path: Path, call: Callable[[Node], Awaitable[object]]
):
    """Two of three are not there: nothing can be answered before they are."""
    replicas = Replicas(tmp_path)
    node = await replicas.start("a")
    try:
        await replicas.until(lambda: "waiting for b, c" in (node.stats().reason or ""))
        error = await refusal_of(call, node)
        assert "it belongs to no cluster yet, waiting for b, c to found the cluster" in str(error)
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
    finally:
        await replicas.stop("a")


@pytest.mark.asyncio
async def test_call_is_refused_at_once_with_what_to_run_when_the_node_is_not_added(tmp_path: Path):
    """A new directory of a cluster that runs; once it is added, the same node answers."""
    async with running(tmp_path, spare="d") as replicas:
        node = await replicas.start("d")
        await replicas.until(lambda: "tenure member add d" in (node._driver.published.reason or ""))
        for call in CALLS.values():
            assert "run 'tenure member add d'" in str(await refusal_of(call, node))
        leader = await replicas.leader()
        await leader.add_learner("d")
        await replicas.until(lambda: node.stats().applied_index > 0)
        assert await node.settings() == await leader.settings()
        assert leader.stats().reason is None
        with pytest.raises(tenure.NotLeader) as caught:
            await node.apply(b"x")
        assert caught.value.reason is None
