"""The rest of the public face of a node: observers, and a configuration that changes while it runs (issue: step 2)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tenure
from support.member_cluster import Cluster
from support.replicas import BOUND_SECONDS, Replicas, running
from support.services import free_ports
from tenure.config import Config, PeerEntry, from_mapping
from tenure.core.commands import Settings
from tenure.core.view import View
from tenure.node.founding import settings_of
from tenure.node.observing import Observers
from tenure.node.reloading import changes
from tenure.raft import RaftEvent

# -- observers --------------------------------------------------------------------------------------------------------


class Watcher:
    """Keeps what an observer is told."""

    def __init__(self, events: AsyncIterator[RaftEvent]) -> None:
        self.seen: list[RaftEvent] = []
        self.task = asyncio.create_task(self._watch(events))

    async def _watch(self, events: AsyncIterator[RaftEvent]) -> None:
        async for event in events:
            self.seen.append(event)


@pytest.mark.asyncio
async def test_observers_name_a_leader_that_joined_and_one_that_was_never_in_the_own_file(tmp_path: Path):
    """Each event with its term, across a change of the members: of the new one, of the old ones, and what changed."""
    async with running(tmp_path, spare="d") as replicas:
        new = await replicas.start("d")
        watchers = {name: Watcher(node.observe()) for name, node in replicas.nodes.items()}
        leader = await replicas.leader()
        before = watchers[leader.name].seen[-1]
        await leader.add_voter("d")
        await replicas.until(lambda: watchers["d"].seen[-1].leader_name == leader.name)
        await replicas.until_leads("d")
        term = new.stats().term
        await replicas.until(
            lambda: {(w.seen[-1].term, w.seen[-1].leader_name) for w in watchers.values()} == {(term, "d")}
        )
        assert watchers["d"].seen[-1].role == "leader"
        assert all(watcher.seen[-1].members_index > before.members_index for watcher in watchers.values())
        for watcher in watchers.values():
            terms = [event.term for event in watcher.seen]
            assert terms == sorted(terms)
            assert all(one != other for one, other in zip(watcher.seen, watcher.seen[1:], strict=False))
        for name in "abcd":
            await replicas.stop(name)
        async with asyncio.timeout(BOUND_SECONDS):
            await asyncio.gather(*(watcher.task for watcher in watchers.values()))


@pytest.mark.asyncio
async def test_observer_hears_the_last_and_the_end_when_the_node_is_closed_already(tmp_path: Path):
    async with running(tmp_path, "a") as replicas:
        node = await replicas.leader()
        await replicas.stop("a")
        async with asyncio.timeout(BOUND_SECONDS):
            assert len([event async for event in node.observe()]) == 1


@pytest.mark.asyncio
async def test_member_has_observers_as_a_node_has(tmp_path: Path):
    """What a member shows of its office is in its status and its journal; this is the Raft below."""
    cluster = Cluster(tmp_path, "")
    try:
        for name in "abc":
            await cluster.start(name)
        watchers = {name: Watcher(member.observe()) for name, member in cluster.members.items()}
        name, leadership = await cluster.leader()
        await cluster.until(
            lambda: {(w.seen[-1].term, w.seen[-1].leader_name) for w in watchers.values()} == {(leadership.term, name)}
        )
    finally:
        await cluster.close()
    await asyncio.gather(*(watcher.task for watcher in watchers.values()))


@pytest.mark.asyncio
async def test_observer_that_comes_between_the_news_hears_each_once_and_in_order():
    """The thread is ahead of the loop: the present of an observer is the loop's."""
    waiting: list[Callable[[], None]] = []
    names = {1: "a", 2: "b"}
    observers = Observers(waiting.append, lambda view: names.get(view.leader_id))
    observers.note(View(term=1, leader_id=1))
    observers.note(View(term=2, leader_id=2))
    observers.note(View(term=2, leader_id=2, commit_index=7))
    watcher = Watcher(observers.observe())
    while not watcher.seen:  # noqa: ASYNC110 - nothing tells that a task has run.
        await asyncio.sleep(0)
    for call in waiting:
        call()
    observers.end()
    await watcher.task
    assert [(event.term, event.leader_name) for event in watcher.seen] == [(0, None), (1, "a"), (2, "b")]


@pytest.mark.asyncio
async def test_observer_is_told_the_name_of_a_leader_when_it_becomes_known():
    waiting: list[Callable[[], None]] = []
    names: dict[int, str] = {}
    observers = Observers(waiting.append, lambda view: names.get(view.leader_id))
    for _ in range(2):
        observers.note(View(term=3, leader_id=4))
    names[4] = "d"
    observers.note(View(term=3, leader_id=4))
    for call in waiting:
        call()
    observers.end()
    assert [event.leader_name async for event in observers.observe()] == ["d"]
    assert len(waiting) == 2


# -- a configuration that changes -------------------------------------------------------------------------------------


def configured(replicas: Replicas, name: str, **raft: Any) -> Config:
    """The present configuration of a node, with other values in ``[raft]``."""
    config = replicas.nodes[name]._config
    return msgspec.structs.replace(config, raft=msgspec.structs.replace(config.raft, **raft))


@pytest.mark.asyncio
async def test_reload_takes_an_address_that_changed(tmp_path: Path):
    """A member moves to another port: the others find it after a reload, and are never restarted."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        moved = next(name for name in "abc" if name != leader.name)
        await replicas.stop(moved)
        (replicas.ports[moved],) = free_ports(1)
        await replicas.start(moved)
        entry = PeerEntry(raft=f"127.0.0.1:{replicas.ports[moved]}", url="http://moved.test")
        for name in {*"abc"} - {moved}:
            peers = {**replicas.nodes[name]._config.raft.peers, moved: entry}
            changed = await replicas.nodes[name].reload_config(configured(replicas, name, peers=peers))
            assert changed == (f"raft.peers.{moved}.raft", f"raft.peers.{moved}.url")
            assert replicas.nodes[name]._driver.url_of(moved) == "http://moved.test"
        await replicas.apply(b"x")
        await replicas.agree()
        # Both ways: the moved one can be heard, so it can lead.
        await replicas.until_leads(moved)


@pytest.mark.asyncio
async def test_reload_takes_other_limits_of_snapshots(tmp_path: Path):
    """They count from the next entry on."""
    async with running(tmp_path, "a") as replicas:
        node = await replicas.leader()
        for number in range(30):
            await node.apply(b"%d" % number)
        changed = await node.reload_config(configured(replicas, "a", snapshot_entries=10, keep_entries=5))
        assert changed == ("raft.keep_entries", "raft.snapshot_entries")
        await node.apply(b"x")
        await replicas.until(lambda: node.stats().snapshot_index > 30)
        assert await node.reload_config(configured(replicas, "a")) == ()


@pytest.mark.asyncio
async def test_reload_changes_nothing_when_one_field_cannot_change(tmp_path: Path):
    """What could change in the same file is left, too."""
    async with running(tmp_path, "a") as replicas:
        node = await replicas.leader()
        with pytest.raises(tenure.ConfigError, match=r"raft\.listen: it is read when the node starts"):
            await node.reload_config(configured(replicas, "a", snapshot_entries=1, listen="127.0.0.1:1"))
        await node.apply(b"x")
        assert node._driver._core.snapshots.limits.entries == 50_000
        assert node._config.raft.snapshot_entries == 50_000
        await replicas.stop("a")
        with pytest.raises(tenure.NodeClosed):
            await node.reload_config(node._config)


@pytest.mark.asyncio
async def test_R4_reload_does_not_change_the_times_of_the_cluster(tmp_path: Path):
    """The error names who does; a file that says afterwards what the log says is taken."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        wanted = configured(replicas, leader.name, election_timeout_ms=1500)
        with pytest.raises(tenure.ConfigError, match=r"raft\.election_timeout_ms: .* change_settings") as caught:
            await leader.reload_config(wanted)
        assert caught.value.field == "raft.election_timeout_ms"
        await leader.change_settings(election_timeout_ms=1500)
        assert await leader.reload_config(wanted) == ()
        assert leader._config.raft.election_timeout_ms == 1500


@pytest.mark.asyncio
async def test_member_reloads_as_a_node_does(tmp_path: Path):
    """Also while it waits for the others to found the cluster: a wrong address is mended without a restart."""
    cluster = Cluster(tmp_path, "")
    try:
        right = dict(cluster.ports)
        (cluster.ports["b"],) = free_ports(1)
        waiting = await cluster.start("a")
        cluster.ports = right
        for name in "bc":
            await cluster.start(name)
        assert await waiting.reload_config(cluster.config("a")) == ("raft.peers.b.raft",)
        await cluster.leader()
        assert [peer.raft_address for peer in waiting.cluster()] == [f"127.0.0.1:{port}" for port in right.values()]
    finally:
        await cluster.close()


OLD = from_mapping(
    {
        "node": {"name": "a", "data_dir": "/somewhere"},
        "raft": {"peers": {n: {"raft": f"127.0.0.1:{i}", "url": f"http://{n}.test"} for i, n in enumerate("abc", 1)}},
    }
)


def changed(**sections: dict[str, Any]) -> Config:
    values = {section: msgspec.structs.replace(getattr(OLD, section), **fields) for section, fields in sections.items()}
    return msgspec.structs.replace(OLD, **values)


@pytest.mark.parametrize(
    ("field", "new", "says"),
    [
        ("cluster.name", changed(cluster={"name": "other"}), "for good"),
        ("node.name", changed(node={"name": "b"}), "for good"),
        ("node.data_dir", changed(node={"data_dir": "/elsewhere"}), "start it again"),
        ("raft.tls", changed(raft={"tls": msgspec.structs.replace(OLD.raft.tls, cert="x")}), "restart this node"),
        ("raft.heartbeat_interval_ms", changed(raft={"heartbeat_interval_ms": 50}), "tenure settings change"),
        ("lease.duration_ms", changed(lease={"duration_ms": 5000}), "tenure settings change"),
        ("lease.clock_rate_error", changed(lease={"clock_rate_error": 0.02}), "tenure settings change"),
        ("lease.margin_ms", changed(lease={"margin_ms": 30}), "start it again"),
        ("database.dsn", changed(database={"dsn": "postgresql://x"}), "start it again"),
    ],
    ids=lambda value: value if isinstance(value, str) and "." in value else "",
)
@pytest.mark.parametrize("settings", [settings_of(OLD), None], ids=["founded", "new"])
def test_change_is_refused_by_the_name_of_the_field(field: str, new: Config, says: str, settings: Settings | None):
    with pytest.raises(tenure.ConfigError, match=says) as caught:
        changes(OLD, new, settings=settings)
    assert caught.value.field == field


def test_members_of_the_file_may_change_only_when_the_cluster_is_founded():
    """Then the log says who is a member, and a file may list one more before it is added."""
    peers = {name: entry for name, entry in OLD.raft.peers.items() if name != "c"}
    new = changed(raft={"peers": {**peers, "d": PeerEntry(raft="127.0.0.1:9", url="http://d.test")}})
    assert changes(OLD, new, settings=settings_of(OLD)) == ("raft.peers.c", "raft.peers.d")
    with pytest.raises(tenure.ConfigError, match="while they wait for each other"):
        changes(OLD, new, settings=None)
