"""What an operator or a migration does with the fence: install it, rebase it, look at it. Synchronous.

``install`` may be called at every start by every node: it changes only what is missing, and takes no lock on a table
whose triggers are in place, so that a stuck writer cannot hold up a start. ``rebase`` is the operator's word that the
old elector is gone; it never lowers the token (G4).
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any, LiteralString

import msgspec
import psycopg
from psycopg import Connection, sql
from psycopg.conninfo import make_conninfo
from psycopg.rows import dict_row

from tenure.errors import ConfigError, DatabaseUnavailable, OutcomeUnknown
from tenure.fence import raising
from tenure.fence.answers import explain, missing
from tenure.fence.judge import FenceView
from tenure.fence.queries import SCHEMA, fence_relation, migrations, query

_RESOURCE = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: One installation at a time in a database; the number is arbitrary and fixed.
_INSTALL_LOCK = 7_236_841_020_001
_REBASE_TIMEOUT_S = 10.0
_EVENTS: tuple[LiteralString, ...] = ("INSERT", "UPDATE", "DELETE", "TRUNCATE")


class LedgerRow(msgspec.Struct, frozen=True):
    """One line of the ledger. ``at`` is RFC 3339 in UTC."""

    at: str
    action: str
    from_token: int | None
    to_token: int | None
    who: str
    why: str


class Installed(msgspec.Struct, frozen=True):
    """The fence of ``resource`` as installed; ``changes`` says what was missing before, and is empty if nothing was."""

    resource: str
    group: str
    tables: tuple[str, ...]
    changes: tuple[str, ...]


def install(dsn: str, resource: str, *, tables: Sequence[str], group: str | None = None) -> Installed:
    """Make the fence of ``resource`` and put it on ``tables`` (and all their partitions), in one transaction.

    Args:
        dsn: a role that owns the tables and may create a schema.
        resource: its name: 1 to 40 of a-z, 0-9 and '_', starting with a letter.
        tables: names as SQL writes them, qualified or found by the role's search_path.
        group: resources of one group are raised under one lock; by default each has a group of its own.

    Raises:
        ConfigError: ``dsn`` or a name is malformed, there is no such table, or it is fenced for another resource.
        DatabaseUnavailable: the database did not answer, or refused; nothing was changed.
    """
    group = group or resource
    _check(dsn, resource=resource, group=group)
    with _connection(dsn, resource) as connection, connection.transaction():
        connection.execute("SET LOCAL lock_timeout = '10s'")
        connection.execute("SELECT pg_advisory_xact_lock(%s)", [_INSTALL_LOCK])
        changes = _migrate(connection)
        _install_resource(connection, resource, group, changes)
        fenced = [name for table in tables for name in _fence_table(connection, table, resource, group, changes)]
        if changes:
            note = {"resource": resource, "action": "install", "from_token": None, "to_token": None}
            connection.execute(query("note"), note | {"who": "install", "why": "; ".join(changes)})
    return Installed(resource=resource, group=group, tables=tuple(fenced), changes=tuple(changes))


def rebase(dsn: str, resource: str, *, who: str, why: str) -> FenceView:
    """Open the fence to a new elector, on the operator's word that the old one is gone for good (R17).

    The token stays, and whoever leads next must exceed it. The nonce is new: every present writer is refused at once.
    Runs an event loop of its own: from asynchronous code call it by :func:`asyncio.to_thread`.

    Raises:
        ConfigError: ``dsn`` or ``resource`` is malformed.
        FenceMissing: there is no fence for ``resource``.
        DatabaseUnavailable: nothing was changed.
        OutcomeUnknown: it may have been changed: look with :func:`show`, and do it again.
    """
    _check(dsn, resource=resource)
    return asyncio.run(_rebase(dsn, resource, who=who, why=why))


def show(dsn: str, resource: str, *, limit: int = 20) -> tuple[FenceView, list[LedgerRow]]:
    """The fence of ``resource`` and the last ``limit`` lines of its ledger, the newest first.

    Raises:
        ConfigError: ``dsn`` or ``resource`` is malformed.
        FenceMissing: there is none.
        DatabaseUnavailable: the database did not answer, or refused.
    """
    _check(dsn, resource=resource)
    with _connection(dsn, resource) as connection:
        fence = _relation_of(connection, resource)
        values = {"resource": resource, "limit": limit}
        found = connection.execute(query("read", fence=fence, nonce=sql.SQL("''")), values).fetchone()
        if found is None:
            raise missing(resource)
        lines = connection.execute(query("ledger"), values).fetchall()
    return msgspec.convert(found, FenceView), msgspec.convert(lines, list[LedgerRow])


def _check(dsn: str, **names: str) -> None:
    try:
        make_conninfo(dsn)
    except psycopg.Error:
        # The driver's own words quote the string, and with it a password.
        raise ConfigError("database.dsn", "it cannot be read; write it as postgresql://USER@HOST/DATABASE") from None
    for field, name in names.items():
        if not _RESOURCE.fullmatch(name):
            raise ConfigError(field, f"{name!r}: use 1 to 40 of a-z, 0-9 and '_', starting with a letter")


def _migrate(connection: Connection[Any]) -> list[str]:
    """Bring the schema to this version; every group's check function is then made anew from this version's text."""
    if not _value(connection, "SELECT to_regclass('tenure.schema_version') IS NOT NULL"):
        connection.execute("CREATE SCHEMA IF NOT EXISTS tenure")
        connection.execute(
            "CREATE TABLE tenure.schema_version "
            "(version integer PRIMARY KEY, installed_at timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
    present = _value(connection, "SELECT coalesce(max(version), 0) FROM tenure.schema_version")
    known = migrations()
    if present > known[-1][0]:
        raise ConfigError(
            "database.dsn", f"the fence's schema has version {present}, this Tenure knows {known[-1][0]}: upgrade it"
        )
    changes = []
    for version, text in known:
        if version > present:
            connection.execute(text)
            connection.execute("INSERT INTO tenure.schema_version (version) VALUES (%s)", [version])
            changes.append(f"schema version {version}")
    if changes:
        for found in connection.execute("SELECT DISTINCT fence_group FROM tenure.resource").fetchall():
            _create_check(connection, found["fence_group"])
    return changes


def _install_resource(connection: Connection[Any], resource: str, group: str, changes: list[str]) -> None:
    known = _value(connection, "SELECT fence_group FROM tenure.resource WHERE name = %s", resource)
    if known not in {None, group}:
        raise ConfigError(
            "group", f"{resource!r} is installed in group {known!r}; a resource does not change its group"
        )
    relation = fence_relation(group)
    if not _value(connection, "SELECT to_regclass(%s) IS NOT NULL", f"{SCHEMA}.fence_{group}"):
        connection.execute(query("create_fence", fence=relation))
        _create_check(connection, group)
    if known is None:
        connection.execute("INSERT INTO tenure.resource (name, fence_group) VALUES (%s, %s)", [resource, group])
    row = {"resource": resource, "nonce": secrets.token_hex(16)}
    if connection.execute(query("create_row", fence=relation), row).rowcount:
        changes.append(f"fence of {resource} in group {group}")


def _create_check(connection: Connection[Any], group: str) -> None:
    connection.execute(query("create_check", fence=fence_relation(group), check=_check_of(group)))


def _check_of(group: str) -> sql.Identifier:
    return sql.Identifier(SCHEMA, f"check_{group}")


def _fence_table(connection: Connection[Any], table: str, resource: str, group: str, changes: list[str]) -> list[str]:
    """Put the four triggers on ``table`` and its partitions where they are not in place; return their names."""
    try:
        found = connection.execute(query("tables_of"), {"table": table}).fetchall()
    except (psycopg.errors.SyntaxError, psycopg.errors.InvalidName):
        raise ConfigError("tables", f"{table!r} is not the name of a table") from None
    if not found:
        raise ConfigError("tables", f"there is no table {table!r} in this database; create it first")
    for relation in found:
        if relation["kind"] not in {"r", "p"}:
            raise ConfigError("tables", f"{relation['name']} is not a table; fence the tables beneath it")
        if relation["fenced_for"] not in {None, resource}:
            raise ConfigError("tables", f"{relation['name']} is fenced for {relation['fenced_for']!r} already")
        absent: list[LiteralString] = [
            event for event in _EVENTS if not _is_fenced(connection, relation, event, resource, group)
        ]
        for event in absent:
            _create_trigger(connection, relation, event, resource, group)
        if absent:
            changes.append(f"triggers on {relation['name']}")
    return [relation["name"] for relation in found]


def _is_fenced(connection: Connection[Any], relation: dict[str, Any], event: str, resource: str, group: str) -> bool:
    values = {
        "table": relation["oid"],
        "trigger": f"tenure_fence_{event.lower()}",
        "check": f"{SCHEMA}.check_{group}",
        "resource": resource,
        "scope": _scope(relation, event),
    }
    found = connection.execute(query("trigger_exists"), values).fetchone()
    return bool(found and found["present"])


def _create_trigger(
    connection: Connection[Any], relation: dict[str, Any], event: LiteralString, resource: str, group: str
) -> None:
    scope = _scope(relation, event)
    statement = query(
        "create_trigger",
        trigger=sql.Identifier(f"tenure_fence_{event.lower()}"),
        event=sql.SQL(event),
        table=sql.Identifier(relation["schema"], relation["relation"]),
        transition=sql.SQL("REFERENCING NEW TABLE AS tenure_new" if scope == "rows" else ""),
        check=_check_of(group),
        resource=sql.Literal(resource),
        scope=sql.Literal(scope),
    )
    connection.execute(statement)


def _scope(relation: dict[str, Any], event: str) -> str:
    """``rows`` where the inserted rows carry a token of their own, which must then be the fence's."""
    return "rows" if event == "INSERT" and relation["has_token"] else "statement"


async def _rebase(dsn: str, resource: str, *, who: str, why: str) -> FenceView:
    unanswered = f"the database did not answer in {_REBASE_TIMEOUT_S:g} s"
    try:
        try:
            async with asyncio.timeout(_REBASE_TIMEOUT_S):
                session = await raising.connect(dsn, resource)
        except TimeoutError:
            raise DatabaseUnavailable(unanswered) from None
        async with asyncio.timeout(_REBASE_TIMEOUT_S), aclosing(session):
            async with raising.locked(session, who=who) as held:
                if held.row is None:
                    raise missing(resource)
                opened = msgspec.structs.replace(
                    held.row,
                    elector_id=None,
                    lineage=None,
                    holder=None,
                    nonce=secrets.token_hex(16),
                    version=held.row.version + 1,
                    timeline=held.live.timeline,
                    server_start=held.live.server_start,
                )
                await raising.write(session, opened)
                await raising.note(session, "rebase", who=who, why=why, from_token=opened.token, to_token=opened.token)
            return raising.view_of(opened, held.live)
    except TimeoutError:
        raise OutcomeUnknown(f"{unanswered}; look with: tenure fence show {resource}, then try again") from None
    except psycopg.Error as error:
        raise explain(error, resource) from error


@contextmanager
def _connection(dsn: str, resource: str) -> Iterator[Connection[dict[str, Any]]]:
    try:
        with Connection[dict[str, Any]].connect(
            dsn, row_factory=dict_row, connect_timeout=10, application_name=raising.APPLICATION_NAME
        ) as connection:
            yield connection
    except psycopg.Error as error:
        raise explain(error, resource) from error


def _relation_of(connection: Connection[Any], resource: str) -> sql.Identifier:
    group = _value(connection, "SELECT fence_group FROM tenure.resource WHERE name = %s", resource)
    if group is None:
        raise missing(resource)
    return fence_relation(group)


def _value(connection: Connection[Any], statement: LiteralString, *parameters: Any) -> Any:
    found = connection.execute(statement, parameters).fetchone()
    return None if found is None else next(iter(found.values()))
