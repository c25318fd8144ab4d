"""What this service needs of a Tenure member, as a protocol, so that tests can stand in for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Protocol

from tenure import HeldLeadership, Leadership, PeerInfo, Status
from tenure.raft import LogState, MemberList, Settings, SnapshotState, StorageReport


class Member(Protocol):
    """The part of :class:`tenure.Member` that the service uses."""

    @property
    def name(self) -> str:
        """This member's name."""
        ...

    @property
    def cluster_id(self) -> str | None:
        """The id of the cluster, once it is founded."""
        ...

    @property
    def leadership(self) -> Leadership | None:
        """The present leadership whose lease is valid, or None."""
        ...

    def status(self) -> Status:
        """This member's own view, computed now."""
        ...

    def cluster(self) -> Sequence[PeerInfo]:
        """All members by name."""
        ...

    def terms(self) -> AsyncIterator[HeldLeadership]:
        """One item for each leadership won."""
        ...

    @property
    def failed(self) -> Awaitable[BaseException]:
        """Resolves if the node must stop (R2)."""
        ...

    @property
    def incarnation(self) -> int:
        """A random number of this life of the node."""
        ...

    def reload_certificates(self) -> None:
        """Look at the files of ``raft.tls`` now."""
        ...

    async def step_down(self) -> bool:
        """Give up leadership; False if this member does not lead."""
        ...

    # -- what an operator does; each is described at :class:`tenure.raft.Node` ----------------------------------------

    async def members(self) -> MemberList:
        """Every member as this one sees it."""
        ...

    async def add_learner(self, name: str, *, timeout_ms: int = ...) -> None:
        """Add the new node of that name as a learner."""
        ...

    async def add_voter(self, name: str) -> None:
        """Add it, wait until it has caught up, and let it vote."""
        ...

    async def promote(self, name: str) -> None:
        """Let a learner vote."""
        ...

    async def demote(self, name: str) -> None:
        """Make a voter a learner."""
        ...

    async def remove(self, name: str) -> None:
        """Remove a member for good."""
        ...

    async def transfer_leadership(self, to: str | None = None) -> str:
        """Hand leadership over; the name of who leads then."""
        ...

    async def snapshot(self) -> int:
        """Take a snapshot of this member now; its index."""
        ...

    async def stored_snapshots(self) -> list[SnapshotState]:
        """The contents of snapshots that this member keeps."""
        ...

    async def log_state(self) -> LogState:
        """Where the log of this member stands."""
        ...

    async def verify_storage(self) -> StorageReport:
        """Check log and snapshots again."""
        ...

    async def settings(self) -> Settings:
        """The cluster's times."""
        ...

    async def change_settings(
        self,
        *,
        heartbeat_interval_ms: int | None = None,
        election_timeout_ms: int | None = None,
        lease_duration_ms: int | None = None,
        clock_rate_error_ppm: int | None = None,
        wait_out: str | None = None,
    ) -> Settings:
        """Change times of the cluster through its log."""
        ...
