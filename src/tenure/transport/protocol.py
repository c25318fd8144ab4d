"""The protocol of a transport: what carries payloads between members. It may lose them; it never reorders a stream.

A transport is made by a :data:`TransportFactory` from the hooks of its member: what it asks of it and what it tells it.
It reads no payload.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from tenure.transport import frames
from tenure.transport.frames import NO_CLUSTER, Kind

if TYPE_CHECKING:
    from tenure.core.founding import Hello, Welcome


@dataclass(frozen=True, slots=True)
class Identity:
    """How this member presents itself now: its hello, and the header of its frames once it is founded."""

    hello: Hello
    cluster: bytes
    sender: int

    def frame(self, kind: Kind, payload: bytes) -> bytes:
        """A frame of this member as it stands now."""
        return frames.encode_behind(self.head(kind), payload)

    def head(self, kind: Kind) -> bytes:
        """The head of its frames."""
        return frames.encode_head(
            kind, cluster=self.cluster or NO_CLUSTER, sender=self.sender, incarnation=self.hello.incarnation
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportHooks:
    """What a transport asks of its member and tells it. Each is called on the event loop that owns the transport."""

    #: How this member presents itself at this moment.
    identity: Callable[[], Identity]
    #: Why no payloads are exchanged with who says that hello, or None. The name is the one that was dialled, or None.
    admit: Callable[[Hello, str | None], str | None]
    #: The raft id of a member by its name; None for who is no member. It may change its answer at any time, and a
    #: stream that was opened under another answer is closed.
    raft_id_of: Callable[[str], int | None]
    #: A payload came from the member with that raft id. Whatever the payload, the hook does not raise.
    on_payload: Callable[[int, bytes], None]
    #: The address of a peer was dialled, and it answered by its own name, or said it with a refusal.
    on_hello: Callable[[Hello], None] = lambda _: None
    #: Who belongs to no cluster yet dialled this member.
    on_applicant: Callable[[Hello], None] = lambda _: None
    #: The life of a member that this one was connected to is over: its process has ended.
    on_gone: Callable[[int], None] = lambda _: None
    #: The peer of that name was dialled and refuses this member, with its reason. Told at every try.
    on_refused: Callable[[str, str], None] = lambda *_: None
    #: What who dialled is told of the members with the answer to its hello; an applicant only if it may join.
    welcome_for: Callable[[Hello], Welcome | None] = lambda _: None


class Transport(Protocol):
    """Carries payloads between members. One event loop owns it; nothing of it is called from another thread."""

    @property
    def dropped_frames(self) -> int:
        """How many payloads ``send`` has dropped."""
        ...

    async def start(self) -> int:
        """Begin to listen and to connect, again and again by itself; returns the port or another number of its own.

        :class:`OSError` if it cannot listen. A transport that was closed is not started again.
        """
        ...

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """From now on connect to exactly these others (name to HOST:PORT), before or after the start.

        Streams to members that are no longer named end at once, and so does one to an address that changed; all
        others stay as they are. An address that is none is not reached, and does not keep the others from being
        dialled: it may come from the log. Without an effect on a closed transport.
        """
        ...

    def send(self, peer: int, payload: bytes) -> None:
        """Send to the member ``peer``, or drop and count it: unknown, not connected, too slow, or closed.

        It never waits and never raises for the network's sake. Payloads to one peer arrive in the order of their
        sending, each once or not at all; nothing that was dropped is sent later.
        """
        ...

    def connected(self) -> set[int]:
        """The members to which a stream is open now, as far as this side knows."""
        ...

    async def close(self) -> None:
        """End every stream and task; nothing is delivered afterwards. Idempotent and cancellation-safe."""
        ...


#: How a user brings a transport of their own: it is called once, on the event loop that will own the transport.
TransportFactory = Callable[[TransportHooks], Transport]
