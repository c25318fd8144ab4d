"""The database of the simulator: the fence judged by the real rules, and the payments that it guards.

It is a model of one PostgreSQL and of the standby that may take its place, held against the real one by
``tenure.testing.FenceConformance``. A call happens at the instant at which it arrives. A write that passes the check
holds the fence still until it is committed, as ``FOR SHARE`` does; a raise waits for it, and ends it if it lasts.
What a failover loses is the end of the log, raises and payments alike.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from tenure.core.fsm import COUNT_MASK
from tenure.core.holding import FenceRefused, FenceUnavailable, FloorRead, Raised, RaiseMoved
from tenure.fence.judge import Expected, FenceRow, LiveServer, RaiseRequest, Refusal, judge_floor, judge_raise
from tenure.fence.raising import view_of
from tenure.instants import NS_PER_MS
from tenure.testing.simulation.ledger import Ledger, Write
from tenure.testing.simulation.parts import LOST, Reply
from tenure.testing.simulation.world import Timer, World
from tenure.types import Credential, ElectorIdentity

#: As ``fence/raising.py``: a raise leaves those that hold the fence this long before it ends their sessions.
GRACE_NS = 20 * NS_PER_MS


class WriteAnswer(enum.Enum):
    """What the database says to a write."""

    WRITTEN = enum.auto()
    #: An earlier attempt with this key wrote the same payment.
    REPLAYED = enum.auto()
    KEY_REUSED = enum.auto()
    #: TN001: the fence holds another credential.
    STALE = enum.auto()
    #: TN004: another server took its place, or it started anew.
    SERVER_CHANGED = enum.auto()
    #: TN003: the transaction carries none.
    NO_CREDENTIAL = enum.auto()


@dataclass(slots=True)
class _Open:
    """A transaction that has passed the check and is not committed."""

    write: Write
    reply: Reply
    commit: Timer


class Database:
    """See the module. ``on_raised`` hears of each new token, once."""

    def __init__(self, world: World, on_raised: Callable[[int, str], None], ledger: Ledger) -> None:
        self._world = world
        self._on_raised = on_raised
        self.ledger = ledger
        self._up = True
        self._starts = 1
        self._live = LiveServer("00000001", "start 1")
        self.row = FenceRow("payments", None, 0, None, 0, "", 1, "00000001", "start 1", None)
        #: What was committed, in order: the fence as it was before a change of it, or a write.
        self._log: list[FenceRow | Write] = []
        self._seen = {(0, "")}
        self.highest_raised = 0
        self._open: dict[str, _Open] = {}
        self._raises: list[Callable[[], None]] = []
        #: Writes whose key another open transaction has; PostgreSQL has them wait for its end.
        self._behind: dict[str, list[Callable[[], None]]] = {}

    def is_up(self) -> bool:
        """See :class:`Fence`."""
        return self._up

    # -- the fence ----------------------------------------------------------------------------------------------------

    def read(self, identity: ElectorIdentity, last_count: int, reply: Reply) -> None:
        """See :class:`Fence`. As ``node/fencing.py`` says it."""
        view = view_of(self.row, self._live)
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
        request = RaiseRequest(identity, credential, holder, expected)
        if not self._must_wait(request):
            self._judge(request, reply)
            return
        # It stands in line for the lock; nobody who comes later passes the check before it.
        self._raises.append(lambda: self._judge(request, reply))
        if len(self._raises) == 1:
            server = self._live
            self._world.after(GRACE_NS, lambda: self._clear_the_way() if server is self._live else None)

    def _must_wait(self, request: RaiseRequest) -> bool:
        """As ``fence/raising.py``: a raise that cannot succeed is refused at once, and ends nobody's session."""
        return bool(self._open) and not isinstance(judge_raise(self.row, self._live, request), Refusal)

    def _judge(self, request: RaiseRequest, reply: Reply) -> None:
        verdict = judge_raise(self.row, self._live, request)
        if isinstance(verdict, Refusal):
            reply(_refusal(verdict))
            return
        if verdict is not self.row:
            self._log.append(self.row)
            self.row = verdict
            self.highest_raised = max(self.highest_raised, verdict.token)
            # The same holding raises the same token again where a failover has lost its raise.
            if (verdict.token, verdict.nonce) not in self._seen:
                self._seen.add((verdict.token, verdict.nonce))
                self._on_raised(verdict.token, request.holder)
        reply(Raised())

    def _clear_the_way(self) -> None:
        """End the sessions that hold the fence: what they have written is undone."""
        for key in list(self._open):
            ended = self._open.pop(key)
            ended.commit.cancel()
            ended.reply(LOST)
        self._go_on()

    def _go_on(self) -> None:
        """Nobody holds the fence: the raises have their turn, then the writes that waited for another's key."""
        if self._open:
            return
        raises, self._raises = self._raises, []
        for call in raises:
            call()
        waiting, self._behind = self._behind, {}
        for calls in waiting.values():
            for call in calls:
                call()

    # -- payments -----------------------------------------------------------------------------------------------------

    def write(self, credential: Credential | None, write: Write, reply: Reply, *, lasts_ns: int = 0) -> None:
        """Check and insert now, commit ``lasts_ns`` later; the answers are those of ``create_check.sql``, in its order.

        Replies with a :class:`WriteAnswer`, or ``LOST`` if its session was ended.
        """
        key = write.payment.key
        if self._raises or key in self._open:
            self._behind.setdefault(key, []).append(lambda: self.write(credential, write, reply, lasts_ns=lasts_ns))
            return
        refusal = self._check(credential)
        # By what was raised, and not by the row alone: a check that lets one pass is seen to.
        self.ledger.offered(stale=refusal is not None or write.token < self.highest_raised)
        if refusal is not None:
            self.ledger.refused(stale=True)
            reply(refusal)
            return
        earlier = self.ledger.rows.get(key)
        if earlier is not None:
            same = earlier.payment.number == write.payment.number
            reply(WriteAnswer.REPLAYED if same else WriteAnswer.KEY_REUSED)
        elif lasts_ns == 0:
            self._commit(write, reply)
        else:
            commit = self._world.after(lasts_ns, lambda: self._end(key))
            self._open[key] = _Open(write, reply, commit)

    def _check(self, credential: Credential | None) -> WriteAnswer | None:
        row, live = self.row, self._live
        if (row.timeline, row.server_start) != (live.timeline, live.server_start):
            return WriteAnswer.SERVER_CHANGED
        if credential is None:
            return WriteAnswer.NO_CREDENTIAL
        if (credential.token, credential.nonce) != (row.token, row.nonce):
            return WriteAnswer.STALE
        return None

    def _end(self, key: str) -> None:
        done = self._open.pop(key)
        self._commit(done.write, done.reply)
        self._go_on()

    def _commit(self, write: Write, reply: Reply) -> None:
        self.ledger.committed(write, highest_raised=self.highest_raised)
        self._log.append(write)
        reply(WriteAnswer.WRITTEN)

    # -- what befalls it ----------------------------------------------------------------------------------------------

    def restart(self, *, down_ns: int = 0) -> None:
        """The server starts again; every session is gone."""
        self._world.note("database", "restarts")
        self._replace(0, self._live.timeline, down_ns)

    def fail_over(self, *, lose: int, down_ns: int = 0) -> None:
        """A standby takes its place that lacks the last ``lose`` commits; it begins a timeline of its own."""
        self._world.note("database", f"fails over and loses {lose} commits")
        self._replace(lose, f"{self._starts + 1:08X}", down_ns)

    def restore(self, *, lose: int, down_ns: int = 0) -> None:
        """An older copy of its files is started in its place, which lacks ``lose`` commits; no timeline shows it."""
        self._world.note("database", f"is restored and loses {lose} commits")
        self._replace(lose, self._live.timeline, down_ns)

    def rebase(self) -> None:
        """``tenure fence rebase``: the same token under another nonce and version, for whichever elector comes."""
        self._world.note("database", "the fence is rebased")
        self._clear_the_way()
        self._log.append(self.row)
        self.row = msgspec.structs.replace(
            self.row,
            elector_id=None,
            lineage=None,
            nonce=f"rebase {self.row.version}",
            version=self.row.version + 1,
            holder=None,
            timeline=self._live.timeline,
            server_start=self._live.server_start,
        )

    def recover(self) -> None:
        """It runs as it should."""
        self._up = True

    def _replace(self, lose: int, timeline: str, down_ns: int) -> None:
        self._drop_sessions()
        for undone in [self._log.pop() for _ in range(min(lose, len(self._log)))]:
            if isinstance(undone, Write):
                self.ledger.lost(undone)
            else:
                self.row = undone
        self._starts += 1
        self._live = LiveServer(timeline, f"start {self._starts}")
        self._stay_down(down_ns)

    def _drop_sessions(self) -> None:
        # Who waits for an answer hears that the session is gone, or nothing: its outcome is unknown to it.
        sessions = list(self._open.values())
        self._open.clear()
        self._raises.clear()
        self._behind.clear()
        for session in sessions:
            session.commit.cancel()
            session.reply(LOST)

    def _stay_down(self, down_ns: int) -> None:
        if down_ns > 0:
            self._up = False
            self._world.after(down_ns, self.recover)


def _refusal(verdict: Refusal) -> FenceRefused | RaiseMoved | FenceUnavailable:
    """As ``node/fencing.py`` says it."""
    if verdict is Refusal.MOVED:
        return RaiseMoved(verdict.advice)
    if verdict is Refusal.FSYNC_OFF:
        return FenceUnavailable(verdict.advice)
    return FenceRefused(verdict, verdict.advice)
