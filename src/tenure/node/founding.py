"""How this member presents itself, and how its new directory comes to a cluster: the core decides, this asks (R7)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tenure.config import Config
from tenure.core.commands import Settings
from tenure.core.founding import PROTOCOL_VERSION, Apply, Hello, Refuse, Wait, decide
from tenure.core.fsm import Enrolment
from tenure.core.roster import Roster
from tenure.errors import FoundingRefused, MemberRemoved
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
        wait_out=config.lease.wait_out,
    )


class Founding:
    """What this member says of itself, whom it believes, and the founding or joining while its directory is new."""

    def __init__(
        self,
        config: Config,
        roster: Roster,
        *,
        directory_id: str,
        incarnation: int,
        openings: tuple[tuple[int, int], ...],
        last_index: int,
    ) -> None:
        self._config = config
        self._roster = roster
        self._directory_id = directory_id
        self._incarnation = incarnation
        self._openings = openings
        self._last_index = last_index
        self._answers: dict[str, Hello] = {}
        self._changed = asyncio.Event()
        self._cached: tuple[int, Identity] | None = None

    def identity(self) -> Identity:
        """The hello and the frame header of this member as it stands now."""
        if self._cached is not None and self._cached[0] == self._roster.version:
            return self._cached[1]
        enrolment, membership, config = self._roster.enrolment, self._roster.membership(), self._config
        own = config.raft.peers[config.node.name]
        hello = Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name=config.cluster.name,
            cluster_id=enrolment.record.cluster_id if enrolment else "",
            name=config.node.name,
            directory_id=self._directory_id,
            incarnation=self._incarnation,
            # Once founded, what was founded counts: a member that founds later must not take an edited file for it.
            member_names=tuple(sorted(record.name for record in membership.members))
            if membership
            else tuple(sorted(config.raft.peers)),
            settings=enrolment.record.settings if enrolment else settings_of(config),
            address=own.raft,
            url=own.url,
            lineage=membership.lineage if membership else "",
            starts=self._openings[-1][0],
            openings=self._openings,
            last_index=self._last_index,
        )
        cluster = bytes.fromhex(enrolment.record.cluster_id) if enrolment else NO_CLUSTER
        identity = Identity(hello=hello, cluster=cluster, sender=enrolment.raft_id if enrolment else 0)
        self._cached = (self._roster.version, identity)
        return identity

    def reload(self, config: Config) -> None:
        """Say of this member what ``config`` says; streams that are open were greeted before."""
        self._config, self._cached = config, None

    def on_hello(self, hello: Hello) -> None:
        """The configured address of a member answered; while this directory is new, that counts.

        A hello from elsewhere would not do: two nodes that were given one name by mistake could be counted by
        different founders, and two clusters would each have a quorum.
        """
        if self._roster.enrolment is None and hello.name in self._config.raft.peers:
            self._answers[hello.name] = hello
            self._changed.set()

    async def enrol(self, stopping: asyncio.Future[Any], *, on_reason: Callable[[str], None]) -> Enrolment | None:
        """Wait until all configured members have answered, or one welcomes this one; None if ``stopping`` came first.

        Raises:
            FoundingRefused: this directory may neither found nor join, with every reason.
        """
        refused_since: float | None = None
        loop = asyncio.get_running_loop()
        while not stopping.done():
            decision = decide(self.identity().hello, self._answers)
            if isinstance(decision, Enrolment):
                return decision
            if isinstance(decision, Refuse):
                on_reason("; ".join(decision.reasons))
                refused_since = loop.time() if refused_since is None else refused_since
                if loop.time() - refused_since >= REFUSAL_SECONDS:
                    raise _refusal(decision)
            else:
                refused_since = None
                on_reason(_waiting(decision))
            self._changed.clear()
            changed = asyncio.ensure_future(self._changed.wait())
            timeout = None if refused_since is None else REFUSAL_SECONDS
            await asyncio.wait({changed, stopping}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
            changed.cancel()
        return None


def _waiting(decision: Wait | Apply) -> str:
    if isinstance(decision, Wait):
        return f"waiting for {', '.join(decision.missing)} to found the cluster"
    return f"waiting to be added to cluster {decision.cluster_id}: run 'tenure member add {decision.name}'"


def _refusal(decision: Refuse) -> FoundingRefused:
    reasons = tuple(dict.fromkeys(decision.reasons))
    return FoundingRefused("this node can neither found nor join the cluster: " + "; ".join(reasons), reasons=reasons)


def removal(name: str) -> MemberRemoved:
    """What a member ends with that knows of its own removal, then and at every later start."""
    return MemberRemoved(
        f"{name} was removed from the cluster: this node stops. To add it again, give it a new data directory"
    )
