"""The database of the simulator: one fence row, judged by the real rules. A first, small version."""

from __future__ import annotations

from collections.abc import Callable

from tenure.core.fsm import COUNT_MASK
from tenure.core.holding import FenceRefused, FloorRead, Raised, RaiseMoved
from tenure.fence.judge import Expected, FenceRow, LiveServer, RaiseRequest, Refusal, judge_floor, judge_raise
from tenure.fence.raising import view_of
from tenure.testing.simulation.parts import Reply
from tenure.testing.simulation.world import World
from tenure.types import Credential, ElectorIdentity


class Database:
    """One server with one fence."""

    def __init__(self, world: World, on_raised: Callable[[int, str], None]) -> None:
        self._world = world
        self._on_raised = on_raised
        self._starts = 1
        self._live = LiveServer("00000001", "start 1")
        self._row = FenceRow("payments", None, 0, None, 0, "", 1, "00000001", "start 1", None)

    def is_up(self) -> bool:
        """See :class:`Fence`."""
        return True

    def read(self, identity: ElectorIdentity, last_count: int, reply: Reply) -> None:
        """See :class:`Fence`."""
        view = view_of(self._row, self._live)
        floor = judge_floor(view, identity, last_count)
        if isinstance(floor, Refusal):
            suspected = view.token & COUNT_MASK if floor is Refusal.COPY else None
            reply(FenceRefused(floor, floor.advice, suspected))
        else:
            reply(FloorRead(floor, view.expected))

    def raise_token(
        self,
        credential: Credential,
        expected: object,
        *,
        generation: int,
        lineage: str,
        holder: str,
        elector_id: str,
        reply: Reply,
    ) -> None:
        """See :class:`Fence`."""
        if not isinstance(expected, Expected):
            reply(RaiseMoved("the fence was not read before this raise"))
            return
        identity = ElectorIdentity(elector_id, generation, lineage)
        verdict = judge_raise(self._row, self._live, RaiseRequest(identity, credential, holder, expected))
        if isinstance(verdict, Refusal):
            reply(RaiseMoved("moved") if verdict is Refusal.MOVED else FenceRefused(verdict, verdict.advice))
            return
        if verdict is not self._row:
            self._row = verdict
            self._on_raised(verdict.token, holder)
        reply(Raised())

    def restart(self) -> None:
        """The server starts again."""
        self._starts += 1
        self._live = LiveServer(self._live.timeline, f"start {self._starts}")
        self._world.note("database", "restarts")

    def fail_over(self, *, lose_raises: int, lose_payments: int) -> None:
        """Another server takes its place."""
        self._starts += 1
        self._live = LiveServer(f"{self._starts:08X}", f"start {self._starts}")
        self._world.note("database", f"fails over and loses {lose_raises} raises and {lose_payments} payments")

    def recover(self) -> None:
        """It runs as it should."""
