"""The one error of the demo: why it cannot go on, and the command that mends it."""

from __future__ import annotations

from tenure.errors import TenureError


class DemoError(TenureError):
    """The demo cannot start or go on. ``next_step`` is the command or the option that mends it."""

    def __init__(self, message: str, next_step: str) -> None:
        self.next_step = next_step
        super().__init__(message)
