"""Between the transport and the core: who is dialled and let in, and where each payload goes.

The transport knows names, addresses and bytes; the roster knows who belongs to the cluster. What comes is an engine's
payload, a snapshot that waits for its content, or what members tell one another (``envelopes``). Every change of the
members is told to every member that is connected, so that one that lags still lets the others in (R3, R7). A member
that reaches no leader dials whomever its file names, too: everybody it knew may have been replaced meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import msgspec

from tenure.config import Config
from tenure.core import manifest
from tenure.core.founding import Hello
from tenure.core.fsm import Membership
from tenure.core.roster import Roster
from tenure.core.view import View
from tenure.errors import LogCorrupt, StorageError
from tenure.node import envelopes
from tenure.node.engine import SNAPSHOT, snapshot_in
from tenure.node.envelopes import Chunk, ChunkRequest, DatabaseSeen, Envelope
from tenure.node.exchange import SnapshotExchange
from tenure.node.founding import Founding
from tenure.transport import Certificates, TcpTransport, Transport, TransportFactory, TransportHooks

#: A member that is not reached where it is dialled is tried for so long where it said that it is, then again here.
TURN_SECONDS = 5.0

logger = logging.getLogger("tenure.node")


class Links:
    """One member's connections. One loop calls everything; ``transport`` and ``exchange`` are set at opening."""

    def __init__(
        self,
        config: Config,
        roster: Roster,
        founding: Founding,
        *,
        receive: Callable[[int, bytes], None],
        gone: Callable[[int], None],
        seen: Callable[[Hello], None],
        vouch: Callable[[list[int]], None],
    ) -> None:
        self._config = config
        self._roster = roster
        self._founding = founding
        self._receive = receive
        self._gone = gone
        self._seen = seen
        self._vouch = vouch
        self._told: dict[int, int] = {}
        self._refusals: dict[str, str] = {}
        #: Whether this member leads or has a stream to its leader: as long as it has, nobody else needs to be asked.
        self._led = False
        self._let_go = False
        #: Where members said that they are, if they are dialled somewhere else; and who is dialled there at present.
        self._said: dict[str, str] = {}
        self._moved: set[str] = set()
        self._next_turn = 0.0
        self.transport: Transport | None = None
        self.exchange: SnapshotExchange | None = None
        #: What a member says of the database: its raft id, and for how many nanoseconds that has not answered it.
        self.on_database: Callable[[int, int], None] = lambda _, __: None

    async def open(self, factory: TransportFactory | None, certificates: Certificates | None) -> None:
        """Begin to listen and to dial; :class:`tenure.StorageError` if the address cannot be had."""
        listen = self._config.raft.listen
        if factory is None:
            self.transport = TcpTransport(
                listen=listen, peers=self.addresses(), hooks=self._hooks(), certificates=certificates
            )
        else:
            self.transport = factory(self._hooks())
        try:
            await self.transport.start()
        except OSError as error:
            raise StorageError(
                f"raft.listen {listen} cannot be bound ({error.strerror}): stop what uses it, or name another address"
            ) from error
        self.members_changed()

    def reload_certificates(self) -> None:
        """Look at the files of ``raft.tls`` now."""
        if isinstance(self.transport, TcpTransport):
            self.transport.reload_certificates()

    def reload(self, config: Config) -> None:
        """Dial where ``config`` says, and look at the files of the certificates."""
        self._config = config
        self._said, self._moved = {}, set()
        self._founding.reload(config)
        self.members_changed()
        self.reload_certificates()

    def _hooks(self) -> TransportHooks:
        return TransportHooks(
            identity=self._founding.identity,
            admit=self._admit,
            raft_id_of=self._roster.raft_id_of,
            on_payload=self.route,
            on_hello=self._on_hello,
            on_gone=self._gone,
            on_applicant=lambda hello: self._roster.note_applicant(hello, asyncio.get_running_loop().time()),
            on_refused=self._note_refused,
            welcome_for=self._roster.welcome_for,
        )

    def addresses(self) -> dict[str, str]:
        """Where to dial each other member: the own file says it, else the member itself said it when it came.

        Who is not there, and said something else with its last hello, is dialled at both in turn. While this member
        reaches no leader, those too that the file alone names: see :meth:`Roster.learn`.
        """
        configured = {name: peer.raft for name, peer in self._config.raft.peers.items()}
        records = self._roster.let_in().values()
        known = {record.name: configured.get(record.name, record.address) for record in records}
        if not self._led:
            known = configured | known
        known |= {name: self._said[name] for name in self._moved if name in known}
        return {name: address for name, address in known.items() if name != self._config.node.name and address}

    def send(self, peer: int, payload: bytes) -> None:
        """Send an engine's payload, or drop it."""
        if self.transport is None:
            return
        self.transport.send(peer, payload)
        if payload[:1] == SNAPSHOT and self.exchange is not None and snapshot_in(payload) is not None:
            self.exchange.note_sent(peer)

    def tell(self, peer: int, envelope: Envelope) -> None:
        """Send what is none of the engine's messages, or drop it."""
        if self.transport is not None:
            self.transport.send(peer, envelopes.encode(envelope))

    def route(self, sender: int, payload: bytes) -> None:
        """A payload of the member ``sender`` came; its bytes are not trusted."""
        if payload[:1] < SNAPSHOT:
            # Most are: the engine's, and no snapshot.
            self._receive(sender, payload)
            return
        if envelopes.is_envelope(payload):
            self._take(sender, payload)
            return
        try:
            snapshot = snapshot_in(payload)
        except ValueError:
            return
        if snapshot is None or self.exchange is None:
            self._receive(sender, payload)
            return
        try:
            self.exchange.on_snapshot(sender, payload, manifest.decode(snapshot[2]))
        except LogCorrupt as error:
            logger.warning("a snapshot of %s is not taken: %s", self._roster.name_of(sender), error)

    def members_changed(self) -> None:
        """The roster knows something new."""
        membership = self._roster.membership()
        self._dial()
        if membership is not None:
            self._vouch([record.raft_id for record in membership.members if record.name != self._config.node.name])

    def _dial(self) -> None:
        if self.transport is not None:
            addresses = self.addresses()
            self._refusals = {name: why for name, why in self._refusals.items() if name in addresses}
            self.transport.set_peers(addresses)

    def tick(self, leader_id: int) -> None:
        """Tell every connected member who the members are, once for each change. ``leader_id`` is 0 for nobody."""
        membership, enrolment = self._roster.membership(), self._roster.enrolment
        if self.exchange is not None:
            self.exchange.tick()
        if membership is None or enrolment is None or self.transport is None:
            return
        now, connected = asyncio.get_running_loop().time(), self.transport.connected()
        self._roster.forget_silent_applicants(now)
        if now >= self._next_turn:
            self._next_turn = now + TURN_SECONDS
            self._look_elsewhere(connected)
        # A learner's engine goes on naming a leader that is gone: only a stream says that it is there.
        led = leader_id == enrolment.raft_id or leader_id in connected
        if led != self._led:
            self._led = led
            self._dial()
        self._told = {peer: version for peer, version in self._told.items() if peer in connected}
        if len(self._told) == len(connected) and all(told == self._roster.version for told in self._told.values()):
            return
        payload = envelopes.encode(membership)
        for peer in connected:
            if self._told.get(peer) != self._roster.version:
                self._told[peer] = self._roster.version
                self.transport.send(peer, payload)

    def _look_elsewhere(self, connected: set[int]) -> None:
        """Whoever cannot be reached where it was dialled may have moved, or has moved back."""
        missing = {name for name in self._said if self._roster.raft_id_of(name) not in connected}
        if missing:
            self._moved ^= missing
            self._dial()

    def explain(self, view: View) -> View:
        """What the status is made of, with the reason if this member knows no leader because others refuse it (R7)."""
        if view.leader_id or view.reason is not None or not self._refusals:
            return view
        by_reason: dict[str, list[str]] = {}
        for name, why in sorted(self._refusals.items()):
            by_reason.setdefault(why, []).append(name)
        told = [f"refused by {', '.join(names)}: {why}" for why, names in by_reason.items()]
        return msgspec.structs.replace(view, reason="; ".join(told))

    def is_let_go(self) -> bool:
        """Whether this member is removed and most voters refuse it: those have applied that (see the roster).

        Before that an election may need its vote, whatever the newest members are: a voter that has not applied the
        removal asks for it. True once only.
        """
        voters = self._roster.dropped_by()
        refusing = sum(self._roster.name_of(voter) in self._refusals for voter in voters)
        if self._let_go or not 2 * refusing > len(voters) > 0:
            return False
        self._let_go = True
        return True

    def _note_refused(self, name: str, why: str) -> None:
        if self._refusals.get(name) != why:
            logger.warning("this node is refused by %s: %s", name, why)
        self._refusals[name] = why

    def _on_hello(self, hello: Hello) -> None:
        self._founding.on_hello(hello)
        if self._roster.learn(hello):
            self.members_changed()

    def _take(self, sender: int, payload: bytes) -> None:
        envelope = envelopes.decode(payload)
        if isinstance(envelope, Membership):
            if self._roster.hear(envelope):
                self.members_changed()
        elif self.exchange is not None and isinstance(envelope, ChunkRequest):
            self.exchange.on_request(sender, envelope)
        elif self.exchange is not None and isinstance(envelope, Chunk):
            self.exchange.on_chunk(sender, envelope)
        elif isinstance(envelope, DatabaseSeen):
            self.on_database(sender, envelope.silent_ns)

    def _admit(self, hello: Hello, expected_name: str | None) -> str | None:
        problem = self._roster.admit(self._founding.identity().hello, hello, expected_name=expected_name)
        if problem is None and self._roster.note_seen(hello):
            self._seen(hello)
        if problem is None and expected_name is None and hello.address not in ("", self.addresses().get(hello.name)):
            self._said[hello.name] = hello.address
        if problem is None and expected_name is not None:
            self._refusals.pop(expected_name, None)
        return problem
