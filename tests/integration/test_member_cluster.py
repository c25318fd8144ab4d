"""Members with real sockets, real disks and the real fence, in one process: the way of a leadership from end to end."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
from pathlib import Path
from typing import Any

import psycopg
import pytest

import tenure
from support.member_cluster import BOUND_SECONDS, Cluster, running
from tenure import LossReason, State
from tenure.fence import fenced_transaction, install, rebase
from tenure.node.clocks import read_clocks


@pytest.fixture
def fenced_database(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute(
            "CREATE TABLE entries (entry_id bigint GENERATED ALWAYS AS IDENTITY, note text, fencing_token bigint)"
        )
    install(database, "payments", tables=["entries"])
    return database


@pytest.mark.asyncio
async def test_leader_writes_under_its_token_and_hands_over_when_it_stops(tmp_path: Path, fenced_database: str):
    """Election, fence, fenced write, planned hand-over: the successor's token is higher and its write lands."""
    async with running(tmp_path, fenced_database) as cluster:
        name, leadership = await cluster.leader()
        async with await psycopg.AsyncConnection.connect(fenced_database) as connection:
            await connection.set_autocommit(True)
            for _ in range(2):
                async with fenced_transaction(connection, leadership, resource="payments") as transaction:
                    await transaction.execute(
                        "INSERT INTO entries (note, fencing_token) VALUES ('x', %s)", (leadership.token,)
                    )
                await cluster.members[name].step_down()
                name, leadership = await cluster.leader()
        with psycopg.connect(fenced_database) as connection:
            tokens = [row[0] for row in connection.execute("SELECT fencing_token FROM entries ORDER BY entry_id")]
        assert len(tokens) == 2
        assert tokens[0] < tokens[1] < leadership.token


@pytest.mark.asyncio
async def test_status_shows_one_leader_and_its_followers(tmp_path: Path, fenced_database: str):
    """Every member agrees on the term and the leader's name; only the leader shows a token and a lease."""
    async with running(tmp_path, fenced_database) as cluster:
        name, leadership = await cluster.leader()
        await cluster.until(lambda: all(m.status().leader_name == name for m in cluster.members.values()))
        states = {other: member.status() for other, member in cluster.members.items()}
        assert [other for other, status in states.items() if status.state is State.LEADER] == [name]
        assert {status.term for status in states.values()} == {leadership.term}
        assert states[name].fencing_token == leadership.token
        assert 0 < states[name].lease_remaining_ms <= 1000
        assert all(status.lease_remaining_ms == 0 for other, status in states.items() if other != name)


@pytest.mark.asyncio
async def test_restarted_cluster_keeps_its_terms_and_tokens(tmp_path: Path, fenced_database: str):
    """All members stop and start again on their directories: term and token go on rising (G4)."""
    async with running(tmp_path, fenced_database) as cluster:
        _, first = await cluster.leader()
        cluster_id = next(iter(cluster.members.values())).cluster_id
        await cluster.close()
        while not cluster.won.empty():
            cluster.won.get_nowait()
        for name in cluster.ports:
            await cluster.start(name)
        _, second = await cluster.leader()
        assert second.term > first.term
        assert second.token > first.token
        assert next(iter(cluster.members.values())).cluster_id == cluster_id


@pytest.mark.asyncio
async def test_refused_write_makes_the_leader_step_down(tmp_path: Path, fenced_database: str):
    """Somebody raised the fence past it: the body is cancelled with the reason, and the refusal is counted."""
    async with running(tmp_path, fenced_database) as cluster:
        name, leadership = await cluster.leader()
        with psycopg.connect(fenced_database) as connection:
            connection.execute("UPDATE tenure.fence_payments SET token = token + 5, version = version + 1")
        async with await psycopg.AsyncConnection.connect(fenced_database, autocommit=True) as connection:
            with pytest.raises(tenure.StaleToken):
                async with fenced_transaction(connection, leadership, resource="payments") as transaction:
                    await transaction.execute("INSERT INTO entries (note, fencing_token) VALUES ('x', 1)")
        async with asyncio.timeout(BOUND_SECONDS):
            assert await leadership.lost is LossReason.REFUSED
        await cluster.until(lambda: cluster.members[name].journal[-1].state is not State.LEADER)
        ended = next(c for c in reversed(cluster.members[name].journal) if c.reason is not None)
        assert (ended.state, ended.term, ended.reason) == (State.FOLLOWER, leadership.term, "stale_token")
        assert cluster.members[name].status().stale_token_refusals == 1
        assert cluster.members[name].status().state is not State.LEADER


@pytest.mark.asyncio
async def test_new_directories_on_an_old_database_lead_only_after_rebase(tmp_path: Path, fenced_database: str):
    """Another cluster id is another elector: nobody leads, the reason names the command, tokens then lie above."""
    async with running(tmp_path / "old", fenced_database) as old:
        _, leadership = await old.leader()
        token = leadership.token
    async with running(tmp_path / "new", fenced_database) as new:
        await new.until(lambda: any("tenure fence rebase" in (m.status().reason or "") for m in new.members.values()))
        assert all(m.status().state is not State.LEADER for m in new.members.values())
        await asyncio.to_thread(rebase, fenced_database, "payments", who="test", why="the old directories are gone")
        _, leadership = await new.leader()
        assert leadership.token > token


# -- R7: directories ------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_R7_wiped_directory_neither_joins_nor_founds(tmp_path: Path, fenced_database: str):
    """One member lost its disk: it is refused with the way on, and the other two go on leading."""
    async with running(tmp_path, fenced_database) as cluster:
        await cluster.leader()
        await cluster.stop("a")
        (tmp_path / "a").rename(tmp_path / "lost")
        member = await cluster.start("a")
        async with asyncio.timeout(BOUND_SECONDS):
            error = await asyncio.shield(member.failed)
        assert isinstance(error, tenure.FoundingRefused)
        assert "new data directory" in str(error)
        cluster.tasks.pop("a").cancel()
        await cluster.until(lambda: any(cluster.members[n].status().state is State.LEADER for n in "bc"))


@pytest.mark.asyncio
async def test_R7_two_of_three_do_not_found_a_cluster(tmp_path: Path, fenced_database: str):
    """The third configured member has not answered: the reason names it, and nobody leads."""
    cluster = Cluster(tmp_path, fenced_database)
    try:
        await cluster.start("a")
        await cluster.start("b")
        await cluster.until(lambda: cluster.members["a"].status().reason == "waiting for c to found the cluster")
        assert cluster.members["a"].cluster_id is None
        await cluster.start("c")
        await cluster.leader()
    finally:
        await cluster.close()


@pytest.mark.asyncio
async def test_R7_directory_is_locked_and_bound_to_its_node(tmp_path: Path, fenced_database: str):
    """A second process on it, another node's name and another cluster's name are each refused by name."""
    cluster = Cluster(tmp_path, fenced_database)
    try:
        await cluster.start("a")
        with pytest.raises(tenure.DirectoryInUse, match=r"node\.data_dir .* is in use by process \d+"):
            await cluster.start("b", node={"data_dir": str(tmp_path / "a")})
        await cluster.stop("a")
        with pytest.raises(tenure.WrongCluster, match="belongs to node 'a'"):
            await cluster.start("b", node={"data_dir": str(tmp_path / "a")})
        with pytest.raises(tenure.WrongCluster, match=r"cluster\.name"):
            await cluster.start("a", cluster={"name": "another"})
    finally:
        await cluster.close()


@pytest.mark.asyncio
async def test_R4_file_that_differs_from_the_log_is_named_and_the_log_is_used(
    tmp_path: Path, fenced_database: str, caplog: pytest.LogCaptureFixture
):
    """The times were founded once; a node whose file says otherwise says so and goes on with the cluster's."""
    async with running(tmp_path, fenced_database) as cluster:
        await cluster.leader()
        await cluster.stop("a")
        with caplog.at_level("WARNING", logger="tenure.node"):
            await cluster.start("a", lease={"duration_ms": 5000})
        await cluster.until(lambda: "lease_duration_ms: the cluster uses 1000, this file says 5000" in caplog.text)


# -- R2: storage ----------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_R2_storage_error_ends_the_node_and_its_leadership(
    tmp_path: Path, fenced_database: str, monkeypatch: pytest.MonkeyPatch
):
    """A disk that fails under the leader: its leadership ends, it sends nothing more, the owner is told to exit."""
    async with running(tmp_path, fenced_database) as cluster:
        name, leadership = await cluster.leader()
        member = cluster.members[name]

        def fail(**_: object) -> None:
            raise tenure.SyncFailed("the disk is gone")

        store = member._driver._stores.log
        monkeypatch.setattr(store, "save", fail)
        member._driver.post(lambda core: core.change_settings(core.state.settings, core.consensus._ticked_until))
        async with asyncio.timeout(BOUND_SECONDS):
            error = await asyncio.shield(member.failed)
            assert await leadership.lost is LossReason.FAILED
        assert isinstance(error, tenure.SyncFailed)
        assert member.status().state is State.FOLLOWER
        other, successor = await cluster.leader()
        assert other != name
        assert successor.token > leadership.token
        with pytest.raises(tenure.SyncFailed):
            await cluster.tasks.pop(name)


@pytest.mark.asyncio
async def test_R2_R13_disk_that_hangs_ends_the_leadership_within_the_lease_and_then_the_node(
    tmp_path: Path, fenced_database: str, monkeypatch: pytest.MonkeyPatch
):
    """An fsync that never returns: the lease lapses by itself, another member leads, the owner is told to exit."""
    monkeypatch.setattr("tenure.node.driver.DISK_STALL_SECONDS", 2.0)
    async with running(tmp_path, fenced_database) as cluster:
        name, leadership = await cluster.leader()
        member = cluster.members[name]
        store = member._driver._stores.log
        released, real_save = threading.Event(), store.save

        def hang(**arguments: Any) -> None:
            released.wait(30)
            real_save(**arguments)

        monkeypatch.setattr(store, "save", hang)
        try:
            member._driver.post(lambda core: core.change_settings(core.state.settings, read_clocks()))
            async with asyncio.timeout(BOUND_SECONDS):
                assert await leadership.lost is LossReason.LEASE_EXPIRED
                error = await asyncio.shield(member.failed)
            assert isinstance(error, tenure.SyncFailed)
            assert "has not finished a write" in str(error)
            other, successor = await cluster.leader()
            assert other != name
            assert successor.token > leadership.token
            with pytest.raises(tenure.SyncFailed):
                await cluster.tasks.pop(name)
        finally:
            released.set()
            # The process would have exited by now; here the node's thread ends once the disk answers.
            assert await asyncio.to_thread(member._driver.join, BOUND_SECONDS)


def test_R2_bit_flip_in_the_log_is_found_and_named(tmp_path: Path):
    """A stored batch whose bytes changed is never applied."""
    from tenure.storage import SqliteLogStore

    path = tmp_path / "raft.sqlite3"
    store = SqliteLogStore(path)
    store.save(first=1, entries=b"some entries", hard_state=(1, 2, 0))
    store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE batch SET entries = CAST('some entriez' AS BLOB)")
        connection.commit()
    store = SqliteLogStore(path)
    with pytest.raises(tenure.LogCorrupt) as caught:
        store.load()
    store.close()
    assert caught.value.index == 1
    assert str(path) in str(caught.value)
