"""The Python of docs/leadership.md, run as it stands there, over a real node and a real fence."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

import tenure
from support.single_member import BOUND_SECONDS, config_of
from tenure.fence import install

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/leadership.md").read_text(encoding="utf-8")


@pytest.fixture
def guide() -> ModuleType:
    """Everything that the page defines."""
    module = ModuleType("guide")
    exec(compile("\n\n".join(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)), "guide", "exec"), module.__dict__)
    return module


@pytest.fixture
def notes(database: str) -> str:
    with psycopg.connect(database) as connection:
        connection.execute("CREATE TABLE notes (note text, fencing_token bigint)")
    install(database, "notes", tables=["notes"])
    return database


def fenced(folder: Path, dsn: str, **lease: object) -> tenure.Config:
    lease = {"duration_ms": 300, **lease}
    return config_of(folder, lease=lease, database={"dsn": dsn}, fence={"resource": "notes"})


def written(dsn: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn) as connection:
        return connection.execute("SELECT note, fencing_token FROM notes ORDER BY fencing_token, note").fetchall()


@pytest.mark.asyncio
async def test_guide_writes_on_a_loop_and_leads_again(guide: ModuleType, tmp_path: Path, notes: str):
    done = asyncio.Event()

    async def work(leadership: tenure.HeldLeadership) -> AsyncIterator[str]:
        yield f"term {leadership.term}"
        if leadership.term > 1:
            done.set()
        leadership.report_refused(tenure.StaleToken("", resource="notes"))
        await asyncio.Event().wait()

    async with AsyncConnectionPool(notes, open=False, min_size=1) as pool:
        leading = asyncio.create_task(guide.lead(fenced(tmp_path, notes), pool, work))
        async with asyncio.timeout(BOUND_SECONDS):
            await done.wait()
        leading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leading
    assert written(notes)[:2] == [("term 1", 1), ("term 2", 2)]


def test_guide_writes_on_a_thread_and_leads_again_after_a_refusal(guide: ModuleType, tmp_path: Path, notes: str):
    def work(leadership: tenure.SyncLeadership) -> Iterator[str]:
        yield f"term {leadership.term}"
        if leadership.term > 1:
            raise ZeroDivisionError
        with psycopg.connect(notes) as other:
            other.execute("UPDATE tenure.fence_notes SET nonce = repeat('0', 32), version = version + 1")
        yield "refused"

    with psycopg.connect(notes, autocommit=True) as connection, pytest.raises(ZeroDivisionError):
        guide.lead_on_a_thread(fenced(tmp_path, notes), connection, work)
    assert written(notes) == [("term 1", 1), ("term 2", 2)]


def test_guide_handles_requests_while_a_thread_holds_leadership(guide: ModuleType, tmp_path: Path, notes: str):
    with (
        psycopg.connect(notes, autocommit=True) as connection,
        tenure.open_sync(fenced(tmp_path, notes)) as member,
    ):
        assert guide.handle(member, connection, "too early")[0] == 503
        holding = threading.Thread(target=guide.hold, args=(member,), daemon=True)
        holding.start()
        leads = threading.Event()
        for _ in range(int(BOUND_SECONDS / 0.02)):
            if member.leadership is not None or leads.wait(0.02):
                break
        assert guide.handle(member, connection, "in time") == (201, "in time")
    holding.join(BOUND_SECONDS)
    assert not holding.is_alive()
    assert [note for note, _ in written(notes)] == ["in time"]


def test_guide_runs_a_whole_program(guide: ModuleType, tmp_path: Path, notes: str):
    assert guide.run(fenced(tmp_path, notes)) == "done under token 1"


@pytest.mark.asyncio
async def test_guide_writes_before_the_lease_and_waits_for_it(guide: ModuleType, tmp_path: Path, notes: str):
    config = fenced(tmp_path, notes, wait_out="fenced-only", duration_ms=1500)
    async with (
        asyncio.timeout(BOUND_SECONDS),
        AsyncConnectionPool(notes, open=False, min_size=1) as pool,
        tenure.open(config) as member,
    ):
        terms = member.terms()
        async with await anext(terms) as leadership:
            assert leadership.remaining() == 0.0
            assert await guide.before_and_after(leadership, pool) > 0.0
    assert written(notes) == [("fenced", 1)]


def test_guide_names_every_reason_and_what_is_on_the_handle():
    table = TEXT.partition("## Why it ended")[2].partition("## ")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines() if "|" in line))) == {
        "reason",
        *(str(reason) for reason in tenure.LossReason),
    }
    rows = re.findall(r"^\| (`[^|]*) \|", TEXT.partition("on the handle")[2].partition("## ")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)", row)}
    assert len(named) > 8
    assert named <= set(dir(tenure.HeldLeadership))
