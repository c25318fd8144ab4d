"""What the database's answers mean: its errors as Tenure's errors, and when a COMMIT has surely happened (R30).

Codes: TN001 stale token, TN002 no fence, TN003 token required, TN004 server changed under the fence. Errors are
told apart by SQLSTATE alone, never by their text, which the server translates.
"""

from __future__ import annotations

from typing import Any

import msgspec
import psycopg
from psycopg import AsyncConnection

from tenure.errors import (
    DatabaseUnavailable,
    FenceError,
    FenceMissing,
    OutcomeUnknown,
    ServerChanged,
    StaleToken,
    TenureError,
    TokenRequired,
)

_FENCE_ERRORS: dict[str, type[FenceError]] = {
    "TN001": StaleToken,
    "TN002": FenceMissing,
    "TN003": TokenRequired,
    "TN004": ServerChanged,
}
#: Connection exceptions, shutdown and crash of the server, and a server that takes no connection now. Also a server
#: that turned into a standby: it takes no writes.
_UNAVAILABLE_CLASSES = ("08", "28", "3D")
_UNAVAILABLE_STATES = frozenset({"57P01", "57P02", "57P03", "57P04", "57P05", "53300", "25006", "25P03", "25P04"})


class _Detail(msgspec.Struct, frozen=True):
    resource: str
    sent: int | None = None
    held: int | None = None


def map_error(error: psycopg.Error, resource: str) -> TenureError | None:
    """Tenure's error for what psycopg raised; None if it is neither the fence's word nor a lost connection.

    :class:`tenure.DatabaseUnavailable` is what a lost connection maps to. It promises that nothing was written: a
    caller that had a COMMIT, or a statement that commits by itself, in flight must say
    :class:`tenure.OutcomeUnknown` instead (R29).
    """
    kind = _FENCE_ERRORS.get(error.sqlstate or "")
    if kind is not None:
        detail = _read_detail(error, resource)
        message = error.diag.message_primary or str(error)
        if kind is StaleToken and detail.sent is not None and detail.sent == detail.held:
            message += ", of another holding: the fence was rebased, or another copy of this cluster raised it"
        return kind(message, resource=detail.resource, held=detail.sent, seen=detail.held)
    if is_connection_lost(error):
        return DatabaseUnavailable(_one_line(error))
    return None


def explain(error: psycopg.Error, resource: str) -> TenureError:
    """Tenure's error for whatever went wrong while the fence itself was read, raised or installed."""
    if isinstance(error, psycopg.errors.UndefinedTable | psycopg.errors.InvalidSchemaName):
        return missing(resource)
    return map_error(error, resource) or DatabaseUnavailable(_one_line(error))


def is_connection_lost(error: psycopg.Error) -> bool:
    """Whether the connection is gone, could not be made, or leads to a server that takes no work."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    fatal = error.diag.severity_nonlocalized in {"FATAL", "PANIC"}
    return fatal or state in _UNAVAILABLE_STATES or state[:2] in _UNAVAILABLE_CLASSES


async def commit(connection: AsyncConnection[Any]) -> None:
    """Commit the open transaction, and return only if it has surely happened (R30).

    Raises:
        OutcomeUnknown: the tag is not COMMIT, a warning came (a cancelled wait for a standby answers COMMIT and a
            warning, and may be lost), or the connection was lost in between.
        psycopg.Error: the server refused the commit and rolled back: nothing was written.
    """
    warnings: list[str] = []

    def note(diagnostic: psycopg.errors.Diagnostic) -> None:
        if diagnostic.severity_nonlocalized == "WARNING":
            warnings.append(diagnostic.message_primary or "a warning without a text")

    connection.add_notice_handler(note)
    try:
        cursor = await connection.execute("COMMIT")
    except psycopg.Error as error:
        if is_connection_lost(error) or connection.closed:
            raise OutcomeUnknown(f"the connection was lost in COMMIT: {_one_line(error)}") from error
        raise
    finally:
        connection.remove_notice_handler(note)
    if cursor.statusmessage != "COMMIT":
        raise OutcomeUnknown(f"COMMIT was answered with {cursor.statusmessage}, not with COMMIT")
    if warnings:
        raise OutcomeUnknown(f"COMMIT came with a warning: {warnings[0]}")


def missing(resource: str) -> FenceMissing:
    """The error for a resource without a fence, with the way to make one."""
    return FenceMissing(
        f"there is no fence for {resource!r}; run: tenure fence install {resource} --table TABLE", resource=resource
    )


def _read_detail(error: psycopg.Error, resource: str) -> _Detail:
    try:
        return msgspec.json.decode(error.diag.message_detail or "", type=_Detail)
    except msgspec.MsgspecError:
        return _Detail(resource=resource)


def _one_line(error: psycopg.Error) -> str:
    return " ".join(str(error).split())
