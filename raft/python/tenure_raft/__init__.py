"""TiKV's raft-rs for Python: one Raft node without I/O, without a clock and without policy.

The caller owns one thread per engine, makes what a :class:`Ready` holds durable before it advances it (R1), moves the
messages and counts the ticks. After an :class:`EngineError` that poisoned it the engine is unusable (R2).

It must never be asked whether a lease holds: raft-rs counts ticks, not time.
"""

from tenure_raft._engine import (
    Advanced,
    Engine,
    EngineError,
    ProposalDropped,
    Ready,
    decode_batch,
    decode_conf_change,
    encode_batch,
    encode_conf_change,
    encode_message,
    message_kinds,
    snapshot_in,
)

__all__ = [
    "Advanced",
    "Engine",
    "EngineError",
    "ProposalDropped",
    "Ready",
    "decode_batch",
    "decode_conf_change",
    "encode_batch",
    "encode_conf_change",
    "encode_message",
    "message_kinds",
    "snapshot_in",
]
