"""The readable trace of one seed: what happened when, to whom. It must never change what happens."""

from __future__ import annotations

from collections import deque


class Trace:
    """The last lines of a run, or all of them."""

    def __init__(self, limit: int | None = None) -> None:
        """Keep the last ``limit`` lines; without it, all."""
        self._lines: deque[str] = deque(maxlen=limit)

    def add(self, at_ns: int, who: str, what: str) -> None:
        """One line: ``at_ns`` after the beginning, by true time."""
        self._lines.append(f"{at_ns / 1e9:12.6f}  {who:<10} {what}")

    def lines(self) -> list[str]:
        """What is kept, in order."""
        return list(self._lines)
