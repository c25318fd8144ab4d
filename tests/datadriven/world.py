"""What a script acts on: a virtual cluster, names for its members, and what has been seen of them so far."""

from __future__ import annotations

import re
from collections.abc import Callable

from tenure_raft import message_kinds

from support.virtual_cluster import Node, VirtualCluster
from tenure.core.effects import Grant, Revoke
from tenure.instants import NS_PER_MS


class World:
    """Members are called by number or by a name that the script gave them. Time moves by ``advance`` alone."""

    def __init__(self) -> None:
        self._cluster: VirtualCluster | None = None
        self.names: dict[str, int] = {}
        #: Ways whose messages wait (True) or vanish (False), with the one kind that is meant, or all.
        self.ways: list[tuple[int, int, str | None, bool]] = []
        self.held: list[tuple[int, int, bytes]] = []
        self.marked: dict[int, tuple[str, int, int]] = {}
        self.directories: dict[str, object] = {}
        self._seen: dict[int, str] = {}
        self._traced = 0
        self._raised = 0

    @property
    def cluster(self) -> VirtualCluster:
        if self._cluster is None:
            raise ValueError("there is no cluster yet: begin with `cluster 3`")
        return self._cluster

    def begin(self, cluster: VirtualCluster) -> None:
        """Start anew with this cluster."""
        self.__init__()
        self._cluster = cluster
        cluster.filter = self._passes
        self._look()

    # -- names ---------------------------------------------------------------------------------------------------------

    def member(self, word: str) -> int:
        """The number behind a name or a number of a member."""
        raft_id = self.names.get(word) or (int(word) if word.isdecimal() else 0)
        if raft_id not in self.cluster.nodes:
            raise ValueError(f"{word!r} is no member; names so far: {', '.join(self.names) or 'none'}")
        return raft_id

    def node(self, word: str) -> Node:
        """The member of that name."""
        return self.cluster.nodes[self.member(word)]

    def way(self, word: str) -> tuple[int, int]:
        """The two ends of ``a->b``."""
        sender, arrow, to = word.partition("->")
        if not arrow:
            raise ValueError(f"{word!r} is no way; write it as a->b")
        return self.member(sender), self.member(to)

    def label(self, raft_id: int) -> str:
        """The name of a member if it has one."""
        return next((name for name, member in self.names.items() if member == raft_id), f"member {raft_id}")

    def labels(self, raft_ids: list[int]) -> str:
        """Several names, or none."""
        return " ".join(self.label(raft_id) for raft_id in raft_ids) or "none"

    # -- messages ------------------------------------------------------------------------------------------------------

    def _passes(self, sender: int, to: int, payload: bytes) -> bool:
        kinds = {kind for kind, *_ in message_kinds(payload)}
        for way_sender, way_to, kind, waits in self.ways:
            if (sender, to) == (way_sender, way_to) and (kind is None or kind in kinds):
                if waits:
                    self.held.append((sender, to, payload))
                return False
        return True

    # -- what is shown -------------------------------------------------------------------------------------------------

    def advance(self, ms: int, *, until: Callable[[], bool] | None = None) -> tuple[bool, list[str]]:
        """Move the time; whether ``until`` holds at the end, and what was to be seen, each line with its time."""
        start = self.cluster.now_ns
        lines: list[str] = []

        def look() -> bool:
            elapsed = (self.cluster.now_ns - start) // NS_PER_MS
            lines.extend(f"+{elapsed} ms  {event}" for event in self._look())
            return until is not None and until()

        reached = self.cluster.advance(ms, until=look)
        return reached, lines

    def events(self) -> list[str]:
        """What is new since the last look, without a time: for commands that take none."""
        return self._look()

    def standing(self, raft_id: int) -> tuple[str, int, int]:
        """Role, durable term and known leader of a member that runs."""
        view = self.cluster.core(raft_id).view()
        return view.raft_role, view.term, view.leader_id

    def _look(self) -> list[str]:
        lines = []
        for raft_id, node in self.cluster.nodes.items():
            if node.core is None:
                self._seen[raft_id] = "down"
                continue
            role, term, _ = self.standing(raft_id)
            now = f"is {role} of term {term}"
            if self._seen.get(raft_id) != now and raft_id in self._seen:
                lines.append(f"{self.label(raft_id)} {now}")
            self._seen[raft_id] = now
        raises = self.cluster.fence.raises
        lines += [f"the fence is raised to {token}" for token in raises[self._raised :]]
        self._raised = len(raises)
        for _, raft_id, effect in self.cluster.trace[self._traced :]:
            if isinstance(effect, Grant):
                lines.append(f"{self.label(raft_id)} leads term {effect.term} with token {effect.credential.token}")
            elif isinstance(effect, Revoke):
                lines.append(f"{self.label(raft_id)} leads no more: {effect.reason}")
        self._traced = len(self.cluster.trace)
        return lines


def milliseconds(text: str) -> int:
    """A number of milliseconds."""
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"{text!r} is no number of milliseconds")
    return int(text)
