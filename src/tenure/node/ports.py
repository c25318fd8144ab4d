"""What a user can put in place of our own disk and network: factories, each beside a conformance suite.

The suites are :mod:`tenure.testing`'s ``LogStoreConformance``, ``SnapshotStoreConformance`` and
``TransportConformance``. The identity of the data directory, its lock and what it keeps of the cluster stay with us.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tenure.storage import LogStore, SnapshotStore
from tenure.transport import TransportFactory


@dataclass(frozen=True, slots=True)
class Ports:
    """None stands for our own: SQLite, files, TCP with TLS. The stores are made with the data directory's path."""

    log_store: Callable[[Path], LogStore] | None = None
    snapshot_store: Callable[[Path], SnapshotStore] | None = None
    transport: TransportFactory | None = None
