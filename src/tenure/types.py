"""The small values that every part of Tenure shares. Pure: no clock, disk, socket or random number.

Numbers that must never be mixed up are distinct types. Time inside the core is integer nanoseconds.
"""

from __future__ import annotations

import enum
from typing import NewType, Protocol

import msgspec

from tenure.errors import ConfigError

Term = NewType("Term", int)
LogIndex = NewType("LogIndex", int)
RaftId = NewType("RaftId", int)
FencingToken = NewType("FencingToken", int)

#: A token is ``generation * 2**32 + count`` and stays below 2**53, so that JavaScript and jq keep it (design 7).
GENERATION_SHIFT = 32
TOKEN_LIMIT = 2**53


class State(enum.StrEnum):
    """What a member shows outside. ``leader`` only while its lease is valid and its fence is raised."""

    LEADER = "leader"
    FOLLOWER = "follower"
    CANDIDATE = "candidate"


class LossReason(enum.StrEnum):
    """Why a leadership ended. Stable words: the role journal and the metrics carry them."""

    LEASE_EXPIRED = "lease_expired"
    DEPOSED = "deposed"
    REFUSED = "stale_token"
    SERVER_CHANGED = "server_changed"
    REMOVED = "removed"
    STEPPED_DOWN = "stepped_down"
    CLOSED = "closed"
    FAILED = "failed"
    APPLICATION_STALLED = "application_stalled"
    DATABASE_LOST = "database_lost"
    FORKED = "forked"


class Credential(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Token and nonce of one holding: what a write must carry (R18). A secret; its repr hides the nonce."""

    token: int
    nonce: str

    def encode(self) -> str:
        """The opaque form ``<token>.<nonce>`` that ``tenure.assert_leader`` takes."""
        return f"{self.token}.{self.nonce}"

    @classmethod
    def decode(cls, text: str) -> Credential:
        """Read the opaque form back; :class:`tenure.ConfigError` if it is malformed."""
        token, dot, nonce = text.partition(".")
        if not dot or not token.isdigit() or not nonce:
            raise ConfigError("credential", "expected the form TOKEN.NONCE as TENURE_CREDENTIAL carries it")
        return cls(token=int(token), nonce=nonce)

    def __repr__(self) -> str:
        return f"Credential(token={self.token}, nonce=<secret>)"

    __str__ = __repr__


class Leadership(Protocol):
    """What a fence front end needs of a leadership, whoever won it."""

    @property
    def token(self) -> int:
        """The fencing token of this holding."""
        ...

    @property
    def term(self) -> int:
        """The term that was won."""
        ...

    @property
    def credential(self) -> Credential:
        """Token and nonce, as every write carries them."""
        ...

    def remaining(self) -> float:
        """Seconds for which the lease may still be believed; 0.0 before it starts and once it is over."""
        ...

    def check(self) -> None:
        """Raise :class:`tenure.LeadershipLost` once the leadership is over. Advice, not safety (R14)."""
        ...

    def report_refused(self, error: Exception) -> None:
        """Tell the member that the database refused this credential: it steps down at once (R12)."""
        ...


class ElectorIdentity(msgspec.Struct, frozen=True):
    """Who mints tokens: the elector (kind and cluster id), its generation and its lineage (R16, R17)."""

    elector_id: str
    generation: int
    lineage: str


class PeerInfo(msgspec.Struct, frozen=True):
    """One member as the others know it."""

    name: str
    raft_address: str
    url: str


class Status(msgspec.Struct, frozen=True):
    """A member's own view at one instant, computed when asked, never cached (``/v1/state``, ``/v1/node``)."""

    state: State
    term: int
    name: str
    cluster: str
    cluster_id: str | None
    raft_role: str
    leader_name: str | None
    leader_url: str | None
    fencing_token: int | None
    lease_remaining_ms: int
    votes_for_me: int
    votes_needed: int
    voters: int
    commit_index: int
    applied_index: int
    elections_observed: int
    stale_token_refusals: int
    reason: str | None
    #: Who has not returned, and where, although its leadership is over (R10): it keeps this member from leading.
    work_overdue: str | None = None
