"""Random walks over real engines: messages lost, repeated and reordered, crashes before any fsync; with members that
come and go and logs that are compacted as well.

Every walk is drawn by hypothesis, the election timeouts included, so a failing one replays.
"""

from __future__ import annotations

import ast
import random

from engine_cluster import ELECTION_TICK, Cluster, Member
from hypothesis import given, settings
from hypothesis import strategies as st
from tenure_raft import ProposalDropped, decode_batch

VOTERS = [1, 2, 3]


class Walk:
    """One walk. It keeps what must never be contradicted: who led which term, and what is committed where."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.cluster = Cluster(VOTERS)
        self.leader_of_term: dict[int, int] = {}
        self.command_at: dict[int, bytes] = {}
        self.crashes = 0.02
        self.actions = {
            self._turn: 30,
            self._deliver: 40,
            self._tick: 15,
            self._propose: 8,
            self._crash: 1,
            self._lose: 3,
        }

    def step(self) -> None:
        member = self.cluster.members[self.random.choice([*self.cluster.members])]
        [action] = self.random.choices([*self.actions], weights=[*self.actions.values()])
        action(member)
        for raft_id, other in self.cluster.members.items():
            # A single voter leads before its term is durable (P9): nobody may be told so early.
            if other.engine.role == "leader" and other.engine.term == other.disk.term:
                assert self.leader_of_term.setdefault(other.engine.term, raft_id) == raft_id

    def _turn(self, member: Member) -> None:
        if not member.engine.has_ready():
            return
        ready = member.engine.ready()
        if self.random.random() < self.crashes:
            self._crash(member)
            return
        may_overtake = not ready.term_or_vote_changed and len(member.engine.voters) > 1
        early = ready.messages if may_overtake else []
        self._send(member, early)
        if self.random.random() < self.crashes:
            self._crash(member)
            return
        # What need not be synced may be lost.
        if ready.must_sync or self.random.random() < 0.5:
            member.disk.save(ready, member.engine)
        if ready.snapshot is not None:
            self._restored(member)
        advanced = member.engine.advance(ready)
        for index, _, kind, data in advanced.committed:
            if kind == "command":
                assert self.command_at.setdefault(index, data) == data
                self._applied(member, index, data)
        self._send(member, [] if early else ready.messages)
        self._send(member, advanced.messages)
        member.apply(advanced)

    def _applied(self, member: Member, index: int, data: bytes) -> None:
        """For walks that keep a state."""

    def _restored(self, member: Member) -> None:
        """For walks that take snapshots."""

    def _send(self, member: Member, messages: list[tuple[int, bytes]]) -> None:
        self.cluster.flying.extend((member.raft_id, to, payload) for to, payload in messages)

    def _deliver(self, _: Member) -> None:
        flying = self.cluster.flying
        if not flying:
            return
        flying.rotate(-self.random.choice([0, 0, 0, 1, 2]))
        sender, to, payload = flying[0]
        if self.random.random() < 0.9:
            flying.popleft()
        self.cluster[to].receive(sender, payload, refuse_votes=False)
        self._redraw(self.cluster.members[to])

    def _tick(self, member: Member) -> None:
        member.engine.tick(self.random.choice([1, 1, 2, 5]))
        self._redraw(member)

    def _redraw(self, member: Member) -> None:
        ticks = self.random.randrange(ELECTION_TICK, 2 * ELECTION_TICK)
        member.engine.set_randomized_election_timeout(ticks)

    def _propose(self, member: Member) -> None:
        try:
            member.engine.propose([self.random.randbytes(4)])
        except ProposalDropped:
            assert not member.engine.poisoned

    def _crash(self, member: Member) -> None:
        member.restart()

    def _lose(self, _: Member) -> None:
        if self.cluster.flying:
            self.cluster.flying.pop()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_engines_never_contradict_one_another_when_messages_and_members_are_lost(seed: int) -> None:
    walk = Walk(seed)
    for _ in range(3000):
        walk.step()
    walk.cluster.settle()
    for _ in range(60):
        if walk.cluster.leaders():
            walk.cluster.tick(4)
            break
        walk.cluster.tick(1)
    commits = {member.engine.commit for member in walk.cluster.members.values()}
    assert len(commits) == 1
    logs = [
        [entry for blob in member.disk.batches for entry in decode_batch(blob)]
        for member in walk.cluster.members.values()
    ]
    for log in logs:
        last = {index: data for index, _, kind, data in log if kind == "command"}
        assert {i: d for i, d in last.items() if i in walk.command_at} == walk.command_at


class ChangingWalk(Walk):
    """A walk in which leaders change the members and everybody compacts. Whoever was removed stays and disturbs.

    The state of a member is all that it applied, so a snapshot can be compared with what is known to be committed.
    """

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        for raft_id in (4, 5):
            self.cluster.add(raft_id, VOTERS)
        self.states: dict[int, dict[int, bytes]] = {raft_id: {} for raft_id in self.cluster.members}
        self.actions |= {self._change: 2, self._compact: 2, self._report: 2}

    def _change(self, member: Member) -> None:
        kinds = ["add_voter", "add_learner", "remove"]
        chosen = self.random.sample([*self.cluster.members], self.random.choice([1, 1, 2, 3]))
        try:
            member.engine.propose_conf_change([(self.random.choice(kinds), raft_id) for raft_id in chosen])
        except (ProposalDropped, ValueError):
            assert not member.engine.poisoned

    def _compact(self, member: Member) -> None:
        index = member.engine.applied
        held = member.disk.snapshot[0] if member.disk.snapshot else 0
        # With a snapshot just received the engine names the members of that one already.
        if index > held and not member.engine.joint and not member.engine.has_ready():
            data = repr(self.states[member.raft_id]).encode()
            member.compact(data, keep=self.random.choice([0, 0, 1, 3, 10]))

    def _report(self, member: Member) -> None:
        peer = self.random.choice([*self.cluster.members])
        member.engine.report_snapshot(peer, received=self.random.random() < 0.3)

    def _crash(self, member: Member) -> None:
        super()._crash(member)
        self._restored(member)

    def _applied(self, member: Member, index: int, data: bytes) -> None:
        self.states[member.raft_id][index] = data

    def _restored(self, member: Member) -> None:
        index, _, data = member.disk.snapshot or (0, 0, b"{}")
        state: dict[int, bytes] = ast.literal_eval(data.decode())
        assert state == {i: command for i, command in self.command_at.items() if i <= index}
        self.states[member.raft_id] = state

    def end(self) -> int:
        """Let them come to rest; the leader."""
        self.crashes = 0
        for _ in range(200):
            for member in self.cluster.members.values():
                member.engine.tick()
                self._redraw(member)
                if member.engine.snapshot_wanted:
                    self._compact(member)
                for peer in self.cluster.members:
                    member.engine.report_snapshot(peer, received=False)
            for _ in range(3):
                while any(member.engine.has_ready() for member in self.cluster.members.values()):
                    for member in self.cluster.members.values():
                        self._turn(member)
                self.cluster.deliver()
        [leader] = self.cluster.leaders()
        return leader


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_engines_never_contradict_one_another_when_members_change_and_logs_are_compacted(seed: int) -> None:
    walk = ChangingWalk(seed)
    for _ in range(4000):
        walk.step()
    leader = walk.cluster[walk.end()]
    assert not leader.joint
    for raft_id in [*leader.voters, *leader.learners]:
        engine = walk.cluster[raft_id]
        assert (engine.commit, engine.voters, engine.learners) == (leader.commit, leader.voters, leader.learners)
        assert walk.states[raft_id] == walk.command_at
