"""A payment node without an elector: the real fence, raised by hand, and the real application over a real database."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import psycopg

from payment_service.app import build_application
from payment_service.log import ServiceLog
from payment_service.migrations import migrate
from payment_service.reader import PaymentReader
from payment_service.session import WriteSession
from payment_service.writer import GroupCommitWriter
from tenure import Credential, ElectorIdentity, LeadershipLost, LossReason, PeerInfo, State, Status
from tenure.config import from_mapping
from tenure.fence import FenceStore, RaiseRequest

IDENTITY = ElectorIdentity(elector_id="raft:test", generation=0, lineage="test")
GOOD: dict[str, Any] = {
    "amount": 1250,
    "currency": "EUR",
    "debtor": "alice",
    "creditor": "bob",
    "reference": "invoice 7",
}


class RaisedLeadership:
    """A leadership whose fence was really raised; it believes in itself until the test or the database says no."""

    def __init__(self, credential: Credential, term: int) -> None:
        self.credential = credential
        self.token = credential.token
        self.term = term
        self.valid = True
        self.refusals: list[Exception] = []

    def remaining(self) -> float:
        return 1.0 if self.valid else 0.0

    def check(self) -> None:
        if not self.valid:
            raise LeadershipLost(term=self.term, reason=LossReason.LEASE_EXPIRED)

    def report_refused(self, error: Exception) -> None:
        self.refusals.append(error)
        self.valid = False

    @property
    def lost(self) -> Any:
        return asyncio.get_running_loop().create_future()


class HandMadeMember:
    """What the application asks of a member, answered from one leadership."""

    def __init__(self, name: str, leadership: RaisedLeadership | None) -> None:
        self.name = name
        self.held = leadership
        self.cluster_id = "test"
        self.incarnation = 1

    @property
    def leadership(self) -> RaisedLeadership | None:
        return self.held if self.held is not None and self.held.valid else None

    def status(self) -> Status:
        held = self.leadership
        return Status(
            state=State.LEADER if held else State.FOLLOWER,
            term=self.held.term if self.held else 0,
            name=self.name,
            cluster="payments",
            cluster_id=self.cluster_id,
            raft_role="leader" if held else "follower",
            leader_name=self.name if held else None,
            leader_url=None,
            fencing_token=held.token if held else None,
            lease_remaining_ms=900 if held else 0,
            votes_for_me=0,
            votes_needed=2,
            voters=3,
            commit_index=0,
            applied_index=0,
            elections_observed=0,
            stale_token_refusals=len(self.held.refusals) if self.held else 0,
            reason=None,
        )

    def cluster(self) -> list[PeerInfo]:
        return [PeerInfo(name=self.name, raft_address="127.0.0.1:9080", url="http://127.0.0.1:8080")]

    async def step_down(self) -> bool:
        return False


class Node:
    """One application with its parts, and words for what tests do with it."""

    def __init__(
        self, client: httpx2.AsyncClient, member: HandMadeMember, session: WriteSession, log_path: Path
    ) -> None:
        self.client = client
        self.member = member
        self.session = session
        self.log_path = log_path

    async def pay(self, key: str, **changes: Any) -> httpx2.Response:
        return await self.client.post("/v1/payments", json=GOOD | changes, headers={"Idempotency-Key": key})

    def committed_lines(self) -> list[dict[str, Any]]:
        return [
            json.loads(line) for line in self.log_path.read_text().splitlines() if "INSERT INTO payment_events" in line
        ]


async def raise_fence(dsn: str, token: int, *, holder: str = "payment-1a") -> RaisedLeadership:
    """Win the fence at ``token``, as the node's driver would."""
    store = FenceStore(dsn, "payments")
    try:
        view = await store.read()
        credential = Credential(token=token, nonce=secrets.token_hex(16))
        request = RaiseRequest(identity=IDENTITY, credential=credential, holder=holder, expected=view.expected)
        await store.raise_token(request)
    finally:
        await store.close()
    return RaisedLeadership(credential, term=token)


async def install(dsn: str) -> None:
    await asyncio.to_thread(migrate, dsn, "payments")


@asynccontextmanager
async def payment_node(
    dsn: str,
    leadership: RaisedLeadership | None,
    folder: Path,
    *,
    name: str = "payment-1a",
    lease_ms: int = 1000,
    before_insert: Callable[[], None] | None = None,
    **payments: Any,
) -> AsyncIterator[Node]:
    config = from_mapping(
        {
            "node": {"name": name, "log_dir": str(folder)},
            "raft": {"peers": {name: {"raft": "127.0.0.1:9080", "url": "http://127.0.0.1:8080"}}},
            "payments": payments,
        }
    )
    log = ServiceLog(folder, cluster="payments", node=name)
    session = WriteSession(dsn, "payments", name, lease_ms=lease_ms)
    writer = GroupCommitWriter(
        session,
        node=name,
        batch_rows_max=config.payments.batch_rows_max,
        queue_rows_max=config.payments.queue_rows_max,
        key_wait_ms=config.payments.idempotency_wait_ms,
        on_committed=log.committed,
        before_insert=before_insert,
    )
    member = HandMadeMember(name, leadership)
    async with PaymentReader(dsn, name) as reader, httpx2.AsyncClient(trust_env=False) as peers:
        application = build_application(
            config, member=member, writer=writer, reader=reader, client=peers, logger=log.logger
        )
        task = asyncio.create_task(writer.run())
        transport = httpx2.ASGITransport(app=application)
        async with httpx2.AsyncClient(transport=transport, base_url=f"http://{name}") as client:
            try:
                yield Node(client, member, session, log.path)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
                log.close()


async def fetch(dsn: str, statement: str) -> list[tuple[Any, ...]]:
    """What the database says, on a session of its own."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        return await (await connection.execute(statement)).fetchall()


async def execute(dsn: str, statement: str) -> None:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        await connection.execute(statement)


async def payments_in(dsn: str) -> int:
    return (await fetch(dsn, "SELECT count(*) FROM payment_events"))[0][0]


async def until(condition: Callable[[], Awaitable[Any]], *, seconds: float = 10.0) -> Any:
    """Poll until ``condition`` holds; fail at the deadline."""
    async with asyncio.timeout(seconds):
        while not (value := await condition()):  # noqa: ASYNC110 - what is waited for happens in the database
            await asyncio.sleep(0.01)
    return value
