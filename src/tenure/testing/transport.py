"""The promises of :class:`tenure.transport.Transport`, as a suite that any transport can be run through.

Every test runs on an event loop of its own with a deadline; no plugin of a test runner is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import SkipTest

from tenure.testing.expectations import expect, expect_equal
from tenure.transport import Transport

DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.005
_STRANGER = 77

Suite = TypeVar("Suite", bound="TransportConformance")


@dataclass
class Endpoint:
    """A transport and what its callback was given, in order. Hand ``taken`` to the transport as ``on_payload``."""

    received: list[tuple[int, bytes]] = field(default_factory=list)

    def taken(self, sender: int, payload: bytes) -> None:
        """The callback."""
        self.received.append((sender, payload))

    def of(self, sender: int) -> list[bytes]:
        """The payloads of one sender."""
        return [payload for member, payload in self.received if member == sender]


def _on_a_loop(test: Callable[[Suite], Coroutine[Any, Any, None]]) -> Callable[[Suite], None]:
    @functools.wraps(test)
    def run(self: Suite) -> None:
        async def guarded() -> None:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await test(self)

        asyncio.run(guarded())

    return run


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - whatever transport it is, it tells of nothing but payloads.
        await asyncio.sleep(_POLL_SECONDS)


class TransportConformance:
    """Each ``test_`` method is one promise. The members are 1, 2 and 3."""

    # -- what a subclass says about its transport --------------------------------------------------------------------

    async def open_transport(self, member: int, endpoint: Endpoint, *, incarnation: int) -> Transport:
        """A started transport of ``member`` that knows the other two and gives payloads to ``endpoint.taken``."""
        raise NotImplementedError

    async def open_leftover(self, member: int, endpoint: Endpoint, *, incarnation: int) -> Transport:
        """The same, of a life that is about to be replaced: its streams, once ended, cannot be opened again.

        Without it the test of the newer stream is skipped.
        """
        raise SkipTest("open_leftover is not overridden")

    # -- helpers of the suite ----------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _opened(self, member: int, *, incarnation: int = 1) -> AsyncIterator[tuple[Transport, Endpoint]]:
        endpoint = Endpoint()
        transport = await self.open_transport(member, endpoint, incarnation=incarnation)
        try:
            yield transport, endpoint
        finally:
            await transport.close()

    async def _deliver(self, sender: Transport, to: int, endpoint: Endpoint, payload: bytes) -> None:
        """Send until it arrives: a transport may lose a payload, and a healthy one does not lose them all."""
        while not any(found == payload for _, found in endpoint.received):
            sender.send(to, payload)
            await asyncio.sleep(_POLL_SECONDS)

    # -- what arrives --------------------------------------------------------------------------------------------------

    @_on_a_loop
    async def test_payloads_arrive_once_and_in_order_when_the_link_is_healthy(self) -> None:
        """In both directions at once, and each under its sender's number."""
        async with self._opened(1) as (one, at_one), self._opened(2) as (two, at_two):
            await _until(lambda: 2 in one.connected() and 1 in two.connected())
            payloads = [b"%d" % number for number in range(500)]
            for payload in payloads:
                one.send(2, payload)
                two.send(1, payload)
            await _until(lambda: len(at_one.received) >= 500 and len(at_two.received) >= 500)
            expect_equal(at_two.received, [(1, payload) for payload in payloads], "payloads arrive once and in order")
            expect_equal(at_one.received, [(2, payload) for payload in payloads], "payloads arrive once and in order")

    @_on_a_loop
    async def test_payload_arrives_as_it_was_sent_when_it_is_empty_or_large(self) -> None:
        """4 MiB, every value of a byte, and nothing at all."""
        large = bytes(range(256)) * (4 << 12)
        async with self._opened(1) as (one, _), self._opened(2) as (_, at_two):
            await _until(lambda: 2 in one.connected())
            for payload in (b"", large, b"after"):
                one.send(2, payload)
            await _until(lambda: len(at_two.received) >= 3)
            expect(at_two.of(1) == [b"", large, b"after"], "a payload arrives byte for byte")

    @_on_a_loop
    async def test_each_sender_is_told_apart_when_several_send(self) -> None:
        """The number comes from the connection, never from the payload."""
        async with self._opened(1) as (_, at_one), self._opened(2) as (two, _), self._opened(3) as (three, _):
            await _until(lambda: 1 in two.connected() and 1 in three.connected())
            for number in range(50):
                two.send(1, b"two %d" % number)
                three.send(1, b"three %d" % number)
            await _until(lambda: len(at_one.received) >= 100)
            expect_equal(at_one.of(2), [b"two %d" % number for number in range(50)], "what member 2 sent")
            expect_equal(at_one.of(3), [b"three %d" % number for number in range(50)], "what member 3 sent")

    # -- what is dropped -----------------------------------------------------------------------------------------------

    @_on_a_loop
    async def test_payload_is_dropped_and_counted_when_its_peer_is_unknown_or_oneself(self) -> None:
        """No error, no wait: Raft repeats what matters."""
        async with self._opened(1) as (one, at_one), self._opened(2) as (_, at_two):
            await _until(lambda: 2 in one.connected())
            before = one.dropped_frames
            one.send(_STRANGER, b"to a stranger")
            one.send(1, b"to oneself")
            await self._deliver(one, 2, at_two, b"to a member")
            expect(one.dropped_frames >= before + 2, "what is dropped is counted")
            expect_equal((at_one.received, {p for _, p in at_two.received}), ([], {b"to a member"}), "nobody got it")

    @_on_a_loop
    async def test_payload_is_dropped_and_never_sent_later_when_its_peer_is_not_there(self) -> None:
        """A queue for the dead would deliver the past to the living."""
        async with self._opened(1) as (one, _):
            before = one.dropped_frames
            one.send(2, b"too early")
            expect_equal(one.dropped_frames, before + 1, "what is dropped is counted")
            expect(2 not in one.connected(), "a member that is not there is not connected")
            async with self._opened(2) as (_, at_two):
                await self._deliver(one, 2, at_two, b"in time")
                expect(b"too early" not in at_two.of(1), "what was dropped is not sent later")

    @_on_a_loop
    async def test_payloads_are_dropped_when_the_peer_does_not_keep_up(self) -> None:
        """64 MiB in one go: memory is bounded, and what arrives is still in order."""
        async with self._opened(1) as (one, _), self._opened(2) as (_, at_two):
            await _until(lambda: 2 in one.connected())
            for number in range(64):
                one.send(2, bytes([number]) + bytes(1 << 20))
            expect(one.dropped_frames > 0, "a queue without a bound")
            await self._deliver(one, 2, at_two, b"\xffthe last one")
            heads = [payload[0] for payload in at_two.of(1) if payload[0] != 0xFF]
            expect_equal(heads, sorted(set(heads)), "what arrives is in order, each once")
            expect(len(heads) + one.dropped_frames >= 64, "what does not arrive is counted")

    # -- streams that end ----------------------------------------------------------------------------------------------

    @_on_a_loop
    async def test_member_is_heard_again_when_it_comes_back(self) -> None:
        """The others connect by themselves, and nothing of its earlier life arrives after the first of the new one."""
        async with self._opened(1) as (one, at_one):
            async with self._opened(2) as (two, _):
                await _until(lambda: 1 in two.connected() and 2 in one.connected())
                for number in range(200):
                    two.send(1, b"old %d" % number)
            await _until(lambda: 2 not in one.connected())
            async with self._opened(2, incarnation=2) as (two, at_two):
                await self._deliver(two, 1, at_one, b"new")
                await self._deliver(one, 2, at_two, b"to the new life")
                await asyncio.sleep(10 * _POLL_SECONDS)
                payloads = at_one.of(2)
                old = [payload for payload in payloads if payload != b"new"]
                expect_equal(payloads[: len(old)], old, "nothing of an earlier life arrives after the newer one spoke")
                expect_equal(old, [b"old %d" % number for number in range(len(old))], "the earlier life, in order")

    @_on_a_loop
    async def test_newer_stream_replaces_the_older_when_both_are_open(self) -> None:
        """Two lives of one member, the earlier still there: once the newer was heard, the older is not heard again."""
        async with self._opened(1) as (_, at_one):
            older = await self.open_leftover(2, Endpoint(), incarnation=1)
            try:
                await self._deliver(older, 1, at_one, b"older")
                async with self._opened(2, incarnation=2) as (newer, _):
                    await self._deliver(newer, 1, at_one, b"newer")
                    heard = at_one.of(2).count(b"older")
                    for _ in range(20):
                        older.send(1, b"older")
                        newer.send(1, b"newer")
                        await asyncio.sleep(_POLL_SECONDS)
                    expect_equal(at_one.of(2).count(b"older"), heard, "an older stream is dropped once a newer spoke")
                    expect(at_one.of(2).count(b"newer") > 1, "the newer stream goes on")
            finally:
                await older.close()

    @_on_a_loop
    async def test_nothing_is_delivered_or_sent_when_the_transport_is_closed(self) -> None:
        """Its owner may be gone: no callback into it, no error from it."""
        async with self._opened(1) as (one, at_one), self._opened(2) as (two, at_two):
            await _until(lambda: 2 in one.connected() and 1 in two.connected())
            await one.close()
            expect_equal(one.connected(), set(), "a closed transport is connected to nobody")
            before = len(at_one.received), one.dropped_frames
            one.send(2, b"from the closed one")
            two.send(1, b"to the closed one")
            await _until(lambda: 1 not in two.connected())
            await asyncio.sleep(10 * _POLL_SECONDS)
            expect_equal((len(at_one.received), one.dropped_frames), (before[0], before[1] + 1), "closed is closed")
            expect_equal(at_two.received, [], "nothing leaves a closed transport")

    @_on_a_loop
    async def test_close_does_nothing_when_it_is_called_again_or_at_once(self) -> None:
        """Twice, at the same time, before anybody was met: each returns."""
        async with self._opened(1) as (one, _), self._opened(2) as (two, _):
            await one.close()
            await one.close()
            await asyncio.gather(two.close(), two.close())
        async with self._opened(3) as (three, _):
            await three.close()
