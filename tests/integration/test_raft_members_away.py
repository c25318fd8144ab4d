"""Members that were away while others came and went, on real nodes: each comes back, or ends and says why (R7)."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.replicas import running


@pytest.mark.asyncio
async def test_R7_node_comes_back_when_everybody_it_knew_was_replaced_and_its_file_names_one(tmp_path: Path):
    """It dials whom its file names, hears who the members are, and lets them in, their leader among them."""
    async with running(tmp_path, spare="de") as replicas:
        leader = await replicas.leader()
        away = next(name for name in "abc" if name != leader.name)
        await replicas.stop(away)
        for name in "de":
            await replicas.start(name)
            await (await replicas.leader()).add_voter(name)
        for name in sorted(set("abc") - {away}):
            await (await replicas.leader()).remove(name)
            await replicas.stop(name)
        await replicas.apply(b"while it was away")
        replicas.founders = tuple("abcd")  # The file of a node lists them and itself.
        await replicas.start(away)
        await replicas.agree()
        assert b"while it was away" in replicas.machines[away].seen
        await replicas.stop("e")
        await replicas.apply(b"by its vote")
