"""Safety checks that stay on under ``python -O``, where ``assert`` vanishes."""

from __future__ import annotations

from tenure.errors import InvariantViolated


def invariant(condition: object, text: str) -> None:
    """Raise :class:`tenure.InvariantViolated` with ``text`` unless ``condition`` holds.

    It is for what can only fail by a bug of ours, never for input or the world.
    """
    if not condition:
        raise InvariantViolated(text)
