"""Identifiers that the node makes itself: payments (UUIDv7, so that new rows sort last) and requests.

The prefix ``pay_`` exists in JSON and URLs only; the database stores the bare UUID.
"""

from __future__ import annotations

import os
import time
import uuid
from typing import Final

PAYMENT_PREFIX: Final = "pay_"


def uuid7() -> uuid.UUID:
    """A UUID of version 7 (RFC 9562): milliseconds of wall time, then 74 random bits.

    The time in it is only for locality in the index; nothing is decided by it.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10), "big")
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)


def format_payment_id(payment_id: uuid.UUID) -> str:
    """The public form, ``pay_`` and the UUID with dashes."""
    return f"{PAYMENT_PREFIX}{payment_id}"


def parse_payment_id(text: str) -> uuid.UUID | None:
    """Read the public form back; None unless it is exactly what :func:`format_payment_id` gives."""
    try:
        payment_id = uuid.UUID(text.removeprefix(PAYMENT_PREFIX))
    except ValueError:
        return None
    return payment_id if format_payment_id(payment_id) == text else None


def new_request_id() -> str:
    """An identifier for one request, as the ``Request-Id`` header carries it."""
    return f"req_{os.urandom(12).hex()}"
