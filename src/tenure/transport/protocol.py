"""The protocol of a transport: what carries payloads between members. It may lose them; it never reorders a stream.

A transport is made with a callback ``on_payload(sender, payload)`` and calls it on the event loop that owns it, with
the raft id of the member that the stream was greeted by. It reads no payload.
"""

from __future__ import annotations

from typing import Protocol


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
