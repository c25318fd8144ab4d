"""The virtual cluster with everything that members come, go and restart from: snapshots, compaction, membership.

What a node's driver does beside the engine's messages is modelled here with the real roster, the real log store in
memory and the real manifest: contents are fetched before a snapshot is stepped, members tell one another who they are,
a new directory is welcomed once it is a member, a removed one stops. A frame passes only between members whose rosters
name each other. Everybody's file names everybody, so that each is answered by whomever it dials, as a member or not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec
import tenure_raft

from support.virtual_cluster import Node, SeededEngine, VirtualCluster
from tenure.core import manifest
from tenure.core.commands import MemberRecord, Settings
from tenure.core.consensus import Cadence
from tenure.core.effects import (
    Apply,
    Compact,
    Effect,
    MembersChanged,
    Persist,
    RestoreSnapshot,
    Send,
    SettingsChanged,
    TakeSnapshot,
)
from tenure.core.founding import PROTOCOL_VERSION, Hello
from tenure.core.fsm import Enrolment, Membership
from tenure.core.manifest import Content, Manifest
from tenure.core.member import MemberCore
from tenure.core.membership import Add, Change
from tenure.core.roster import Roster
from tenure.core.snapshots import SnapshotLimits
from tenure.instants import NS_PER_MS
from tenure.node import envelopes
from tenure.node.engine import binding, build_engine, restored_at
from tenure.storage import StoredSnapshot
from tenure.testing import MemoryDisk, MemoryLogStore

TELL_MS = 50
SNAPSHOT_SILENCE_MS = 3000
REMOVED_MS = 500
LIMITS = SnapshotLimits(entries=12, size_bytes=1 << 20, keep_entries=4)

Entry = tuple[int, int, bytes | None]


@dataclass
class Replica:
    """What one directory keeps, and the user's state machine of the life that it is in."""

    name: str
    directory_id: str
    enrolment: Enrolment | None = None
    disk: MemoryDisk = field(default_factory=MemoryDisk)
    contents: dict[str, tuple[Entry, ...]] = field(default_factory=dict)
    settings: Settings | None = None
    # Of one life:
    log: MemoryLogStore | None = None
    roster: Roster = field(default_factory=Roster)
    seen: list[Entry] = field(default_factory=list)
    through: int = 0
    restored: int = 0


class ReplicatingCluster(VirtualCluster):
    """See the module. ``limits`` and ``snapshot_ms`` (how long a content takes) may be set between steps."""

    def __init__(self, *arguments: object, **options: object) -> None:
        self.replicas: dict[int, Replica] = {}
        self.limits = LIMITS
        self.snapshot_ms: Callable[[], int] = lambda: 10
        self.compact_ms: Callable[[], int] = lambda: 0
        self.snapshot_fails: Callable[[], bool] = lambda: False
        self.applicants: dict[str, Replica] = {}
        self.files_name_all = True
        self.gone: dict[int, Replica] = {}
        #: Every entry that any member applied, by index; the user's own alone.
        self.committed: dict[int, Entry] = {}
        self._next_tell_ns = 0
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    # -- life of a node ---------------------------------------------------------------------------------------------

    def start(self, node: Node) -> None:
        replica = self.replicas.get(node.raft_id)
        if replica is None:
            record = next(member for member in self.record.members if member.raft_id == node.raft_id)
            replica = self.replicas[node.raft_id] = Replica(record.name, record.directory_id)
            replica.enrolment = Enrolment(record=self.record, raft_id=node.raft_id)
        assert replica.enrolment is not None
        replica.log = MemoryLogStore(replica.disk)
        stored = replica.log.load()
        settings = replica.settings or self.record.settings
        engine = build_engine(self.record, node.raft_id, stored, settings)
        restored = restored_at(stored)
        cadence = Cadence.of(settings.heartbeat_interval_ms, settings.election_timeout_ms)
        node.core = core = MemberCore(
            SeededEngine(engine, cadence.election_tick, self.random),  # type: ignore[arg-type]
            record=self.record,
            raft_id=node.raft_id,
            incarnation=self.random.randrange(1, 1 << 62),
            fenced=self.fenced,
            margin_ns=self.margin_ms * NS_PER_MS,
            nonce=lambda: f"{self.random.getrandbits(128):032x}",
            started=self.reading(node),
            binding=binding(),
            settings=settings,
            restored=restored,
            snapshot_limits=self.limits,
        )
        replica.seen, replica.through, replica.restored = [], 0, 0
        replica.roster = Roster(replica.enrolment)
        replica.roster.applied(core.membership())
        node.running, node.paused, node.hold_persist = True, False, False
        node.pending_persist, node.granted, node.span = None, None, None
        node.inbox_while_paused = []
        self._members_known(node)

    def crash(self, raft_id: int) -> None:
        super().crash(raft_id)
        self.replicas[raft_id].disk.crash()

    def add_directory(self, name: str) -> Add:
        """A new directory calls; the change that adds it. It starts once somebody welcomes it."""
        replica = Replica(name, f"directory of {name}")
        self.applicants[name] = replica
        return Add(MemberRecord(raft_id=0, name=name, directory_id=replica.directory_id))

    def change(self, leader: int, changes: Sequence[Change], ticket: object = None) -> None:
        node = self.nodes[leader]
        self.run(node, self.core(leader).change_members(changes, ticket, self.reading(node)))

    # -- time -------------------------------------------------------------------------------------------------------

    def advance(self, ms: int, *, until: Callable[[], bool] | None = None) -> bool:
        def look() -> bool:
            if self.now_ns >= self._next_tell_ns:
                self._next_tell_ns = self.now_ns + TELL_MS * NS_PER_MS
                self._tell_members()
                self._welcome()
            return until is not None and until()

        reached = super().advance(ms, until=look)
        return until is None or reached

    def _tell_members(self) -> None:
        for node in self._awake():
            membership = self.replicas[node.raft_id].roster.membership()
            assert membership is not None
            self._go_if_let_go(node)
            for other in list(self.nodes):
                if other != node.raft_id:
                    self._send(node.raft_id, other, envelopes.encode(membership))
                    self._dial(node, self.nodes[other])

    def _dial(self, node: Node, other: Node) -> None:
        """What ``node`` hears of the members by the answer to its hello, let in or not."""
        own, peer = self.replicas[node.raft_id], self.replicas[other.raft_id]
        cut = {(node.raft_id, other.raft_id), (other.raft_id, node.raft_id)} & self.cut
        if not self.files_name_all or not other.running or other.paused or cut:
            return
        welcome = peer.roster.welcome_for(self._hello(own))
        if own.roster.learn(msgspec.structs.replace(self._hello(peer), welcome=welcome)):
            self._members_known(node)

    def _welcome(self) -> None:
        for name, applicant in list(self.applicants.items()):
            for node in self._awake():
                welcome = self.replicas[node.raft_id].roster.welcome_for(self._hello(applicant))
                if welcome is None:
                    continue
                record = next(r for r in welcome.membership.members if r.name == name)
                del self.applicants[name]
                assert record.raft_id not in self.replicas, "R7: a raft id was given twice"
                applicant.enrolment = Enrolment(
                    record=welcome.record, raft_id=record.raft_id, membership=welcome.membership
                )
                self.replicas[record.raft_id] = applicant
                self.nodes[record.raft_id] = self.make_node(record.raft_id)
                self.start(self.nodes[record.raft_id])
                break

    def make_node(self, raft_id: int) -> Node:
        return Node(raft_id)

    def _awake(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.running and not node.paused]

    # -- frames -----------------------------------------------------------------------------------------------------

    def _hello(self, replica: Replica) -> Hello:
        enrolment, membership = replica.enrolment, replica.roster.membership()
        return Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name=self.record.cluster_name,
            cluster_id=enrolment.record.cluster_id if enrolment else "",
            name=replica.name,
            directory_id=replica.directory_id,
            incarnation=1,
            member_names=(),
            settings=self.settings,
            lineage=membership.lineage if membership else "",
        )

    def admits(self, to: int, sender: int) -> bool:
        """Whether ``to`` takes frames of ``sender``, by the real roster's judgement."""
        own, other = self.replicas[to], self.replicas[sender]
        return own.roster.admit(self._hello(own), self._hello(other)) is None

    def _send(self, sender: int, to: int, payload: bytes) -> None:
        if to not in self.replicas or to in self.gone or not self.admits(sender, to):
            return
        super()._send(sender, to, payload)

    def hand_over(self, sender: int, to: int, payload: bytes) -> None:
        node, replica = self.nodes.get(to), self.replicas.get(to)
        if node is None or replica is None or not node.running or sender not in self.replicas:
            return
        if node.paused:
            node.inbox_while_paused.append((sender, payload))
            return
        if not self.admits(to, sender):
            return
        if envelopes.is_envelope(payload):
            heard = envelopes.decode(payload)
            assert isinstance(heard, Membership)
            if replica.roster.hear(heard):
                self._members_known(node)
            return
        snapshot = tenure_raft.snapshot_in(payload)
        if snapshot is not None and not self._fetch(sender, replica, manifest.decode(snapshot[2])):
            return
        self.run(node, self.core(to).receive(sender, payload, self.reading(node)))

    def _fetch(self, sender: int, replica: Replica, sent: Manifest) -> bool:
        """The content is here, whole and durable, before the engine sees the snapshot."""
        if sent.content is None or sent.content.id in replica.contents:
            return True
        found = self.replicas[sender].contents.get(sent.content.id)
        if found is None or not self.nodes[sender].running:
            return False
        replica.contents[sent.content.id] = found
        return True

    def _members_known(self, node: Node) -> None:
        membership = self.replicas[node.raft_id].roster.membership()
        core = node.core
        if membership is None or core is None:
            return
        ids = [record.raft_id for record in membership.members if record.raft_id != node.raft_id]
        self._later(node, core, 0, lambda: core.vouch_for(ids, self.reading(node)))

    def _later(self, node: Node, core: MemberCore, ms: int, event: Callable[[], list[Effect]]) -> None:
        """Feed ``event`` in ``ms``, or once the node is awake; never in another life."""

        def attempt() -> None:
            if not node.running or node.core is not core:
                return
            if node.paused:
                self.after(50, attempt)
            else:
                self.run(node, event())

        self.after(ms, attempt)

    # -- effects ----------------------------------------------------------------------------------------------------

    def run(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send(peer, payload) if tenure_raft.snapshot_in(payload) is not None:
                    # Nobody says that a snapshot has arrived: it is lost once its receiver has been silent for long.
                    core = self.core(node.raft_id)
                    lost = partial(core.snapshot_lost, peer)
                    self._later(node, core, SNAPSHOT_SILENCE_MS, lambda told=lost: told(self.reading(node)))
                case Apply():
                    self._apply(node, effect)
                case TakeSnapshot(taken):
                    self._take(node, taken)
                case RestoreSnapshot(restored):
                    self._restore(node, restored)
                case Compact(taken):
                    core = self.core(node.raft_id)
                    self._later(node, core, self.compact_ms(), lambda t=taken, c=core: self._compact(node, c, t))
                case SettingsChanged(settings):
                    self.replicas[node.raft_id].settings = settings
                case MembersChanged(membership):
                    self._members_changed(node, membership)
                case _:
                    pass
            super().run(node, [effect])

    def _apply(self, node: Node, effect: Apply) -> None:
        replica = self.replicas[node.raft_id]
        assert effect.through > replica.through, "entries were applied twice"
        brought = {index: (index, term, data) for index, term, data in effect.entries}
        for index in range(replica.through + 1, effect.through + 1):
            known = self.committed.get(index)
            assert known is None or brought.get(index) == known, f"entry {index} was left out or is another one"
        for index, entry in brought.items():
            assert replica.through < index <= effect.through
            self.committed[index] = entry  # type: ignore[assignment]
            replica.seen.append(entry)  # type: ignore[arg-type]
        replica.through = effect.through

    def _take(self, node: Node, taken: Manifest) -> None:
        replica, core = self.replicas[node.raft_id], self.core(node.raft_id)
        assert taken.index == replica.through, "the state machine does not stand where the snapshot is taken"
        state = tuple(replica.seen)

        def done() -> list[Effect]:
            if self.snapshot_fails():
                return core.snapshot_taken(None, self.reading(node))
            digest = hashlib.sha256(repr(state).encode()).hexdigest()
            content = Content(id=f"{taken.index}-{taken.term}", size=len(state), sha256=digest)
            replica.contents[content.id] = state
            return core.snapshot_taken(msgspec.structs.replace(taken, content=content), self.reading(node))

        self._later(node, core, self.snapshot_ms(), done)

    def _compact(self, node: Node, core: MemberCore, taken: Manifest) -> list[Effect]:
        """What the driver does: durable first, then the engine and the older contents go."""
        replica = self.replicas[node.raft_id]
        assert replica.log is not None
        if taken.index <= core.snapshot_index:
            return core.compacted(taken, self.reading(node))
        replica.log.compact(StoredSnapshot(taken.index, taken.term, manifest.encode(taken)))
        kept = sorted(replica.contents, key=lambda name: [int(part) for part in name.split("-")])[-2:]
        if taken.content is not None:
            replica.contents = {
                name: state for name, state in replica.contents.items() if name in kept or name == taken.content.id
            }
        return core.compacted(taken, self.reading(node))

    def _restore(self, node: Node, restored: Manifest) -> None:
        replica = self.replicas[node.raft_id]
        assert restored.index > replica.through, "a snapshot took the state machine back"
        assert restored.content is not None
        replica.seen = list(replica.contents[restored.content.id])
        replica.through, replica.restored = restored.index, replica.restored + 1
        expected = [entry for index, entry in sorted(self.committed.items()) if index <= restored.index]
        assert replica.seen == expected, "a snapshot stands for another history than the log's"

    def _members_changed(self, node: Node, membership: Membership) -> None:
        replica, core = self.replicas[node.raft_id], self.core(node.raft_id)
        assert replica.log is not None
        replica.log.save(first=0, last=0, entries=b"", hard_state=core.applied_hard_state())
        replica.roster.applied(membership)
        self._members_known(node)

    def _go_if_let_go(self, node: Node) -> None:
        """A removed one goes once most of the voters refuse it, by a word that reaches it."""
        core, voters = self.core(node.raft_id), self.replicas[node.raft_id].roster.dropped_by()
        refusing = [
            voter
            for voter in voters
            if voter in self.nodes
            and self.nodes[voter].running
            and not self.nodes[voter].paused
            and not {(voter, node.raft_id), (node.raft_id, voter)} & self.cut
            and not self.admits(voter, node.raft_id)
        ]
        if 2 * len(refusing) > len(voters):
            self.after(REMOVED_MS, lambda: self._end_removed(node, core))

    def _end_removed(self, node: Node, core: MemberCore) -> None:
        if node.core is core:
            self.crash(node.raft_id)
            self.gone[node.raft_id] = self.replicas[node.raft_id]
            del self.nodes[node.raft_id]

    def finish_persist(self, node: Node) -> None:
        effect, replica = node.pending_persist, self.replicas[node.raft_id]
        assert effect is not None
        assert replica.log is not None
        self._save(replica.log, effect)
        node.pending_persist = None
        self.run(node, self.core(node.raft_id).persisted(self.reading(node)))

    def _save(self, log: MemoryLogStore, effect: Persist) -> None:
        if effect.must_sync or effect.entries:
            log.save(
                first=effect.first,
                last=effect.last,
                entries=effect.entries,
                hard_state=effect.hard_state,
                snapshot=None if effect.snapshot is None else StoredSnapshot(*effect.snapshot),
            )

    # -- what is asked ----------------------------------------------------------------------------------------------

    def agree(self) -> bool:
        """Whether every member has applied the same, and everything that any member has applied.

        Who was removed while it was away is no member, and may never learn of it.
        """
        everything = [entry for _, entry in sorted(self.committed.items())]
        newest = max((core.membership() for node in self._awake() if (core := node.core)), key=lambda m: m.index)
        ids = [record.raft_id for record in newest.members]
        return all(i in self.replicas and self.replicas[i].seen == everything for i in ids)

    def standings(self) -> list[str]:
        """Of each node: what its roster names, how far its state machine is, and how often it was restored."""
        lines = []
        for raft_id, node in self.nodes.items():
            replica, core = self.replicas[raft_id], node.core
            membership = replica.roster.membership()
            assert membership is not None
            known = f"{membership.index}: {[record.raft_id for record in membership.members]}"
            engine = core.consensus.engine if core is not None else None
            voters = f"{engine.voters} {engine.learners} joint={engine.joint} {engine.role}" if engine else "down"
            lines.append(f"{raft_id}: knows {known}, votes {voters}, at {replica.through}, restored {replica.restored}")
        return lines
