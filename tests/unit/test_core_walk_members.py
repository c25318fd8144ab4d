"""The random walks of ``test_core_walk`` with a log that is compacted and members that come and go.

Snapshots are taken every few entries, written slowly and fail at times; new directories join with an empty log, voters
are demoted, removed and exchanged by joint changes, while everything else goes wrong as in the walks without them.
After all faults have ended, one member must lead and every member must have applied the same.

By hand, over many seeds: ``WALK_SEEDS=1000-1999 pytest tests/unit/test_core_walk_members.py``.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from test_core_walk import Walk, WrongClock

from support.virtual_cluster import Node
from support.virtual_members import ReplicatingCluster
from tenure.core.effects import Apply, Effect
from tenure.core.membership import Add, Change, Demote, MemberRole, Promote, Remove
from tenure.core.snapshots import SnapshotLimits

MEMBERS_MAX = 6
AGREE_WITHIN_MS = 20_000


class MemberWalk(Walk, ReplicatingCluster):
    """A walk whose members change, and whose logs are compacted all the time."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.limits = SnapshotLimits(
            entries=self.chaos.choice([3, 8, 20]), size_bytes=1 << 20, keep_entries=self.chaos.choice([0, 2, 10])
        )
        self.snapshot_ms = lambda: 5 if self.calm else self.chaos.choice([0, 5, 40, 400, 3000])
        self.compact_ms = lambda: 0 if self.calm else self.chaos.choice([0, 0, 5, 100])
        self.snapshot_fails = lambda: not self.calm and self.chaos.random() < 0.1
        self._names = 0
        for node in list(self.nodes.values()):
            self.restart(node.raft_id)

    def make_node(self, raft_id: int) -> Node:
        node = super().make_node(raft_id)
        node.clock = WrongClock(self.now_ns)
        return node

    def run(self, node: Node, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Apply):
                ReplicatingCluster.run(self, node, [effect])
            super().run(node, [effect])

    def finish_persist(self, node: Node) -> None:
        if node.raft_id in self.nodes:
            super().finish_persist(node)

    # -- what is done to it -----------------------------------------------------------------------------------------

    def disturb(self) -> None:
        if not self.nodes:
            return
        own: list[Any] = [self._change_members, self._change_members, self._join, self._snapshot, self._propose_many]
        if self.chaos.random() < 0.35:
            self.chaos.choice(own)()
        else:
            super().disturb()

    def _members(self) -> tuple[Node, list[str], list[str]] | None:
        leading = self._in_office()
        if leading is None:
            return None
        states = self.core(leading.raft_id).members()
        voters = [state.name for state in states if state.role is MemberRole.VOTER]
        return leading, voters, [state.name for state in states if state.role is MemberRole.LEARNER]

    def _join(self) -> None:
        found = self._members()
        if found is None or len(found[1]) + len(found[2]) + len(self.applicants) >= MEMBERS_MAX:
            return
        self._names += 1
        changes: list[Change] = [self.add_directory(f"new-{self._names}")]
        if self.chaos.random() < 0.3 and len(found[1]) > 1:
            changes.append(Remove(self.chaos.choice(found[1])))
        self.change(found[0].raft_id, changes)

    def _change_members(self) -> None:
        found = self._members()
        if found is None:
            return
        leading, voters, learners = found
        possible: list[Change] = [Promote(name) for name in learners]
        possible += [Remove(name) for name in learners if self.chaos.random() < 0.2]
        if len(voters) > 2:
            possible += [Demote(name) for name in voters]
            possible += [Remove(name) for name in voters]
        possible += [self._again(applicant) for applicant in self.applicants]
        if possible:
            count = self.chaos.choice([1, 1, 1, 2, 3])
            picked = self.chaos.sample(possible, min(count, len(possible)))
            names = [change.record.name if isinstance(change, Add) else change.name for change in picked]
            if len(set(names)) == len(names):
                self.change(leading.raft_id, picked)

    def _again(self, name: str) -> Add:
        """Ask once more for a directory that is not a member yet."""
        applicant = self.applicants[name]
        add = self.add_directory(name)
        self.applicants[name] = applicant
        return add

    def _snapshot(self) -> None:
        node = self.chaos.choice(list(self.nodes.values()))
        if node.running and not node.paused:
            self.run(node, self.core(node.raft_id).ask_snapshot(None, self.reading(node)))

    def _propose_many(self) -> None:
        for _ in range(self.chaos.randrange(1, 12)):
            self._propose(next(iter(self.nodes.values())))

    def crash(self, raft_id: int) -> None:
        super().crash(raft_id)
        self.bodies.pop(raft_id, None)

    def restart(self, raft_id: int) -> None:
        if raft_id in self.nodes:
            super().restart(raft_id)

    def walk(self) -> None:
        super().walk()
        assert self.advance(AGREE_WITHIN_MS, until=self.agree), "\n".join(
            ["the members do not agree", *self.standings()]
        )


def seeds() -> range:
    first, _, last = os.environ.get("WALK_SEEDS", "0-23").partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize("seed", seeds())
def test_walk_keeps_the_guarantees_while_members_change_and_logs_are_compacted(seed: int):
    """As the walks without members; nobody applies an entry twice or leaves one out, no raft id is given twice."""
    MemberWalk(seed).walk()
