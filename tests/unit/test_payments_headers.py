"""Headers that decide about a payment."""

from __future__ import annotations

import pytest

from payment_service.headers import check_content_type, idempotency_key
from payment_service.problems import Problem


def key_headers(*values: str) -> list[tuple[bytes, bytes]]:
    return [(b"idempotency-key", value.encode("latin-1")) for value in values]


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("k-1", "k-1"),
        ('"k-1"', "k-1"),
        (" k-1 ", "k-1"),
        ("k" * 255, "k" * 255),
        (r'"a\"b"', 'a"b'),
        (r'"a\\b"', r"a\b"),
    ],
)
def test_key_is_read_when_it_is_raw_or_quoted(given: str, key: str):
    assert idempotency_key(key_headers(given), required=True) == key


@pytest.mark.parametrize(
    "values",
    [
        ("",),
        ('""',),
        ("k" * 256,),
        ('"' + "k" * 256 + '"',),
        ("a b",),
        ("ü",),
        ('"open',),
        ('"a"b"',),
        ("a\tb",),
        ("a", "a"),
    ],
)
def test_key_is_refused_when_it_is_malformed(values: tuple[str, ...]):
    with pytest.raises(Problem) as caught:
        idempotency_key(key_headers(*values), required=True)
    assert (caught.value.code, caught.value.param, caught.value.kind.status) == (
        "idempotency_key_invalid",
        "Idempotency-Key",
        400,
    )


def test_key_is_demanded_with_an_example_when_it_is_missing():
    with pytest.raises(Problem) as caught:
        idempotency_key([], required=True)
    assert caught.value.code == "idempotency_key_missing"
    assert "Idempotency-Key: " in caught.value.detail


def test_key_may_be_missing_when_it_is_not_required():
    assert idempotency_key([], required=False) is None


@pytest.mark.parametrize(
    "value", ["application/json", "Application/JSON; charset=UTF-8", 'application/json;charset="utf-8"']
)
def test_content_type_passes_when_it_is_json(value: str):
    check_content_type([(b"content-type", value.encode())])


@pytest.mark.parametrize(
    "values", [(), ("text/plain",), ("application/json; charset=utf-16",), ("application/json", "text/plain")]
)
def test_content_type_is_refused_when_it_is_not_json(values: tuple[str, ...]):
    with pytest.raises(Problem) as caught:
        check_content_type([(b"content-type", value.encode()) for value in values])
    assert (caught.value.code, caught.value.kind.status) == ("unsupported_media_type", 415)
