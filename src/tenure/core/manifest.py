"""The manifest of a snapshot: the cluster's own state after an entry, and what is needed to find the user's. Pure.

It is small, so the engine carries it as the data of its snapshot message and the log store keeps it durable. The
user's state machine may have any size: its content is a file that travels by itself, named here with its size and
hash, so that a torn or foreign file is never taken for it.
"""

from __future__ import annotations

import msgspec

from tenure.core.fsm import ClusterState, Membership
from tenure.errors import LogCorrupt

FORMAT = 1


class Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The user's part of a snapshot: its name in the snapshot store, its size in bytes and its SHA-256."""

    id: str
    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything up to the log entry ``index`` of ``term``. ``content`` is None where there is no user's state."""

    index: int
    term: int
    state: ClusterState
    voters: tuple[int, ...]
    learners: tuple[int, ...] = ()
    content: Content | None = None

    def membership(self) -> Membership:
        """Who belongs to the cluster there."""
        return Membership(
            index=self.index,
            members=self.state.members,
            voters=self.voters,
            learners=self.learners,
            generation=self.state.generation,
            lineage=self.state.lineage,
        )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)


def encode(manifest: Manifest) -> bytes:
    """The bytes that engine and log store carry."""
    return bytes([FORMAT]) + _encoder.encode(manifest)


def decode(data: bytes) -> Manifest:
    """Read a manifest back; :class:`tenure.LogCorrupt` if it is malformed or of a newer format."""
    if not data or data[0] != FORMAT:
        found = data[0] if data else "nothing"
        raise LogCorrupt(
            f"the snapshot's manifest has format {found}, this version reads {FORMAT}: a newer Tenure wrote it",
            path="snapshot",
        )
    try:
        return _decoder.decode(data[1:])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise LogCorrupt(f"the snapshot's manifest is malformed: {error}", path="snapshot") from None
