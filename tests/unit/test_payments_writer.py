"""The group-commit writer over a session in memory: batching, joining, splitting, and an answer for everybody."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from payments_fakes import FakeLeadership, FakeSession

from payment_service.models import PaymentRequest
from payment_service.problems import Problem
from payment_service.session import NewRow, RowRefused, Transient
from payment_service.writer import ATTEMPTS_MAX, GroupCommitWriter, Recorded
from tenure import DatabaseUnavailable, LeadershipLost, NodeClosed, OutcomeUnknown, ServerChanged, StaleToken

pytestmark = pytest.mark.asyncio


class Rig:
    """A writer over a fake session, with short words for what the tests do."""

    def __init__(self, **settings: int) -> None:
        self.session = FakeSession()
        self.leadership = FakeLeadership()
        self.committed: list[NewRow] = []
        self.before_insert: Callable[[], object] = list
        self.writer = GroupCommitWriter(
            self.session,  # type: ignore[arg-type]
            node="payment-1a",
            on_committed=lambda rows, _: self.committed.extend(rows),
            before_insert=self._before_insert,
            **{"batch_rows_max": 1000, "queue_rows_max": 1000, "key_wait_ms": 5000, **settings},
        )

    def _before_insert(self) -> None:
        self.before_insert()

    def pay(
        self, key: str | None, amount: int = 100, leadership: FakeLeadership | None = None
    ) -> asyncio.Task[Recorded]:
        request = PaymentRequest(amount=amount, currency="EUR", debtor="alice", creditor="bob")
        return asyncio.create_task(
            self.writer.submit(request, client_id="anonymous", key=key, leadership=leadership or self.leadership)
        )

    async def hold_a_flush(self) -> asyncio.Task[Recorded]:
        """Put one payment in flight and keep it there."""
        self.session.open_gate.clear()
        first = self.pay("first")
        await self.session.in_flight.wait()
        return first

    async def settle(self) -> None:
        """Let every task that can run do so."""
        for _ in range(20):
            await asyncio.sleep(0)


@asynccontextmanager
async def running(**settings: int) -> AsyncIterator[Rig]:
    rig = Rig(**settings)
    task = asyncio.create_task(rig.writer.run())
    try:
        yield rig
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_payment_goes_out_alone_and_at_once_when_the_writer_is_idle():
    async with running() as rig:
        answer = await rig.pay("a")
        assert (answer.replayed, answer.payment.fencing_token, answer.payment.node) == (False, 1, "payment-1a")
        assert [len(batch) for batch in rig.session.batches] == [1]


async def test_payments_share_the_next_flush_when_they_arrive_during_one():
    async with running() as rig:
        first = await rig.hold_a_flush()
        others = [rig.pay(f"k{number}") for number in range(50)]
        await rig.settle()
        rig.session.open_gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in rig.session.batches] == [1, 50]


async def test_batch_is_bounded_when_more_wait():
    async with running(batch_rows_max=20) as rig:
        first = await rig.hold_a_flush()
        others = [rig.pay(f"k{number}") for number in range(50)]
        await rig.settle()
        rig.session.open_gate.set()
        await asyncio.gather(first, *others)
        assert [len(batch) for batch in rig.session.batches] == [1, 20, 20, 10]


async def test_R28_batch_is_sorted_by_key_when_it_is_sent():
    async with running() as rig:
        first = await rig.hold_a_flush()
        others = [rig.pay(key) for key in ("c", "a", "b")]
        await rig.settle()
        rig.session.open_gate.set()
        await asyncio.gather(first, *others)
        assert [row.key for row in rig.session.batches[1]] == ["a", "b", "c"]


async def test_R28_second_request_joins_the_first_when_the_key_is_queued_or_in_flight():
    async with running() as rig:
        first = await rig.hold_a_flush()
        in_flight = rig.pay("first")
        queued, joined = rig.pay("second"), rig.pay("second")
        await rig.settle()
        rig.session.open_gate.set()
        answers = await asyncio.gather(first, in_flight, queued, joined)
        assert [answer.replayed for answer in answers] == [False, True, False, True]
        assert answers[0].payment == answers[1].payment
        assert answers[2].payment == answers[3].payment
        assert [[row.key for row in batch] for batch in rig.session.batches] == [["first"], ["second"]]


async def test_R28_second_request_is_refused_when_the_key_waits_with_another_body():
    async with running() as rig:
        first = await rig.hold_a_flush()
        with pytest.raises(Problem) as caught:
            await rig.pay("first", amount=101)
        assert caught.value.code == "idempotency_key_reused"
        rig.session.open_gate.set()
        assert (await first).payment.amount == 100


async def test_R28_key_is_replayed_or_refused_when_an_earlier_batch_wrote_it():
    async with running() as rig:
        first = await rig.pay("a")
        again = await rig.pay("a")
        assert (again.replayed, again.payment) == (True, first.payment)
        with pytest.raises(Problem) as caught:
            await rig.pay("a", amount=101)
        assert caught.value.code == "idempotency_key_reused"
        assert len(rig.committed) == 1


async def test_R28_batch_is_run_again_when_a_key_is_neither_new_nor_found():
    async with running() as rig:
        found = rig.session.look_up
        await rig.pay("a")
        lost = rig.session.stored[("anonymous", "a")]

        async def vanish_once(rows):
            # The row that stood in the way of the insert is gone before the second statement looks for it.
            rig.session.stored.pop(("anonymous", "a"))
            rig.session.look_up = found
            return {}

        rig.session.look_up = vanish_once
        answer = await rig.pay("a")
        assert not answer.replayed
        assert answer.payment.id != str(lost.payment_id)
        assert len(rig.session.batches) == 3


async def test_R28_only_the_bad_row_fails_when_the_database_refuses_one_of_a_batch():
    async with running() as rig:
        rig.session.refuses = lambda row: RowRefused("23514", "amount") if row.request.amount == 666 else None
        first = await rig.hold_a_flush()
        others = [rig.pay(f"k{number:02}", amount=666 if number == 13 else 100) for number in range(32)]
        await rig.settle()
        rig.session.open_gate.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        failed = [answer for answer in answers if isinstance(answer, Exception)]
        assert [(problem.code, problem.param) for problem in failed] == [("invalid_field", "amount")]
        assert len(rig.committed) == 32


async def test_writer_runs_a_batch_again_when_the_server_gave_it_up():
    async with running() as rig:
        rig.session.errors = [Transient("40001"), Transient("40P01")]
        assert not (await rig.pay("a")).replayed


async def test_writer_gives_up_when_the_server_gives_a_batch_up_every_time():
    async with running() as rig:
        rig.session.errors = [Transient("40001")] * ATTEMPTS_MAX
        with pytest.raises(DatabaseUnavailable):
            await rig.pay("a")
        assert not (await rig.pay("a")).replayed


async def test_writer_checks_the_lease_again_when_it_runs_a_batch_again():
    async with running() as rig:
        rig.session.errors = [Transient("40001")]
        first = await rig.hold_a_flush()
        rig.leadership.valid = False
        rig.session.open_gate.set()
        with pytest.raises(LeadershipLost):
            await first
        assert len(rig.session.batches) == 1


@pytest.mark.parametrize("kind", [StaleToken, ServerChanged])
async def test_R12_refusal_by_the_fence_reaches_the_member_once_and_every_caller_when_a_batch_is_stale(kind):
    async with running() as rig:
        first = await rig.hold_a_flush()
        others = [rig.pay(f"k{number}") for number in range(3)]
        await rig.settle()
        rig.session.errors = [None, kind("stale", resource="payments", held=1, seen=2)]
        rig.session.open_gate.set()
        answers = await asyncio.gather(first, *others, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Recorded, kind, kind, kind]
        assert [type(error) for error in rig.leadership.refusals] == [kind]
        assert [row.key for row in rig.committed] == ["first"]


async def test_payment_is_not_sent_when_the_leadership_ends_before_its_flush():
    async with running() as rig:
        first = await rig.hold_a_flush()
        waiting = rig.pay("second")
        await rig.settle()
        rig.leadership.valid = False
        rig.session.open_gate.set()
        assert not (await first).replayed
        with pytest.raises(LeadershipLost):
            await waiting
        assert len(rig.session.batches) == 1


async def test_payments_of_two_leaderships_never_share_a_batch_when_they_wait_together():
    async with running() as rig:
        first = await rig.hold_a_flush()
        newer = FakeLeadership(token=2, term=2)
        older_one, newer_one = rig.pay("a"), rig.pay("b", leadership=newer)
        await rig.settle()
        rig.session.open_gate.set()
        await asyncio.gather(first, older_one, newer_one)
        assert [len(batch) for batch in rig.session.batches] == [1, 1, 1]
        assert (await newer_one).payment.fencing_token == 2


async def test_hook_runs_between_the_check_and_the_insert_when_it_is_set():
    async with running() as rig:
        seen: list[tuple[bool, int]] = []
        rig.before_insert = lambda: seen.append((rig.leadership.valid, len(rig.session.batches)))
        await rig.pay("a")
        rig.leadership.valid = False
        with pytest.raises(LeadershipLost):
            await rig.pay("b")
        assert seen == [(True, 0)]


async def test_R29_every_payment_in_flight_is_unknown_when_the_outcome_is_and_the_key_tells_later():
    async with running() as rig:
        rig.session.errors = [OutcomeUnknown("lost")]
        with pytest.raises(OutcomeUnknown):
            await rig.pay("a")
        assert not (await rig.pay("a")).replayed


async def test_queue_refuses_when_it_is_full():
    async with running(queue_rows_max=2) as rig:
        first = await rig.hold_a_flush()
        waiting = [rig.pay("a"), rig.pay("b")]
        await rig.settle()
        with pytest.raises(Problem) as caught:
            await rig.pay("c")
        assert (caught.value.code, caught.value.kind.retryable) == ("overloaded", True)
        rig.session.open_gate.set()
        await asyncio.gather(first, *waiting)


async def test_second_request_gets_a_conflict_when_the_first_runs_longer_than_it_waits():
    async with running(key_wait_ms=1) as rig:
        first = await rig.hold_a_flush()
        with pytest.raises(Problem) as caught:
            await rig.pay("first")
        assert caught.value.code == "idempotency_conflict"
        rig.session.open_gate.set()
        assert not (await first).replayed


async def test_payment_is_written_all_the_same_when_its_caller_is_cancelled():
    async with running() as rig:
        first = await rig.hold_a_flush()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        rig.session.open_gate.set()
        await rig.writer.drain()
        assert [row.key for row in rig.committed] == ["first"]


async def test_every_caller_gets_an_answer_when_the_writer_is_stopped():
    async with running() as rig:
        first = await rig.hold_a_flush()
        waiting = rig.pay("second")
        await rig.settle()
    answers = await asyncio.gather(first, waiting, return_exceptions=True)
    assert [type(answer) for answer in answers] == [OutcomeUnknown, NodeClosed]
    assert rig.session.closed
    with pytest.raises(NodeClosed):
        await rig.pay("third")


async def test_every_caller_gets_an_answer_when_the_writer_dies_of_a_bug():
    rig = Rig()
    rig.session.errors = [ZeroDivisionError()]
    task = asyncio.create_task(rig.writer.run())
    with pytest.raises(OutcomeUnknown):
        await rig.pay("a")
    with pytest.raises(ZeroDivisionError):
        await task


async def test_drain_returns_only_when_nothing_is_queued_or_in_flight():
    async with running() as rig:
        await rig.writer.drain()
        first = await rig.hold_a_flush()
        drained = asyncio.create_task(rig.writer.drain())
        await rig.settle()
        assert not drained.done()
        rig.session.open_gate.set()
        await drained
        assert first.done() or rig.committed
        await first
