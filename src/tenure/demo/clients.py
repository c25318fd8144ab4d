"""The demo's clients: a paced stream of payments, each retried with the same key until it is acknowledged.

They behave as a client of the service should: follow ``Tenure-Leader``, and after an unknown outcome (a time-out, a
broken connection, 504) send the same payment under the same ``Idempotency-Key`` again, never a new one.
Each acknowledged id is in the file before the client goes on, so that the count of lost payments can be trusted:
what the file names was answered 201.
"""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2

from tenure.demo.problems import DemoError

CLIENTS = 8
#: Shorter than the service's Retry-After, because the demo measures how long a takeover takes.
RETRY_SECONDS = 0.05
ANSWER_TIMEOUT_SECONDS = 1.0
#: How long a node that gave no answer is not tried again on another node's word that it leads.
SUSPICION_SECONDS = 1.0
RATE_WINDOW_SECONDS = 2.0
REFERENCE_PREFIX = "demo "
_RETRYABLE = frozenset({409, 429, 500, 502, 503, 504})


class Load:
    """Sends payments at ``rate`` a second until told to stop. Counters may be read at any time."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        rate: float,
        acknowledged: Path,
        transport: httpx2.AsyncBaseTransport | None = None,
    ) -> None:
        self.acknowledged = 0
        self.retries = 0
        self.highest_token = 0
        self.recent: deque[dict[str, Any]] = deque(maxlen=5)
        self._urls = list(urls)
        self._target = self._urls[0]
        self._rate = rate
        self._path = acknowledged
        self._transport = transport
        self._run = uuid.uuid4().hex[:8]
        self._tickets: asyncio.Queue[int] = asyncio.Queue(maxsize=CLIENTS)
        self._suspects: dict[str, float] = {}
        self._times: deque[float] = deque()
        self._waiting: list[tuple[int, asyncio.Future[float]]] = []
        self._draining = False
        self._tasks: list[asyncio.Task[None]] = []
        self._started_at: float | None = None
        self._stopped_at: float | None = None

    def start(self) -> asyncio.Task[None]:
        """Begin to send. The task ends only with :class:`DemoError`: a payment was refused for good."""
        self._started_at = time.monotonic()
        self._tasks = [asyncio.create_task(self._pace()), asyncio.create_task(self._run_clients())]
        return self._tasks[1]

    async def stop(self, *, patience: float) -> None:
        """Send nothing new, wait up to ``patience`` seconds for the answers still owed, then give them up."""
        self._draining = True
        if not self._tasks:
            return
        self._stopped_at = time.monotonic()
        pace, clients = self._tasks
        pace.cancel()
        await asyncio.wait([clients], timeout=patience)
        clients.cancel()
        await asyncio.gather(pace, clients, return_exceptions=True)
        self._tasks = []

    @property
    def rate_now(self) -> float:
        """Payments acknowledged per second, over the last two seconds."""
        oldest = time.monotonic() - RATE_WINDOW_SECONDS
        while self._times and self._times[0] < oldest:
            self._times.popleft()
        return len(self._times) / RATE_WINDOW_SECONDS

    @property
    def rate_overall(self) -> float:
        """Payments acknowledged per second since the start, outages included."""
        return self.acknowledged / self.seconds if self.seconds > 0 else 0.0

    @property
    def seconds(self) -> float:
        """How long payments were sent; 0.0 if they never were."""
        if self._started_at is None:
            return 0.0
        return (self._stopped_at or time.monotonic()) - self._started_at

    def first_above(self, token: int) -> asyncio.Future[float]:
        """Resolves with the monotonic time of the first payment acknowledged under a token above ``token``."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting.append((token, future))
        return future

    async def _pace(self) -> None:
        """Hand out a ticket every 1/rate seconds; those that no client is free to take are not caught up."""
        number, due = 0, time.monotonic()
        while True:
            number, due = number + 1, max(due + 1 / self._rate, time.monotonic() - 1 / self._rate)
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            await self._tickets.put(number)

    async def _run_clients(self) -> None:
        limits = httpx2.Timeout(ANSWER_TIMEOUT_SECONDS)
        with self._path.open("a", encoding="ascii") as file:
            async with httpx2.AsyncClient(timeout=limits, trust_env=False, transport=self._transport) as client:
                tasks = [asyncio.create_task(self._client(client, file)) for _ in range(CLIENTS)]
                try:
                    await asyncio.gather(*tasks)
                finally:
                    for task in tasks:
                        task.cancel()
                    await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, client: httpx2.AsyncClient, file: Any) -> None:
        while True:
            try:
                number = await asyncio.wait_for(self._tickets.get(), 0.2)
            except TimeoutError:
                if self._draining:
                    return
                continue
            key = f"{self._run}-{number:06d}"
            payment = {
                "amount": random.randint(100, 99_999),  # noqa: S311 - an amount of play money
                "currency": "EUR",
                "debtor": f"customer-{number % 97:02d}",
                "creditor": f"shop-{number % 13:02d}",
                "reference": f"{REFERENCE_PREFIX}{key}",
            }
            answer = await self._until_acknowledged(client, key, payment)
            file.write(f"{answer['id']}\n")
            file.flush()
            self._count(answer)

    async def _until_acknowledged(
        self, client: httpx2.AsyncClient, key: str, payment: dict[str, Any]
    ) -> dict[str, Any]:
        """The service's answer to one payment, after as many attempts as it takes."""
        while True:
            url = self._target
            try:
                response = await client.post(f"{url}/v1/payments", json=payment, headers={"Idempotency-Key": key})
            except httpx2.HTTPError as error:
                self._turn_from(url, silent=isinstance(error, httpx2.TimeoutException))
            else:
                if response.status_code == 201:
                    answer: dict[str, Any] = response.json()
                    return answer
                if response.status_code not in _RETRYABLE:
                    raise DemoError(
                        f"a payment was refused with {response.status_code}: {response.text[:300]}",
                        "this is a bug of the demo or of the payment service: please report it",
                    )
                self._follow(url, response.headers.get("Tenure-Leader"))
            self.retries += 1
            await asyncio.sleep(RETRY_SECONDS)

    def _follow(self, url: str, leader: str | None) -> None:
        """Go where a follower points, to a node that was added from outside too; else ask the next node."""
        if leader is not None and _is_base_url(leader) and leader != url and not self._suspected(leader):
            if leader not in self._urls:
                self._urls.append(leader)
            self._target = leader
        else:
            self._turn_from(url, silent=False)

    def _turn_from(self, url: str, *, silent: bool) -> None:
        if silent:
            self._suspects[url] = time.monotonic() + SUSPICION_SECONDS
        if self._target == url:
            here = self._urls.index(url)
            others = [*self._urls[here + 1 :], *self._urls[: here + 1]]
            self._target = next((other for other in others if not self._suspected(other)), others[0])

    def _suspected(self, url: str) -> bool:
        return time.monotonic() < self._suspects.get(url, 0.0)

    def _count(self, answer: dict[str, Any]) -> None:
        now = time.monotonic()
        self.acknowledged += 1
        self._times.append(now)
        self.recent.append(answer)
        token = int(answer["fencing_token"])
        if token <= self.highest_token:
            return
        self.highest_token = token
        for above, future in self._waiting:
            if token > above and not future.done():
                future.set_result(now)
        self._waiting = [(above, future) for above, future in self._waiting if not future.done()]


def _is_base_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
