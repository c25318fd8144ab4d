"""Every error that Tenure raises, as one tree. Each class says what its caller can do next.

::

    TenureError
      ConfigError               fix the named field of the file, the environment or the flag
      NodeClosed                you closed it: open a new one
      NotLeader                 go to the leader (leader_name, leader_url)
      LeadershipLost            stop; wait for the next term
      QuorumUnavailable         wait, or repair the missing voters
      ProposalDropped           surely not done: retry
      OutcomeUnknown            maybe done: look by key, then decide
      DatabaseUnavailable       the database does not answer: wait, or repair it
      FenceError
        StaleToken              TN001: nothing was written; step down
        FenceMissing            TN002: install the fence for that resource
        TokenRequired           TN003: write inside a fenced transaction
        ServerChanged           TN004: the server changed under the fence; raise again with a new token
        RaiseRefused            the fence does not take this raise, with the reason and the command
      FoundingRefused           this directory may not found or join the cluster, with the reason
      MembershipRefused         this change of the members was surely not made, with the reason and the next step
        NotCaughtUp             the learner lags: promote it later
      MemberRemoved             this node was removed from the cluster: it must stop
      SnapshotRefused           no snapshot was taken, with the reason
      StorageError              this node must stop
        LogCorrupt, StorageFull, SyncFailed, WrongCluster, DirectoryInUse
      EngineFailed              the Raft engine broke an invariant of its own: this node must stop
    InvariantViolated(BaseException)   our own bug: the node dies, and no ``except Exception`` hides it

Errors are picklable and carry their facts as fields. They present themselves as members of ``tenure``.
"""

from __future__ import annotations

from typing import Any


class TenureError(Exception):
    """Base of every error that a caller of Tenure can handle."""

    __module__ = "tenure"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.__module__ = "tenure"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle by fields, so that keyword-only constructors survive a process boundary."""
        return (_rebuild, (type(self), self.args, self.__dict__))


def _rebuild(cls: type[TenureError], args: tuple[Any, ...], fields: dict[str, Any]) -> TenureError:
    error = cls.__new__(cls)
    error.args = args
    error.__dict__.update(fields)
    return error


class ConfigError(TenureError):
    """A setting is wrong. ``field`` names it (``lease.duration_ms``), ``problem`` says what to change."""

    def __init__(self, field: str, problem: str, *, origin: str | None = None) -> None:
        self.field = field
        self.problem = problem
        self.origin = origin
        where = f" (from {origin})" if origin else ""
        super().__init__(f"{field}{where}: {problem}")


class NodeClosed(TenureError):
    """The member was closed, or it failed; ``reason`` says which."""

    def __init__(self, reason: str = "the member is closed") -> None:
        self.reason = reason
        super().__init__(reason)


class NotLeader(TenureError):
    """This member does not lead. ``leader_name`` and ``leader_url`` name the one that does, where it is known.

    ``reason`` says why nobody can lead here, as long as the member belongs to no cluster: who or what is waited for.
    """

    def __init__(
        self, *, leader_name: str | None = None, leader_url: str | None = None, reason: str | None = None
    ) -> None:
        self.leader_name = leader_name
        self.leader_url = leader_url
        self.reason = reason
        hint = f"; the leader is {leader_name} at {leader_url}" if leader_name else "; no leader is known"
        if reason is not None:
            hint = f": {reason}"
        super().__init__(f"this member is not the leader{hint}")


class LeadershipLost(TenureError):
    """The leadership of ``term`` is over, for ``reason`` (a value of :class:`tenure.LossReason`)."""

    def __init__(self, *, term: int, reason: str, detail: str = "") -> None:
        self.term = term
        self.reason = reason
        super().__init__(f"leadership of term {term} is over: {detail or reason}")


class QuorumUnavailable(TenureError):
    """Fewer voters answer than a quorum needs."""

    def __init__(self, *, reachable: int, needed: int) -> None:
        self.reachable = reachable
        self.needed = needed
        super().__init__(f"{reachable} voters answer, a quorum needs {needed}")


class ProposalDropped(TenureError):
    """The proposal was surely not taken. It is safe to send it again."""


class OutcomeUnknown(TenureError):
    """The write may or may not have happened. ``key`` is what to look it up by; never assume either."""

    def __init__(self, message: str, *, key: str | None = None) -> None:
        self.key = key
        super().__init__(message)


class DatabaseUnavailable(TenureError):
    """The database did not answer, or refused the connection. Nothing was written by this call."""


class FenceError(TenureError):
    """The fence did not let something through. ``resource`` names it, ``sqlstate`` is the database's code."""

    sqlstate: str | None = None

    def __init__(self, message: str, *, resource: str, held: int | None = None, seen: int | None = None) -> None:
        self.resource = resource
        self.held = held
        self.seen = seen
        super().__init__(message)


class StaleToken(FenceError):
    """TN001: the write carried token ``held`` where the fence holds ``seen``. Nothing was written."""

    sqlstate = "TN001"


class FenceMissing(FenceError):
    """TN002: there is no fence row for ``resource``. Nothing was written."""

    sqlstate = "TN002"


class TokenRequired(FenceError):
    """TN003: the write carried no credential. Nothing was written."""

    sqlstate = "TN003"


class ServerChanged(FenceError):
    """TN004: the server was restarted, promoted or restored under the fence. Nothing was written (R23)."""

    sqlstate = "TN004"


class RaiseRefused(FenceError):
    """The fence does not take this raise. ``reason`` is one word of :class:`tenure.fence.Refusal`."""

    def __init__(
        self,
        message: str,
        *,
        resource: str,
        reason: str,
        held: int | None = None,
        seen: int | None = None,
    ) -> None:
        self.reason = reason
        super().__init__(message, resource=resource, held=held, seen=seen)


class FoundingRefused(TenureError):
    """This data directory may neither found the cluster nor join it (R7). ``reasons`` lists every reason."""

    def __init__(self, message: str, *, reasons: tuple[str, ...] = ()) -> None:
        self.reasons = reasons
        super().__init__(message)


class MembershipRefused(TenureError):
    """The change of the members was surely not made; the text says why and what to do."""


class NotCaughtUp(MembershipRefused):
    """The learner ``name`` is ``behind`` entries behind, or not heard of: it cannot vote yet."""

    def __init__(self, message: str, *, name: str, behind: int | None = None) -> None:
        self.name = name
        self.behind = behind
        super().__init__(message)


class MemberRemoved(TenureError):
    """This node was removed from the cluster. It must stop; its data directory is of no use any more."""


class SnapshotRefused(TenureError):
    """No snapshot was taken. The text says why."""


class StorageError(TenureError):
    """The node's own disk failed it. The node gives up leadership and must stop (R2)."""


class LogCorrupt(StorageError):
    """A stored record fails its checksum. ``path`` and ``index`` name it; it was not applied."""

    def __init__(self, message: str, *, path: str, index: int | None = None) -> None:
        self.path = path
        self.index = index
        super().__init__(message)


class StorageFull(StorageError):
    """The disk is full."""


class SyncFailed(StorageError):
    """A write or an fsync failed: what is on the disk is no longer known."""


class WrongCluster(StorageError):
    """The data directory belongs to another node or another cluster."""


class DirectoryInUse(StorageError):
    """Another process holds the data directory."""


class EngineFailed(TenureError):
    """The Raft engine stopped on a broken invariant. It is unusable, and so is this node (R2)."""


class InvariantViolated(BaseException):
    """A rule of our own does not hold: a bug in Tenure. The node stops; no ``except Exception`` hides it."""

    __module__ = "tenure"
