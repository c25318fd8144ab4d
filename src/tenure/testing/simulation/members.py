"""Members that come and go in a simulated cluster: rosters, new directories, operators, wiped disks.

What a member's transport, roster and founding do beside the engine's messages is done here with the real roster: frames
pass only between members that let each other in, members tell one another who they are, a new directory is welcomed
once it is a member, a removed one stops once most voters refuse it. An operator replaces wiped disks and changes the
members at random, through whoever leads. It costs nothing in a swarm whose members stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from tenure.core.commands import MemberRecord
from tenure.core.founding import PROTOCOL_VERSION, Hello
from tenure.core.fsm import Enrolment, Membership
from tenure.core.membership import Add, Change, Demote, MemberRole, Promote, Remove
from tenure.node import envelopes
from tenure.testing.simulation.network import Frame

if TYPE_CHECKING:
    from tenure.testing.simulation.life import Life
    from tenure.testing.simulation.node import Node
    from tenure.testing.simulation.simulation import Simulation

MEMBERS_MAX = 6


class Members:
    """See the module. Its rounds come twice in an election timeout."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation
        self._world = simulation.world
        self._chance = simulation.world.random("members")
        self._admitted: dict[tuple[int, int, int, int, int, int], bool] = {}
        self._applicants: dict[str, MemberRecord] = {}
        #: Names whose directory is lost, with the id of the lost one.
        self._to_replace: dict[str, str] = {}
        self._directories = 0
        self.changes = 0

    def begin(self) -> None:
        """From now on they may change."""
        self._world.after(self._simulation.swarm.election_ns // 2, self._round)

    # -- frames -------------------------------------------------------------------------------------------------------

    def connected(self, one: Life, other: Life) -> bool:
        """Whether the two let each other in, by the judgement of the real rosters."""
        key = (one.raft_id, one.number, one.roster.version, other.raft_id, other.number, other.roster.version)
        known = self._admitted.get(key)
        if known is None:
            if len(self._admitted) > 10_000:
                self._admitted.clear()
            own, others = self._hello(one), self._hello(other)
            refused = one.roster.admit(own, others) or other.roster.admit(others, own)
            known = self._admitted[key] = refused is None
        return known

    def _hello(self, life: Life) -> Hello:
        membership = life.roster.membership()
        lineage = membership.lineage if membership is not None else ""
        return self._said(life.name, life.node.directory_id, life.node.record.cluster_id, lineage)

    def _said(self, name: str, directory_id: str, cluster_id: str, lineage: str) -> Hello:
        record = self._simulation.record
        return Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name=record.cluster_name,
            cluster_id=cluster_id,
            name=name,
            directory_id=directory_id,
            incarnation=1,
            member_names=(),
            settings=record.settings,
            lineage=lineage,
        )

    def known_at(self, life: Life) -> None:
        """The members changed in the eyes of ``life``: its engine lets those in that it has not applied yet."""
        membership = life.roster.membership()
        if membership is not None:
            ids = [record.raft_id for record in membership.members if record.raft_id != life.raft_id]
            self._world.after(0, lambda: life.feed(lambda core, now: core.vouch_for(ids, now)))

    # -- a round ------------------------------------------------------------------------------------------------------

    def _round(self) -> None:
        awake = [life for node in self._simulation.nodes.values() if (life := node.life) and not node.stopped]
        for life in awake:
            self._tell(life, awake)
            self._go_if_let_go(life, awake)
        self._welcome(awake)
        leader = next((life for life in awake if life.alive and life.engine.role == "leader"), None)
        if leader is not None:
            self._operate(leader)
        self._world.after(self._simulation.swarm.election_ns // 2, self._round)

    def _tell(self, life: Life, awake: Sequence[Life]) -> None:
        """Those that are connected hear who the members are; whom its file names it asks even if it is not let in."""
        membership = life.roster.membership()
        network = self._simulation.network
        for other in awake:
            if other is life or not life.alive or not other.alive or membership is None:
                continue
            if self.connected(life, other):
                payload = envelopes.encode(membership)
                network.send(Frame(life.raft_id, other.raft_id, payload, life.number, other.number))
            elif network.passes(life.raft_id, other.raft_id) and network.passes(other.raft_id, life.raft_id):
                answer = msgspec.structs.replace(
                    self._hello(other), welcome=other.roster.welcome_for(self._hello(life))
                )
                if life.roster.learn(answer):
                    self.known_at(life)

    def hear(self, life: Life, payload: bytes) -> None:
        """A member told who the members are."""
        heard = envelopes.decode(payload)
        if isinstance(heard, Membership) and life.roster.hear(heard):
            self.known_at(life)

    def _go_if_let_go(self, life: Life, awake: Sequence[Life]) -> None:
        """A removed member ends once most of the voters refuse it, by a word that reaches it."""
        voters, network = life.roster.dropped_by(), self._simulation.network
        refusing = [
            other
            for other in awake
            if other.raft_id in voters
            and network.passes(life.raft_id, other.raft_id)
            and network.passes(other.raft_id, life.raft_id)
            and not self.connected(life, other)
        ]
        if 2 * len(refusing) > len(voters) > 0:
            self._world.note(life.name, "ends: it was removed")
            self._retire(life.node)

    def _retire(self, node: Node) -> None:
        node.crash(power=True)
        del self._simulation.nodes[node.raft_id]

    def _welcome(self, awake: Sequence[Life]) -> None:
        """A new directory that has been added is told so, and starts."""
        for name, record in list(self._applicants.items()):
            hello = self._said(name, record.directory_id, "", "")
            for life in awake:
                welcome = life.roster.welcome_for(hello) if life.alive else None
                if welcome is None:
                    continue
                given = next(member for member in welcome.membership.members if member.name == name)
                enrolment = Enrolment(record=welcome.record, raft_id=given.raft_id, membership=welcome.membership)
                del self._applicants[name]
                self._simulation.add_node(enrolment, given).start()
                break

    # -- operators ----------------------------------------------------------------------------------------------------

    def wipe(self, node: Node) -> bool:
        """The disk of ``node`` is lost with all that it held; only where the others still have all of it."""
        if self._to_replace or self._applicants or not self._is_steady():
            return False
        self._world.note(node.name, "its disk is wiped")
        self._retire(node)
        self._to_replace[node.name] = node.directory_id
        return True

    def join(self) -> bool:
        """A new directory calls, which the operator will add."""
        if len(self._simulation.nodes) + len(self._applicants) >= MEMBERS_MAX:
            return False
        self._apply_for(f"new{self._directories + 1}")
        return True

    def change(self) -> bool:
        """The operator changes something, perhaps several things at once."""
        leader = self._leader()
        if leader is None or self._to_replace:
            return False
        states = leader.core.members()
        voters = [state.name for state in states if state.role is MemberRole.VOTER]
        possible: list[Change] = [Promote(state.name) for state in states if state.role is MemberRole.LEARNER]
        if len(voters) > 2:
            possible += [Demote(name) for name in voters] + [Remove(name) for name in voters]
        if not possible:
            return False
        return self._ask(leader, self._chance.sample(possible, min(self._chance.choice((1, 1, 2, 3)), len(possible))))

    def _operate(self, leader: Life) -> None:
        """Replace what was wiped, add who has called, promote who has caught up: one step at a time."""
        members = {state.name: state for state in leader.core.members()}
        records = {record.name: record for record in leader.core.state.members}
        for name, directory_id in list(self._to_replace.items()):
            if name in records and records[name].directory_id == directory_id:
                self._ask(leader, [Remove(name)])
                return
            del self._to_replace[name]
            self._apply_for(name)
        for name, record in self._applicants.items():
            if name not in records:
                self._ask(leader, [Add(record)])
                return
        learners = [name for name, state in members.items() if state.role is MemberRole.LEARNER]
        if learners and self._chance.random() < 0.3:
            self._ask(leader, [Promote(self._chance.choice(learners))])

    def _ask(self, leader: Life, changes: list[Change]) -> bool:
        names = [change.record.name if isinstance(change, Add) else change.name for change in changes]
        if len(set(names)) < len(names):
            return False
        self.changes += 1
        self._world.note("operator", f"asks {leader.name} for {changes}")
        leader.feed(lambda core, now: core.change_members(changes, None, now))
        return True

    def _apply_for(self, name: str) -> None:
        self._directories += 1
        self._applicants[name] = MemberRecord(
            raft_id=0, name=name, directory_id=f"directory of {name}, {self._directories}"
        )

    def _leader(self) -> Life | None:
        lives = [node.life for node in self._simulation.nodes.values() if not node.stopped]
        return next((life for life in lives if life is not None and life.engine.role == "leader"), None)

    def _is_steady(self) -> bool:
        """Whether three members or more vote, and each has acknowledged the whole log: none alone has anything.

        A change of the members that is only proposed would count as well: the quorum after it may be another one.
        """
        leader = self._leader()
        if leader is None or leader.engine.joint or leader.engine.learners or len(leader.engine.voters) < 3:
            return False
        last = leader.engine.last_index
        acknowledged = (entry[1] for entry in leader.engine.progress() if entry[0] != leader.raft_id)
        return leader.core.applied_index == last and all(index >= last for index in acknowledged)
