"""What this service needs of a Tenure member, as a protocol, so that tests can stand in for it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Protocol

from tenure import HeldLeadership, Leadership, PeerInfo, Status


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
