"""The leadership scope: what the body sees when leadership ends, and what the node is told."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
import timeit

import pytest

import tenure.leadership
from tenure import Credential, HeldLeadership, LeadershipLost, LossReason, ServerChanged, StaleToken
from tenure.instants import LeaseSpan, Reading

SECOND = 1_000_000_000


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = Reading(0, 0)

    def raw_ns(self) -> int:
        return self.now.raw_ns

    def boottime_ns(self) -> int:
        return self.now.boottime_ns

    def move(self, seconds: float) -> None:
        ns = int(seconds * SECOND)
        self.now = Reading(self.now.raw_ns + ns, self.now.boottime_ns + ns)


class Owner:
    """Takes what the handle tells its member."""

    def __init__(self, *, duration: float = 30.0) -> None:
        self.clock = Clock()
        self.exits = 0
        self.losses: list[LossReason] = []
        self.places: list[str | None] = []
        self.handle = HeldLeadership(
            term=7,
            credential=Credential(token=3, nonce="secret-nonce"),
            span=LeaseSpan(self.clock.now, int(duration * SECOND)),
            margin_ns=SECOND // 50,
            clocks=(self.clock.raw_ns, self.clock.boottime_ns),
            loop=asyncio.get_running_loop(),
            on_exit=self._exit,
            on_loss=self.losses.append,
            on_overdue=self.places.append,
        )

    def _exit(self) -> None:
        self.exits += 1


@pytest.mark.asyncio
async def test_body_is_cancelled_and_the_scope_ends_quietly_when_leadership_is_revoked():
    """No exception reaches the code behind the scope, and the body counts as returned once."""
    owner = Owner()
    steps = []
    async with owner.handle:
        steps.append("in")
        owner.handle.revoke(LossReason.DEPOSED)
        await asyncio.Event().wait()
        steps.append("never")
    assert steps == ["in"]
    assert owner.exits == 1
    assert await owner.handle.lost is LossReason.DEPOSED
    assert asyncio.current_task().cancelling() == 0


@pytest.mark.asyncio
async def test_body_is_cancelled_by_the_own_clock_when_nobody_renews():
    """The handle ends itself by the lease's deadline, less the margin, even if the node's thread is silent."""
    owner = Owner(duration=0.05)
    owner.clock.move(0.04)
    async with owner.handle:
        await asyncio.Event().wait()
    assert owner.losses == [LossReason.LEASE_EXPIRED]
    assert owner.handle.reason is LossReason.LEASE_EXPIRED


@pytest.mark.asyncio
async def test_lease_goes_on_when_it_is_renewed():
    """A renewal moves the deadline, and only a renewal does."""
    owner = Owner(duration=1.0)
    owner.clock.move(0.9)
    assert owner.handle.remaining() == pytest.approx(0.08)
    owner.handle.renew(LeaseSpan(owner.clock.now, SECOND))
    assert owner.handle.remaining() == pytest.approx(0.98)
    owner.clock.move(0.98)
    assert owner.handle.remaining() == 0.0
    with pytest.raises(LeadershipLost):
        owner.handle.check()
    owner.handle.abandon()


@pytest.mark.asyncio
async def test_foreign_cancellation_passes_through():
    """Only the cancellation that the loss caused is swallowed."""
    owner = Owner()
    entered = asyncio.Event()

    async def body() -> None:
        async with owner.handle:
            entered.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(body())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert owner.exits == 1


@pytest.mark.asyncio
async def test_exception_of_the_body_passes_through_when_leadership_was_lost_too():
    """What the body raises while it is cancelled is not hidden."""
    owner = Owner()
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 - the scope is what is tested.
        async with owner.handle:
            owner.handle.revoke(LossReason.DEPOSED)
            try:
                await asyncio.Event().wait()
            finally:
                _ = 1 / 0
    assert owner.exits == 1


@pytest.mark.asyncio
async def test_scope_that_was_lost_before_it_was_entered_is_refused():
    """The body counts as returned already, so it must not begin."""
    owner = Owner()
    owner.handle.revoke(LossReason.DEPOSED)
    await owner.handle.lost
    assert owner.exits == 1
    with pytest.raises(LeadershipLost):
        async with owner.handle:
            pytest.fail("the body began")
    assert owner.exits == 1


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("error", "reason"), [(StaleToken, LossReason.REFUSED), (ServerChanged, LossReason.SERVER_CHANGED)]
)
async def test_R12_refusal_ends_the_scope_at_once(error: type[StaleToken], reason: LossReason):
    """One refusal by the database: no further write is attempted, the member is told."""
    owner = Owner()
    async with owner.handle:
        owner.handle.report_refused(error("refused", resource="payments", held=3, seen=4))
        assert owner.handle.remaining() == 0.0
        await asyncio.Event().wait()
    assert owner.losses == [reason]


@pytest.mark.asyncio
async def test_R14_credential_is_on_the_handle_and_hidden_in_its_text():
    """Every write carries token and nonce; the nonce shows in no repr."""
    owner = Owner()
    assert owner.handle.credential.encode() == "3.secret-nonce"
    assert "secret-nonce" not in repr(owner.handle.credential) + str(owner.handle.credential)
    assert not hasattr(owner.handle, "is_leader")
    owner.handle.abandon()


# -- work that does not return -------------------------------------------------------------------------------------


@pytest.fixture
def _soon_overdue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenure.leadership, "OVERDUE_SECONDS", 0.02)


async def deeper(hung: asyncio.Event, release: asyncio.Event) -> None:
    """Ignores that it is cancelled, as long as the test may take."""
    deadline = time.monotonic() + 5
    while not release.is_set() and time.monotonic() < deadline:
        try:
            hung.set()
            await release.wait()
        except asyncio.CancelledError:
            continue


async def until(holds: object) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - a thread reports, and has no event of this loop.
            await asyncio.sleep(0.005)


@pytest.mark.asyncio
@pytest.mark.usefixtures("_soon_overdue")
async def test_R10_work_that_ignores_its_cancellation_is_reported_with_its_name_and_place(
    caplog: pytest.LogCaptureFixture,
):
    """One line says which task hangs and where, the member is told, and told again when it has returned."""
    owner, hung, release = Owner(), asyncio.Event(), asyncio.Event()

    async def body() -> None:
        async with owner.handle:
            await deeper(hung, release)

    task = asyncio.create_task(body(), name="the-worker")
    await hung.wait()
    owner.handle.revoke(LossReason.DEPOSED)
    await until(lambda: owner.places)
    assert "the-worker in wait (" in owner.places[0]
    assert "term 7 ended (deposed)" in caplog.text
    assert owner.places[0] in caplog.text
    assert owner.exits == 0
    release.set()
    await task
    assert owner.exits == 1
    assert owner.places[1:] == [None]


@pytest.mark.asyncio
@pytest.mark.usefixtures("_soon_overdue")
async def test_R10_work_that_blocks_the_loop_is_reported_with_the_place_where_its_thread_is():
    """Nothing runs on the loop while the report is made."""
    owner = Owner()

    def compute() -> None:
        deadline = time.monotonic() + 5
        while not owner.places and time.monotonic() < deadline:
            time.sleep(0.002)

    async with owner.handle:
        threading.Thread(target=owner.handle.revoke, args=(LossReason.LEASE_EXPIRED,)).start()
        compute()
        await asyncio.sleep(0)
    assert "in compute (" in owner.places[0]


@pytest.mark.asyncio
@pytest.mark.usefixtures("_soon_overdue")
async def test_work_that_returns_in_time_is_not_reported():
    """A scope that ends at once says nothing, whoever ended it."""
    for owner in (Owner(), Owner()):
        async with owner.handle:
            owner.handle.revoke(LossReason.DEPOSED)
            await asyncio.Event().wait()
    ended = Owner()
    async with ended.handle:
        pass
    await asyncio.sleep(0.05)
    assert owner.places == ended.places == []


@pytest.mark.asyncio
@pytest.mark.usefixtures("_soon_overdue")
async def test_work_that_returns_while_it_is_being_reported_does_not_stay_reported(monkeypatch: pytest.MonkeyPatch):
    """The report is made on another thread, which may be slow to find the place."""
    owner, looking, returned = Owner(), threading.Event(), threading.Event()

    def slow_place() -> str:
        looking.set()
        returned.wait(5)
        return "somewhere"

    monkeypatch.setattr(owner.handle, "_place", slow_place)
    async with owner.handle:
        owner.handle.revoke(LossReason.DEPOSED)
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        assert await asyncio.to_thread(looking.wait, 5)
    returned.set()
    await asyncio.to_thread(owner.handle._overdue.join, 5)
    assert owner.places[-1:] in ([], [None])


# -- what a check costs --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_check_costs_a_microsecond_at_most():
    """It is called before every write. The bound leaves room for a busy machine; `make bench-check` measures."""
    from tenure.node.clocks import boottime_ns, raw_ns, read_clocks

    handle = HeldLeadership(
        term=1,
        credential=Credential(token=1, nonce="n"),
        span=LeaseSpan(read_clocks(), 60 * SECOND),
        margin_ns=0,
        clocks=(raw_ns, boottime_ns),
        loop=asyncio.get_running_loop(),
        on_exit=lambda: None,
        on_loss=lambda reason: None,
    )
    best = min(timeit.repeat(handle.check, number=5000, repeat=20)) / 5000
    handle.abandon()
    assert best < 2.5e-6


# -- a forked child ------------------------------------------------------------------------------------------------


def in_child(report: object) -> str:
    """Run ``report`` in a forked child and return the text that it gives."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(5)  # A child that hangs fails the test instead of holding it.
        try:
            os.write(writing, str(report()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    assert os.waitpid(child, 0) == (child, 0)
    return text


def told(call: object) -> str:
    """What ``call`` gives, or the name and text of its error."""
    try:
        return str(call())
    except Exception as error:  # noqa: BLE001 - whatever it is, it is what the test looks at.
        return f"{type(error).__name__}: {error}"


@pytest.mark.asyncio
async def test_handle_is_void_in_a_forked_child_and_says_so():
    """The child can neither read the credential nor pass a check; the parent's leadership goes on."""
    owner = Owner()
    async with owner.handle as leadership:
        # The lock of the handle may be held by another thread at the very moment of the fork.
        with leadership._lock:
            text = in_child(
                lambda: [
                    told(leadership.check),
                    told(lambda: leadership.credential),
                    leadership.remaining(),
                    told(lambda: leadership.renew(LeaseSpan(owner.clock.now, 60 * SECOND))),
                    told(leadership.check),
                    leadership.reason,
                ]
            )
        leadership.check()
        assert leadership.remaining() > 29
        assert leadership.credential.token == 3
    assert text.count("LeadershipLost: leadership of term 7 is over: this process was forked") == 3
    assert ", 0.0, " in text
    assert "<LossReason.FORKED: 'forked'>" in text
