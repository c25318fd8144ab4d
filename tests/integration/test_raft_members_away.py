"""Members that were away while others came and went, on real nodes: each comes back, or ends and says why (R7)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tenure
from support.replicas import running
from support.services import free_ports
from tenure.core import roster
from tenure.node import links
from tenure.node.driver import REMOVED_SECONDS
from tenure.raft import Node


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


@pytest.mark.asyncio
async def test_R7_node_that_missed_its_removal_ends_once_most_voters_tell_it(tmp_path: Path):
    """It was down meanwhile. It says and leaves behind the same as one that has applied it."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        gone, other = (name for name in "abc" if name != leader.name)
        await replicas.stop(gone)
        await leader.remove(gone)
        await replicas.apply(b"without it")
        await replicas.agree()
        await replicas.stop(other)
        node = await replicas.start(gone)
        await replicas.until(lambda: f"refused by {leader.name}: " in (node._driver.published.reason or ""))
        await asyncio.sleep(2 * REMOVED_SECONDS)
        assert not ended(node), "one voter of two is no majority: the other one's election may need its vote"
        await replicas.start(other)
        await replicas.until(lambda: ended(node))
        assert node.failed is not None
        assert isinstance(node.failed.result(), tenure.MemberRemoved)
        await replicas.stop(gone)
        with pytest.raises(tenure.MemberRemoved, match=f"{gone} was removed from the cluster: .* a new data directory"):
            await replicas.start(gone)


@pytest.mark.asyncio
async def test_R7_node_that_missed_its_removal_and_the_exchange_of_all_others_ends(tmp_path: Path):
    """The voters that have to refuse it are those of now, of whom its file names one."""
    async with running(tmp_path, spare="de") as replicas:
        leader = await replicas.leader()
        gone = next(name for name in "abc" if name != leader.name)
        await replicas.stop(gone)
        for name in "de":
            await replicas.start(name)
            await (await replicas.leader()).add_voter(name)
        for name in "abc":
            await (await replicas.leader()).remove(name)
            if name != gone:
                await replicas.stop(name)
        await replicas.apply(b"without it")
        replicas.founders = tuple("abcd")
        node = await replicas.start(gone)
        await replicas.until(lambda: ended(node))
        assert node.failed is not None
        assert isinstance(node.failed.result(), tenure.MemberRemoved)


def ended(node: Node) -> bool:
    return node.failed is not None and node.failed.done()


@pytest.mark.asyncio
async def test_applicant_is_listed_no_more_when_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As long as it waits it calls; once it is stopped the list forgets it, and it can come again."""
    monkeypatch.setattr(roster, "APPLICANT_SECONDS", 2.0)
    async with running(tmp_path, spare="d") as replicas:
        leader = await replicas.leader()
        for _ in range(2):
            await replicas.start("d")
            await replicas.until(lambda: "d" in leader._driver.roster.applicants)
            await replicas.stop("d")
            await replicas.until(lambda: "d" not in leader._driver.roster.applicants)


@pytest.mark.asyncio
@pytest.mark.parametrize("name", ["a", "d"])
async def test_member_that_moved_is_found_when_nobody_changes_a_file(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """It says where it is with its hello. Founders are dialled by the files first, others by the log."""
    monkeypatch.setattr(links, "TURN_SECONDS", 1.0)
    async with running(tmp_path, spare="d") as replicas:
        await replicas.start("d")
        await (await replicas.leader()).add_voter("d")
        for _ in range(2):
            await replicas.stop(name)
            (replicas.ports[name],) = free_ports(1)
            await replicas.start(name)
            await replicas.apply(b"x")
            await replicas.agree()
        await replicas.until_leads(name)
