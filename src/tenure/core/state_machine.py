"""The protocol of the user's own replicated state, and nothing else. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol


class StateMachine(Protocol):
    """The user's replicated state. Deterministic: the same entries give the same state on every member.

    All three run on the application's event loop, never two at once. What one raises ends the node: a state machine
    that fails on one member only is no longer a replica. ``tenure.testing.StateMachineConformance`` tries all of it.
    """

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        """Apply one committed entry; what it returns is the result of the leader's ``apply``. It must not block."""
        ...

    def snapshot(self) -> Iterable[bytes]:
        """The state as it is now, in pieces of any size.

        The call itself is quick; what it returns is read to its end on another thread while more entries are applied,
        so it must not change with them: a copy, or a generator over something that is not altered in place.
        """
        ...

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace the whole state by a snapshot: the same bytes that ``snapshot`` gave, in pieces of any size.

        ``chunks`` can be read once, and only until the call returns.
        """
        ...
