"""Random walks over three real engines: messages lost, repeated and reordered, crashes before any fsync.

Every walk is drawn by hypothesis, the election timeouts included, so a failing one replays.
"""

from __future__ import annotations

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

    def step(self) -> None:
        member = self.cluster.members[self.random.choice(VOTERS)]
        action = self.random.choices(
            [self._turn, self._deliver, self._tick, self._propose, self._crash, self._lose],
            weights=[30, 40, 15, 8, 1, 3],
        )[0]
        action(member)
        for raft_id, other in self.cluster.members.items():
            if other.engine.role == "leader":
                assert self.leader_of_term.setdefault(other.engine.term, raft_id) == raft_id

    def _turn(self, member: Member) -> None:
        if not member.engine.has_ready():
            return
        ready = member.engine.ready()
        if self.random.random() < 0.02:
            member.restart()
            return
        early = [] if ready.term_or_vote_changed else ready.messages
        self._send(member, early)
        if self.random.random() < 0.02:
            member.restart()
            return
        member.disk.save(ready, member.engine)
        advanced = member.engine.advance(ready)
        for index, _, kind, data in advanced.committed:
            if kind == "command":
                assert self.command_at.setdefault(index, data) == data
        self._send(member, [] if early else ready.messages)
        self._send(member, advanced.messages)
        member.apply(advanced)

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
