"""The group-commit writer: every payment that arrives while a commit is in flight goes out with the next one.

One flush is in flight at a time, so a payment alone waits for nothing, and a hundred at once cost one commit.
Each batch is one fenced statement, and every caller gets an answer of its own: new, replayed, or refused.

Two requests with one key never meet in SQL: a map of key to pending payment spans the queue and the flight, and the
second joins the first (R28). A flush starts only under a leadership that still passes its check, but that check is
advice (R14): what keeps a stale write out is the fence. The writer must never answer success without the database's
word (R30), and never leave a caller without an answer, whatever ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from payment_service.identifiers import uuid7
from payment_service.models import Payment, PaymentRequest, hash_payment_request, payment_from_row
from payment_service.problems import Problem
from payment_service.session import NewRow, RowRefused, Transient, WriteSession
from tenure import DatabaseUnavailable, FenceError, Leadership, NodeClosed, OutcomeUnknown, TenureError

#: How often a batch is run again where the server gave it up, or a key was neither new nor found.
ATTEMPTS_MAX = 5


@dataclass(frozen=True, slots=True)
class Recorded:
    """A payment that is in the database. ``replayed``: an earlier request with the same key wrote it."""

    payment: Payment
    replayed: bool


_Outcome = Recorded | Problem | TenureError


@dataclass(slots=True, eq=False)
class _Pending:
    row: NewRow
    leadership: Leadership
    outcome: asyncio.Future[_Outcome] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class GroupCommitWriter:
    """Takes payments from many callers and writes them in batches. One event loop; run :meth:`run` as a task of it."""

    def __init__(
        self,
        session: WriteSession,
        *,
        node: str,
        batch_rows_max: int,
        queue_rows_max: int,
        key_wait_ms: int,
        on_committed: Callable[[Sequence[NewRow], Leadership], None],
        before_insert: Callable[[], None] | None = None,
    ) -> None:
        self._session = session
        self._node = node
        self._batch_rows_max = batch_rows_max
        self._queue_rows_max = queue_rows_max
        self._key_wait = key_wait_ms / 1000
        self._on_committed = on_committed
        self._before_insert = before_insert
        self._queue: deque[_Pending] = deque()
        self._by_key: dict[tuple[str, str], _Pending] = {}
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    async def submit(
        self, request: PaymentRequest, *, client_id: str, key: str | None, leadership: Leadership
    ) -> Recorded:
        """Write one payment, or find the one that ``key`` already names; returns once the database has answered.

        Cancelling the caller does not take the payment back: it is written all the same, and its key finds it.

        Raises:
            Problem: ``idempotency_key_reused``, ``idempotency_conflict``, ``overloaded``, ``invalid_field``.
            LeadershipLost, FenceError, NodeClosed, DatabaseUnavailable: nothing was written.
            OutcomeUnknown: it may or may not be written; the same key tells.
        """
        if self._closed:
            raise NodeClosed
        request_hash = hash_payment_request(request)
        first = self._by_key.get((client_id, key)) if key is not None else None
        if first is not None:
            return await self._join(first, request_hash)
        if len(self._queue) >= self._queue_rows_max:
            raise Problem("overloaded", f"{self._queue_rows_max} payments wait already: nothing was written")
        row = NewRow(payment_id=uuid7(), request=request, request_hash=request_hash, client_id=client_id, key=key)
        pending = _Pending(row, leadership)
        if key is not None:
            self._by_key[client_id, key] = pending
        self._queue.append(pending)
        self._idle.clear()
        self._arrived.set()
        return _answer(await asyncio.shield(pending.outcome))

    async def drain(self) -> None:
        """Return once nothing is queued or in flight: only then may a leadership that is over be released (R9)."""
        await self._idle.wait()

    async def run(self) -> None:
        """Flush until cancelled. Whatever ends it, every caller that waits gets an answer and the session is closed."""
        batch: list[_Pending] = []
        try:
            while True:
                await self._arrived.wait()
                batch = self._next_batch()
                try:
                    await self._settle(batch, batch[0].leadership)
                except TenureError as error:
                    self._refuse(batch, error)
                if not self._queue:
                    self._arrived.clear()
                    self._idle.set()
        finally:
            self._closed = True
            self._refuse(batch, OutcomeUnknown("the node stopped while the payment was being written"))
            self._refuse(list(self._queue), NodeClosed())
            self._queue.clear()
            self._idle.set()
            with contextlib.suppress(Exception):
                await self._session.close()

    def _next_batch(self) -> list[_Pending]:
        """Take from the front of the queue what arrived under one leadership, up to the size of a batch."""
        batch = [self._queue.popleft()]
        while (
            self._queue
            and len(batch) < self._batch_rows_max
            and self._queue[0].leadership.token == batch[0].leadership.token
        ):
            batch.append(self._queue.popleft())
        return batch

    async def _join(self, first: _Pending, request_hash: bytes) -> Recorded:
        if first.row.request_hash != request_hash:
            raise _key_reused()
        try:
            async with asyncio.timeout(self._key_wait):
                answer = _answer(await asyncio.shield(first.outcome))
        except TimeoutError:
            raise Problem(
                "idempotency_conflict", "the first request with this Idempotency-Key is still running; try again"
            ) from None
        return Recorded(answer.payment, replayed=True)

    async def _settle(self, batch: Sequence[_Pending], leadership: Leadership) -> None:
        """Give every member of ``batch`` its outcome; a TenureError that it raises is the outcome of all the rest."""
        failure = "the keys of the payments were neither new nor found"
        for _ in range(ATTEMPTS_MAX):
            batch = sorted((p for p in batch if not p.outcome.done()), key=_lock_order)
            try:
                await self._insert(batch, leadership)
                batch = [pending for pending in batch if not pending.outcome.done()]
                if not batch:
                    return
                await self._find(batch)
            except Transient as error:
                failure = str(error)
            except RowRefused as error:
                await self._split(batch, leadership, error)
                return
            if all(pending.outcome.done() for pending in batch):
                return
        raise DatabaseUnavailable(f"given up after {ATTEMPTS_MAX} attempts: {failure}")

    async def _insert(self, batch: Sequence[_Pending], leadership: Leadership) -> None:
        await self._session.ready()
        leadership.check()
        if self._before_insert is not None:
            self._before_insert()
        try:
            new = await self._session.insert([pending.row for pending in batch], leadership)
        except FenceError as error:
            leadership.report_refused(error)
            raise
        written = [pending for pending in batch if pending.row.payment_id in new]
        # The log comes before the answers: what a client was told is always in the log too.
        self._on_committed([pending.row for pending in written], leadership)
        for pending in written:
            payment = payment_from_row(
                payment_id=pending.row.payment_id,
                request=pending.row.request,
                node=self._node,
                fencing_token=leadership.token,
                term=leadership.term,
                created_at=new[pending.row.payment_id],
            )
            self._resolve(pending, Recorded(payment, replayed=False))

    async def _find(self, batch: Sequence[_Pending]) -> None:
        """Answer those whose key an earlier request holds. Who is not found stays without an outcome."""
        stored = await self._session.look_up([pending.row for pending in batch])
        for pending in batch:
            row = stored.get((pending.row.client_id, pending.row.key or ""))
            if row is None:
                continue
            if row.request_hash != pending.row.request_hash:
                self._resolve(pending, _key_reused())
                continue
            # Equal hashes mean equal requests, so the answer is made from this one.
            payment = payment_from_row(
                payment_id=row.payment_id,
                request=pending.row.request,
                node=row.node,
                fencing_token=row.fencing_token,
                term=row.term,
                created_at=row.created_at,
            )
            self._resolve(pending, Recorded(payment, replayed=True))

    async def _split(self, batch: Sequence[_Pending], leadership: Leadership, error: RowRefused) -> None:
        """Run the halves by themselves, so that only the row that the database refuses fails (R28)."""
        if len(batch) > 1:
            half = len(batch) // 2
            await self._settle(batch[:half], leadership)
            await self._settle(batch[half:], leadership)
            return
        detail = f"the database refuses this payment (SQLSTATE {error.sqlstate}): nothing was written"
        self._resolve(batch[0], Problem("invalid_field", detail, param=error.field))

    def _refuse(self, batch: Sequence[_Pending], error: TenureError) -> None:
        for pending in batch:
            if not pending.outcome.done():
                self._resolve(pending, error)

    def _resolve(self, pending: _Pending, outcome: _Outcome) -> None:
        if pending.row.key is not None:
            self._by_key.pop((pending.row.client_id, pending.row.key), None)
        pending.outcome.set_result(outcome)


def _lock_order(pending: _Pending) -> tuple[str, str, int]:
    return pending.row.client_id, pending.row.key or "", pending.row.payment_id.int


def _answer(outcome: _Outcome) -> Recorded:
    if isinstance(outcome, Recorded):
        return outcome
    # One error may be the answer of many callers: none may find the tracebacks of the others in it.
    raise outcome.with_traceback(None)


def _key_reused() -> Problem:
    return Problem(
        "idempotency_key_reused",
        "this Idempotency-Key belongs to a payment with other parameters; use a new key for a new payment",
        param="Idempotency-Key",
    )
