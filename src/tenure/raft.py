"""Replicated state of one's own on Raft: a thin façade over the node that Tenure itself runs on.

::

    async with Node.open(config, fsm) as node:
        result = await node.apply(b"...")        # on the leader: what the state machine returned

It needs the extra ``tenure[raft]`` and no database. Log store, snapshot store and transport can be the user's own
(:class:`Ports`), each beside a conformance suite in :mod:`tenure.testing`.
"""

from __future__ import annotations

from tenure.core.commands import Settings
from tenure.core.membership import Add, Change, Demote, MemberRole, MemberState, Promote, Remove
from tenure.core.state_machine import StateMachine
from tenure.node.administration import MemberList
from tenure.node.inspection import LogState, SnapshotState, StorageReport
from tenure.node.observing import RaftEvent
from tenure.node.ports import Ports
from tenure.node.raft_node import RaftNode as Node
from tenure.node.raft_node import Stats
from tenure.node.recover_cluster import Recovered, Survivor, recover_cluster
from tenure.storage import LogStore, SnapshotStore
from tenure.transport import Transport

__all__ = [
    "Add",
    "Change",
    "Demote",
    "LogState",
    "LogStore",
    "MemberList",
    "MemberRole",
    "MemberState",
    "Node",
    "Ports",
    "Promote",
    "RaftEvent",
    "Recovered",
    "Remove",
    "Settings",
    "SnapshotState",
    "SnapshotStore",
    "StateMachine",
    "Stats",
    "StorageReport",
    "Survivor",
    "Transport",
    "recover_cluster",
]
