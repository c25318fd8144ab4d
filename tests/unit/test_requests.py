"""What callers wait for: each ends once, those that were cancelled and those whose time is up included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tenure import OutcomeUnknown
from tenure.core.effects import Proposed
from tenure.errors import NodeClosed, NotLeader
from tenure.node.requests import Requests

BOUND_SECONDS = 5.0
LONG_MS = 60_000


@pytest_asyncio.fixture
async def requests() -> AsyncIterator[Requests]:
    requests = Requests()
    requests.start(asyncio.get_running_loop())
    yield requests
    requests.end(NodeClosed())


async def until_idle(requests: Requests) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while not requests.is_idle():  # noqa: ASYNC110 - what is waited for leaves no event behind.
            await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_calls_count_as_waiting_until_they_end(requests: Requests):
    pending = [requests.track(LONG_MS) for _ in range(3)]
    assert requests.waiting == 3
    requests.take(Proposed(7, 2, list(pending)), not_leader=NotLeader())
    requests.applied(7, 2, "seven")
    assert (requests.waiting, await pending[0].future) == (2, "seven")
    requests.applied(7, 2, "again")
    assert requests.waiting == 2


@pytest.mark.asyncio
async def test_call_ends_as_unknown_when_its_own_time_is_up_and_no_other_does(requests: Requests):
    """Calls of a longer timeout that were made before stand in nobody's way."""
    long, short = requests.track(LONG_MS), requests.track(10)
    requests.take(Proposed(7, 2, [long, short]), not_leader=NotLeader())
    async with asyncio.timeout(BOUND_SECONDS):
        with pytest.raises(OutcomeUnknown):
            await short.future
    assert requests.waiting == 1
    requests.applied(8, 2, "too late")
    requests.applied(7, 2, "in time")
    assert await long.future == "in time"
    assert requests.is_idle()


@pytest.mark.asyncio
async def test_call_that_was_cancelled_counts_no_longer(requests: Requests):
    """Whether its entry is applied afterwards or never: what is not in the way of others is not counted."""
    applied, forgotten = requests.track(LONG_MS), requests.track(LONG_MS)
    requests.take(Proposed(7, 2, [applied, forgotten]), not_leader=NotLeader())
    applied.future.cancel()
    forgotten.future.cancel()
    requests.applied(7, 2, "nobody waits")
    await until_idle(requests)
