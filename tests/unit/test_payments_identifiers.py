"""Identifiers that the node makes."""

from __future__ import annotations

import time
import uuid

from payment_service.identifiers import format_payment_id, new_request_id, parse_payment_id, uuid7


def test_uuid7_carries_version_variant_and_the_time_when_it_is_made():
    before = time.time_ns() // 1_000_000
    made = uuid7()
    after = time.time_ns() // 1_000_000
    assert made.version == 7
    assert made.variant == uuid.RFC_4122
    assert before <= made.int >> 80 <= after


def test_uuid7_is_unique_when_many_are_made_at_once():
    assert len({uuid7() for _ in range(10_000)}) == 10_000


def test_payment_id_survives_the_round_trip_when_it_is_ours():
    made = uuid7()
    assert format_payment_id(made).startswith("pay_")
    assert parse_payment_id(format_payment_id(made)) == made


def test_payment_id_is_none_when_the_text_is_anything_else():
    made = str(uuid7())
    for text in ("", "pay_", made, f"pay_{made.upper()}", f"pay_{made.replace('-', '')}", f"pay_{made}x", "pay_{}"):
        assert parse_payment_id(text) is None


def test_request_id_is_new_when_asked_again():
    assert new_request_id() != new_request_id()
