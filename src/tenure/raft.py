"""Replicated state of one's own on Raft: a thin façade over the node that Tenure itself runs on.

::

    async with Node.open(config, fsm) as node:
        result = await node.apply(b"...")        # on the leader: what the state machine returned

It needs the extra ``tenure[raft]`` and no database. The log is kept whole in this version: no snapshots yet.
"""

from __future__ import annotations

from tenure.node.raft_node import RaftEvent, StateMachine, Stats
from tenure.node.raft_node import RaftNode as Node

__all__ = ["Node", "RaftEvent", "StateMachine", "Stats"]
