"""Tenure makes split brain impossible for Python services.

Election by quorum, a leader lease, and fencing tokens that the database itself enforces. The public names are here and
in :mod:`tenure.config`, :mod:`tenure.fence` and :mod:`tenure.telemetry`; what each promises is in docs/guarantees.md.

::

    async with tenure.open(config) as member:
        async for leadership in member.terms():
            async with leadership:
                await serve(leadership)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenure.config import Config
from tenure.errors import (
    ConfigError,
    DatabaseUnavailable,
    DirectoryInUse,
    EngineFailed,
    FenceError,
    FenceMissing,
    FoundingRefused,
    InvariantViolated,
    LeadershipLost,
    LogCorrupt,
    MemberRemoved,
    MembershipRefused,
    NodeClosed,
    NotCaughtUp,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    QuorumUnavailable,
    RaiseRefused,
    ServerChanged,
    SnapshotRefused,
    StaleToken,
    StorageError,
    StorageFull,
    SyncFailed,
    TenureError,
    TokenRequired,
    WrongCluster,
)
from tenure.leadership import HeldLeadership
from tenure.leading import run_as_leader
from tenure.sync import SyncLeadership, SyncMember, open_sync
from tenure.types import Credential, ElectorIdentity, Leadership, LossReason, PeerInfo, State, Status

if TYPE_CHECKING:
    from tenure.node.member import Member

__version__ = "0.1.0"


def open(config: Config, *, dsn: str | None = None) -> Member:  # noqa: A001 - `tenure.open` reads as what it does.
    """A member of the cluster that ``config`` names, to be entered with ``async with``.

    ``dsn`` names the database that holds the fence; by default ``config.database.dsn``. An empty one opens a member
    without a fence: its leaderships then rest on the lease alone, which no clock can make safe (docs/guarantees.md).
    Entering raises :class:`ConfigError` or :class:`StorageError`; nothing is left running then.
    """
    from tenure.node.member import Member

    return Member(config, dsn=config.database.dsn if dsn is None else dsn)


__all__ = [
    "Config",
    "ConfigError",
    "Credential",
    "DatabaseUnavailable",
    "DirectoryInUse",
    "ElectorIdentity",
    "EngineFailed",
    "FenceError",
    "FenceMissing",
    "FoundingRefused",
    "HeldLeadership",
    "InvariantViolated",
    "Leadership",
    "LeadershipLost",
    "LogCorrupt",
    "LossReason",
    "MemberRemoved",
    "MembershipRefused",
    "NodeClosed",
    "NotCaughtUp",
    "NotLeader",
    "OutcomeUnknown",
    "PeerInfo",
    "ProposalDropped",
    "QuorumUnavailable",
    "RaiseRefused",
    "ServerChanged",
    "SnapshotRefused",
    "StaleToken",
    "State",
    "Status",
    "StorageError",
    "StorageFull",
    "SyncFailed",
    "SyncLeadership",
    "SyncMember",
    "TenureError",
    "TokenRequired",
    "WrongCluster",
    "open",
    "open_sync",
    "run_as_leader",
]
