"""A state that a user brings takes the place of the state on all members, or of none (issue: step 2, ``restore``)."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import tenure
from support.replicas import BOUND_SECONDS, Numbers, Replicas, running
from tenure.core.commands import RestorePart
from tenure.core.snapshots import SnapshotLimits, SnapshotSchedule
from tenure.node import restoring
from tenure.node.restoring import Spool
from tenure.raft import recover_cluster

BROUGHT = [b"brought %d" % number for number in range(100)]


def content(state: Iterable[bytes] = BROUGHT) -> Iterator[bytes]:
    """What the state machine's ``snapshot`` gives for that state."""
    return (json.dumps(data.decode()).encode() + b"\n" for data in state)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many parts of a small state."""
    monkeypatch.setattr(restoring, "PART_BYTES_MAX", 64)


class Gate:
    """A content that stops in its middle until it is let go on, or told to break."""

    def __init__(self) -> None:
        self._go_on = threading.Event()
        self._error: Exception | None = None

    def content(self) -> Iterator[bytes]:
        pieces = list(content())
        yield from pieces[:50]
        self._go_on.wait(BOUND_SECONDS)
        if self._error is not None:
            raise self._error
        yield from pieces[50:]

    def open(self, error: Exception | None = None) -> None:
        self._error = error
        self._go_on.set()


@asynccontextmanager
async def half_brought(replicas: Replicas) -> AsyncIterator[tuple[Any, asyncio.Task[None], Gate]]:
    """The leader, a restore that every running member has half of, and its gate."""
    for number in range(10):
        await replicas.apply(b"%d" % number)
    leader, gate = await replicas.leader(), Gate()
    task = asyncio.create_task(leader.restore(gate.content(), timeout_ms=60_000))
    try:
        await replicas.until(lambda: all(spool_of(node)._parts > 5 for node in replicas.nodes.values()))
        yield leader, task, gate
    finally:
        gate.open()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def spool_of(node: Any) -> Spool:
    return node._brought._spool


def seen(replicas: Replicas) -> dict[str, list[bytes]]:
    return {name: replicas.machines[name].seen for name in replicas.nodes}


def restored(replicas: Replicas) -> dict[str, int]:
    return {name: replicas.machines[name].restored for name in replicas.nodes}


@pytest.mark.asyncio
async def test_restore_replaces_the_state_of_all_members_when_one_is_away(tmp_path: Path):
    """Who was away comes to the same state by the log; results go on from the new state."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        for number in range(10):
            await leader.apply(b"%d" % number)
        late = next(name for name in "abc" if name != leader.name)
        await replicas.stop(late)
        await leader.restore(content())
        assert replicas.machines[leader.name].seen == BROUGHT
        assert await leader.apply(b"after") == 101
        await replicas.start(late)
        await replicas.until(lambda: all(state == [*BROUGHT, b"after"] for state in seen(replicas).values()))


@pytest.mark.asyncio
async def test_restored_state_is_there_again_when_all_members_restart(tmp_path: Path):
    """A snapshot follows the restore by itself, and a restart begins there."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        await leader.restore(content())
        await replicas.until(lambda: all(node.stats().snapshot_index > 20 for node in replicas.nodes.values()))
        for name in "abc":
            await replicas.stop(name)
        await asyncio.gather(*(replicas.start(name) for name in "abc"))
        assert await replicas.apply(b"after") == 101
        await replicas.until(lambda: all(state == [*BROUGHT, b"after"] for state in seen(replicas).values()))
        assert all(count == 1 for count in restored(replicas).values())


@pytest.mark.asyncio
async def test_restore_leaves_nothing_when_its_leader_is_lost_in_the_middle(tmp_path: Path):
    """Half of it is committed everywhere; the next leader's commands meet the old state, and the spools are gone."""
    async with running(tmp_path) as replicas:
        async with half_brought(replicas) as (leader, task, gate):
            replicas.cut(leader.name)
            gate.open()
            await replicas.stop(leader.name)
            with pytest.raises(tenure.NodeClosed):
                await task
        assert await replicas.apply(b"after") == 11
        await replicas.start(leader.name)
        await replicas.agree()
        assert len(seen(replicas)[leader.name]) == 11
        assert restored(replicas) == dict.fromkeys("abc", 0)
        assert all(spool_of(node).term == 0 for node in replicas.nodes.values())
        await (await replicas.leader()).restore(content())
        await replicas.until(lambda: all(state == BROUGHT for state in seen(replicas).values()))


@pytest.mark.asyncio
@pytest.mark.parametrize("how", ["reading fails", "cancelled", "too late"])
async def test_restore_leaves_nothing_when_it_ends_in_the_middle(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
):
    """Surely not restored; every member forgets what it has, and takes snapshots again."""
    async with running(tmp_path) as replicas:
        async with half_brought(replicas) as (leader, task, gate):
            match how:
                case "reading fails":
                    gate.open(ZeroDivisionError("the file broke"))
                    expected: type[BaseException] = ZeroDivisionError
                case "cancelled":
                    task.cancel()
                    expected = asyncio.CancelledError
                case _:
                    # What is left of the time is asked for at the next part.
                    monkeypatch.setattr(restoring.Bringer, "_left_ms", lambda self: (_ for _ in ()).throw(_late()))
                    gate.open()
                    expected = tenure.ProposalDropped
            with pytest.raises(expected):
                await task
        await replicas.until(lambda: all(spool_of(node).term == 0 for node in replicas.nodes.values()))
        assert restored(replicas) == dict.fromkeys("abc", 0)
        assert await leader.apply(b"after") == 11
        assert await leader.snapshot() > 10


def _late() -> tenure.ProposalDropped:
    return restoring._late()


@pytest.mark.asyncio
async def test_restore_is_surely_not_done_when_reading_takes_too_long(tmp_path: Path):
    """The deadline holds for the user's own iterable, too."""
    async with running(tmp_path, "a") as replicas:
        leader, gate = await replicas.leader(), Gate()
        try:
            with pytest.raises(tenure.ProposalDropped, match="within the timeout"):
                await leader.restore(gate.content(), timeout_ms=300)
        finally:
            gate.open()
        assert await leader.apply(b"after") == 1


@pytest.mark.asyncio
async def test_snapshot_waits_when_it_is_due_in_the_middle_of_a_restore(tmp_path: Path):
    """Behind it the log would have the rest of a restore whose beginning is gone. It is taken when that is over."""
    async with running(tmp_path, snapshot_entries=15, keep_entries=0) as replicas:
        async with half_brought(replicas) as (leader, task, gate):
            before = {name: node.stats().snapshot_index for name, node in replicas.nodes.items()}
            for number in range(60):
                await leader.apply(b"lost %d" % number)
            with pytest.raises(tenure.SnapshotRefused, match="could not be taken"):
                await leader.snapshot()
            for name, node in replicas.nodes.items():
                await replicas.until(lambda node=node: node.stats().fsm_index == leader.stats().fsm_index)
                assert node.stats().snapshot_index == before[name]
            gate.open()
            await task
            index = leader.stats().fsm_index
            await replicas.until(lambda: all(node.stats().snapshot_index >= index for node in replicas.nodes.values()))
        assert await leader.apply(b"after") == 101


@pytest.mark.asyncio
async def test_restore_goes_on_when_a_member_restarts_in_the_middle(tmp_path: Path):
    """Its spool is filled again from the log."""
    async with running(tmp_path) as replicas, half_brought(replicas) as (leader, task, gate):
        late = next(name for name in "abc" if name != leader.name)
        await replicas.stop(late)
        await replicas.start(late)
        await replicas.until(lambda: spool_of(replicas.nodes[late])._parts > 5)
        gate.open()
        await task
        await replicas.until(lambda: all(state == BROUGHT for state in seen(replicas).values()))


@pytest.mark.asyncio
async def test_survivor_of_a_lost_majority_forgets_half_a_restore(tmp_path: Path):
    """A recovery by force reads a log with parts in it, and the term that follows continues none of them."""
    async with running(tmp_path) as replicas:
        async with half_brought(replicas) as (leader, task, _):
            config = leader._config
            cluster = (await leader.members()).cluster_id
            for name in [leader.name, *sorted({*"abc"} - {leader.name})]:
                replicas.cut(name)
            for name in "abc":
                await replicas.stop(name)
            with pytest.raises(tenure.NodeClosed):
                await task
        await asyncio.to_thread(recover_cluster, config, all_others_are_dead=cluster)
        await replicas.start(leader.name)
        assert await replicas.apply(b"after") == 11
        assert spool_of(replicas.nodes[leader.name]).term == 0
        assert restored(replicas) == {leader.name: 0}


@pytest.mark.asyncio
async def test_restore_is_unknown_when_only_its_last_part_is_on_its_way(tmp_path: Path):
    """Without a quorum nobody can say; while another part is missing, everybody can."""
    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        replicas.cut(leader.name)
        with pytest.raises(tenure.ProposalDropped, match="nothing was restored"):
            await leader.restore(content(), timeout_ms=200)
    async with running(tmp_path / "again") as replicas:
        leader = await replicas.leader()
        replicas.cut(leader.name)
        with pytest.raises(tenure.OutcomeUnknown):
            await leader.restore(content([b"x"]), timeout_ms=200)


@pytest.mark.asyncio
async def test_restore_is_refused_where_nobody_leads_and_while_another_is_under_way(tmp_path: Path):
    async with running(tmp_path) as replicas, half_brought(replicas) as (leader, task, gate):
        follower = next(node for node in replicas.nodes.values() if node is not leader)
        with pytest.raises(tenure.NotLeader):
            await follower.restore(content())
        with pytest.raises(tenure.ProposalDropped, match="another restore"):
            await leader.restore(content())
        gate.open()
        await task
        await leader.restore([])
        assert replicas.machines[leader.name].seen == []


@pytest.mark.asyncio
async def test_member_ends_when_its_disk_cannot_take_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """It cannot follow the log any more; the others have the state."""
    real = restoring._write

    async with running(tmp_path) as replicas:
        leader = await replicas.leader()
        full = next(node for node in replicas.nodes.values() if node is not leader)
        file: list[Any] = []

        def write(target: Any, data: bytes) -> None:
            if target is spool_of(full)._file:
                file.append(target)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(target, data)

        monkeypatch.setattr(restoring, "_write", write)
        await leader.restore(content())
        assert full.failed is not None
        async with asyncio.timeout(BOUND_SECONDS):
            assert isinstance(await full.failed, tenure.StorageFull)
        assert file[0].closed
        assert replicas.machines[full.name].restored == 0
        assert replicas.machines[leader.name].seen == BROUGHT


@pytest.mark.asyncio
async def test_state_machine_that_cannot_be_restored_ends_its_node(tmp_path: Path):
    class Broken(Numbers):
        def restore(self, chunks: Iterable[bytes]) -> None:
            raise ZeroDivisionError("not such a state")

    replicas = Replicas(tmp_path, "a")
    replicas.make_machine = Broken
    await replicas.start("a")
    try:
        with pytest.raises(tenure.NodeClosed, match="not such a state"):
            await (await replicas.leader()).restore(content())
    finally:
        await replicas.stop("a")


# -- the spool of one member ------------------------------------------------------------------------------------------


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path)
    yield made
    made.drop()


def part(number: int, *, restore: bytes = b"one", last: bool = False) -> RestorePart:
    return RestorePart(restore, number, b"%d," % number, last=last)


def test_spool_gives_back_what_came_in_order(spool: Spool, tmp_path: Path):
    """In a file without a name: nothing is left of it when the process ends."""
    assert all(spool.take(part(number), term=4) for number in range(40))
    assert b"".join(spool.chunks()) == b"".join(spool.chunks()) == b"".join(b"%d," % number for number in range(40))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "stray",
    [
        lambda spool: spool.take(part(1), term=4),
        lambda spool: spool.take(part(3), term=4),
        lambda spool: spool.take(part(2, restore=b"two"), term=4),
        lambda spool: spool.take(part(2), term=5),
    ],
    ids=["the same again", "one is missing", "of another restore", "of another term"],
)
def test_spool_does_not_take_a_part_that_does_not_follow(spool: Spool, stray: Callable[[Spool], bool]):
    for number in range(2):
        spool.take(part(number), term=4)
    assert stray(spool) is False
    assert spool.take(part(2, last=True), term=4) is True
    assert b"".join(spool.chunks()) == b"0,1,2,"


def test_spool_begins_anew_with_another_restore(spool: Spool):
    spool.take(part(0), term=4)
    assert spool.take(part(0, restore=b"two"), term=4)
    assert not spool.take(part(1), term=4)
    assert spool.take(part(1, restore=b"two"), term=4)
    assert b"".join(spool.chunks()) == b"0,1,"


def test_spool_forgets_only_the_restore_that_is_given_up(spool: Spool):
    spool.take(part(0), term=4)
    for restore, left in ((b"two", 4), (b"one", 0)):
        assert spool.take(RestorePart(restore, 0, b"", given_up=True), term=4)
        assert spool.term == left
    assert not spool.take(part(1), term=4)


def test_spool_names_a_disk_that_gives_back_something_else(spool: Spool):
    spool.take(part(0), term=4)
    assert spool._file is not None
    spool._file.seek(0)
    spool._file.write(b"1")
    with pytest.raises(tenure.LogCorrupt, match="another state"):
        list(spool.chunks())


def test_parts_of_a_restore_are_not_kept_behind_a_snapshot():
    """Each is half a MiB in memory; who lags behind them gets the snapshot, which is as long."""
    schedule = SnapshotSchedule(SnapshotLimits(keep_entries=10))
    assert schedule.kept_behind(100) == 10
    schedule.part_applied(95)
    assert [schedule.kept_behind(index) for index in (94, 95, 100, 200)] == [0, 0, 5, 10]
