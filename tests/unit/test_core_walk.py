"""Random walks of three or five real cores through faults, each from a seed that replays it.

Every walk is about a minute of virtual time in which nodes crash, pause, sleep and are cut off, disks hang, clocks run
wrong within the bound, old orders to campaign turn up, the fence moves and goes away, and bodies return late. The
invariants are checked at each step; after all faults have ended, one member must lead within ``SERVES_WITHIN_MS``.

By hand, over many seeds: ``WALK_SEEDS=1000-1999 pytest tests/unit/test_core_walk.py``.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable

import msgspec
import pytest
import tenure_raft

from support.virtual_cluster import SETTINGS, Node, VirtualCluster
from tenure.core import commands
from tenure.core.commands import ALWAYS, FENCED_ONLY
from tenure.core.effects import Apply, Effect, Grant, RaiseFence, ReadFence, Revoke
from tenure.core.holding import FenceRefused, FenceUnavailable, FloorRead, Raised, RaiseMoved
from tenure.core.member import MemberCore
from tenure.core.roles import Phase
from tenure.fence.judge import Expected, FenceRow, LiveServer, RaiseRequest, Refusal, judge_floor, judge_raise
from tenure.fence.raising import view_of
from tenure.instants import PPM, Reading
from tenure.types import ElectorIdentity, LossReason, State

WALK_MS = 60_000
SERVES_WITHIN_MS = 15_000
SETTLES_MS = 3000
ELECTIONS_PER_SECOND_MAX = 8
IDENTITY = ElectorIdentity(elector_id="raft:00", generation=0, lineage="l")


class WrongClock:
    """Both clocks of a machine that run fast or slow by one rate; while it sleeps, only the second one goes on."""

    def __init__(self, now_ns: int) -> None:
        self._since, self._raw, self._boottime = now_ns, now_ns, now_ns
        self._rate, self._asleep = 1.0, False

    def __call__(self, now_ns: int) -> Reading:
        passed = int((now_ns - self._since) * self._rate)
        return Reading(self._raw if self._asleep else self._raw + passed, self._boottime + passed)

    def change(self, now_ns: int, *, rate: float | None = None, asleep: bool | None = None) -> None:
        self._raw, self._boottime = self(now_ns)
        self._since = now_ns
        self._rate = self._rate if rate is None else rate
        self._asleep = self._asleep if asleep is None else asleep


class JudgedFence:
    """The fence in memory: the real judge decides, the server can restart under it, and it can be away."""

    def __init__(self) -> None:
        self.row = FenceRow("r", None, 0, None, 0, "", 1, "00000001", "start-1", None)
        self.live = LiveServer("00000001", "start-1")
        self.away = False
        self.raises: list[int] = []

    @property
    def token(self) -> int:
        return self.row.token

    def read(self, last_count: int) -> FloorRead | FenceRefused | FenceUnavailable:
        if self.away:
            return FenceUnavailable("away")
        view = view_of(self.row, self.live)
        floor = judge_floor(view, IDENTITY, last_count)
        if isinstance(floor, Refusal):
            return FenceRefused(floor, floor.advice, view.token if floor is Refusal.COPY else None)
        return FloorRead(floor, view.expected)

    def raise_for(self, effect: RaiseFence) -> Raised | RaiseMoved | FenceRefused | FenceUnavailable:
        if self.away:
            return FenceUnavailable("away")
        assert isinstance(effect.expected, Expected)
        request = RaiseRequest(IDENTITY, effect.credential, "holder", effect.expected)
        verdict = judge_raise(self.row, self.live, request)
        if isinstance(verdict, Refusal):
            return RaiseMoved("moved") if verdict is Refusal.MOVED else FenceRefused(verdict, verdict.advice)
        if verdict is not self.row:
            self.row = verdict
            self.raises.append(verdict.token)
        return Raised()

    def takes(self, grant: Grant) -> bool:
        """Whether a write under this grant would land."""
        serves = (self.row.timeline, self.row.server_start) == (self.live.timeline, self.live.server_start)
        return serves and (self.row.token, self.row.nonce) == (grant.credential.token, grant.credential.nonce)

    def close(self) -> None:
        """``tenure fence close``: the same token, a new nonce, no holder."""
        self.row = msgspec.structs.replace(self.row, nonce="", version=self.row.version + 1, holder=None)

    def restart_server(self) -> None:
        self.live = LiveServer("00000001", f"start-{self.live.server_start} again"[-24:] + str(id(object())))


class Walk(VirtualCluster):
    """A cluster and the chaos around it."""

    def __init__(self, seed: int) -> None:
        self.chaos = random.Random(f"chaos {seed}")
        self.rho_ppm = self.chaos.choice([0, 10_000, 10_000, 100_000])
        settings = msgspec.structs.replace(
            SETTINGS,
            lease_duration_ms=self.chaos.choice([400, 1000, 1000, 2000]),
            clock_rate_error_ppm=self.rho_ppm,
            wait_out=FENCED_ONLY if seed % 3 == 0 else ALWAYS,
        )
        self.bodies: dict[int, Grant] = {}
        self.led_terms: dict[int, int] = {}
        self.granted_tokens: list[int] = []
        self.applied: dict[int, tuple[int, bytes | None]] = {}
        self.elections: list[tuple[int, int]] = []
        self.loss = 0.0
        self.slow_bodies = False
        self.old_frames: list[tuple[int, int, bytes]] = []
        super().__init__(self.chaos.choice([1, 2, 3, 3, 3, 3, 5]), seed=seed, settings=settings)
        self.judged = JudgedFence()
        self.fence = self.judged  # type: ignore[assignment]
        self.fence_delay_ms = 5
        for node in self.nodes.values():
            node.clock = WrongClock(self.now_ns)
        self.calm = False

    # -- the world's part -------------------------------------------------------------------------------------------

    def run(self, node: Node, effects: list[Effect]) -> None:
        core = self.core(node.raft_id)
        for effect in effects:
            match effect:
                case ReadFence(request):
                    self._after_latency(node, core, lambda r=request: self._read(node, core, r))
                case RaiseFence():
                    self._after_latency(node, core, lambda e=effect: self._raise(node, core, e))
                case Grant():
                    self._grant(node, core, effect)
                case Apply(entries):
                    for index, term, data in entries:
                        applied = self.applied.setdefault(index, (term, data))
                        assert applied == (term, data), f"two members applied different entries at index {index}"
                case Revoke():
                    super().run(node, [effect])
                    ended = self.bodies.get(node.raft_id)
                    self._when_awake(node, core, self._body_delay_ms(), lambda grant=ended: self._return(node, grant))
                case _:
                    super().run(node, [effect])

    def _grant(self, node: Node, core: MemberCore, effect: Grant) -> None:
        VirtualCluster.run(self, node, [effect])
        token = effect.credential.token
        assert self.judged.token >= token, "leader without a raised fence"
        assert token in self.judged.raises, "leader without a raised fence"
        assert not self.granted_tokens or token > self.granted_tokens[-1], "G4: tokens of leaders must rise"
        assert node.raft_id not in self.bodies, "R10: led again while the earlier body was still running"
        if core.holding.phase is Phase.LEADING and core.holding._wait_ns == 0:
            released = self.granted_tokens[-1]
            running = [i for i, grant in self.bodies.items() if grant.credential.token == released]
            assert not running, f"R9: the wait was skipped while the body of token {released} was running"
        self.granted_tokens.append(token)
        self.bodies[node.raft_id] = effect

    def _return(self, node: Node, grant: Grant | None) -> None:
        if grant is not None and self.bodies.get(node.raft_id) is grant:
            del self.bodies[node.raft_id]
            self.return_body(node.raft_id)

    def _body_delay_ms(self) -> int:
        if not self.calm and self.slow_bodies and self.chaos.random() < 0.5:
            return self.chaos.randrange(500, 8000)
        return self.chaos.randrange(0, 50)

    def _when_awake(self, node: Node, core: MemberCore, ms: int, call: Callable[[], None]) -> None:
        """``call`` in ``ms``, or once the node is awake again; never if that life of it is over."""

        def attempt() -> None:
            if not node.running or node.core is not core:
                return
            if node.paused:
                self.after(50, attempt)
            else:
                call()

        self.after(ms, attempt)

    def _after_latency(self, node: Node, core: MemberCore, call: Callable[[], None]) -> None:
        self.after(self.chaos.randrange(1 + self.fence_delay_ms), call)

    def _read(self, node: Node, core: MemberCore, request: int) -> None:
        answer = self.judged.read(core.state.last_count)
        self._when_awake(node, core, 1, lambda: self.run(node, core.fence_read(request, answer, self.reading(node))))

    def _raise(self, node: Node, core: MemberCore, effect: RaiseFence) -> None:
        """The database carries out what was sent, whatever became of the node since; its answer may be lost."""
        answer = self.judged.raise_for(effect)
        if not self.calm and self.chaos.random() < 0.1:
            answer = FenceUnavailable("the outcome is unknown")
        self._when_awake(
            node, core, 1, lambda: self.run(node, core.fence_raised(effect.request, answer, self.reading(node)))
        )

    def _send(self, sender: int, to: int, payload: bytes) -> None:
        if self.chaos.random() < self.loss:
            return
        if self.chaos.random() < 0.01:
            self.old_frames.append((sender, to, payload))
        super()._send(sender, to, payload)

    def finish_persist(self, node: Node) -> None:
        if node.pending_persist is not None and node.running and not node.paused:
            super().finish_persist(node)

    def resume(self, raft_id: int) -> None:
        node = self.nodes[raft_id]
        node.clock.change(self.now_ns, asleep=False)
        super().resume(raft_id)
        if not node.hold_persist:
            self.finish_persist(node)

    # -- what is done to it -----------------------------------------------------------------------------------------

    def disturb(self) -> None:
        raft_id = self.chaos.choice(list(self.nodes))
        node = self.nodes[raft_id]
        actions = [
            self._crash_or_restart,
            self._pause_or_resume,
            self._cut_or_heal,
            self._cut_one_way,
            self._delay,
            self._step_down,
            self._return_by_itself,
            self._order_to_campaign,
            self._depose_behind_its_back,
            self._depose_behind_its_back,
            self._old_frame,
            self._suspect,
            self._clock,
            self._disk,
            self._fence,
            self._refusal,
            self._lose_messages,
            self._change_lease,
            self._propose,
            self._propose,
        ]
        self.chaos.choice(actions)(node)

    def _crash_or_restart(self, node: Node) -> None:
        if node.running:
            self.crash(node.raft_id)
            node.clock.change(self.now_ns, asleep=False)
            self.bodies.pop(node.raft_id, None)
            if self.chaos.random() < 0.7:
                self.after(self.chaos.randrange(5, 3000), lambda: None if node.running else self.restart(node.raft_id))
        else:
            self.restart(node.raft_id)

    def _pause_or_resume(self, node: Node) -> None:
        if not node.running:
            return
        if node.paused:
            self.resume(node.raft_id)
            return
        node.clock.change(self.now_ns, asleep=self.chaos.random() < 0.3)
        self.pause(node.raft_id)
        core = node.core

        def wake() -> None:
            if node.core is core and node.paused:
                self.resume(node.raft_id)

        self.after(self.chaos.randrange(10, 4000), wake)

    def _cut_or_heal(self, node: Node) -> None:
        if self.cut:
            self.heal()
        else:
            self.isolate(node.raft_id)

    def _cut_one_way(self, node: Node) -> None:
        other = self.chaos.choice(list(self.nodes))
        if other != node.raft_id:
            self.cut.add((node.raft_id, other))

    def _delay(self, node: Node) -> None:
        other = self.chaos.choice(list(self.nodes))
        self.delay_ms[node.raft_id, other] = self.chaos.choice([1, 1, 20, 150, 600])

    def _step_down(self, node: Node) -> None:
        if node.running and not node.paused:
            self.run(node, self.core(node.raft_id).step_down(LossReason.STEPPED_DOWN, self.reading(node)))

    def _return_by_itself(self, node: Node) -> None:
        leading = next((self.nodes[i] for i in self.bodies if not self.nodes[i].paused), node)
        if leading.running and not leading.paused:
            self._return(leading, self.bodies.get(leading.raft_id))

    def _order_to_campaign(self, node: Node) -> None:
        if len(self.nodes) == 1 or not node.running:
            return
        self._tell_to_campaign(self.chaos.choice([i for i in self.nodes if i != node.raft_id]), node)

    def _tell_to_campaign(self, sender: int, node: Node) -> None:
        term = self.core(node.raft_id).view().term
        if term:
            order = tenure_raft.encode_message("timeout_now", sender=sender, to=node.raft_id, term=term)
            self.hand_over(sender, node.raft_id, order)

    def _depose_behind_its_back(self, node: Node) -> None:
        """The lease's worst case: clocks are wrong to the bound, answers to the leader are late, then it is cut off
        and another one wins at once; perhaps a third one right after it.
        """
        leader = next((self.nodes[i] for i in self.bodies), None)
        if leader is None or node is leader:
            return
        error = self.rho_ppm / PPM
        leader.clock.change(self.now_ns, rate=1 - error)
        for other in self.nodes.values():
            if other is not leader:
                other.clock.change(self.now_ns, rate=1 + error)
                self.delay_ms[other.raft_id, leader.raft_id] = self.chaos.choice([1, 300, 600])
        if self.chaos.random() < 0.5:
            self._change_lease(leader)

        def strike(new: Node) -> None:
            if new.running and not self.calm:
                self.isolate(leader.raft_id)
                self._tell_to_campaign(leader.raft_id, new)

        at = self.chaos.randrange(100, 1000)
        self.after(at, lambda: strike(node))
        third = self.chaos.choice(list(self.nodes.values()))
        if third is not leader:
            self.after(at + self.chaos.randrange(100, 1500), lambda: strike(third))

    def _old_frame(self, node: Node) -> None:
        for sender, to, payload in self.chaos.sample(self.old_frames, min(3, len(self.old_frames))):
            self.hand_over(sender, to, payload)

    def _suspect(self, node: Node) -> None:
        """The process of a peer seems to be gone, rightly or not."""
        if node.running and not node.paused:
            peer = self.chaos.choice(list(self.nodes))
            self.run(node, self.core(node.raft_id).suspect(peer, self.reading(node)))

    def _clock(self, node: Node) -> None:
        error = self.rho_ppm / PPM
        node.clock.change(self.now_ns, rate=self.chaos.choice([1 - error, 1.0, 1 + error]))

    def _disk(self, node: Node) -> None:
        node.hold_persist = not node.hold_persist
        if not node.hold_persist:
            self.finish_persist(node)
        else:
            self.after(self.chaos.randrange(5, 2500), lambda: self._disk_goes_on(node))

    def _disk_goes_on(self, node: Node) -> None:
        node.hold_persist = False
        self.finish_persist(node)

    def _fence(self, node: Node) -> None:
        kind = self.chaos.randrange(5)
        if kind == 0:
            self.judged.away = not self.judged.away
        elif kind == 1:
            self.judged.close()
        elif kind == 2:
            self.judged.restart_server()
        else:
            self.fence_delay_ms = self.chaos.choice([0, 5, 30, 300, 1500])

    def _refusal(self, node: Node) -> None:
        """The application wrote, and the fence refused it."""
        for raft_id, grant in list(self.bodies.items()):
            leading = self.nodes[raft_id]
            if leading.running and not leading.paused and not self.judged.takes(grant):
                token = grant.credential.token
                core = self.core(raft_id)
                self.run(leading, core.refused(token, LossReason.REFUSED, self.reading(leading)))

    def _lose_messages(self, node: Node) -> None:
        self.loss = self.chaos.choice([0.0, 0.0, 0.02, 0.2])
        self.slow_bodies = self.chaos.random() < 0.4

    def _in_office(self) -> Node | None:
        """A member that leads the Raft group, or believes so."""
        awake = (node for node in self.nodes.values() if node.running and not node.paused)
        return next((node for node in awake if self.core(node.raft_id).view().raft_role == "leader"), None)

    def _propose(self, node: Node) -> None:
        leading = self._in_office()
        if leading is not None:
            payload = bytes([commands.USER]) + b"%d" % self.chaos.randrange(1 << 30)
            self.run(leading, self.core(leading.raft_id).propose([(payload, None)], self.reading(leading)))

    def _change_lease(self, node: Node) -> None:
        leading = self._in_office()
        if leading is not None:
            length = self.chaos.choice([400, 400, 1000, 4000])
            changed = msgspec.structs.replace(self.settings, lease_duration_ms=length)
            self.run(leading, self.core(leading.raft_id).change_settings(changed, self.reading(leading)))

    def end_all_faults(self) -> None:
        self.calm = True
        self.heal()
        self.delay_ms.clear()
        self.loss, self.judged.away, self.fence_delay_ms = 0.0, False, 5
        for node in self.nodes.values():
            node.hold_persist = False
            if not node.running:
                self.restart(node.raft_id)
            elif node.paused:
                self.resume(node.raft_id)
            self.finish_persist(node)
            if node.raft_id in self.bodies and self.core(node.raft_id).holding.phase is not Phase.LEADING:
                self._return(node, self.bodies[node.raft_id])

    # -- what must hold ---------------------------------------------------------------------------------------------

    def _check_invariants(self) -> None:
        super()._check_invariants()
        if self.calm:
            self._refusal(next(iter(self.nodes.values())))
        for node in self.nodes.values():
            if node.core is None:
                continue
            view = node.core.view()
            if view.raft_role == "leader":
                self._count_elections(node.core.consensus.engine.term)
                engine = node.core.consensus.engine
                assert self.led_terms.setdefault(engine.term, node.raft_id) == node.raft_id, "G1: two leaders of a term"
            if view.shown_state(self.reading(node)) is State.LEADER:
                assert view.token in self.judged.raises, "shown leader without a raised fence"
                assert node.granted is not None, "shown leader without a grant"

    def _count_elections(self, term: int) -> None:
        """No storm: what may be elected again at once must not be, whatever refuses it."""
        if not self.elections or self.elections[-1][1] < term:
            self.elections.append((self.now_ns, term))
        self.elections = [(at, won) for at, won in self.elections if self.now_ns - at < 1_000_000_000]
        assert len(self.elections) <= ELECTIONS_PER_SECOND_MAX, "G7: a storm of elections"

    def serving(self) -> int | None:
        """The one leader under whose credential writes land, if there is one."""
        leaders = self.leaders()
        if len(leaders) != 1:
            return None
        grant = self.nodes[leaders[0]].granted
        return leaders[0] if grant is not None and self.judged.takes(grant) else None

    def walk(self) -> None:
        end = self.now_ns + WALK_MS * 1_000_000
        while self.now_ns < end:
            self.advance(self.chaos.randrange(5, 600))
            self.disturb()
        self.end_all_faults()
        # What was under way when the faults ended, votes and late answers, may still have its way.
        self.advance(SETTLES_MS)
        assert self.advance(SERVES_WITHIN_MS - SETTLES_MS, until=lambda: self.serving() is not None), (
            f"G7: nobody serves: {[(i, n.core.view()) for i, n in self.nodes.items()]}"
        )
        leader, terms = self.serving(), [node.core.view().term for node in self.nodes.values()]
        self.advance(3000)
        assert self.serving() == leader, "G7: the leader did not stay"
        assert max(terms) == max(node.core.view().term for node in self.nodes.values()), "G7: elections went on"


def seeds() -> range:
    first, _, last = os.environ.get("WALK_SEEDS", "0-19").partition("-")
    return range(int(first), int(last or first) + 1)


@pytest.mark.parametrize("seed", seeds())
def test_walk_keeps_the_guarantees_and_ends_with_one_leader(seed: int):
    """G1, G2, G4, R9 and R10 at every step of the walk, G7 after it. The seed is in the test's name."""
    Walk(seed).walk()
