"""The Python of docs/raft.md, run as it stands there: only the ports are others, and the folder is the test's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import tenure
from support.replicas import BOUND_SECONDS
from support.services import free_ports

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/raft.md").read_text(encoding="utf-8")
sys.path.append(str(ROOT / "examples"))


@pytest.fixture
def guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Everything that the page defines, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    code = "\n\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL))
    for shown, free in zip(("9101", "9102", "9103"), free_ports(3), strict=True):
        code = code.replace(f":{shown}", f":{free}")
    module = ModuleType("guide")
    exec(compile(code, "docs/raft.md", "exec"), module.__dict__)
    return module


@contextlib.asynccontextmanager
async def opened(*nodes: Any) -> AsyncIterator[list[Any]]:
    async with contextlib.AsyncExitStack() as stack:
        yield await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))


async def leader_of(nodes: list[Any]) -> Any:
    async with asyncio.timeout(BOUND_SECONDS):
        while True:
            for node in nodes:
                with contextlib.suppress(tenure.NotLeader, tenure.ProposalDropped, tenure.QuorumUnavailable):
                    await node.verify_leader(timeout_ms=500)
                    return node
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_guide_founds_writes_reads_and_sets_back(guide: ModuleType):
    """A first cluster, by the function that the page runs it by."""
    served: dict[str, tuple[Any, Any]] = {}
    done = asyncio.Event()

    async def serve(node: Any, counters: Any) -> None:
        served[node.name] = (node, counters)
        await done.wait()

    running = [asyncio.create_task(guide.run(name, serve)) for name in "abc"]
    try:
        async with asyncio.timeout(BOUND_SECONDS):
            while len(served) < 3:  # noqa: ASYNC110 - three tasks come here by themselves.
                await asyncio.sleep(0.01)
        leader = await leader_of([node for node, _ in served.values()])
        counters = served[leader.name][1]
        told: list[str] = []
        following = asyncio.create_task(guide.follow(leader, told.append))
        await guide.settle(leader)
        assert [await guide.add(leader, command_id, "x", 2) for command_id in ("1", "2", "2")] == [2, 4, 4]
        assert await guide.read(leader, counters, "x") == 4
        copy = await guide.back_up(leader, counters)
        await guide.add(leader, "3", "x", 100)
        await guide.set_back(leader, copy)
        assert await guide.read(leader, counters, "x") == 4
        assert (await guide.slower(leader)).election_timeout_ms == 3000
        follower = next(node for node, _ in served.values() if node is not leader)
        with pytest.raises(tenure.NotLeader):
            await guide.add(follower, "4", "x", 1)
        assert told == [f"{leader.name} was elected in term {leader.stats().term}"]
    finally:
        done.set()
        await asyncio.gather(*running)
    await following


@pytest.mark.asyncio
async def test_guide_grows_from_one_to_three_and_replaces_a_machine(guide: ModuleType):
    all_addresses = {**guide.ADDRESSES, "d": f"127.0.0.1:{free_ports(1)[0]}"}

    def node_of(name: str, *others: str) -> Any:
        return guide.Node.open(guide.config_of(name, {n: all_addresses[n] for n in (*others, name)}), guide.Counters())

    async with opened(node_of("a"), node_of("b", "a"), node_of("c", "a")) as nodes:
        leader = await leader_of(nodes[:1])
        assert await guide.grow(leader) == ["a", "b", "c"]
        await guide.add(leader, "1", "x", 1)
        await nodes[2].close()
        async with opened(node_of("d", "a", "b", "c")) as new:
            leader = await leader_of(nodes[:2])
            await guide.replace(leader, "c", "d")
            assert await guide.add(leader, "2", "x", 1) == 2
            assert [state.name for state in (await leader.members()).members] == ["a", "b", "d"]
            async with asyncio.timeout(BOUND_SECONDS):
                while new[0]._fsm.values != {"x": 2}:  # noqa: ASYNC110 - a follower tells nobody what it applied.
                    await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_guide_reloads_a_file(guide: ModuleType, tmp_path: Path):
    address = guide.ADDRESSES["a"]
    lines = [
        '[cluster]\nname = "counters"\n[node]\nname = "a"\ndata_dir = "data-a"\n[raft]',
        f'listen = "{address}"\npeers.a = {{ raft = "{address}", url = "http://unused" }}',
    ]
    path = tmp_path / "a.toml"
    async with opened(guide.Node.open(guide.config_of("a", {"a": address}), guide.Counters())) as (node,):
        await leader_of([node])
        path.write_text("\n".join([*lines, "keep_entries = 7"]))
        assert await guide.reload(node, path) == ("raft.keep_entries",)
        path.write_text("\n".join([*lines, "election_timeout_ms = 2000"]))
        assert await guide.reload(node, path) == "raft.election_timeout_ms"


@pytest.mark.asyncio
async def test_guide_runs_on_own_parts(guide: ModuleType, tmp_path: Path):
    nodes = [guide.on_own_parts(guide.config_of(name), guide.Counters()) for name in "abc"]
    async with opened(*nodes) as running:
        assert await guide.add(await leader_of(running), "1", "x", 3) == 3
    assert all((tmp_path / f"data-{name}" / "own-log").is_dir() for name in "abc")


def test_guide_has_a_state_machine_that_passes_its_suite(guide: ModuleType):
    names = [name for name in dir(guide.TestCounters) if name.startswith("test_")]
    assert len(names) > 5
    for name in names:
        getattr(guide.TestCounters(), name)()


def test_guide_names_what_there_is(guide: ModuleType):
    """Every name of ours in the table's second column is one."""
    rows = re.findall(r"^\| `[^|]*\| ([^|]*) \|", TEXT.partition("## A first cluster")[0], re.MULTILINE)
    names = {
        name for row in rows for name in re.findall(r"`(?:await |async for event in )?(?:node\.)?(\w+)[`(\[]", row)
    }
    ours = {*dir(guide.Node), *tenure.raft.__all__, *tenure.__all__}
    assert names - ours == set()
    assert len(names) > 20


def test_guide_says_the_limits_as_they_are(guide: ModuleType):
    from tenure.node.raft_node import COMMAND_BYTES_MAX, PENDING_MAX

    assert COMMAND_BYTES_MAX == (1 << 20) - 1
    assert f"{PENDING_MAX // 1000} {PENDING_MAX % 1000} commands" in TEXT
    assert json.loads(b"".join(guide.Counters().snapshot())) == [{}, {}]
