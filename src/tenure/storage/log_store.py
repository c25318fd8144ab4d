"""The protocol of a log store: one durable call, one load. A stable store (term and vote) is a view of it."""

from __future__ import annotations

from typing import Protocol

import msgspec


class StoredLog(msgspec.Struct, frozen=True):
    """What survived: the hard state and the batches of entries in the order in which they were saved.

    Each batch replays as "drop everything from its first index on, then append": the store never rewrites a batch.
    """

    term: int
    vote: int
    commit: int
    batches: tuple[bytes, ...]


class LogStore(Protocol):
    """Keeps entries, term and vote. Called from one thread only."""

    def load(self) -> StoredLog:
        """Everything that was saved; :class:`tenure.LogCorrupt` naming the first record that fails its checksum."""
        ...

    def save(self, *, first: int, entries: bytes, hard_state: tuple[int, int, int] | None) -> None:
        """Make the batch (empty for none) and the hard state durable, both or neither, before it returns (R1).

        Raises:
            StorageFull: the disk is full; nothing of this call is promised to be there.
            SyncFailed: a write or an fsync failed. The store is unusable afterwards, and so is the node (R2).
        """
        ...

    def close(self) -> None:
        """Close the files. A later call of another method is a bug."""
        ...
