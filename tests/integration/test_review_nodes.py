"""What a review of step 2 tried to break on real nodes: outcomes across snapshots, members that were away for long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable
from pathlib import Path

import pytest

import tenure
from support.replicas import BOUND_SECONDS, Numbers, Replicas, running
from tenure.node.thread import NodeThread
from tenure.raft import Node
from tenure.storage import DataDirectory

SMALL = {"snapshot_entries": 50, "keep_entries": 10}


@pytest.mark.asyncio
async def test_command_is_never_called_dropped_when_a_snapshot_took_the_place_of_its_entry(tmp_path: Path):
    """A leader that hears nobody has sent its entry; the next one commits it, and compacts its log behind it."""
    async with running(tmp_path, **SMALL) as replicas:
        await replicas.apply(b"before")
        old = await replicas.leader()
        links = old._driver._links
        assert links is not None
        hooks = links.transport._hooks  # type: ignore[union-attr]
        object.__setattr__(hooks, "on_payload", lambda sender, payload: None)
        call = asyncio.create_task(old.apply(b"once", timeout_ms=60_000))
        others = [name for name in replicas.nodes if name != old.name]
        await replicas.until(lambda: not old.is_leader_hint())
        await replicas.until(lambda: any(replicas.nodes[name].is_leader_hint() for name in others))
        new = next(replicas.nodes[name] for name in others if replicas.nodes[name].is_leader_hint())
        for number in range(200):
            await new.apply(b"%d" % number)
        await replicas.until(lambda: all(replicas.nodes[name].stats().snapshot_index > 100 for name in others))
        object.__setattr__(hooks, "on_payload", links.route)
        with pytest.raises(tenure.OutcomeUnknown):
            await call
        await replicas.agree()
        assert replicas.machines[old.name].seen.count(b"once") == 1
        assert replicas.machines[old.name].restored == 1


@pytest.mark.asyncio
async def test_snapshot_that_is_written_ends_before_the_directory_is_free(tmp_path: Path):
    """The node closes in the middle of it: nothing is left half written, nothing writes on."""
    started, go_on = asyncio.Event(), threading.Event()

    class Endless(Numbers):
        def snapshot(self) -> Iterable[bytes]:
            loop = asyncio.get_running_loop()

            def pieces() -> Iterable[bytes]:
                loop.call_soon_threadsafe(started.set)
                go_on.wait(20)
                while True:
                    yield b"piece"

            return pieces()

    replicas = Replicas(tmp_path, "a")
    replicas.make_machine = Endless
    node = await replicas.start("a")
    await replicas.apply(b"x")
    asked = asyncio.create_task(node.snapshot())
    await started.wait()
    closing = asyncio.create_task(replicas.stop("a"))
    with pytest.raises(tenure.DirectoryInUse):
        DataDirectory.open(tmp_path / "a", node_name="a", cluster_name="payments")
    go_on.set()
    await closing
    with pytest.raises(tenure.NodeClosed):
        await asked
    assert not list((tmp_path / "a" / "snapshots").iterdir())


@pytest.mark.asyncio
async def test_R2_node_ends_when_its_disk_fails_in_the_handshake_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """What another directory had been opened must be durable; a transport must not swallow that it is not."""
    replicas = Replicas(tmp_path)
    nodes = await asyncio.gather(*(replicas.start(name) for name in "abc"))
    try:
        await replicas.leader()
        directory = nodes[0]._driver.stores.directory

        def fails(*_: object) -> None:
            raise tenure.SyncFailed("the disk is gone")

        monkeypatch.setattr(directory, "note_seen", fails)
        await replicas.stop("b")
        await replicas.start("b")
        assert nodes[0].failed is not None
        async with asyncio.timeout(BOUND_SECONDS):
            assert isinstance(await nodes[0].failed, tenure.SyncFailed)
    finally:
        await asyncio.gather(*(replicas.stop(name) for name in list(replicas.nodes)))


@pytest.mark.asyncio
async def test_question_is_answered_when_the_node_ends_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The loop of the node's thread closes under what was just handed to it."""
    replicas = Replicas(tmp_path, "a")
    node = await replicas.start("a")
    with monkeypatch.context() as patched:
        patched.setattr(node._driver, "call", lambda work: None)
        question = node._driver.ask_members()
    assert not question.done()
    await replicas.stop("a")
    assert isinstance(question.exception(timeout=0), tenure.NodeClosed)
    assert isinstance(node._driver.ask_members().exception(timeout=0), tenure.NodeClosed)


@pytest.mark.asyncio
async def test_node_that_is_closed_before_its_thread_has_begun_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The thread comes late to a machine that is busy: it still hears that it was asked to stop."""
    begins, real = threading.Event(), NodeThread._run_thread

    def late(self: NodeThread) -> None:
        begins.wait(BOUND_SECONDS)
        real(self)

    monkeypatch.setattr(NodeThread, "_run_thread", late)
    opening = asyncio.create_task(Node.open(Replicas(tmp_path, "a").config("a"), Numbers()).__aenter__())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.sleep(0)
    begins.set()
    with pytest.raises(asyncio.CancelledError):
        await opening
    DataDirectory.open(tmp_path / "a", node_name="a", cluster_name="payments").close()


@pytest.mark.asyncio
async def test_R1_removal_that_a_member_has_applied_is_on_its_disk(tmp_path: Path):
    """A commit that comes alone is not; but who was removed goes then: a restart must not ask for its vote again."""
    async with running(tmp_path) as replicas:
        await replicas.apply(b"before")
        await replicas.agree()
        leader = await replicas.leader()
        removed, stays = (name for name in "abc" if name != leader.name)
        await leader.remove(removed)
        await replicas.until(lambda: replicas.nodes[stays].stats().voters == 2)
        index = replicas.nodes[stays].stats().applied_index
        await replicas.stop(stays)
        with DataDirectory.inspect(tmp_path / stays) as directory:
            assert directory.log.load().commit >= index


@pytest.mark.asyncio
async def test_removed_node_stays_until_the_others_have_applied_it(tmp_path: Path):
    """As long as they may ask for its vote; a node that is started again in between is removed all the same."""
    async with running(tmp_path, "ab") as replicas:
        await replicas.apply(b"before")
        await replicas.agree()
        leader = await replicas.leader()
        other = next(name for name in "ab" if name != leader.name)
        core = replicas.nodes[other]._driver._core
        assert core is not None
        links = replicas.nodes[other]._driver._links
        assert links is not None
        hooks = links.transport._hooks  # type: ignore[union-attr]
        last = core.consensus.engine.last_index

        def deaf_behind_the_entry(sender: int, payload: bytes) -> None:
            if core.consensus.engine.last_index == last:
                links.route(sender, payload)

        object.__setattr__(hooks, "on_payload", deaf_behind_the_entry)
        await leader.remove(leader.name)
        assert leader.failed is not None
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(leader.failed), 1.5)
        object.__setattr__(hooks, "on_payload", links.route)
        await replicas.until(replicas.nodes[other].is_leader_hint)
        async with asyncio.timeout(BOUND_SECONDS):
            assert isinstance(await leader.failed, tenure.MemberRemoved)
