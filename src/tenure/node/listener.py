"""What the application's side of a member implements: the news that the node's thread tells it."""

from __future__ import annotations

from tenure.core.effects import (
    Apply,
    Declined,
    Grant,
    MembersChanged,
    Proposed,
    Proved,
    Rejected,
    Renewed,
    RestoreSnapshot,
    SettingsChanged,
    TakeSnapshot,
)
from tenure.core.view import View
from tenure.instants import Reading
from tenure.types import LossReason, State

UserEffect = (
    Proposed | Rejected | Declined | Apply | Proved | MembersChanged | SettingsChanged | TakeSnapshot | RestoreSnapshot
)


class Listener:
    """What the member does with the driver's news; called on the node's thread, where it only posts or replaces."""

    #: Whether there is a user's state machine whose content belongs into a snapshot.
    has_content = False
    #: When the application was last seen alive (R13); None where there is no work whose life could be judged.
    application_at: Reading | None = None

    def granted(self, grant: Grant) -> None:
        """A leadership was won."""

    def renewed(self, renewed: Renewed) -> None:
        """The running leadership was proved again."""

    def revoked(self, reason: LossReason) -> None:
        """The running leadership is over."""

    def changed(self, state: State, view: View) -> None:
        """The state, the term or the reason that the status shows has changed."""

    def published(self, view: View) -> None:
        """The core was stepped; ``view`` is what it shows now."""

    def user_effect(self, effect: UserEffect) -> None:
        """The fate of calls, and committed entries and snapshots for the user's state machine, in order."""

    def on_failure(self, error: BaseException) -> None:
        """The node must stop (R2)."""
