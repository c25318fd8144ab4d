"""What a node starts from: its stores and the core over what they kept. Blocking: the disk thread calls it."""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tenure.config import Config
from tenure.core import manifest
from tenure.core.commands import Settings
from tenure.core.fsm import Enrolment
from tenure.core.manifest import Manifest
from tenure.core.member import MemberCore
from tenure.core.snapshots import SnapshotLimits
from tenure.instants import NS_PER_MS
from tenure.node.clocks import read_clocks
from tenure.node.engine import binding, build_engine, restored_at
from tenure.node.founding import settings_of
from tenure.node.ports import Ports
from tenure.storage import DataDirectory, LogStore, SnapshotStore, StoredSnapshot

logger = logging.getLogger("tenure.node")


@dataclass(frozen=True, slots=True)
class Stores:
    """The open data directory and the two stores that a user may have brought."""

    directory: DataDirectory
    log: LogStore
    snapshots: SnapshotStore
    #: The last openings of the directory, this one included: see :meth:`DataDirectory.note_opening`.
    openings: tuple[tuple[int, int], ...] = ()

    @classmethod
    def open(cls, config: Config, ports: Ports, incarnation: int) -> Stores:
        """Lock and open under ``incarnation``; :class:`tenure.StorageError` if that cannot be."""
        folder = Path(config.node.data_dir)
        directory = DataDirectory.open(folder, node_name=config.node.name, cluster_name=config.cluster.name)
        try:
            log = directory.log if ports.log_store is None else ports.log_store(folder)
            snapshots = directory.snapshots if ports.snapshot_store is None else ports.snapshot_store(folder)
            openings = directory.note_opening(incarnation)
        except BaseException:
            directory.close()
            raise
        return cls(directory, log, snapshots, openings)

    def compact(self, taken: Manifest) -> None:
        """Let ``taken`` stand durably for the log up to its index."""
        self.log.compact(StoredSnapshot(taken.index, taken.term, manifest.encode(taken)))

    def keep_commit(self, hard_state: tuple[int, int, int]) -> None:
        """Make durable that everything up to that commit index is committed: a commit that comes alone is not."""
        self.log.save(first=0, last=0, entries=b"", hard_state=hard_state)

    def retire(self) -> None:
        """Make durable that the member of this directory was removed."""
        enrolment = self.directory.enrolment
        if enrolment is not None:
            self.directory.enrol(msgspec.structs.replace(enrolment, removed=True))

    def close(self) -> None:
        """Close all of it; the lock goes last."""
        if self.log is not self.directory.store:
            self.log.close()
        self.directory.close()


def build_core(
    config: Config, stores: Stores, enrolment: Enrolment, *, incarnation: int, fenced: bool
) -> tuple[MemberCore, int]:
    """The core over what the disk kept, and the index of the last entry of its log.

    Raises:
        LogCorrupt: what the disk kept is damaged or contradicts itself, the content of its snapshot included.
    """
    stored = stores.log.load()
    restored = restored_at(stored)
    settings = stores.directory.settings or enrolment.record.settings
    engine = build_engine(enrolment.record, enrolment.raft_id, stored, settings)
    core = MemberCore(
        engine,
        record=enrolment.record,
        raft_id=enrolment.raft_id,
        incarnation=incarnation,
        fenced=fenced,
        margin_ns=config.lease.margin_ms * NS_PER_MS,
        nonce=lambda: secrets.token_hex(16),
        started=read_clocks(),
        binding=binding(),
        settings=settings,
        restored=restored,
        snapshot_limits=limits_of(config),
        application_timeout_ns=config.lease.application_timeout_ms * NS_PER_MS,
    )
    if differences := _differences(settings, settings_of(config)):
        logger.warning("the log's settings are used, this file differs: %s", "; ".join(differences))
    return core, engine.last_index


def limits_of(config: Config) -> SnapshotLimits:
    """When this node takes its snapshots."""
    return SnapshotLimits(
        entries=config.raft.snapshot_entries,
        size_bytes=config.raft.snapshot_bytes,
        keep_entries=config.raft.keep_entries,
    )


def _differences(log: Settings, file: Settings) -> list[str]:
    """Where the own file differs from the times that the cluster's log has (R4)."""
    return [
        f"{field}: the cluster uses {getattr(log, field)}, this file says {getattr(file, field)}"
        for field in log.__struct_fields__
        if getattr(log, field) != getattr(file, field)
    ]
