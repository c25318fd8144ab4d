"""A network in memory between members on one event loop: it delays, loses, cuts and resets as a test says.

::

    dial --> hello, answer (the judgement of the real transport) --> a stream: payloads one way, in order

Seeded: the same calls in the same order lose the same payloads. Like TCP it keeps the order of each stream, whatever
the delays, and like the real transport it drops what a slow or silent peer does not take.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from tenure.transport import TransportHooks
from tenure.transport.greeting import Lives, NotAdmitted, answer_hello, hear_refusal, judge_answer

#: Bytes that may be on their way on one stream; more are dropped.
IN_FLIGHT_LIMIT = 16 << 20
#: How often a member dials whom it is not connected to.
DIAL_SECONDS = 0.005


class MemoryNetwork:
    """What the transports of a test share. An address is any text."""

    def __init__(self, *, seed: int = 0, loss: float = 0.0, delay_seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        """``loss`` is the share of payloads that vanish; each waits between the two ``delay_seconds``."""
        self.loss = loss
        self.delay_seconds = delay_seconds
        self._random = random.Random(seed)  # noqa: S311 - replayable on purpose.
        self._listening: dict[str, MemoryTransport] = {}
        self._cut: set[tuple[str, str]] = set()

    def transport(self, address: str, hooks: TransportHooks, peers: Mapping[str, str]) -> MemoryTransport:
        """A transport that will listen at ``address``; who is started last at an address is the one that is there."""
        return MemoryTransport(self, address, hooks, peers)

    def cut(self, sender: str, to: str) -> None:
        """Let nothing through from member ``sender`` to ``to``, silently: open streams still look open."""
        self._cut.add((sender, to))

    def isolate(self, member: str) -> None:
        """Cut both directions between ``member`` and every other one that was started."""
        for other in self._listening.values():
            self._cut |= {(member, other.name), (other.name, member)}

    def heal(self) -> None:
        """Undo every cut."""
        self._cut.clear()

    # -- for the transports ------------------------------------------------------------------------------------------

    def enter(self, transport: MemoryTransport) -> None:
        """``transport`` listens at its address from now on; who was there before cannot be reached any more."""
        older = self._listening.get(transport.address)
        self._listening[transport.address] = transport
        if older is not None:
            older.hear_no_more()

    def leave(self, transport: MemoryTransport) -> None:
        """``transport`` was closed."""
        if self.at(transport.address) is transport:
            del self._listening[transport.address]

    def at(self, address: str) -> MemoryTransport | None:
        """Who listens at ``address``."""
        return self._listening.get(address)

    def loses(self) -> bool:
        """Whether the next payload vanishes."""
        return self._random.random() < self.loss

    def delay(self) -> float:
        """How many seconds the next payload waits."""
        return self._random.uniform(*self.delay_seconds)

    def is_cut(self, sender: str, to: str) -> bool:
        """Whether nothing gets through from ``sender`` to ``to``."""
        return (sender, to) in self._cut


@dataclass(eq=False)
class Stream:
    """What ``dialler`` sends to ``acceptor``; each knows the other under a name and a raft id."""

    dialler: MemoryTransport
    acceptor: MemoryTransport
    acceptor_id: int
    dialler_id: int
    in_flight: deque[bytes] = field(default_factory=deque)
    bytes_in_flight: int = 0
    last_due: float = 0.0


class MemoryTransport:
    """See :class:`tenure.transport.Transport`."""

    def __init__(
        self, network: MemoryNetwork, address: str, hooks: TransportHooks, peers: Mapping[str, str] | None = None
    ) -> None:
        self.address = address
        self.hooks = hooks
        self.dropped_frames = 0
        self._network = network
        self._peers = dict(peers or {})
        self._lives = Lives(hooks)
        self._outgoing: dict[int, Stream] = {}
        self._incoming: dict[int, Stream] = {}
        self._dialling: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def name(self) -> str:
        """The name by which this member presents itself."""
        return self.hooks.identity().hello.name

    async def start(self) -> int:
        """See :meth:`Transport.start`; the number says nothing."""
        if self._closed:
            raise OSError("this transport was closed: make a new one")
        self._network.enter(self)
        self._dialling = asyncio.create_task(self._keep_dialling())
        return 0

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """See :meth:`Transport.set_peers`."""
        gone = {name for name, address in self._peers.items() if peers.get(name) != address}
        self._peers = dict(peers)
        for stream in list(self._outgoing.values()):
            if stream.acceptor.name in gone:
                self._end(stream)
        for name in gone - set(peers):
            self._lives.forget(name)

    def send(self, peer: int, payload: bytes) -> None:
        """See :meth:`Transport.send`."""
        stream = self._outgoing.get(peer)
        if stream is None or len(payload) > IN_FLIGHT_LIMIT - stream.bytes_in_flight:
            self.dropped_frames += 1
            return
        if self._network.loses():
            return
        loop = asyncio.get_running_loop()
        stream.last_due = max(loop.time() + self._network.delay(), stream.last_due)
        stream.bytes_in_flight += len(payload)
        stream.in_flight.append(payload)
        # Timers that are due at one instant run in any order: each takes the oldest payload, so that the order stays.
        loop.call_at(stream.last_due, self._deliver, stream)

    def connected(self) -> set[int]:
        """See :meth:`Transport.connected`."""
        return set(self._outgoing)

    async def close(self) -> None:
        """See :meth:`Transport.close`."""
        self._closed = True
        self._network.leave(self)
        self.hear_no_more()
        for stream in list(self._outgoing.values()):
            self._end(stream)
        if self._dialling is not None:
            self._dialling.cancel()
            await asyncio.gather(self._dialling, return_exceptions=True)

    def hear_no_more(self) -> None:
        """End the streams on which others send to this member."""
        for stream in list(self._incoming.values()):
            self._end(stream)

    async def _keep_dialling(self) -> None:
        while True:
            for stream in (*self._outgoing.values(), *self._incoming.values()):
                if not self._stands(stream):
                    self._end(stream)
            reached = {stream.acceptor.name for stream in self._outgoing.values()}
            for name, address in self._peers.items():
                if name not in reached:
                    self._dial(name, address)
            await asyncio.sleep(DIAL_SECONDS)

    def _dial(self, name: str, address: str) -> None:
        target = self._network.at(address)
        if target is None:
            self._lives.ended(name)
            return
        own, other = self.name, target.name
        cut = self._network.is_cut(own, other) or self._network.is_cut(other, own)
        # An earlier life, whose address another one has taken, opens no stream any more.
        if cut or self._network.at(self.address) is not self:
            return
        with contextlib.suppress(NotAdmitted):
            try:
                answer = answer_hello(target.hooks, self.hooks.identity().hello)
            except NotAdmitted as refusal:
                hear_refusal(self.hooks, name, str(refusal), refusal.hello)
            raft_id = judge_answer(self.hooks, name, answer.hello)
            if answer.sender is not None:
                self._lives.met(name, answer.hello.incarnation)
                self._open(Stream(self, target, acceptor_id=raft_id, dialler_id=answer.sender))

    def _open(self, stream: Stream) -> None:
        older = stream.acceptor._incoming.get(stream.dialler_id)  # noqa: SLF001 - the other end of one double.
        if older is not None:
            self._end(older)
        stream.acceptor._incoming[stream.dialler_id] = stream  # noqa: SLF001
        self._outgoing[stream.acceptor_id] = stream

    def _end(self, stream: Stream) -> None:
        for streams, raft_id in (
            (stream.dialler._outgoing, stream.acceptor_id),  # noqa: SLF001
            (stream.acceptor._incoming, stream.dialler_id),  # noqa: SLF001
        ):
            if streams.get(raft_id) is stream:
                del streams[raft_id]

    def _stands(self, stream: Stream) -> bool:
        """Whether the stream is open and both sides still know each other by the raft ids that it was opened with."""
        dialler, acceptor = stream.dialler, stream.acceptor
        return (
            acceptor._incoming.get(stream.dialler_id) is stream  # noqa: SLF001
            and acceptor.hooks.raft_id_of(dialler.name) == stream.dialler_id
            and dialler.hooks.raft_id_of(acceptor.name) == stream.acceptor_id
        )

    def _deliver(self, stream: Stream) -> None:
        payload = stream.in_flight.popleft()
        stream.bytes_in_flight -= len(payload)
        if self._stands(stream) and not self._network.is_cut(self.name, stream.acceptor.name):
            stream.acceptor.hooks.on_payload(stream.dialler_id, payload)
