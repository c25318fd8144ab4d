"""Engines of several members in one process: the tests move every message and every tick by hand."""

from __future__ import annotations

import dataclasses
from collections import deque
from typing import Any

from tenure_raft import Advanced, Engine, Ready, decode_batch, message_kinds

ELECTION_TICK = 10
HEARTBEAT_TICK = 2


@dataclasses.dataclass
class Disk:
    """What one member made durable; a crash keeps it and nothing else."""

    voters: list[int]
    learners: list[int]
    term: int = 0
    vote: int = 0
    commit: int = 0
    batches: list[bytes] = dataclasses.field(default_factory=list)
    snapshot: tuple[int, int, bytes] | None = None

    def save(self, ready: Ready, engine: Engine) -> None:
        if ready.hard_state is not None:
            self.term, self.vote, self.commit = ready.hard_state
        if ready.snapshot is not None:
            self.snapshot, self.batches = ready.snapshot, []
            self.voters, self.learners = engine.voters, engine.learners
        if ready.entries:
            self.batches.append(ready.entries)

    def open(self, raft_id: int, **settings: Any) -> Engine:
        return Engine(
            raft_id=raft_id,
            election_tick=ELECTION_TICK,
            heartbeat_tick=HEARTBEAT_TICK,
            voters=self.voters,
            learners=self.learners,
            term=self.term,
            vote=self.vote,
            commit=self.commit,
            batches=self.batches,
            snapshot=self.snapshot,
            **settings,
        )


class Member:
    """One engine with its disk and what it has applied."""

    def __init__(self, raft_id: int, voters: list[int], learners: list[int], **settings: Any) -> None:
        self.raft_id = raft_id
        self.disk = Disk(voters=voters, learners=learners)
        self.settings = settings
        self.vouched: list[int] = []
        self.restart()

    def restart(self) -> None:
        self.engine = self.disk.open(self.raft_id, **self.settings)
        self.engine.vouch_for(self.vouched)
        self.commands: list[bytes] = []
        self.read_states: list[tuple[int, bytes]] = []

    def turn(self) -> list[tuple[int, bytes]]:
        """One Ready, all the way; what it sends."""
        ready = self.engine.ready()
        self.disk.save(ready, self.engine)
        self.read_states += ready.read_states
        advanced = self.engine.advance(ready)
        self.apply(advanced)
        return [*ready.messages, *advanced.messages]

    def compact(self, data: bytes, *, keep: int = 0) -> int:
        """Let ``data`` stand for all that is applied, on disk too; the index."""
        index, term = self.engine.applied, self.term_at(self.engine.applied)
        self.engine.compact(index, data, keep=keep)
        self.disk.snapshot = (index, term, data)
        self.disk.voters, self.disk.learners = self.engine.voters, self.engine.learners
        return index

    def term_at(self, index: int) -> int:
        """The term of a durable entry, or of the snapshot."""
        snapshot = [self.disk.snapshot[:2]] if self.disk.snapshot else []
        stored = [entry[:2] for blob in self.disk.batches for entry in decode_batch(blob)]
        return dict([*snapshot, *stored])[index]

    def apply(self, advanced: Advanced) -> None:
        for _, _, kind, data in advanced.committed:
            if kind == "conf_change":
                self.engine.apply_conf_change(data)
            elif kind == "command":
                self.commands.append(data)
        if advanced.committed:
            self.engine.applied_to(advanced.committed[-1][0])


class Cluster:
    """Members and the messages between them. A link in ``cut`` loses what is sent over it."""

    def __init__(self, voters: list[int], learners: list[int] | None = None, **settings: Any) -> None:
        learners = learners or []
        self.members = {i: Member(i, voters, learners, **settings) for i in [*voters, *learners]}
        self.cut: set[tuple[int, int]] = set()
        self.flying: deque[tuple[int, int, bytes]] = deque()

    def __getitem__(self, raft_id: int) -> Engine:
        return self.members[raft_id].engine

    def add(self, raft_id: int, voters: list[int], learners: list[int] | None = None) -> Engine:
        """Start a member with an empty disk that knows the founders only. All vouch for one another from now on."""
        self.members[raft_id] = Member(raft_id, voters, learners or [])
        self.vouch()
        return self[raft_id]

    def vouch(self) -> None:
        for member in self.members.values():
            member.vouched = [*self.members]
            member.engine.vouch_for(member.vouched)

    def change(self, *changes: tuple[Any, int]) -> None:
        """Let the leader change the members, and wait until that is done everywhere."""
        [leader] = self.leaders()
        self[leader].propose_conf_change(changes)
        self.settle()
        self.tick(4)

    def next_frame(self, kind: str) -> tuple[int, int, bytes]:
        """Go on until a frame of that kind is sent, and take it out of the flight."""
        for _ in range(40):
            for member in self.members.values():
                member.engine.tick()
            while self.turn() or self.flying:
                for frame in self.flying:
                    if message_kinds(frame[2])[0][0] == kind and frame[:2] not in self.cut:
                        self.flying.remove(frame)
                        return frame
                self.deliver()
        raise AssertionError(f"no {kind} was sent")

    def isolate(self, raft_id: int) -> None:
        for other in self.members:
            self.cut |= {(raft_id, other), (other, raft_id)}

    def heal(self) -> None:
        self.cut.clear()

    def turn(self) -> bool:
        """Let every member do what it has ready; whether any had."""
        busy = [member for member in self.members.values() if member.engine.has_ready()]
        for member in busy:
            sent = member.turn()
            self.flying.extend((member.raft_id, to, payload) for to, payload in sent)
        return bool(busy)

    def deliver(self) -> None:
        """Deliver what is in flight now."""
        for _ in range(len(self.flying)):
            sender, to, payload = self.flying.popleft()
            if (sender, to) not in self.cut and to in self.members:
                self[to].receive(sender, payload, refuse_votes=False)

    def settle(self) -> None:
        """Turn and deliver until nothing is left to do."""
        for _ in range(1000):
            if not self.turn() and not self.flying:
                return
            self.deliver()
        raise AssertionError("the cluster does not come to rest")

    def elect(self, raft_id: int) -> Engine:
        """Make ``raft_id`` lead: the others forget their leader first, or they would not vote."""
        for member in self.members.values():
            member.engine.become_follower()
        self[raft_id].campaign()
        self.settle()
        leader = self[raft_id]
        assert leader.role == "leader"
        return leader

    def tick(self, count: int, *, only: int | None = None) -> None:
        for _ in range(count):
            for raft_id in self.members if only is None else [only]:
                self[raft_id].tick()
            self.settle()

    def leaders(self) -> list[int]:
        return [i for i, member in self.members.items() if member.engine.role == "leader"]


def cluster_with(*raft_ids: int, voters: tuple[int, ...] = (1, 2, 3)) -> Cluster:
    """Voters that 1 leads, and members that only listen so far: nobody has been told of them."""
    cluster = Cluster([*voters])
    cluster.elect(1)
    for raft_id in raft_ids:
        cluster.add(raft_id, [*voters])
    return cluster


def make_learners(cluster: Cluster, *raft_ids: int) -> Cluster:
    """Make learners of them that have caught up."""
    cluster.change(*(("add_learner", raft_id) for raft_id in raft_ids))
    return cluster


def members_of(cluster: Cluster) -> set[tuple[tuple[int, ...], tuple[int, ...], bool]]:
    """What the members that are left in it take the configuration for."""
    [leader] = cluster.leaders()
    left = [*cluster[leader].voters, *cluster[leader].learners]
    return {(tuple(cluster[i].voters), tuple(cluster[i].learners), cluster[i].joint) for i in left}
