"""The demo's supervision of real child processes: seen, brought back, and never left running."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tenure.demo import cluster as cluster_module
from tenure.demo.cluster import Cluster
from tenure.demo.plan import NodePlan
from tenure.demo.problems import DemoError

STUB = Path(__file__).with_name("stub_node.py")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def plans(folder: Path, *states: str) -> list[NodePlan]:
    made = []
    for index, state in enumerate(states):
        port = free_port()
        made.append(
            NodePlan(
                name=f"payment-1{'abc'[index]}",
                url=f"http://127.0.0.1:{port}",
                http_address=f"127.0.0.1:{port}",
                raft_address="127.0.0.1:0",
                log=folder / f"node-{index}.log",
                config=folder / f"node-{index}.toml",
                command=(sys.executable, str(STUB), str(port), state),
            )
        )
    return made


def cluster_of(folder: Path, *states: str, notes: list[str] | None = None) -> Cluster:
    return Cluster(
        plans(folder, *states),
        note=(notes if notes is not None else []).append,
        changed=lambda: None,
        environment=dict(os.environ),
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15):
        while True:
            if condition():
                return
            await asyncio.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.asyncio
async def test_cluster_names_the_leader_when_a_node_says_that_it_leads(tmp_path) -> None:
    async with cluster_of(tmp_path, "follower", "leader") as cluster:
        leader = await cluster.wait_for_leader(15)
        assert leader.name == "payment-1b"
        await cluster.wait_until_all_answer(5)
        assert [node.state for node in cluster.nodes] == ["follower", "leader"]


@pytest.mark.asyncio
async def test_cluster_shows_a_node_as_lost_and_starts_it_again_when_it_is_killed(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cluster_module, "RESTART_SECONDS", 0.3)
    notes: list[str] = []
    async with cluster_of(tmp_path, "leader", notes=notes) as cluster:
        (node,) = cluster.nodes
        await cluster.wait_for_leader(15)
        first = node.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: node.state == "lost")
        await until(lambda: node.state == "leader")
        assert node.pid != first
    assert "payment-1a was ended by SIGKILL" in notes[0]


@pytest.mark.asyncio
async def test_cluster_gives_up_with_the_node_s_words_when_it_cannot_start(tmp_path) -> None:
    async with cluster_of(tmp_path, "broken") as cluster:
        with pytest.raises(DemoError, match="nobody answers there") as failed:
            await cluster.wait_for_leader(15)
    assert "node-0.stderr" in failed.value.next_step


@pytest.mark.asyncio
async def test_cluster_goes_on_when_a_node_that_served_is_refused_again_and_again(tmp_path, monkeypatch) -> None:
    """It was removed, or its disk was wiped: it may be replaced while the others serve. Said once, not each time."""
    monkeypatch.setattr(cluster_module, "RESTART_SECONDS", 0.05)
    notes: list[str] = []
    async with cluster_of(tmp_path, "leader", "removed", notes=notes) as cluster:
        await cluster.wait_for_leader(15)
        pids = set()

        def seen() -> bool:
            pids.add(cluster.nodes[1].pid)
            return len(pids) > cluster_module.EARLY_EXITS_MAX + 3

        await until(seen)
        assert not cluster.failed.done()
        assert cluster.nodes[0].state == "leader"
    assert [note for note in notes if "payment-1b" in note] == [
        "payment-1b ended with code 4: lost; starting it again in 0.05 s"
    ]


@pytest.mark.asyncio
async def test_cluster_leaves_nothing_running_when_a_node_is_paused(tmp_path) -> None:
    async with cluster_of(tmp_path, "leader", "follower") as cluster:
        await cluster.wait_for_leader(15)
        cluster.signal(cluster.nodes[0], signal.SIGSTOP)
        assert cluster.nodes[0].state == "paused"
        assert cluster.leader is None
        pids = [node.pid for node in cluster.nodes if node.pid is not None]
    assert len(pids) == 2
    assert not any(alive(pid) for pid in pids)
    assert [node.state for node in cluster.nodes] == ["stopped", "stopped"]


@pytest.mark.asyncio
async def test_cluster_says_silent_when_a_process_lives_and_does_not_answer(tmp_path) -> None:
    """From outside a paused process looks like any other silence: the demo did not do it, and does not know."""
    async with cluster_of(tmp_path, "leader") as cluster:
        (node,) = cluster.nodes
        await cluster.wait_for_leader(15)
        assert node.pid is not None
        os.kill(node.pid, signal.SIGSTOP)
        await until(lambda: node.state == "silent")
        os.kill(node.pid, signal.SIGCONT)
        await until(lambda: node.state == "leader")
