"""The narrow doors between a simulated member, its application and the database. Types only.

A member knows its application by what it tells it and asks it, and the database by the calls of the fence; what stands
behind them is in ``client.py`` and ``fence.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from tenure.core.effects import Grant, Renewed
from tenure.testing.simulation.ledger import Answer, Payment
from tenure.types import Credential, ElectorIdentity, LossReason

#: Takes the one answer of a statement, at the database.
Reply = Callable[[object], None]


class Sentinel:
    """An answer that is no answer."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


#: The statement may have been carried out or not: nobody knows.
LOST: Final = Sentinel("LOST")
#: The statement surely was not carried out.
NOT_SENT: Final = Sentinel("NOT_SENT")


class Application(Protocol):
    """The application's side of one life of a member."""

    @property
    def running(self) -> int | None:
        """The token of the work that was granted last, until it has returned."""
        ...

    def granted(self, grant: Grant) -> None:
        """A leadership was won."""
        ...

    def renewed(self, renewed: Renewed) -> None:
        """Its lease goes on."""
        ...

    def revoked(self, reason: LossReason) -> None:
        """It is over."""
        ...

    def pay(self, payment: Payment, answer: Answer) -> None:
        """Somebody asks for a payment here."""
        ...

    def ended(self) -> None:
        """The process has ended; nothing is called any more."""
        ...


class Fence(Protocol):
    """What a member asks of the database. Each call happens at the database, at the instant at which it arrives."""

    def is_up(self) -> bool:
        """Whether the server takes connections."""
        ...

    def read(self, identity: ElectorIdentity, last_count: int, reply: Reply) -> None:
        """Reply with the floor (FloorRead) or why not (FenceRefused)."""
        ...

    def raise_token(
        self,
        credential: Credential,
        expected: object,
        *,
        generation: int,
        lineage: str,
        holder: str,
        elector_id: str,
        reply: Reply,
    ) -> None:
        """Raise the fence; reply with Raised, RaiseMoved or FenceRefused, once those that hold it have ended."""
        ...
