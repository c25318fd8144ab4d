"""The leadership scope: what the body sees when leadership ends, and what the node is told."""

from __future__ import annotations

import asyncio

import pytest

from tenure import Credential, HeldLeadership, LeadershipLost, LossReason, ServerChanged, StaleToken
from tenure.instants import LeaseSpan, Reading

SECOND = 1_000_000_000


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = Reading(0, 0)

    def __call__(self) -> Reading:
        return self.now

    def move(self, seconds: float) -> None:
        ns = int(seconds * SECOND)
        self.now = Reading(self.now.raw_ns + ns, self.now.boottime_ns + ns)


class Owner:
    """Takes what the handle tells its member."""

    def __init__(self, *, duration: float = 30.0) -> None:
        self.clock = Clock()
        self.exits = 0
        self.losses: list[LossReason] = []
        self.handle = HeldLeadership(
            term=7,
            credential=Credential(token=3, nonce="secret-nonce"),
            span=LeaseSpan(self.clock.now, int(duration * SECOND)),
            margin_ns=SECOND // 50,
            clock=self.clock,
            loop=asyncio.get_running_loop(),
            on_exit=self._exit,
            on_loss=self.losses.append,
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
