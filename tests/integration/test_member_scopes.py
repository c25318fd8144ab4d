"""What a scope of a real member leans on: a live application, the wait-out of the cluster, work that returns."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psycopg
import pytest

import tenure
from support.single_member import BOUND_SECONDS, config_of
from tenure import LossReason, State
from tenure.fence import fenced_transaction, install


@pytest.mark.asyncio
async def test_R13_loop_that_is_blocked_for_too_long_costs_the_leadership_and_a_shorter_block_nothing(tmp_path: Path):
    """The node's own thread goes on renewing all the time, and asks whether the application still runs."""
    config = config_of(tmp_path, lease={"duration_ms": 2000, "application_heartbeat_timeout_ms": 600})
    async with tenure.open(config) as member, asyncio.timeout(BOUND_SECONDS):
        terms = member.terms()
        async with await anext(terms) as leadership:
            for _ in range(3):
                time.sleep(0.3)  # noqa: ASYNC251 - it is what the test is about.
                await asyncio.sleep(0.1)
            leadership.check()
            time.sleep(1.2)  # noqa: ASYNC251
            await asyncio.sleep(1.0)
            pytest.fail("the body went on")
        assert leadership.reason is LossReason.APPLICATION_STALLED
        assert "application_stalled" in [change.reason for change in member.journal]
        async with await anext(terms) as again:
            assert again.token > leadership.token


@pytest.mark.asyncio
async def test_R13_leadership_is_given_up_when_nobody_asks_for_it(tmp_path: Path):
    """A program that opens a member and never loops over its terms does not sit on the office."""
    config = config_of(tmp_path, lease={"application_heartbeat_timeout_ms": 300})
    async with tenure.open(config) as member, asyncio.timeout(BOUND_SECONDS):
        while all(change.reason != "application_stalled" for change in member.journal):  # noqa: ASYNC110
            await asyncio.sleep(0.02)


@pytest.mark.asyncio
async def test_R9_fenced_write_commits_before_the_lease_starts_when_only_the_lease_waits(tmp_path: Path, database: str):
    """The first leader waits a whole lease, as every first one does; its fenced writes do not."""
    async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
        await connection.execute("CREATE TABLE entries (note text, fencing_token bigint)")
        await asyncio.to_thread(install, database, "payments", tables=["entries"])
        config = config_of(tmp_path, lease={"duration_ms": 2500, "wait_out": "fenced-only"}, database={"dsn": database})
        async with asyncio.timeout(BOUND_SECONDS), tenure.open(config) as member:
            terms = member.terms()
            async with await anext(terms) as leadership:
                assert leadership.remaining() == 0.0
                leadership.check()
                assert member.leadership is leadership
                async with fenced_transaction(connection, leadership, resource="payments") as transaction:
                    await transaction.execute("INSERT INTO entries VALUES ('early', %s)", (leadership.token,))
                status = member.status()
                assert (status.state, status.lease_remaining_ms) == (State.LEADER, 0)
                assert leadership.remaining() == 0.0
                await leadership.leased()
                assert 0.0 < leadership.remaining() <= 2.5
                assert member.status().lease_remaining_ms > 0


@pytest.mark.asyncio
async def test_leased_returns_at_once_when_everything_waits_and_raises_when_it_ended_before(
    tmp_path: Path, database: str
):
    async with asyncio.timeout(BOUND_SECONDS), tenure.open(config_of(tmp_path / "a")) as member:
        terms = member.terms()
        async with await anext(terms) as leadership:
            await asyncio.wait_for(leadership.leased(), 0.01)
            assert leadership.remaining() > 0.0
    await asyncio.to_thread(install, database, "payments", tables=[])
    lease = {"duration_ms": 60_000, "wait_out": "fenced-only"}
    config = config_of(tmp_path / "b", lease=lease, database={"dsn": database})
    async with tenure.open(config) as member, asyncio.timeout(BOUND_SECONDS):
        leadership = await anext(member.terms())
        waiting = asyncio.create_task(leadership.leased())
        async with leadership:
            await member.step_down()
            await asyncio.Event().wait()
        with pytest.raises(tenure.LeadershipLost):
            await waiting


@pytest.mark.asyncio
async def test_member_that_could_not_be_opened_leaves_nothing_on_the_loop(tmp_path: Path):
    """A program that tries again every second would collect one timer, and one member, with each attempt."""
    config = config_of(tmp_path, lease={"application_heartbeat_timeout_ms": 300})
    failed = tenure.open(config)
    async with tenure.open(config):
        with pytest.raises(tenure.DirectoryInUse):
            await failed.__aenter__()
    beaten_at = failed.application_at
    await asyncio.sleep(0.2)
    assert failed.application_at == beaten_at
