"""What the body of a payment may be, judged before anything is written."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payment_service.models import AMOUNT_MAX, decode_payment_request, hash_payment_request
from payment_service.problems import Problem

GOOD = {"amount": 1250, "currency": "EUR", "debtor": "alice", "creditor": "bob", "reference": "invoice 7"}
MISSING = object()


def body(**changes: object) -> bytes:
    fields = {key: value for key, value in (GOOD | changes).items() if value is not MISSING}
    return json.dumps(fields).encode()


def test_payment_is_accepted_when_every_field_is_in_its_bounds():
    request = decode_payment_request(body(amount=AMOUNT_MAX, debtor="d" * 64, reference="r" * 140))
    assert (request.amount, request.currency, len(request.debtor), len(request.reference)) == (
        AMOUNT_MAX,
        "EUR",
        64,
        140,
    )


def test_payment_counts_characters_and_not_bytes_when_a_name_is_not_ascii():
    assert decode_payment_request(body(debtor="ü" * 64)).debtor == "ü" * 64


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("amount", 0),
        ("amount", -1),
        ("amount", 12.5),
        ("amount", 12.0),
        ("amount", AMOUNT_MAX + 1),
        ("amount", 10**30),
        ("amount", "12"),
        ("amount", True),
        ("amount", None),
        ("amount", MISSING),
        ("currency", "EURO"),
        ("currency", "eur"),
        ("currency", "XYZ"),
        ("currency", "XXX"),
        ("currency", 978),
        ("currency", MISSING),
        ("debtor", ""),
        ("debtor", "d" * 65),
        ("debtor", "a\x00b"),
        ("debtor", "a\nb"),
        ("debtor", MISSING),
        ("creditor", ""),
        ("creditor", "c" * 65),
        ("creditor", {}),
        ("creditor", MISSING),
        ("reference", "r" * 141),
        ("reference", "line\n"),
        ("reference", None),
    ],
)
def test_payment_is_refused_with_the_field_named_when_a_value_is_wrong(field: str, value: object):
    with pytest.raises(Problem) as caught:
        decode_payment_request(body(**{field: value}))
    assert (caught.value.code, caught.value.param, caught.value.kind.status) == ("invalid_field", field, 400)
    assert caught.value.detail.startswith(f"{field} must be")
    assert "regex" not in caught.value.detail


def test_payment_is_refused_with_the_field_named_when_a_field_is_unknown():
    with pytest.raises(Problem) as caught:
        decode_payment_request(body(fee=1))
    assert (caught.value.code, caught.value.param) == ("invalid_field", "fee")


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b'{"amount": 1',
        b"not json",
        b'{"amount": NaN}',
        b'{"amount": 1} trailing',
        b'{"amount": "1", "currency": ',
        b'{"debtor": "\xff\xfe"}',
        b'{"amount": 1, "debtor": "\\ud800"}',
        b"[" * 5000,
    ],
)
def test_body_is_called_malformed_when_it_is_no_json(text: bytes):
    with pytest.raises(Problem) as caught:
        decode_payment_request(text)
    assert caught.value.code == "malformed_json"


@pytest.mark.parametrize("text", [b"[]", b"1", b'"payment"', b"null"])
def test_body_is_refused_when_it_is_json_but_no_object(text: bytes):
    with pytest.raises(Problem) as caught:
        decode_payment_request(text)
    assert (caught.value.code, caught.value.param) == ("invalid_field", "body")


@pytest.mark.parametrize(
    ("extra", "field"),
    [(b'"amount": 1', "amount"), (b'"amount": 1250', "amount"), (b'"\\u0064ebtor": "mallory"', "debtor")],
)
def test_body_is_refused_when_a_field_is_there_twice(extra: bytes, field: str):
    """Whoever reads the first of two amounts and whoever reads the last disagree about the payment."""
    with pytest.raises(Problem) as caught:
        decode_payment_request(body()[:-1] + b", " + extra + b"}")
    assert (caught.value.code, caught.value.param) == ("invalid_field", field)
    assert "more than once" in caught.value.detail


def test_hash_is_equal_when_only_the_order_and_the_spacing_differ():
    one = decode_payment_request(json.dumps(GOOD).encode())
    other = decode_payment_request(json.dumps(dict(reversed(GOOD.items())), indent=3).encode())
    assert hash_payment_request(one) == hash_payment_request(other)


@pytest.mark.parametrize("field", list(GOOD))
def test_hash_differs_when_one_field_differs(field: str):
    value = {"amount": 1, "currency": "USD"}.get(field, "another")
    assert hash_payment_request(decode_payment_request(body())) != hash_payment_request(
        decode_payment_request(body(**{field: value}))
    )


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.text() | st.integers(), st.lists).map(json.dumps).map(str.encode)
)
def test_decoder_answers_with_a_problem_or_a_request_when_the_body_is_anything(text: bytes):
    try:
        request = decode_payment_request(text)
    except Problem as problem:
        problem.render(instance="/v1/payments", request_id="req_1")
        return
    assert 1 <= request.amount <= AMOUNT_MAX
