"""The application in the simulator, a scope and a writer of payments, and the payers outside who ask for them.

The scope does what ``leadership.py`` does: it believes until its own clock, a revocation or a refusal ends it, and its
work returns at once, late or never. The writer does what ``payment_service`` does: it checks, time passes, the
statement leaves. A payer keeps its key until it knows that it has paid. Work that goes on although its leadership is
over offers the database stale writes; that none is taken is what the fence is for (G3).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from tenure.core.effects import Grant, Renewed
from tenure.instants import NS_PER_MS, LeaseSpan, margin_within
from tenure.testing.simulation.fence import WriteAnswer
from tenure.testing.simulation.ledger import Answer, Ledger, Payment, Write
from tenure.testing.simulation.life import FENCE_TIMEOUT_NS, Life
from tenure.testing.simulation.parts import NOT_SENT, Reply
from tenure.types import Credential, LossReason

if TYPE_CHECKING:
    from tenure.testing.simulation.node import Node
    from tenure.testing.simulation.world import World

#: What a payer hears. Anything else is silence, which says nothing.
PAID, NOT_PAID, UNKNOWN = "paid", "not paid", "unknown"
#: The end of the payers' link to a member; no fault cuts it.
OUTSIDE = -1
#: The application's own work between the check and the statement.
WORK_NS = 4 * NS_PER_MS
#: How often it takes as long as an election.
HANGS = 0.01


class Payments(Protocol):
    """What the writer asks of the database; see :class:`tenure.testing.simulation.fence.Database`."""

    ledger: Ledger

    def write(self, credential: Credential, write: Write, reply: Reply, *, lasts_ns: int = 0) -> None:
        """Check, insert, and commit ``lasts_ns`` later."""
        ...


class Application:
    """See :class:`tenure.testing.simulation.parts.Application`."""

    def __init__(self, life: Life, database: Payments) -> None:
        self._life = life
        self._database = database
        self._ledger = database.ledger
        self._chance = life.world.random("bodies")
        self._swarm = life.node.swarm
        self._span: LeaseSpan | None = None
        self._credential: Credential | None = None
        self._over = True
        #: Counts the bodies: one that has returned does nothing any more.
        self._works = 0
        self.running: int | None = None

    # -- the scope ----------------------------------------------------------------------------------------------------

    def granted(self, grant: Grant) -> None:
        """A leadership was won."""
        self.running, self._span, self._over = grant.credential.token, grant.span, False
        self._credential = grant.credential
        self._works += 1
        self._watch(grant.credential.token)
        self._work(self._works)

    def renewed(self, renewed: Renewed) -> None:
        """Its lease goes on."""
        self._span = renewed.span

    def revoked(self, reason: LossReason) -> None:
        """It is over."""
        self._stop()

    def ended(self) -> None:
        """The process has ended."""
        self.running, self._over = None, True
        self._works += 1

    def _remaining_ns(self) -> int:
        """As ``Scope.remaining``: 0 once it is over."""
        if self._over or self._span is None:
            return 0
        margin = margin_within(self._span.duration_ns, self._swarm.margin_ms * NS_PER_MS)
        return max(0, self._span.remaining_ns(self._life.now()) - margin)

    def _watch(self, token: int) -> None:
        """End the work by the own clock, whatever the node's thread does."""
        if self._over or token != self.running:
            return
        left = self._remaining_ns()
        if left > 0:
            self._life.after(left, lambda: self._watch(token))
            return
        self._life.refused(token, LossReason.LEASE_EXPIRED)
        self._stop()

    def _stop(self) -> None:
        if self._over:
            return
        self._over = True
        chance, election = self._chance, self._swarm.election_ns
        work = self._works
        if chance.random() < self._swarm.hung_bodies:
            return
        late = chance.random() < self._swarm.late_bodies
        self._life.after(int(chance.random() * (3 * election if late else 50 * NS_PER_MS)), lambda: self._return(work))

    def _return(self, work: int) -> None:
        if work == self._works:
            self._works += 1
            self.running = None
            self._life.body_returned()

    def _work(self, work: int) -> None:
        """What the body does until it returns: a write now and then. Work that ignores its end goes on with it."""
        credential = self._credential
        if work != self._works or credential is None:
            return
        number = -self._chance.getrandbits(62) - 1
        write = self._ledger.attempt(Payment(number, f"own-{-number:x}"), credential.token, self._life.name)
        self._prepare(credential, write, _ignore)
        pause = self._swarm.settings.heartbeat_interval_ms * NS_PER_MS * 8
        self._life.after(int((0.5 + self._chance.random()) * pause), lambda: self._work(work))

    # -- the writer of payments ---------------------------------------------------------------------------------------

    def pay(self, payment: Payment, answer: Answer) -> None:
        """Somebody asks for a payment here. ``answer`` may never be called."""
        credential = self._credential
        if credential is None or self._remaining_ns() == 0:
            answer(NOT_PAID)
            return
        write = self._ledger.attempt(payment, credential.token, self._life.name)
        self._prepare(credential, write, answer)

    def _prepare(self, credential: Credential, write: Write, answer: Answer) -> None:
        """The check is advice (R14): the process may stand still right here, and go on long after."""
        hangs = self._chance.random() < HANGS
        takes = int(self._chance.random() * (self._swarm.election_ns if hangs else WORK_NS))
        self._life.after(takes, lambda: self._send(credential, write, answer))

    def _send(self, credential: Credential, write: Write, answer: Answer) -> None:
        lasts = int(self._chance.random() * 2 * self._swarm.election_ns) if self._chance.random() < 0.05 else 0

        def work(reply: Reply) -> None:
            self._database.write(credential, write, reply, lasts_ns=lasts)

        self._life.statement(work, lambda said: self._answered(write, said, answer), timeout_ns=FENCE_TIMEOUT_NS)

    def _answered(self, write: Write, said: object, answer: Answer) -> None:
        if said in (WriteAnswer.WRITTEN, WriteAnswer.REPLAYED):
            answer(PAID)
        elif said in (WriteAnswer.STALE, WriteAnswer.SERVER_CHANGED, WriteAnswer.KEY_REUSED, NOT_SENT):
            self._ledger.told_not_written(write)
            if said is WriteAnswer.STALE:
                self._refused(write.token, LossReason.REFUSED)
            elif said is WriteAnswer.SERVER_CHANGED:
                self._refused(write.token, LossReason.SERVER_CHANGED)
            answer(NOT_PAID)
        else:
            answer(UNKNOWN)

    def _refused(self, token: int, reason: LossReason) -> None:
        """As ``Scope.report_refused``: one refusal ends the leadership (R12)."""
        if token == self.running and not self._over:
            self._life.refused(token, reason)
            self._stop()


class Payer:
    """One client outside: one payment after another, each with one key until it is known to be made."""

    def __init__(
        self,
        world: World,
        nodes: dict[int, Node],
        ledger: Ledger,
        *,
        number: int,
        pause_ns: int,
        patience_ns: int,
    ) -> None:
        """The payer of that number; ``pause_ns`` between two payments in the mean, ``patience_ns`` for an answer."""
        self._world = world
        self._nodes = nodes
        self._ledger = ledger
        self._pause_ns, self._patience_ns = pause_ns, patience_ns
        self._chance = world.random(f"payer {number}")
        self._payer, self._number, self._tries = number, 0, 0

    def begin(self) -> None:
        """Pay from now on."""
        self._after_a_pause(self._pay_next)

    def _after_a_pause(self, call: Callable[[], None]) -> None:
        self._world.after(int(self._chance.expovariate(1.0) * self._pause_ns), call)

    def _pay_next(self) -> None:
        self._number += 1
        self._ask(self._payment(self._number))

    def _payment(self, number: int) -> Payment:
        return Payment(self._payer << 32 | number, f"key-{self._payer}-{number}")

    def _ask(self, payment: Payment) -> None:
        self._tries += 1
        this = self._tries

        def heard(said: str) -> None:
            if this != self._tries:
                return  # The answer comes after the patience: the same was asked again.
            self._tries += 1
            if said == PAID:
                self._ledger.told_written(payment)
                self._after_a_pause(self._pay_next)
            else:
                self._after_a_pause(lambda: self._ask(payment))

        node = self._whom()
        if node is not None:
            self._travel(node, payment, heard)
        self._world.after(self._patience_ns, lambda: heard(UNKNOWN))

    def _whom(self) -> Node | None:
        """Most often who shows itself as the leader; sometimes anybody."""
        running = [node for node in self._nodes.values() if node.life is not None]
        leading = [node for node in running if node.life is not None and node.life.leads()]
        choice = leading if leading and self._chance.random() < 0.9 else running
        return self._chance.choice(choice) if choice else None

    def _travel(self, node: Node, payment: Payment, heard: Answer) -> None:
        network = node.network

        def back(said: str) -> None:
            network.travel(node.raft_id, OUTSIDE, lambda: heard(said))

        def arrive() -> None:
            life = node.life
            if life is not None:
                life.when_awake(lambda: life.application.pay(payment, back))

        network.travel(OUTSIDE, node.raft_id, arrive)


def _ignore(said: str) -> None:
    """Nobody waits for this answer."""
