"""The protocol of a log store: every change is durable when its call returns, and one load gives all of it back.

A stable store (term and vote) is a view of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import msgspec


class StoredSnapshot(msgspec.Struct, frozen=True):
    """The record of a snapshot: it stands for every entry up to ``index``. What ``data`` says is not the store's."""

    index: int
    term: int
    data: bytes


class StoredLog(msgspec.Struct, frozen=True):
    """What survived: the hard state, the snapshot, and the batches of entries in the order in which they were saved.

    Each batch replays as "drop everything from its first index on, then append"; entries that the snapshot stands for
    are left out. The store never rewrites a batch, so the first of them may reach below the snapshot's index.
    """

    term: int
    vote: int
    commit: int
    batches: tuple[bytes, ...]
    snapshot: StoredSnapshot | None = None


class LogStore(Protocol):
    """Keeps entries, term and vote. Called from one thread only."""

    def load(self) -> StoredLog:
        """Everything that counts; :class:`tenure.LogCorrupt` naming the first record that fails its checksum.

        A record that is missing is damage, too. What it returns replays without a gap from the snapshot on.
        """
        ...

    def save(
        self,
        *,
        first: int,
        last: int,
        entries: bytes,
        hard_state: tuple[int, int, int] | None,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        """Make all of it durable before returning, as a whole or not at all (R1).

        A call that brings nothing new asks for a sign of life (R13): an idle leader makes one for each lease. It must
        reach the disk like any other, and should take no room there.

        Args:
            first: The index of the batch's first entry.
            last: That of its last one; 0 if it is not known.
            entries: The batch; empty for none.
            hard_state: Term, vote and commit index; None leaves them as they are.
            snapshot: One that the leader sent. Everything stored before, an older snapshot and all batches, is
                replaced by it; the hard state is not.

        Raises:
            StorageFull: the disk is full; nothing of this call is promised to be there.
            SyncFailed: a write or an fsync failed. The store is unusable afterwards, and so is the node (R2).
        """
        ...

    def compact(self, snapshot: StoredSnapshot) -> None:
        """Let ``snapshot``, taken by this member, stand for the entries up to its index. Durable when it returns.

        From now on ``load`` gives it back, and batches that lie wholly at or below its index may be gone; one that
        reaches beyond it stays. A snapshot older than the stored one changes nothing. However much there is to
        remove, the call does not stall: the rest is removed in bounded pieces with later calls, and its space is used
        again. The same errors as ``save``.
        """
        ...

    def close(self) -> None:
        """Close the files. A later call of another method is a bug."""
        ...


@runtime_checkable
class Verifiable(Protocol):
    """What a log store may offer besides: to be checked while it is used."""

    def verify(self) -> Iterator[int]:
        """Check every record that there is now again, a bounded piece (about 1 MiB) for each step; yields their number.

        Other calls may come between two steps. What is compacted meanwhile is left out. A step raises
        :class:`tenure.LogCorrupt` naming the first record that fails its checksum or is missing.
        """
        ...
