"""The promises of :class:`tenure.transport.Transport`, as a suite that any transport can be run through.

Every test runs on an event loop of its own with a deadline; no plugin of a test runner is needed.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import SkipTest

from tenure.core.commands import MemberRecord, Settings
from tenure.core.founding import PROTOCOL_VERSION, RECORD_FORMAT, Hello, Welcome
from tenure.core.fsm import ClusterRecord, Membership
from tenure.testing.expectations import expect, expect_equal
from tenure.transport import Identity, Transport, TransportHooks

DEADLINE_SECONDS = 20.0
_POLL_SECONDS = 0.005
_STRANGER = 77
_CLUSTER = bytes(range(16))
MEMBERS = {"a": 1, "b": 2, "c": 3}
_SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)

Suite = TypeVar("Suite", bound="TransportConformance")


@dataclass
class Endpoint:
    """A member as its transport sees it: what it answers, and what it was told, in order.

    Hand ``hooks`` to the transport. A test may change what it answers at any time.
    """

    name: str
    incarnation: int = 1
    #: False while its directory is new: it says hello, and takes no payloads.
    founded: bool = True
    members: dict[str, int] = field(default_factory=lambda: dict(MEMBERS))
    #: Names that it does not admit, although they are members.
    refused: set[str] = field(default_factory=set)
    welcome: Welcome | None = None
    received: list[tuple[int, bytes]] = field(default_factory=list)
    hellos: list[Hello] = field(default_factory=list)
    applicants: list[Hello] = field(default_factory=list)
    gone: list[int] = field(default_factory=list)

    @property
    def hooks(self) -> TransportHooks:
        """What its transport asks and tells it."""
        return TransportHooks(
            identity=self._identity,
            admit=self._admit,
            raft_id_of=lambda name: self.members.get(name) if self.founded else None,
            on_payload=lambda sender, payload: self.received.append((sender, payload)),
            on_hello=self.hellos.append,
            on_applicant=self.applicants.append,
            on_gone=self.gone.append,
            welcome_for=lambda _: self.welcome,
        )

    def of(self, sender: int) -> list[bytes]:
        """The payloads of one sender."""
        return [payload for member, payload in self.received if member == sender]

    def _identity(self) -> Identity:
        cluster = _CLUSTER if self.founded else bytes(16)
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name="conformance",
            cluster_id=cluster.hex() if self.founded else "",
            name=self.name,
            directory_id=f"directory of {self.name}",
            incarnation=self.incarnation,
            member_names=tuple(self.members),
            settings=_SETTINGS,
        )
        return Identity(hello, cluster, self.members.get(self.name, 0))

    def _admit(self, hello: Hello, expected: str | None) -> str | None:
        if not self.founded or not hello.cluster_id:
            return "not founded yet"
        if hello.name in self.refused or expected not in (None, hello.name):
            return f"{hello.name} is not admitted"
        return None


def _on_a_loop(test: Callable[[Suite], Coroutine[Any, Any, None]]) -> Callable[[Suite], None]:
    @functools.wraps(test)
    def run(self: Suite) -> None:
        async def guarded() -> None:
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await test(self)
            except TimeoutError:
                raise AssertionError(f"{test.__name__}: not so within {DEADLINE_SECONDS:g} s") from None

        asyncio.run(guarded())

    return run


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - whatever transport it is, it tells of nothing but payloads.
        await asyncio.sleep(_POLL_SECONDS)


class TransportConformance:
    """Each ``test_`` method is one promise. The members are ``a``, ``b`` and ``c``, with the raft ids 1, 2 and 3."""

    # -- what a subclass says about its transport --------------------------------------------------------------------

    def address_of(self, name: str) -> str:
        """Where the transport of that member listens in this test; the same at every call."""
        raise NotImplementedError

    def other_address_of(self, name: str) -> str:
        """A second address that it can listen at."""
        raise NotImplementedError

    async def open_transport(self, endpoint: Endpoint, *, listen: str, peers: Mapping[str, str]) -> Transport:
        """A started transport with ``endpoint.hooks`` that listens at one address and dials those of ``peers``.

        Where ``listen`` is still taken by an earlier life of the same member, it listens anywhere else.
        """
        raise NotImplementedError

    async def open_leftover(self, endpoint: Endpoint, *, listen: str, peers: Mapping[str, str]) -> Transport:
        """The same, of a life that is about to be replaced: its streams, once ended, cannot be opened again.

        Without it the test of the newer stream is skipped.
        """
        raise SkipTest("open_leftover is not overridden")

    # -- helpers of the suite ----------------------------------------------------------------------------------------

    def _peers_of(self, name: str) -> dict[str, str]:
        return {other: self.address_of(other) for other in MEMBERS if other != name}

    @contextlib.asynccontextmanager
    async def _opened(
        self,
        endpoint: Endpoint | str,
        *,
        incarnation: int = 1,
        listen: str | None = None,
        peers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[tuple[Transport, Endpoint]]:
        if isinstance(endpoint, str):
            endpoint = Endpoint(endpoint, incarnation)
        transport = await self.open_transport(
            endpoint,
            listen=listen or self.address_of(endpoint.name),
            peers=self._peers_of(endpoint.name) if peers is None else peers,
        )
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
        async with self._opened("a") as (one, at_one), self._opened("b") as (two, at_two):
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
        async with self._opened("a") as (one, _), self._opened("b") as (_, at_two):
            await _until(lambda: 2 in one.connected())
            for payload in (b"", large, b"after"):
                one.send(2, payload)
            await _until(lambda: len(at_two.received) >= 3)
            expect(at_two.of(1) == [b"", large, b"after"], "a payload arrives byte for byte")

    @_on_a_loop
    async def test_each_sender_is_told_apart_when_several_send(self) -> None:
        """The number comes from the connection, never from the payload."""
        async with self._opened("a") as (_, at_one), self._opened("b") as (two, _), self._opened("c") as (three, _):
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
        async with self._opened("a") as (one, at_one), self._opened("b") as (_, at_two):
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
        async with self._opened("a") as (one, _):
            before = one.dropped_frames
            one.send(2, b"too early")
            expect_equal(one.dropped_frames, before + 1, "what is dropped is counted")
            expect(2 not in one.connected(), "a member that is not there is not connected")
            async with self._opened("b") as (_, at_two):
                await self._deliver(one, 2, at_two, b"in time")
                expect(b"too early" not in at_two.of(1), "what was dropped is not sent later")

    @_on_a_loop
    async def test_payloads_are_dropped_when_the_peer_does_not_keep_up(self) -> None:
        """64 MiB in one go: memory is bounded, and what arrives is still in order."""
        async with self._opened("a") as (one, _), self._opened("b") as (_, at_two):
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
        async with self._opened("a") as (one, at_one):
            async with self._opened("b") as (two, _):
                await _until(lambda: 1 in two.connected() and 2 in one.connected())
                for number in range(200):
                    two.send(1, b"old %d" % number)
            await _until(lambda: 2 not in one.connected())
            async with self._opened("b", incarnation=2) as (two, at_two):
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
        async with self._opened("a") as (_, at_one):
            older = await self.open_leftover(Endpoint("b"), listen=self.address_of("b"), peers=self._peers_of("b"))
            try:
                await self._deliver(older, 1, at_one, b"older")
                async with self._opened("b", incarnation=2) as (newer, _):
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
        async with self._opened("a") as (one, at_one), self._opened("b") as (two, at_two):
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
        async with self._opened("a") as (one, _), self._opened("b") as (two, _):
            await one.close()
            await one.close()
            await asyncio.gather(two.close(), two.close())
        async with self._opened("c") as (three, _):
            await three.close()

    # -- members that come and go --------------------------------------------------------------------------------------

    @_on_a_loop
    async def test_stream_ends_at_once_and_others_stay_when_a_peer_is_no_longer_named(self) -> None:
        """And it begins again when the peer is named again."""
        async with self._opened("a") as (one, _), self._opened("b") as (_, at_two), self._opened("c") as (_, at_three):
            await _until(lambda: one.connected() == {2, 3})
            one.send(3, b"before")
            one.set_peers({"c": self.address_of("c")})
            expect_equal(one.connected(), {3}, "a peer that is not named is not connected")
            before = one.dropped_frames
            one.send(2, b"to nobody")
            expect_equal(one.dropped_frames, before + 1, "what is sent to a peer that is not named is dropped")
            one.send(3, b"after")
            await _until(lambda: len(at_three.received) >= 2)
            expect_equal(at_three.received, [(1, b"before"), (1, b"after")], "the other stream stays as it is")
            one.set_peers(self._peers_of("a"))
            await self._deliver(one, 2, at_two, b"named again")
            expect(b"to nobody" not in at_two.of(1), "what was dropped is not sent later")

    @_on_a_loop
    async def test_peer_is_dialled_when_it_is_named_later(self) -> None:
        """A transport may begin without any."""
        async with self._opened("a", peers={}) as (one, _), self._opened("b", peers={}) as (two, at_two):
            await asyncio.sleep(10 * _POLL_SECONDS)
            expect_equal((one.connected(), two.connected()), (set(), set()), "who is not named is not dialled")
            one.set_peers({"b": self.address_of("b")})
            await self._deliver(one, 2, at_two, b"hello")
            expect_equal(two.connected(), set(), "a stream goes one way")

    @_on_a_loop
    async def test_peer_is_found_when_its_address_changes(self) -> None:
        """It moved: from then on the stream goes to the new address, though the old one still answers."""
        moved = Endpoint("b", incarnation=2)
        async with (
            self._opened("a") as (one, _),
            self._opened("b", peers={}) as (_, at_old),
            self._opened(moved, listen=self.other_address_of("b"), peers={}) as (_, at_new),
        ):
            await self._deliver(one, 2, at_old, b"old")
            one.set_peers({"b": self.other_address_of("b")})
            before = len(at_old.received)
            await self._deliver(one, 2, at_new, b"new")
            await asyncio.sleep(10 * _POLL_SECONDS)
            expect_equal(len(at_old.received), before, "nothing goes to an address that changed")

    @_on_a_loop
    async def test_set_peers_does_nothing_when_the_transport_is_closed(self) -> None:
        """Its member may hear of a change on its way out."""
        async with self._opened("a", peers={}) as (one, at_one), self._opened("b", peers={}) as (_, at_two):
            await one.close()
            one.set_peers(self._peers_of("a"))
            await asyncio.sleep(10 * _POLL_SECONDS)
            expect_equal((one.connected(), at_one.hellos, at_two.received), (set(), [], []), "closed is closed")

    @_on_a_loop
    async def test_streams_end_when_their_member_is_no_member_any_more(self) -> None:
        """In both directions, whether they send or not; as a new member with a new raft id it is heard again."""
        async with (
            self._opened("a") as (one, at_one),
            self._opened("b") as (two, at_two),
            self._opened("c") as (three, _),
        ):
            await _until(lambda: one.connected() == {2, 3} and 1 in two.connected() and 1 in three.connected())
            del at_one.members["b"], at_one.members["c"]
            two.send(1, b"from no member")
            await _until(lambda: not one.connected() and 1 not in two.connected() | three.connected())
            expect_equal(at_one.received, [], "payloads of those who are no members are not taken")
            at_one.members["b"] = at_two.members["b"] = 9
            await _until(lambda: 9 in one.connected() and 1 in two.connected())
            await self._deliver(two, 1, at_one, b"from a new member")
            expect_equal({sender for sender, _ in at_one.received}, {9}, "the sender is the member that it is now")

    @_on_a_loop
    async def test_member_that_comes_back_is_told_gone_once_when_it_is_another_life(self) -> None:
        """Whether it was seen to be away or not; and one that was never reached is not gone."""
        async with self._opened("a") as (one, at_one):
            async with self._opened("b"):
                await _until(lambda: 2 in one.connected())
            async with self._opened("b", incarnation=2):
                await _until(lambda: 2 in one.connected() and bool(at_one.gone))
                expect_equal(at_one.gone, [2], "the end of a life is told once")

    # -- who is let in -------------------------------------------------------------------------------------------------

    @_on_a_loop
    async def test_nothing_is_exchanged_when_one_side_does_not_admit_the_other(self) -> None:
        """Whichever side it is."""
        strict = Endpoint("a", refused={"b"})
        async with self._opened(strict) as (one, at_one), self._opened("b") as (two, at_two), self._opened("c"):
            await _until(lambda: 3 in one.connected() and 3 in two.connected())
            for _ in range(20):
                one.send(2, b"x")
                two.send(1, b"x")
                await asyncio.sleep(_POLL_SECONDS)
            expect_equal(one.connected(), {3}, "who is not admitted is not connected")
            expect_equal((at_one.of(2), at_two.of(1)), ([], []), "who is not admitted exchanges nothing")

    @_on_a_loop
    async def test_new_directories_hear_each_other_and_exchange_nothing_when_none_is_founded(self) -> None:
        """So a cluster can be founded; from then on payloads flow, without a new start."""
        ends = [Endpoint(name, founded=False) for name in ("a", "b")]
        async with self._opened(ends[0]) as (one, at_one), self._opened(ends[1]) as (two, at_two):
            await _until(lambda: bool(at_one.hellos) and bool(at_two.hellos))
            expect_equal({(h.name, h.cluster_id) for h in at_one.hellos}, {("b", "")}, "the hello of the peer")
            expect_equal((one.connected(), two.connected()), (set(), set()), "nothing is open before the founding")
            at_one.founded = at_two.founded = True
            await self._deliver(one, 2, at_two, b"founded")
            await self._deliver(two, 1, at_one, b"founded")

    @_on_a_loop
    async def test_applicant_is_told_of_and_welcomed_when_a_member_has_a_welcome_for_it(self) -> None:
        """It hears who belongs to the cluster; it exchanges no payload before it has joined."""
        welcome = self._welcome()
        async with self._opened("a") as (one, at_one), self._opened(Endpoint("c", founded=False)) as (_, at_three):
            await _until(lambda: bool(at_one.applicants) and bool(at_three.hellos))
            expect_equal({h.welcome for h in at_three.hellos if h.name == "a"}, {None}, "no welcome, none told")
            at_one.welcome = welcome
            await _until(lambda: at_three.hellos[-1].welcome is not None)
            expect_equal(at_three.hellos[-1].welcome, welcome, "the welcome arrives as it is")
            expect_equal({h.name for h in at_one.applicants}, {"c"}, "who applies")
            expect_equal((3 in one.connected(), at_one.received), (False, []), "an applicant exchanges nothing")

    def _welcome(self) -> Welcome:
        members = tuple(
            MemberRecord(raft_id=raft_id, name=name, directory_id=f"directory of {name}")
            for name, raft_id in MEMBERS.items()
        )
        record = ClusterRecord(
            format=RECORD_FORMAT,
            cluster_name="conformance",
            cluster_id=_CLUSTER.hex(),
            lineage="conformance",
            members=members,
            settings=_SETTINGS,
        )
        return Welcome(record, Membership(index=0, members=members, voters=tuple(MEMBERS.values())))
