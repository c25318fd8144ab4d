"""Stand-ins for the parts around the payment service's writer and routes; the integration tests have the real ones."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from payment_service.session import NewRow, StoredRow
from tenure import Credential, LeadershipLost, LossReason, PeerInfo, State, Status

NOW = datetime(2026, 11, 24, 12, 0, 0, 123456, tzinfo=UTC)


class FakeLeadership:
    """A leadership that is valid until the test says otherwise."""

    def __init__(self, *, token: int = 1, term: int = 1) -> None:
        self.token = token
        self.term = term
        self.credential = Credential(token=token, nonce="unit-test-nonce")
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


class FakeMember:
    """A member whose role is what the test says."""

    def __init__(self, leadership: FakeLeadership | None, *, name: str = "payment-1a") -> None:
        self.name = name
        self.held = leadership
        self.cluster_id: str | None = "c0ffee"
        self.reason: str | None = None
        self.incarnation = 7
        self.leader_name: str | None = name if leadership else "payment-1b"
        self.leader_url: str | None = "http://127.0.0.1:8081" if leadership is None else "http://127.0.0.1:8080"
        self.stepped_down = 0

    @property
    def leadership(self) -> FakeLeadership | None:
        return self.held if self.held is not None and self.held.valid else None

    def status(self) -> Status:
        held = self.leadership
        return Status(
            state=State.LEADER if held else State.FOLLOWER,
            term=held.term if held else 6,
            name=self.name,
            cluster="payments",
            cluster_id=self.cluster_id,
            raft_role="leader" if held else "follower",
            leader_name=self.leader_name,
            leader_url=self.leader_url,
            fencing_token=held.token if held else None,
            lease_remaining_ms=900 if held else 0,
            votes_for_me=2 if held else 0,
            votes_needed=2,
            voters=3,
            commit_index=1,
            applied_index=1,
            elections_observed=1,
            stale_token_refusals=0,
            reason=self.reason,
        )

    def cluster(self) -> list[PeerInfo]:
        return [
            PeerInfo(name="payment-1a", raft_address="127.0.0.1:9080", url="http://127.0.0.1:8080"),
            PeerInfo(name="payment-1b", raft_address="127.0.0.1:9081", url="http://127.0.0.1:8081"),
        ]

    async def step_down(self, reason: str = "operator") -> bool:
        if self.leadership is None:
            return False
        self.stepped_down += 1
        self.held = None
        return True


class FakeSession:
    """A table of keys in memory, with the two statements of the real session and a gate before each insert."""

    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], StoredRow] = {}
        self.batches: list[list[NewRow]] = []
        self.errors: list[Exception | None] = []
        self.open_gate = asyncio.Event()
        self.open_gate.set()
        self.in_flight = asyncio.Event()
        self.closed = False
        self.refuses: Callable[[NewRow], Exception | None] = lambda _: None

    async def ready(self) -> None:
        return

    async def insert(self, rows: Sequence[NewRow], leadership: Any) -> dict[uuid.UUID, datetime]:
        self.batches.append(list(rows))
        self.in_flight.set()
        await self.open_gate.wait()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        for row in rows:
            refusal = self.refuses(row)
            if refusal is not None:
                raise refusal
        new = {}
        for row in rows:
            stored = StoredRow(
                request_hash=row.request_hash,
                payment_id=row.payment_id,
                node="payment-1a",
                fencing_token=leadership.token,
                term=leadership.term,
                created_at=NOW,
            )
            if row.key is None or self.stored.setdefault((row.client_id, row.key), stored) is stored:
                new[row.payment_id] = NOW
        return new

    async def look_up(self, rows: Sequence[NewRow]) -> dict[tuple[str, str], StoredRow]:
        keys = {(row.client_id, row.key) for row in rows}
        return {key: row for key, row in self.stored.items() if key in keys}

    async def close(self) -> None:
        self.closed = True
