"""The founding of a cluster as the driver runs it: collects hellos until ``core.founding`` decides (R7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tenure.config import Config
from tenure.core.commands import Settings
from tenure.core.founding import PROTOCOL_VERSION, Hello, Refuse, Wait, admit, decide
from tenure.core.fsm import ClusterRecord
from tenure.errors import FoundingRefused
from tenure.instants import PPM
from tenure.transport.frames import NO_CLUSTER
from tenure.transport.tcp import Identity

#: How long a refusal must stand before it ends the node: a peer may just be restarting with a corrected file.
REFUSAL_SECONDS = 1.0


def settings_of(config: Config) -> Settings:
    """The cluster's times as this file gives them."""
    return Settings(
        heartbeat_interval_ms=config.raft.heartbeat_interval_ms,
        election_timeout_ms=config.raft.election_timeout_ms,
        lease_duration_ms=config.lease.duration_ms,
        clock_rate_error_ppm=round(config.lease.clock_rate_error * PPM),
    )


class Founding:
    """What this member says of itself, whom it believes, and the founding while its directory is new."""

    def __init__(self, config: Config, *, directory_id: str, incarnation: int, record: ClusterRecord | None) -> None:
        self._config = config
        self._directory_id = directory_id
        self._incarnation = incarnation
        self._answers: dict[str, Hello] = {}
        self._changed = asyncio.Event()
        self._cached: tuple[ClusterRecord | None, Identity] | None = None
        self.record = record

    def identity(self) -> Identity:
        """The hello and the frame header of this member as it stands now."""
        if self._cached is not None and self._cached[0] is self.record:
            return self._cached[1]
        record, config = self.record, self._config
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name=config.cluster.name,
            cluster_id=record.cluster_id if record else "",
            name=config.node.name,
            directory_id=self._directory_id,
            incarnation=self._incarnation,
            # Once founded, what was founded counts: a member that founds later must not take an edited file for it.
            member_names=tuple(sorted(record_names(record) if record else config.raft.peers)),
            settings=record.settings if record else settings_of(config),
        )
        cluster = bytes.fromhex(record.cluster_id) if record else NO_CLUSTER
        identity = Identity(hello=hello, cluster=cluster, sender=self.raft_id_of(config.node.name) or 0)
        self._cached = (record, identity)
        return identity

    def admit(self, hello: Hello, expected_name: str | None) -> str | None:
        """Why frames of that member are not taken, or None."""
        return admit(self.identity().hello, hello, self.record, expected_name=expected_name)

    def raft_id_of(self, name: str) -> int | None:
        """The raft id of a member by name, once founded."""
        if self.record is None:
            return None
        return next((member.raft_id for member in self.record.members if member.name == name), None)

    def on_hello(self, hello: Hello) -> None:
        """The configured address of a member answered; while this directory is new, that counts.

        A hello from elsewhere would not do: two nodes that were given one name by mistake could be counted by
        different founders, and two clusters would each have a quorum.
        """
        if self.record is None and hello.name in self._config.raft.peers:
            self._answers[hello.name] = hello
            self._changed.set()

    def settings_differences(self, record: ClusterRecord) -> list[str]:
        """Where this file differs from the times that the cluster was founded with (R4)."""
        mine = settings_of(self._config)
        return [
            f"{field}: the cluster uses {getattr(record.settings, field)}, this file says {getattr(mine, field)}"
            for field in mine.__struct_fields__
            if getattr(record.settings, field) != getattr(mine, field)
        ]

    async def found(self, stopping: asyncio.Future[Any], *, on_reason: Callable[[str], None]) -> ClusterRecord | None:
        """Wait until all configured members have answered; None if ``stopping`` came first.

        Raises:
            FoundingRefused: this directory may neither found nor join, with every reason.
        """
        refused_since: float | None = None
        loop = asyncio.get_running_loop()
        while not stopping.done():
            decision = decide(self.identity().hello, self._answers)
            if isinstance(decision, ClusterRecord):
                return decision
            if isinstance(decision, Wait):
                refused_since = None
                on_reason(f"waiting for {', '.join(decision.missing)} to found the cluster")
            else:
                on_reason("; ".join(decision.reasons))
                refused_since = loop.time() if refused_since is None else refused_since
                if loop.time() - refused_since >= REFUSAL_SECONDS:
                    raise _refusal(decision)
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            timeout = None if refused_since is None else REFUSAL_SECONDS
            await asyncio.wait({changed, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        return None


def record_names(record: ClusterRecord) -> list[str]:
    """The names of the founding members."""
    return [member.name for member in record.members]


def _refusal(decision: Refuse) -> FoundingRefused:
    return FoundingRefused(
        "this node can neither found nor join the cluster: " + "; ".join(decision.reasons), reasons=decision.reasons
    )
