"""Builds the Raft engine from what the disk kept. The only module of ``tenure`` that imports ``tenure_raft``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, cast

from tenure.core import manifest
from tenure.core.commands import Settings
from tenure.core.consensus import Cadence
from tenure.core.engine import Binding, Engine
from tenure.core.fsm import ClusterRecord, founding_membership
from tenure.core.manifest import Manifest
from tenure.errors import ConfigError, LogCorrupt
from tenure.storage import StoredLog

#: What a payload with a snapshot begins with.
SNAPSHOT = b"\x07"


def require_engine() -> None:
    """Raise :class:`tenure.ConfigError` with the command that helps, if the binding is not installed."""
    try:
        import tenure_raft  # noqa: F401 - the import is the check.
    except ImportError as error:
        raise ConfigError(
            "elector.engine", f"'raft' needs the compiled binding: pip install 'tenure[raft]' ({error})"
        ) from None


def binding() -> Binding:
    """The compiled module, as far as the core needs it beside an engine."""
    import tenure_raft

    return cast("Binding", tenure_raft)


def snapshot_in(payload: bytes) -> tuple[int, int, bytes] | None:
    """Index, term and data of the snapshot that a payload carries; None if it carries none.

    Raises:
        ValueError: it is malformed.
    """
    # Asked for every payload, and hardly any is one.
    if payload[:1] != SNAPSHOT:
        return None
    import tenure_raft

    return tenure_raft.snapshot_in(payload)


def entries_of(batch: bytes) -> list[tuple[int, int, str, bytes]]:
    """The entries of a stored batch: index, term, kind (``command``, ``empty``, ``conf_change``) and data.

    Raises:
        ValueError: it is malformed.
    """
    import tenure_raft

    return [(index, term, str(kind), data) for index, term, kind, data in tenure_raft.decode_batch(batch)]


def batch_of(entries: Sequence[tuple[int, int, Literal["command", "empty", "conf_change"], bytes]]) -> bytes:
    """The batch that a log store keeps for these entries, which follow one another."""
    import tenure_raft

    return tenure_raft.encode_batch(entries)


def conf_change_of(
    changes: Sequence[tuple[Literal["add_voter", "add_learner", "remove"], int]], context: bytes
) -> bytes:
    """The data of a configuration change's entry."""
    import tenure_raft

    return tenure_raft.encode_conf_change(changes, context)


def conf_change_in(data: bytes) -> tuple[list[tuple[str, int]], bytes]:
    """The changes and the context of a configuration change's entry; :class:`ValueError` if it is malformed."""
    import tenure_raft

    changes, context = tenure_raft.decode_conf_change(data)
    return [(str(kind), raft_id) for kind, raft_id in changes], context


def restored_at(stored: StoredLog) -> Manifest | None:
    """The manifest of the snapshot that the stored log starts with; :class:`tenure.LogCorrupt` if it is malformed."""
    return None if stored.snapshot is None else manifest.decode(stored.snapshot.data)


def build_engine(record: ClusterRecord, raft_id: int, stored: StoredLog, settings: Settings) -> Engine:
    """The engine of one member, with the stored log replayed (R4: quorum check and pre-vote are on).

    The log starts at its snapshot, else at the founding: also for a member that joined later, which learns from the
    log, or from a snapshot of the leader, that it belongs to the cluster.

    Raises:
        LogCorrupt: the stored batches leave a gap, are malformed, or end before what was committed.
    """
    import tenure_raft

    cadence = Cadence.of(settings.heartbeat_interval_ms, settings.election_timeout_ms)
    restored, kept = restored_at(stored), stored.snapshot
    start = founding_membership(record) if restored is None else restored.membership()
    try:
        engine = tenure_raft.Engine(
            raft_id=raft_id,
            election_tick=cadence.election_tick,
            heartbeat_tick=cadence.heartbeat_tick,
            voters=list(start.voters),
            learners=list(start.learners),
            term=stored.term,
            vote=stored.vote,
            commit=stored.commit,
            batches=list(stored.batches),
            applied=kept.index if kept is not None else 0,
            snapshot=(kept.index, kept.term, kept.data) if kept is not None else None,
            # A message for each commit, and its answer, would be half of all frames: the core tells it in time.
            tell_commits=False,
        )
    except ValueError as error:
        raise LogCorrupt(
            f"the stored log contradicts itself ({error}); replace this member's data directory", path="log"
        ) from error
    # The protocol names the shapes; the binding's own Ready and Literal types are narrower than a protocol can say.
    return cast("Engine", engine)
