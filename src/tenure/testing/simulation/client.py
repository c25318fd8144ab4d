"""The application's side of a member in the simulator: one scope. A first, small version."""

from __future__ import annotations

from tenure.core.effects import Grant
from tenure.instants import NS_PER_MS, LeaseSpan, margin_within
from tenure.testing.simulation.life import Life
from tenure.types import LossReason


class Application:
    """See :class:`tenure.testing.simulation.parts.Application`."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._chance = life.world.random("bodies")
        self._swarm = life.node.swarm
        self._span: LeaseSpan | None = None
        self._over = True
        self.running: int | None = None

    def granted(self, grant: Grant) -> None:
        """A leadership was won."""
        self.running, self._span, self._over = grant.credential.token, grant.span, False
        self._watch(grant.credential.token)

    def renewed(self, span: LeaseSpan) -> None:
        """Its lease goes on."""
        self._span = span

    def revoked(self, reason: LossReason) -> None:
        """It is over."""
        self._stop()

    def ended(self) -> None:
        """The process has ended."""
        self.running, self._over = None, True

    def _watch(self, token: int) -> None:
        """End the work by the own clock, whatever the node's thread does."""
        if self._over or token != self.running or self._span is None:
            return
        margin = margin_within(self._span.duration_ns, self._swarm.margin_ms * NS_PER_MS)
        left = self._span.remaining_ns(self._life.now()) - margin
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
        if chance.random() < self._swarm.hung_bodies:
            return
        late = chance.random() < self._swarm.late_bodies
        self._life.after(int(chance.random() * (3 * election if late else 50 * NS_PER_MS)), self._return)

    def _return(self) -> None:
        self.running = None
        self._life.body_returned()
