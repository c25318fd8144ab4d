"""The demo's clients: the same key until it is acknowledged, and the file before the count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from tenure.demo import clients
from tenure.demo.clients import Load
from tenure.demo.problems import DemoError

A, B = "http://127.0.0.1:1", "http://127.0.0.1:2"


def accepted(request: httpx2.Request, *, token: int = 1) -> httpx2.Response:
    key = request.headers["Idempotency-Key"]
    body = json.loads(request.content)
    answer = {"id": f"pay_{key}", "node": "payment-1a", "fencing_token": token, **body}
    return httpx2.Response(201, json=answer)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while True:
            if condition():
                return
            await asyncio.sleep(0.01)


async def run_until(load: Load, done: Callable[[], bool]) -> None:
    task = load.start()
    await until(lambda: done() or task.done())
    if task.done():
        await task
    await load.stop(patience=5)


@pytest.mark.asyncio
async def test_client_sends_the_same_key_again_when_the_outcome_is_unknown(tmp_path: Path) -> None:
    """A time-out, a broken connection and a 504 all leave the payment unknown: one key, never a new one."""
    attempts: dict[str, list[bytes]] = {}

    def service(request: httpx2.Request) -> httpx2.Response:
        sent = attempts.setdefault(request.headers["Idempotency-Key"], [])
        sent.append(request.content)
        if len(sent) == 1:
            raise httpx2.ReadTimeout("silence")
        if len(sent) == 2:
            raise httpx2.ReadError("broken")
        if len(sent) == 3:
            return httpx2.Response(504, json={"code": "outcome_unknown"})
        return accepted(request)

    load = Load([A, B], rate=50, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    await run_until(load, lambda: load.acknowledged >= 5)
    assert load.acknowledged == len(attempts)
    assert all(len(sent) == 4 and len(set(sent)) == 1 for sent in attempts.values())


@pytest.mark.asyncio
async def test_client_has_written_the_id_when_the_payment_counts_as_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "ids"
    seen: list[bool] = []

    class Watched(Load):
        def _count(self, answer: dict[str, object]) -> None:
            seen.append(str(answer["id"]) in path.read_text().split())
            super()._count(answer)

    load = Watched([A], rate=200, acknowledged=path, transport=httpx2.MockTransport(accepted))
    await run_until(load, lambda: load.acknowledged >= 20)
    assert seen
    assert all(seen)
    assert len(path.read_text().split()) == load.acknowledged


@pytest.mark.asyncio
async def test_client_goes_to_the_leader_when_a_follower_names_it(tmp_path: Path) -> None:
    asked: list[str] = []

    def service(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"http://{request.url.host}:{request.url.port}")
        if asked[-1] == A:
            return httpx2.Response(503, json={"code": "not_leader"}, headers={"Tenure-Leader": B})
        return accepted(request)

    load = Load([A, B], rate=100, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    await run_until(load, lambda: load.acknowledged >= 20)
    assert asked.count(A) <= clients.CLIENTS


@pytest.mark.asyncio
async def test_client_goes_to_the_leader_when_the_demo_did_not_start_it(tmp_path: Path) -> None:
    """A node that was added from outside may lead: all nodes of the demo then only point at it."""
    joined = "http://127.0.0.1:3"

    def service(request: httpx2.Request) -> httpx2.Response:
        if request.url.port == 3:
            return accepted(request)
        return httpx2.Response(503, json={"code": "not_leader"}, headers={"Tenure-Leader": joined})

    load = Load([A, B], rate=100, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    await run_until(load, lambda: load.acknowledged >= 5)


@pytest.mark.asyncio
async def test_client_asks_the_next_node_when_the_leader_s_address_is_none(tmp_path: Path) -> None:
    def service(request: httpx2.Request) -> httpx2.Response:
        if request.url.port == 2:
            return accepted(request)
        return httpx2.Response(503, json={"code": "not_leader"}, headers={"Tenure-Leader": "http://[nowhere"})

    load = Load([A, B], rate=100, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    await run_until(load, lambda: load.acknowledged >= 5)


@pytest.mark.asyncio
async def test_client_does_not_return_to_a_silent_node_when_a_follower_still_names_it(tmp_path: Path) -> None:
    """A paused leader swallows requests while the followers still point at it: each visit costs a time-out."""
    visits = 0

    def service(request: httpx2.Request) -> httpx2.Response:
        nonlocal visits
        if request.url.port == 1:
            visits += 1
            raise httpx2.ReadTimeout("paused")
        if visits and load.retries < 8:
            return httpx2.Response(503, json={"code": "not_leader"}, headers={"Tenure-Leader": A})
        return accepted(request)

    load = Load([A, B], rate=20, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    await run_until(load, lambda: load.acknowledged >= 5)
    assert 1 <= visits <= 2


@pytest.mark.asyncio
async def test_load_fails_with_the_service_s_words_when_a_payment_is_refused_for_good(tmp_path: Path) -> None:
    def service(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(400, json={"code": "invalid_field", "param": "amount"})

    load = Load([A], rate=100, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    with pytest.raises(DemoError, match="invalid_field"):
        await run_until(load, lambda: False)
    await load.stop(patience=0)


@pytest.mark.asyncio
async def test_load_gives_up_what_is_not_answered_when_its_patience_ends(tmp_path: Path) -> None:
    def service(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, json={"code": "not_leader"})

    load = Load([A, B], rate=100, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    load.start()
    await until(lambda: load.retries >= 3)
    await asyncio.wait_for(load.stop(patience=0.2), 2)
    assert load.acknowledged == 0
    assert (tmp_path / "ids").read_text() == ""


@pytest.mark.asyncio
async def test_first_above_resolves_when_a_payment_carries_a_higher_token(tmp_path: Path) -> None:
    token = 3

    def service(request: httpx2.Request) -> httpx2.Response:
        return accepted(request, token=token)

    load = Load([A], rate=100, acknowledged=tmp_path / "ids", transport=httpx2.MockTransport(service))
    higher = load.first_above(3)
    load.start()
    await until(lambda: load.acknowledged >= 3)
    assert not higher.done()
    token = 4
    await asyncio.wait_for(higher, 5)
    await load.stop(patience=1)
