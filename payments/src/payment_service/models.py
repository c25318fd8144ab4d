"""What a payment looks like on the way in, in the database and on the way out.

Everything about a request that can be judged without the database is judged here, before anything is written.
Money is an integer count of minor units; there is no float anywhere.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import datetime
from typing import Annotated, Final

import msgspec

from payment_service.bodies import refuse_duplicate_fields
from payment_service.currencies import CURRENCIES
from payment_service.identifiers import format_payment_id
from payment_service.problems import Problem

#: Amounts stay exact in JavaScript and jq.
AMOUNT_MAX: Final = 2**53
#: The type of the row that a payment begins with; later events of the same payment carry other types and no key.
ACCEPTED: Final = "payment.accepted"

# PostgreSQL cannot store U+0000, and no other control character belongs into a name or a reference.
_TEXT: Final = r"^[^\x00-\x1f\x7f]*\Z"
_Party = Annotated[str, msgspec.Meta(min_length=1, max_length=64, pattern=_TEXT)]
_Reference = Annotated[str, msgspec.Meta(max_length=140, pattern=_TEXT)]

_RULES: Final = {
    "amount": f"an integer number of minor units (cents) from 1 to {AMOUNT_MAX}",
    "currency": "the three upper-case letters of a currency in ISO 4217, for example EUR",
    "debtor": "a text of 1 to 64 characters without control characters",
    "creditor": "a text of 1 to 64 characters without control characters",
    "reference": "a text of at most 140 characters without control characters",
}


class PaymentRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/payments``."""

    amount: Annotated[int, msgspec.Meta(ge=1, le=AMOUNT_MAX)]
    currency: str
    debtor: _Party
    creditor: _Party
    reference: _Reference = ""


class Payment(msgspec.Struct, frozen=True):
    """A payment as every answer shows it: derived from its one row, so that a replay gives the same bytes (R28)."""

    id: str
    amount: int
    currency: str
    debtor: str
    creditor: str
    reference: str
    status: str
    node: str
    fencing_token: int
    term: int
    created_at: datetime


def payment_from_row(
    *,
    payment_id: uuid.UUID,
    request: PaymentRequest,
    node: str,
    fencing_token: int,
    term: int,
    created_at: datetime,
) -> Payment:
    """The public view of one row. ``created_at`` must be in UTC, as the sessions of this service have it."""
    return Payment(
        id=format_payment_id(payment_id),
        amount=request.amount,
        currency=request.currency,
        debtor=request.debtor,
        creditor=request.creditor,
        reference=request.reference,
        status="accepted",
        node=node,
        fencing_token=fencing_token,
        term=term,
        created_at=created_at,
    )


_decoder: Final = msgspec.json.Decoder(PaymentRequest)


def decode_payment_request(body: bytes) -> PaymentRequest:
    """Read and judge the body of a request.

    Raises:
        Problem: ``malformed_json``, or ``invalid_field`` with ``param`` naming the field and the rule it breaks.
    """
    try:
        request = _decoder.decode(body)
    except msgspec.ValidationError as error:
        _refuse_malformed(body)
        raise _explain(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None
    refuse_duplicate_fields(body)
    if request.currency not in CURRENCIES:
        raise _invalid("currency", f"{request.currency[:16]!r} is not one")
    return request


def hash_payment_request(request: PaymentRequest) -> bytes:
    """SHA-256 over the meaning of the request: spacing and the order of fields do not change it."""
    return hashlib.sha256(msgspec.json.encode(request)).digest()


def _refuse_malformed(body: bytes) -> None:
    """A body that is no JSON at all is called that, even where a wrong type came before the mistake."""
    try:
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _malformed(error) from None


def _malformed(error: Exception) -> Problem:
    return Problem("malformed_json", f"the body is not valid JSON in UTF-8: {error}")


def _explain(text: str) -> Problem:
    """Turn msgspec's sentence (``Expected `int`, got `str` - at `$.amount```) into a problem that names the field."""
    problem, _, place = text.partition(" - at ")
    named = re.search(r"(missing required|unknown) field `(.*)`", problem)
    if named is None:
        field = place.strip("`").removeprefix("$.")
        return _invalid(field, problem[0].lower() + problem[1:]) if field in _RULES else _not_an_object(problem)
    if named[1] == "unknown":
        known = ", ".join(_RULES)
        return Problem(
            "invalid_field", f"there is no field {named[2][:64]!r}; the fields are {known}", param=named[2][:64]
        )
    return _invalid(named[2], "it is missing")


def _not_an_object(problem: str) -> Problem:
    return Problem("invalid_field", f"the body must be a JSON object: {problem[0].lower()}{problem[1:]}", param="body")


def _invalid(field: str, problem: str) -> Problem:
    # The pattern that a text must match is for the machine; people get the rule in words.
    problem = "it has a control character" if "matching regex" in problem else problem
    return Problem("invalid_field", f"{field} must be {_RULES[field]}: {problem}", param=field)
