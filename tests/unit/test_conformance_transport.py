"""The transports keep the promises of their protocol, and the suite catches transports that do not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import pytest

from support.services import free_ports
from tenure.testing import Endpoint, MemoryNetwork, MemoryTransport, TransportConformance
from tenure.testing import transport as suite_of_transports
from tenure.testing.memory_transport import Stream
from tenure.testing.transport import MEMBERS
from tenure.transport import TcpTransport, Transport, TransportHooks
from tenure.transport.greeting import Lives


class TestTcpTransport(TransportConformance):
    def setup_method(self) -> None:
        ports = free_ports(2 * len(MEMBERS))
        self.addresses = {name: f"127.0.0.1:{ports.pop()}" for name in MEMBERS}
        self.other_addresses = {name: f"127.0.0.1:{ports.pop()}" for name in MEMBERS}

    def address_of(self, name: str) -> str:
        return self.addresses[name]

    def other_address_of(self, name: str) -> str:
        return self.other_addresses[name]

    async def open_transport(self, endpoint: Endpoint, *, listen: str, peers: Mapping[str, str]) -> Transport:
        # A second life of a member that is still there cannot have its address, too.
        for address in (listen, "127.0.0.1:0"):
            transport = TcpTransport(listen=address, peers=peers, hooks=endpoint.hooks)
            try:
                await transport.start()
            except OSError:
                continue
            return transport
        raise AssertionError("no address to listen on")

    async def open_leftover(self, endpoint: Endpoint, *, listen: str, peers: Mapping[str, str]) -> Transport:
        """It reaches member ``a`` through a relay that takes one connection and no more."""
        host, port = peers["a"].split(":")
        relay = await asyncio.start_server(lambda *ends: self.relay_once(relay, ends, host, int(port)), host, 0)
        detour = {"a": f"{host}:{relay.sockets[0].getsockname()[1]}"}
        return await self.open_transport(endpoint, listen=listen, peers=dict(peers) | detour)

    async def relay_once(self, relay: asyncio.Server, ends: tuple, host: str, port: int) -> None:
        relay.close()
        reader, writer = ends
        onward_reader, onward_writer = await asyncio.open_connection(host, port)

        async def pass_on(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError), contextlib.closing(target):
                while data := await source.read(1 << 16):
                    target.write(data)
                    await target.drain()

        await asyncio.gather(pass_on(reader, onward_writer), pass_on(onward_reader, writer))


class TestMemoryTransport(TransportConformance):
    transport_class = MemoryTransport

    def setup_method(self) -> None:
        self.network = MemoryNetwork(delay_seconds=(0.0, 0.002))

    def address_of(self, name: str) -> str:
        return name

    def other_address_of(self, name: str) -> str:
        return f"{name}, elsewhere"

    async def open_transport(self, endpoint: Endpoint, *, listen: str, peers: Mapping[str, str]) -> Transport:
        transport = self.transport_class(self.network, listen, endpoint.hooks, peers)
        await transport.start()
        return transport

    # A life that was replaced stays replaced: this network has no second way to it.
    open_leftover = open_transport


# -- the suite is not blind -------------------------------------------------------------------------------------------


class Reorders(MemoryTransport):
    """Takes the newest payload first."""

    def _deliver(self, stream: Stream) -> None:
        stream.in_flight.reverse()
        super()._deliver(stream)


class Repeats(MemoryTransport):
    def send(self, peer: int, payload: bytes) -> None:
        super().send(peer, payload)
        super().send(peer, payload)


class KeepsForLater(MemoryTransport):
    """A queue for the dead."""

    waiting: ClassVar[list[bytes]] = []

    def send(self, peer: int, payload: bytes) -> None:
        if peer not in self.connected():
            self.dropped_frames += 1
            self.waiting.append(payload)
            return
        while self.waiting:
            super().send(peer, self.waiting.pop(0))
        super().send(peer, payload)


class RaisesForStrangers(MemoryTransport):
    def send(self, peer: int, payload: bytes) -> None:
        if peer not in self.connected():
            raise AssertionError("who is that?")
        super().send(peer, payload)


class KnowsNoBound(MemoryTransport):
    def send(self, peer: int, payload: bytes) -> None:
        if peer in self._outgoing:
            self._outgoing[peer].bytes_in_flight = 0
        super().send(peer, payload)


class TalksAfterItsEnd(MemoryTransport):
    async def close(self) -> None:
        pass


class IsHeardForEver(MemoryTransport):
    """Every life of a member is as good as another."""

    def _open(self, stream: Stream) -> None:
        self._outgoing[stream.acceptor_id] = stream

    def _stands(self, stream: Stream) -> bool:
        return True


class ClosesOnce(MemoryTransport):
    async def close(self) -> None:
        if self._closed:
            raise AssertionError("closed twice")
        await super().close()


class TrustsTheFirstByte(MemoryTransport):
    """Whoever says that it is member 2 is member 2."""

    def _deliver(self, stream: Stream) -> None:
        stream.acceptor.hooks.on_payload(2, stream.in_flight.popleft())


class KeepsItsPeers(MemoryTransport):
    def set_peers(self, peers: Mapping[str, str]) -> None:
        self._peers.update(peers)


class IsNotTold(MemoryTransport):
    def set_peers(self, peers: Mapping[str, str]) -> None:
        pass


class OpensAllStreamsAnew(MemoryTransport):
    def set_peers(self, peers: Mapping[str, str]) -> None:
        super().set_peers({})
        super().set_peers(peers)


class StaysAtTheOldAddress(MemoryTransport):
    def set_peers(self, peers: Mapping[str, str]) -> None:
        super().set_peers(dict(peers) | self._peers)


class DialsAfterItsEnd(MemoryTransport):
    def set_peers(self, peers: Mapping[str, str]) -> None:
        super().set_peers(peers)
        for name, address in peers.items():
            self._network._listening[self.address] = self
            self._dial(name, address)


class AsksOnceWhoIsAMember(MemoryTransport):
    def _stands(self, stream: Stream) -> bool:
        return stream.acceptor._incoming.get(stream.dialler_id) is stream


class TellsEachEndTwice(MemoryTransport):
    def _dial(self, name: str, address: str) -> None:
        super()._dial(name, address)
        if self._network.at(address) is None:
            self.hooks.on_gone(MEMBERS[name])


class TellsOfNoEnd(MemoryTransport):
    def _open(self, stream: Stream) -> None:
        self._lives = Lives(self.hooks)
        super()._open(stream)

    def _dial(self, name: str, address: str) -> None:
        if self._network.at(address) is not None:
            super()._dial(name, address)


class AsHooks(MemoryTransport):
    """A transport that asks or tells its member something else than it should."""

    changes: ClassVar[dict[str, Any]] = {}

    def __init__(self, network: MemoryNetwork, address: str, hooks: TransportHooks, peers: Mapping[str, str]) -> None:
        super().__init__(network, address, dataclasses.replace(hooks, **self.changes), peers)


class AdmitsEverybody(AsHooks):
    changes: ClassVar[dict[str, Any]] = {"admit": lambda hello, name: None}


class KeepsHellosToItself(AsHooks):
    changes: ClassVar[dict[str, Any]] = {"on_hello": lambda hello: None}


class WelcomesNobody(AsHooks):
    changes: ClassVar[dict[str, Any]] = {"welcome_for": lambda hello: None}


class TellsOfNoApplicant(AsHooks):
    changes: ClassVar[dict[str, Any]] = {"on_applicant": lambda hello: None}


@pytest.mark.parametrize(
    ("transport_class", "promise"),
    [
        (Reorders, "payloads_arrive_once_and_in_order_when_the_link_is_healthy"),
        (Repeats, "payloads_arrive_once_and_in_order_when_the_link_is_healthy"),
        (KeepsForLater, "payload_is_dropped_and_never_sent_later_when_its_peer_is_not_there"),
        (RaisesForStrangers, "payload_is_dropped_and_counted_when_its_peer_is_unknown_or_oneself"),
        (KnowsNoBound, "payloads_are_dropped_when_the_peer_does_not_keep_up"),
        (TalksAfterItsEnd, "nothing_is_delivered_or_sent_when_the_transport_is_closed"),
        (IsHeardForEver, "newer_stream_replaces_the_older_when_both_are_open"),
        (ClosesOnce, "close_does_nothing_when_it_is_called_again_or_at_once"),
        (TrustsTheFirstByte, "each_sender_is_told_apart_when_several_send"),
        (KeepsItsPeers, "stream_ends_at_once_and_others_stay_when_a_peer_is_no_longer_named"),
        (OpensAllStreamsAnew, "stream_ends_at_once_and_others_stay_when_a_peer_is_no_longer_named"),
        (IsNotTold, "peer_is_dialled_when_it_is_named_later"),
        (StaysAtTheOldAddress, "peer_is_found_when_its_address_changes"),
        (DialsAfterItsEnd, "set_peers_does_nothing_when_the_transport_is_closed"),
        (AsksOnceWhoIsAMember, "streams_end_when_their_member_is_no_member_any_more"),
        (TellsEachEndTwice, "member_that_comes_back_is_told_gone_once_when_it_is_another_life"),
        (TellsOfNoEnd, "member_that_comes_back_is_told_gone_once_when_it_is_another_life"),
        (AdmitsEverybody, "nothing_is_exchanged_when_one_side_does_not_admit_the_other"),
        (KeepsHellosToItself, "new_directories_hear_each_other_and_exchange_nothing_when_none_is_founded"),
        (WelcomesNobody, "applicant_is_told_of_and_welcomed_when_a_member_has_a_welcome_for_it"),
        (TellsOfNoApplicant, "applicant_is_told_of_and_welcomed_when_a_member_has_a_welcome_for_it"),
    ],
)
def test_suite_catches_a_transport_when_it_breaks_a_promise(
    transport_class: type, promise: str, monkeypatch: pytest.MonkeyPatch
):
    """Each broken transport fails the promise that it breaks: a suite that cannot go red proves nothing."""
    # A promise that is never kept is noticed at the deadline, which is long where transports are slow.
    monkeypatch.setattr(suite_of_transports, "DEADLINE_SECONDS", 1.0)
    suite = TestMemoryTransport()
    suite.setup_method()
    suite.transport_class = transport_class
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{promise}")()


# -- the double itself ------------------------------------------------------------------------------------------------


async def opened(network: MemoryNetwork, *names: str) -> list[tuple[Transport, Endpoint]]:
    """Members of one network that are all connected."""
    ends = [Endpoint(name) for name in names]
    opened = [
        network.transport(end.name, end.hooks, {other: other for other in names if other != end.name}) for end in ends
    ]
    for transport in opened:
        await transport.start()
    async with asyncio.timeout(10):
        while not all(len(transport.connected()) == len(names) - 1 for transport in opened):  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    return list(zip(opened, ends, strict=True))


async def sent_over(network: MemoryNetwork, count: int = 200) -> list[bytes]:
    (one, _), (two, endpoint) = await opened(network, "a", "b")
    for number in range(count):
        one.send(2, b"%d" % number)
    await asyncio.sleep(0.02)
    await one.close()
    await two.close()
    return endpoint.of(1)


@pytest.mark.asyncio
async def test_memory_network_loses_the_same_payloads_when_its_seed_is_the_same():
    """So that a run can be had again."""
    runs = [await sent_over(MemoryNetwork(seed=seed, loss=0.3)) for seed in (5, 5, 6)]
    assert runs[0] == runs[1] != runs[2]
    assert 80 < len(runs[0]) < 180


@pytest.mark.asyncio
async def test_memory_network_keeps_the_order_of_a_pair_when_delays_differ():
    """A stream is ordered however long each of its payloads takes."""
    assert await sent_over(MemoryNetwork(delay_seconds=(0.0, 0.01))) == [b"%d" % number for number in range(200)]


@pytest.mark.asyncio
async def test_memory_network_is_silent_in_one_direction_when_that_is_cut():
    """An asymmetric partition: both sides still believe that they are connected."""
    network = MemoryNetwork()
    members = dict(zip("abc", await opened(network, "a", "b", "c"), strict=True))

    async def exchange() -> dict[str, list[tuple[int, bytes]]]:
        for _, end in members.values():
            end.received.clear()
        for sender, to in (("a", 2), ("b", 1), ("a", 3), ("c", 1)):
            members[sender][0].send(to, b"x")
        await asyncio.sleep(0.01)
        return {name: list(end.received) for name, (_, end) in members.items()}

    network.cut("a", "b")
    assert await exchange() == {"a": [(2, b"x"), (3, b"x")], "b": [], "c": [(1, b"x")]}
    assert members["a"][0].connected() == {2, 3}
    network.isolate("a")
    assert await exchange() == {"a": [], "b": [], "c": []}
    network.heal()
    assert await exchange() == {"a": [(2, b"x"), (3, b"x")], "b": [(1, b"x")], "c": [(1, b"x")]}
    for transport, _ in members.values():
        await transport.close()


@pytest.mark.asyncio
async def test_memory_transport_is_not_started_again_when_it_was_closed():
    """A new life is a new transport."""
    transport = MemoryNetwork().transport("a", Endpoint("a").hooks, {})
    await transport.start()
    await transport.close()
    with pytest.raises(OSError, match="make a new one"):
        await transport.start()
