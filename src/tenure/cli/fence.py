"""``tenure fence install|rebase|show``: the fence in PostgreSQL, by an operator's hand.

It never prints a credential or a nonce. It ends with 0, 2 for wrong use, 4 if there is no fence for the resource, 6 if
the database cannot be reached, 8 if it is unknown whether a rebase was done.
"""

from __future__ import annotations

import getpass
import socket
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text, say

if TYPE_CHECKING:
    from tenure.fence import FenceView

app = App(name="fence", help="Installs, shows and rebases the fence in PostgreSQL.", result_action="return_value")

Resource = Annotated[str, Parameter(help="The fenced resource, such as payments.")]
Dsn = Annotated[str, Parameter(env_var="TENURE_DATABASE__DSN", help="Connection string of the database.")]


@app.command
def install(
    resource: Resource,
    *,
    dsn: Dsn,
    table: Annotated[
        list[str], Parameter(negative_iterable="", help="A table that only the leader may write; repeat it for each.")
    ],
    group: Annotated[
        str | None, Parameter(help="Resources of one group are raised under one lock. Default: a group of its own.")
    ] = None,
    output: Output = "table",
) -> None:
    """Make the fence of a resource and put it on tables. Doing it again changes nothing."""
    from tenure.fence import install as do_install

    installed = do_install(dsn, resource, tables=table, group=group)
    _warn(dsn)
    if output == "json":
        emit_json(
            {
                "resource": installed.resource,
                "group": installed.group,
                "tables": list(installed.tables),
                "changes": list(installed.changes),
            }
        )
        return
    emit_text("\n".join(f"made: {change}" for change in installed.changes) or "everything is in place already")


@app.command
def rebase(
    resource: Resource,
    *,
    dsn: Dsn,
    reason: Annotated[str, Parameter(help="Your word that the old elector is gone for good; kept in the ledger.")],
    output: Output = "table",
) -> None:
    """Open the fence to another elector: new data directories, another engine, a replaced cluster.

    The token stays, so that the next leader must exceed it. Every present writer is refused from now on.
    """
    from tenure.fence import rebase as do_rebase

    if not reason.strip():
        raise CommandError("--reason is empty; say why the old elector is gone for good", code=ExitCode.USAGE)
    view = do_rebase(dsn, resource, who=f"{_user()}@{socket.gethostname()}", why=reason)
    _warn(dsn)
    if output == "json":
        emit_json({"resource": resource, "token": view.token, "version": view.version})
        return
    emit_text(f"the fence of {resource} is open: the next leader, of any elector, gets a token above {view.token}")


@app.command
def show(resource: Resource, *, dsn: Dsn, output: Output = "table") -> None:
    """Print the fence of a resource and the last lines of its ledger."""
    import msgspec

    from tenure.fence import show as do_show

    view, ledger = do_show(dsn, resource)
    if output == "json":
        emit_json(
            {"fence": msgspec.to_builtins(view) | {"valid": _is_valid(view)}, "ledger": msgspec.to_builtins(ledger)}
        )
        return
    facts = msgspec.to_builtins(view) | {"valid": "yes" if _is_valid(view) else "no: the server changed, raise again"}
    emit_table(("fence", "value"), [(name, _text(value)) for name, value in facts.items()])
    columns = ("at", "action", "from_token", "to_token", "who", "why")
    rows = [tuple(_text(getattr(line, column)) for column in columns) for line in ledger]
    emit_table(columns, rows, title="ledger, the newest first")


def _warn(dsn: str) -> None:
    """Say on stderr what the server's settings take away: a rebase that a failover forgets would go unseen (R23)."""
    from tenure.fence import durability_warnings

    for warning in durability_warnings(dsn):
        say(f"warning: {warning}")


def _is_valid(view: FenceView) -> bool:
    """Whether the server is the one that the fence was raised on; else every write is refused with TN004 (R23)."""
    return (view.timeline, view.server_start) == (view.live_timeline, view.live_server_start)


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
