"""Who may raise the fence, as pure functions: no connection, no clock, no random number (R15, R16, R17, R20, R23).

The driver in :mod:`tenure.fence.raising` reads the row and the live server under the table lock, asks
:func:`judge_raise`, and writes the row that it returns, nothing else. The simulator uses the same functions as its
model of the fence. They must never look at anything but their arguments.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import msgspec

from tenure.types import GENERATION_SHIFT, Credential, ElectorIdentity, FencingToken


class Refusal(enum.StrEnum):
    """Why the fence does not take a raise, or why a member must not even campaign. Stable words."""

    MISSING = "missing"
    FSYNC_OFF = "fsync_off"
    OTHER_ELECTOR = "other_elector"
    OTHER_LINEAGE = "other_lineage"
    LOWER_GENERATION = "lower_generation"
    TOKEN_NOT_GREATER = "token_not_greater"  # noqa: S105 - a fencing token is no password.
    MOVED = "moved"
    COPY = "copy"

    @property
    def advice(self) -> str:
        """One sentence: what it means and what to do next."""
        return _ADVICE[self]


_ADVICE = {
    Refusal.MISSING: "there is no fence for this resource; run: tenure fence install RESOURCE --table TABLE",
    Refusal.FSYNC_OFF: "the server runs with fsync=off and would forget the raise in a crash; set fsync=on",
    Refusal.OTHER_ELECTOR: (
        "the fence belongs to another elector, or to data directories that are gone; if that one is surely dead, "
        "run: tenure fence rebase RESOURCE --reason TEXT"
    ),
    Refusal.OTHER_LINEAGE: (
        "another recovery of the same cluster holds the fence; decide which one lives, stop the other, and "
        "run: tenure fence rebase RESOURCE --reason TEXT"
    ),
    Refusal.LOWER_GENERATION: "a forced recovery replaced this cluster; stop this member and join the recovered one",
    Refusal.TOKEN_NOT_GREATER: "the fence holds this token or a higher one; step down and win a new token",
    Refusal.MOVED: "the fence or the server changed since it was read; read it again, prove leadership, then raise",
    Refusal.COPY: (
        "the fence holds a token that this cluster's own record has never minted: a copy of this cluster, or a log "
        "older than the fence; find the other cluster before anything else"
    ),
}


class LiveServer(msgspec.Struct, frozen=True):
    """What identifies the server that answers now, and whether it keeps what it acknowledges."""

    timeline: str
    server_start: str
    fsync: bool = True


class FenceRow(msgspec.Struct, frozen=True):
    """One fence row with its nonce: a secret. It never leaves the raise."""

    resource: str
    elector_id: str | None
    generation: int
    lineage: str | None
    token: int
    nonce: str
    version: int
    timeline: str
    server_start: str
    holder: str | None

    def __repr__(self) -> str:
        return f"FenceRow(resource={self.resource!r}, token={self.token}, version={self.version}, nonce=<secret>)"

    __str__ = __repr__


class Expected(msgspec.Struct, frozen=True):
    """What a member read of the fence before its last proof that it holds the elector (R20)."""

    version: int
    timeline: str
    server_start: str


class FenceView(msgspec.Struct, frozen=True):
    """One fence row and the server that answered, without the nonce. ``server_start`` is RFC 3339 in UTC."""

    resource: str
    elector_id: str | None
    generation: int
    lineage: str | None
    token: int
    version: int
    timeline: str
    server_start: str
    live_timeline: str
    live_server_start: str
    holder: str | None

    @property
    def expected(self) -> Expected:
        """What a raise that follows from this reading names: the row's version, and the server that is live."""
        return Expected(version=self.version, timeline=self.live_timeline, server_start=self.live_server_start)


class RaiseRequest(msgspec.Struct, frozen=True):
    """The wish to raise: who asks, with which credential, for which member, on the grounds of which reading."""

    identity: ElectorIdentity
    credential: Credential
    holder: str
    expected: Expected


#: The row to write (the very same row if the raise was already done), or the reason against it.
Verdict: TypeAlias = FenceRow | Refusal


def judge_raise(row: FenceRow | None, live: LiveServer, request: RaiseRequest) -> Verdict:
    """Decide one raise under the fence's lock.

    Granted only to the same elector (or on an unclaimed row), of the same lineage or a higher generation, with a
    strictly greater token, while version and server are those that the member read before it last proved that it
    holds the elector. A raise that this very credential has already done on this very server is granted as it is,
    so that a member may ask again after an unknown outcome.
    """
    if row is None:
        return Refusal.MISSING
    if not live.fsync:
        return Refusal.FSYNC_OFF
    me, credential = request.identity, request.credential
    stranger = _judge_identity(row.elector_id, row.generation, row.lineage, me)
    if stranger is not None:
        return stranger
    if (row.token, row.nonce) == (credential.token, credential.nonce) and (
        (row.timeline, row.server_start) == (live.timeline, live.server_start)
    ):
        return row
    if credential.token <= row.token:
        return Refusal.TOKEN_NOT_GREATER
    if request.expected != Expected(row.version, live.timeline, live.server_start):
        return Refusal.MOVED
    return FenceRow(
        resource=row.resource,
        elector_id=me.elector_id,
        generation=me.generation,
        lineage=me.lineage,
        token=credential.token,
        nonce=credential.nonce,
        version=row.version + 1,
        timeline=live.timeline,
        server_start=live.server_start,
        holder=request.holder,
    )


def judge_floor(row: FenceView, me: ElectorIdentity, last_count: int) -> FencingToken | Refusal:
    """The floor for the next token, asked before a member campaigns, or the reason why it must not (R15, R16).

    Args:
        row: the fence as just read.
        me: this member's elector.
        last_count: the count of the last token in the elector's own record, after everything committed is applied.
    """
    stranger = _judge_identity(row.elector_id, row.generation, row.lineage, me)
    if stranger is not None:
        return stranger
    claimed = row.elector_id is not None and row.generation == me.generation
    if claimed and row.token % (1 << GENERATION_SHIFT) > last_count:
        return Refusal.COPY
    return FencingToken(row.token)


def _judge_identity(
    elector_id: str | None, generation: int, lineage: str | None, me: ElectorIdentity
) -> Refusal | None:
    """An unclaimed row (no elector: just installed or rebased) is open to every elector of no lower generation."""
    if elector_id is not None and elector_id != me.elector_id:
        return Refusal.OTHER_ELECTOR
    if me.generation < generation:
        return Refusal.LOWER_GENERATION
    if elector_id is not None and me.generation == generation and lineage != me.lineage:
        return Refusal.OTHER_LINEAGE
    return None
