"""How a suite says that a promise is broken: by exceptions, without a test runner, and under ``python -O``, too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


def expect(condition: bool, promise: str) -> None:
    """:class:`AssertionError` with ``promise`` unless ``condition`` holds."""
    if not condition:
        raise AssertionError(promise)


def expect_equal(found: object, promised: object, promise: str) -> None:
    """:class:`AssertionError` with both values unless they are equal."""
    if found != promised:
        raise AssertionError(f"{promise}: found {_short(found)}, promised {_short(promised)}")


@contextlib.contextmanager
def expect_raises(kind: type[BaseException], promise: str) -> Iterator[None]:
    """:class:`AssertionError` with ``promise`` unless the body raises ``kind``; another error passes through."""
    try:
        yield
    except kind:
        return
    raise AssertionError(promise)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 400 else f"{text[:200]} ... {text[-200:]}"
