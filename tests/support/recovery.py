"""A recovery by force of a member of the virtual cluster: the real one, on what that member has made durable."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from support.virtual_cluster import Node, VirtualCluster
from tenure.core.commands import Settings
from tenure.core.fsm import Enrolment
from tenure.node.opening import Stores
from tenure.node.recover_cluster import Recovered, recover_stores
from tenure.storage import StoredLog


class VirtualDirectory:
    """What a data directory keeps beside the log, of a founding member."""

    def __init__(self, cluster: VirtualCluster, node: Node) -> None:
        self.node_name = f"node-{node.raft_id}"
        self.cluster_name = cluster.record.cluster_name
        self.path = Path(self.node_name)
        self.settings: Settings | None = cluster.settings
        self.enrolment = Enrolment(record=cluster.record, raft_id=node.raft_id)

    def enrol(self, enrolment: Enrolment) -> None:
        self.enrolment = enrolment


class VirtualLog:
    """The disk of a member of the virtual cluster, as a log store."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def load(self) -> StoredLog:
        term, vote, commit = self._node.hard_state
        return StoredLog(term=term, vote=vote, commit=commit, batches=tuple(self._node.batches))

    def save(self, *, first: int, last: int, entries: bytes, hard_state: tuple[int, int, int]) -> None:
        self._node.batches.append(entries)
        self._node.hard_state = hard_state


def recover(cluster: VirtualCluster, raft_id: int) -> tuple[Recovered, VirtualDirectory]:
    """Recover the crashed member; its new lineage keeps it from the others: no frame passes either way (R3, R16)."""
    node = cluster.nodes[raft_id]
    directory = VirtualDirectory(cluster, node)
    stores = Stores(cast("Any", directory), cast("Any", VirtualLog(node)), cast("Any", None))
    done = recover_stores(stores, cluster.record.cluster_id)
    cluster.isolate(raft_id)
    return done, directory
