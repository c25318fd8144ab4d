"""Joins the core's fence effects to the PostgreSQL fence: reads, judges, raises, and never decides on its own."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable

from tenure.core.fsm import COUNT_MASK, ClusterState
from tenure.core.holding import FenceRefused, FenceUnavailable, FloorRead, Raised, RaiseMoved
from tenure.errors import DatabaseUnavailable, FenceError, FenceMissing, OutcomeUnknown, RaiseRefused, TenureError
from tenure.fence import Expected, FenceStore, FenceView, RaiseRequest, Refusal, judge_floor
from tenure.instants import Reading
from tenure.node.clocks import read_clocks
from tenure.types import Credential, ElectorIdentity


class FenceAdapter:
    """The fence of one resource for one member of one cluster. Runs on the node's own loop."""

    def __init__(self, store: FenceStore, *, cluster_id: str, resource: str, holder: str) -> None:
        self._store = store
        self._elector_id = f"raft:{cluster_id}"
        self._resource = resource
        self._holder = holder
        #: When the database was asked last that has answered since, whatever it said.
        self.answered_at: Reading | None = None
        #: When the first question was put since then; None if none was.
        self.unanswered_since: Reading | None = None

    def _identity(self, *, generation: int, lineage: str) -> ElectorIdentity:
        return ElectorIdentity(elector_id=self._elector_id, generation=generation, lineage=lineage)

    async def read(self, state: ClusterState) -> FloorRead | FenceRefused | FenceUnavailable:
        """The floor, or why this member may not lead on it."""
        identity = self._identity(generation=state.generation, lineage=state.lineage)
        try:
            view = await self._answer(self._store.read())
        except FenceMissing as error:
            return FenceRefused(reason=Refusal.MISSING, message=str(error))
        except DatabaseUnavailable as error:
            return FenceUnavailable(f"the database does not answer: {error}")
        verdict = judge_floor(view, identity, state.last_count)
        if not isinstance(verdict, Refusal):
            return FloorRead(token=verdict, expected=view.expected)
        suspected = view.token & COUNT_MASK if verdict is Refusal.COPY else None
        message = f"the fence of {self._resource} refuses this cluster ({verdict}): " + verdict.advice.replace(
            "RESOURCE", self._resource
        )
        return FenceRefused(reason=verdict, message=message, suspected_count=suspected)

    async def raise_token(
        self, credential: Credential, expected: object, *, generation: int, lineage: str
    ) -> Raised | RaiseMoved | FenceRefused | FenceUnavailable:
        """Raise the fence to ``credential``, or say why not."""
        if not isinstance(expected, Expected):
            return RaiseMoved("the fence was not read before this raise")
        request = RaiseRequest(
            identity=self._identity(generation=generation, lineage=lineage),
            credential=credential,
            holder=self._holder,
            expected=expected,
        )
        try:
            await self._answer(self._store.raise_token(request))
        except RaiseRefused as error:
            if error.reason == Refusal.MOVED:
                return RaiseMoved(str(error))
            if error.reason == Refusal.FSYNC_OFF:
                # The server must be mended, and every member meets the same one: handing the office on would only
                # elect and mint again and again.
                return FenceUnavailable(str(error))
            return FenceRefused(reason=error.reason, message=str(error))
        except FenceMissing as error:
            return FenceRefused(reason=Refusal.MISSING, message=str(error))
        except (DatabaseUnavailable, OutcomeUnknown) as error:
            return FenceUnavailable(f"the raise of the fence of {self._resource} is not confirmed: {error}")
        return Raised()

    async def look(self) -> None:
        """Read the fence to see whether the database answers; ``answered_at`` tells."""
        with contextlib.suppress(TenureError):
            await self._answer(self._store.read())

    async def _answer(self, call: Awaitable[FenceView]) -> FenceView:
        """Await one call of the store. What it refuses is an answer, too."""
        asked_at = read_clocks()
        if self.unanswered_since is None:
            self.unanswered_since = asked_at
        try:
            view = await call
        except FenceError:
            self.answered_at, self.unanswered_since = asked_at, None
            raise
        self.answered_at, self.unanswered_since = asked_at, None
        return view

    async def note_refused(self, *, sent: int, why: str) -> None:
        """Put a refusal into the ledger, as well as it goes."""
        await self._store.note_refused(sent=sent, who=self._holder, why=why)

    async def close(self) -> None:
        """Close the connections."""
        await self._store.close()
