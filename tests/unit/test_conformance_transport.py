"""The transports keep the promises of their protocol, and the suite catches transports that do not."""

from __future__ import annotations

import asyncio
import contextlib
from typing import ClassVar

import pytest

from support.services import free_ports
from support.virtual_cluster import SETTINGS
from tenure.core.founding import PROTOCOL_VERSION, Hello
from tenure.testing import Endpoint, MemoryNetwork, MemoryTransport, TransportConformance
from tenure.transport import Identity, TcpTransport, Transport, TransportHooks

CLUSTER = bytes(range(16))
IDS = {"a": 1, "b": 2, "c": 3}
NAMES = {raft_id: name for name, raft_id in IDS.items()}


class TestTcpTransport(TransportConformance):
    def setup_method(self) -> None:
        self.detours: dict[str, str] = {}
        self.addresses = {name: f"127.0.0.1:{port}" for name, port in zip(IDS, free_ports(3), strict=True)}

    async def open_transport(self, member: int, endpoint: Endpoint, *, incarnation: int) -> Transport:
        name = NAMES[member]
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name="test",
            cluster_id=CLUSTER.hex(),
            name=name,
            directory_id=name,
            incarnation=incarnation,
            member_names=tuple(IDS),
            settings=SETTINGS,
        )
        # A second life of a member that is still there cannot have its address, too.
        peers = {other: address for other, address in self.addresses.items() if other != name} | self.detours
        for listen in (self.addresses[name], "127.0.0.1:0"):
            transport = TcpTransport(
                listen=listen,
                peers=peers,
                hooks=TransportHooks(
                    identity=lambda: Identity(hello, CLUSTER, member),
                    admit=lambda other, _: None if other.cluster_id == CLUSTER.hex() else "another cluster",
                    raft_id_of=IDS.get,
                    on_payload=endpoint.taken,
                ),
            )
            try:
                await transport.start()
            except OSError:
                continue
            return transport
        raise AssertionError("no address to listen on")

    async def open_leftover(self, member: int, endpoint: Endpoint, *, incarnation: int) -> Transport:
        """It reaches member 1 through a relay that takes one connection and no more."""
        host, port = self.addresses["a"].split(":")
        relay = await asyncio.start_server(lambda *ends: self.relay_once(relay, ends, host, int(port)), host, 0)
        self.detours = {"a": f"{host}:{relay.sockets[0].getsockname()[1]}"}
        try:
            return await self.open_transport(member, endpoint, incarnation=incarnation)
        finally:
            self.detours = {}

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

    async def open_transport(self, member: int, endpoint: Endpoint, *, incarnation: int) -> Transport:
        transport = self.transport_class(self.network, member, endpoint.taken)
        await transport.start()
        return transport

    # A life that was replaced stays replaced: this network has no second way to it.
    open_leftover = open_transport


# -- the suite is not blind -------------------------------------------------------------------------------------------


class Reorders(MemoryTransport):
    """Takes the newest payload first."""

    def _deliver(self, peer: int) -> None:
        self._in_flight[peer].reverse()
        super()._deliver(peer)


class Repeats(MemoryTransport):
    def send(self, peer: int, payload: bytes) -> None:
        super().send(peer, payload)
        super().send(peer, payload)


class KeepsForLater(MemoryTransport):
    """A queue for the dead."""

    waiting: ClassVar[list[bytes]] = []

    def send(self, peer: int, payload: bytes) -> None:
        if self._network.present(peer) is None:
            self.dropped_frames += 1
            self.waiting.append(payload)
            return
        while self.waiting:
            super().send(peer, self.waiting.pop(0))
        super().send(peer, payload)


class RaisesForStrangers(MemoryTransport):
    def send(self, peer: int, payload: bytes) -> None:
        if self._network.present(peer) is None:
            raise AssertionError("who is that?")
        super().send(peer, payload)


class KnowsNoBound(MemoryTransport):
    def send(self, peer: int, payload: bytes) -> None:
        self._bytes_in_flight.clear()
        super().send(peer, payload)


class TalksAfterItsEnd(MemoryTransport):
    async def close(self) -> None:
        pass


class IsHeardForEver(MemoryTransport):
    """Every life of a member is as good as another."""

    def send(self, peer: int, payload: bytes) -> None:
        present = self._network.present(self.member)
        self._network._members[self.member] = self
        super().send(peer, payload)
        self._deliver(peer)
        self._in_flight[peer].append((self, b""))
        if present is not None:
            self._network.enter(present)

    def _deliver(self, peer: int) -> None:
        target, payload = self._in_flight[peer].popleft()
        if payload:
            target._on_payload(self.member, payload)


class ClosesOnce(MemoryTransport):
    async def close(self) -> None:
        if self._closed:
            raise AssertionError("closed twice")
        await super().close()


class TrustsTheFirstByte(MemoryTransport):
    """Whoever says that it is member 2 is member 2."""

    def _deliver(self, peer: int) -> None:
        self._in_flight[peer][0][0]._on_payload(2, self._in_flight[peer].popleft()[1])


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
    ],
)
def test_suite_catches_a_transport_when_it_breaks_a_promise(transport_class: type, promise: str):
    """Each broken transport fails the promise that it breaks: a suite that cannot go red proves nothing."""
    suite = TestMemoryTransport()
    suite.setup_method()
    suite.transport_class = transport_class
    with pytest.raises(AssertionError):
        getattr(suite, f"test_{promise}")()


# -- the double itself ------------------------------------------------------------------------------------------------


async def sent_over(network: MemoryNetwork, count: int = 200) -> list[bytes]:
    endpoint = Endpoint()
    one, two = network.transport(1, lambda *_: None), network.transport(2, endpoint.taken)
    await one.start()
    await two.start()
    for number in range(count):
        one.send(2, b"%d" % number)
    await asyncio.sleep(0.02)
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
    ends = {member: Endpoint() for member in (1, 2, 3)}
    transports = {member: network.transport(member, end.taken) for member, end in ends.items()}
    for transport in transports.values():
        await transport.start()

    async def exchange() -> dict[int, list[tuple[int, bytes]]]:
        for end in ends.values():
            end.received.clear()
        for sender, to in ((1, 2), (2, 1), (1, 3), (3, 1)):
            transports[sender].send(to, b"x")
        await asyncio.sleep(0.01)
        return {member: list(end.received) for member, end in ends.items()}

    network.cut(1, 2)
    assert await exchange() == {1: [(2, b"x"), (3, b"x")], 2: [], 3: [(1, b"x")]}
    assert transports[1].connected() == {2, 3}
    network.isolate(1)
    assert await exchange() == {1: [], 2: [], 3: []}
    network.heal()
    assert await exchange() == {1: [(2, b"x"), (3, b"x")], 2: [(1, b"x")], 3: [(1, b"x")]}


@pytest.mark.asyncio
async def test_memory_transport_is_not_started_again_when_it_was_closed():
    """A new life is a new transport."""
    transport = MemoryNetwork().transport(1, lambda *_: None)
    await transport.start()
    await transport.close()
    with pytest.raises(OSError, match="make a new one"):
        await transport.start()
