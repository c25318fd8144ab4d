"""Builds the Raft engine from what the disk kept. The only module of ``tenure`` that imports ``tenure_raft``."""

from __future__ import annotations

from typing import cast

from tenure.core.consensus import Cadence
from tenure.core.engine import Engine
from tenure.core.fsm import ClusterRecord
from tenure.errors import ConfigError, LogCorrupt
from tenure.storage import StoredLog


def require_engine() -> None:
    """Raise :class:`tenure.ConfigError` with the command that helps, if the binding is not installed."""
    try:
        import tenure_raft  # noqa: F401 - the import is the check.
    except ImportError as error:
        raise ConfigError(
            "elector.engine", f"'raft' needs the compiled binding: pip install 'tenure[raft]' ({error})"
        ) from None


def proposal_dropped() -> type[Exception]:
    """What the engine raises for a proposal that it surely did not take."""
    import tenure_raft

    return tenure_raft.ProposalDropped


def build_engine(record: ClusterRecord, raft_id: int, stored: StoredLog) -> Engine:
    """The engine of one founding member, with the stored log replayed (R4: quorum check and pre-vote are on).

    Raises:
        LogCorrupt: the stored batches leave a gap, are malformed, or end before what was committed.
    """
    import tenure_raft

    settings = record.settings
    cadence = Cadence.of(settings.heartbeat_interval_ms, settings.election_timeout_ms)
    try:
        engine = tenure_raft.Engine(
            raft_id=raft_id,
            election_tick=cadence.election_tick,
            heartbeat_tick=cadence.heartbeat_tick,
            voters=[member.raft_id for member in record.members],
            learners=[],
            term=stored.term,
            vote=stored.vote,
            commit=stored.commit,
            batches=list(stored.batches),
        )
    except ValueError as error:
        raise LogCorrupt(
            f"the stored log contradicts itself ({error}); replace this member's data directory", path="log"
        ) from error
    # The protocol names the shapes; the binding's own Ready and Literal types are narrower than a protocol can say.
    return cast("Engine", engine)
