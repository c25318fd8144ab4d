"""The fence: PostgreSQL itself refuses every write that does not carry the present leader's credential (G3).

Python here only carries the credential and reads the answers; the refusing is done by triggers and a row lock in the
database, for every client, at every isolation level, whatever the clients believe. It works without any elector of
ours: what it needs of one is a :class:`tenure.types.Leadership`.
"""

from __future__ import annotations

from tenure.fence.administration import Installed, LedgerRow, install, rebase, show
from tenure.fence.answers import commit, is_connection_lost, map_error
from tenure.fence.durability import durability_warnings
from tenure.fence.judge import (
    Expected,
    FenceRow,
    FenceView,
    LiveServer,
    RaiseRequest,
    Refusal,
    Verdict,
    judge_floor,
    judge_raise,
)
from tenure.fence.store import FenceStore
from tenure.fence.transaction import ASSERT_LEADER_CTE, FencedTransaction, fenced_transaction

__all__ = [
    "ASSERT_LEADER_CTE",
    "Expected",
    "FenceRow",
    "FenceStore",
    "FenceView",
    "FencedTransaction",
    "Installed",
    "LedgerRow",
    "LiveServer",
    "RaiseRequest",
    "Refusal",
    "Verdict",
    "commit",
    "durability_warnings",
    "fenced_transaction",
    "install",
    "is_connection_lost",
    "judge_floor",
    "judge_raise",
    "map_error",
    "rebase",
    "show",
]
