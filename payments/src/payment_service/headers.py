"""Reading of the request headers that decide about a payment: ``Content-Type`` and ``Idempotency-Key``.

Pure functions over the raw headers of ASGI (lower-case names, bytes).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from payment_service.problems import Problem

RawHeaders = Iterable[tuple[bytes, bytes]]

KEY_LENGTH_MAX: Final = 255
_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
# The string of RFC 9651, as the draft of the IETF spells a key: quotes and backslashes inside are escaped.
_QUOTED: Final = re.compile(r'"((?:[^"\\]|\\["\\])*)"')


def header_values(headers: RawHeaders, name: bytes) -> list[str]:
    """All values of one header, in order; bytes outside ASCII stay visible as themselves in Latin-1."""
    return [value.decode("latin-1") for key, value in headers if key == name]


def check_content_type(headers: RawHeaders) -> None:
    """Raise ``unsupported_media_type`` unless the body is said to be ``application/json`` (in UTF-8)."""
    values = header_values(headers, b"content-type")
    media_type, _, parameters = (values[0] if len(values) == 1 else "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if media_type.strip().lower() != "application/json" or charset not in {"", "charset=utf-8"}:
        raise Problem(
            "unsupported_media_type",
            f"Content-Type is {', '.join(values) or 'missing'}; send application/json",
            param="Content-Type",
        )


def idempotency_key(headers: RawHeaders, *, required: bool) -> str | None:
    """The key of the request, in its raw form (``k-1``) or the draft's quoted form (``"k-1"``): both name the same key.

    Raises:
        Problem: ``idempotency_key_missing`` or ``idempotency_key_invalid``.
    """
    values = header_values(headers, b"idempotency-key")
    if not values:
        if not required:
            return None
        raise Problem(
            "idempotency_key_missing",
            "without a key a client that got no answer cannot retry safely; send one made for this payment, "
            "for example Idempotency-Key: 5b0e2d5e-0f3c-4a53-9d0a-2f5f6a1c8e11",
            param="Idempotency-Key",
        )
    if len(values) > 1:
        raise _invalid("the header is there more than once")
    key = values[0].strip()
    if key.startswith('"'):
        quoted = _QUOTED.fullmatch(key)
        if quoted is None:
            raise _invalid("the quotes do not match")
        key = re.sub(r"\\(.)", r"\1", quoted[1])
    if not 1 <= len(key) <= KEY_LENGTH_MAX:
        raise _invalid(f"it has {len(key)} characters")
    if not _VISIBLE.fullmatch(key):
        raise _invalid("it has a space or a character that is not visible ASCII")
    return key


def _invalid(problem: str) -> Problem:
    return Problem(
        "idempotency_key_invalid",
        f"Idempotency-Key must be 1 to {KEY_LENGTH_MAX} visible ASCII characters: {problem}",
        param="Idempotency-Key",
    )
