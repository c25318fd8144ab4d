"""Reading of JSON bodies where msgspec is silent: a field that an object has twice.

Of two values of one field a reader takes the last, another the first: nobody can tell which one the sender meant, so a
body with both must never be acted on.
"""

from __future__ import annotations

import json
from typing import Any

from payment_service.problems import Problem

FIELD_CHARACTERS_MAX = 64


def refuse_duplicate_fields(body: bytes) -> None:
    """Raise ``invalid_field``, naming the field, if an object in ``body`` has a field twice; the body is valid JSON."""
    try:
        json.loads(body, object_pairs_hook=_check)
    except (ValueError, RecursionError) as error:
        # What msgspec reads leniently or skips: a number of thousands of digits, a field nested beyond any use.
        raise Problem("malformed_json", f"the body cannot be read: {error}") from None


def _check(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(names) == len(set(names)):
        return
    twice = next(name for place, name in enumerate(names) if name in names[:place])[:FIELD_CHARACTERS_MAX]
    raise Problem("invalid_field", f"the field {twice!r} is there more than once", param=twice)
