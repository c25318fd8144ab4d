"""The service's tables: numbered SQL files, applied once each, and the fence over ``payment_events``.

All of it is synchronous: it runs before the node starts, or from the command ``payment-service migrate``. Several
nodes may start at once; a lock that ends with the transaction lets one of them work and the others find it done.
"""

from __future__ import annotations

import time
from importlib import resources
from typing import Final

import psycopg
from psycopg.conninfo import make_conninfo

from tenure import ConfigError, DatabaseUnavailable, TenureError, fence

TABLES: Final = ("payment_events",)

_LOCK: Final = "SELECT pg_advisory_xact_lock(hashtextextended('payment_service.migrations', 0))"
_VERSIONS: Final = """
CREATE TABLE IF NOT EXISTS payment_schema_versions (
    version    integer PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""


class SchemaMissing(TenureError):
    """The tables are older than this version of the service, and it may not change them by itself."""


def migrate(dsn: str, resource: str) -> list[int]:
    """Bring the tables and the fence up to date; the versions that were applied now (none: all was there).

    Raises:
        DatabaseUnavailable: the database does not answer. Nothing was changed.
    """
    applied: list[int] = []
    with _connect(dsn) as session, session.transaction():
        session.execute(_LOCK)
        session.execute("SET LOCAL client_min_messages = warning")
        session.execute(_VERSIONS)
        present = {row[0] for row in session.execute("SELECT version FROM payment_schema_versions")}
        for version, text in _files().items():
            if version not in present:
                session.execute(text.encode())
                session.execute("INSERT INTO payment_schema_versions (version) VALUES (%s)", (version,))
                applied.append(version)
    fence.install(dsn, resource, tables=list(TABLES))
    return applied


def check_schema(dsn: str) -> None:
    """Raise :class:`SchemaMissing` unless every migration of this version was applied. Changes nothing."""
    with _connect(dsn) as session:
        found = session.execute("SELECT to_regclass('payment_schema_versions') IS NOT NULL").fetchone()
        present = set()
        if found is not None and found[0]:
            present = {row[0] for row in session.execute("SELECT version FROM payment_schema_versions")}
    missing = sorted(set(_files()) - present)
    if missing:
        raise SchemaMissing(
            f"the database lacks migrations {missing} and database.auto_migrate is off; run: payment-service migrate"
        )


def wait_for_database(dsn: str, *, timeout_ms: int, interval: float = 0.25) -> None:
    """Return once the database answers.

    Raises:
        ConfigError: the DSN itself is wrong.
        DatabaseUnavailable: it did not answer within ``timeout_ms``.
    """
    try:
        make_conninfo(dsn)
    except psycopg.ProgrammingError:
        # The driver's own words quote the string, and with it a password.
        raise ConfigError("database.dsn", "it cannot be read; write it as postgresql://USER@HOST/DATABASE") from None
    deadline = time.monotonic() + timeout_ms / 1000
    while True:
        try:
            _connect(dsn).close()
        except DatabaseUnavailable as error:
            if time.monotonic() + interval > deadline:
                raise DatabaseUnavailable(
                    f"database.dsn: the database did not answer within {timeout_ms} ms "
                    f"(database.start_timeout_ms): {error}"
                ) from None
            time.sleep(interval)
        else:
            return


def _files() -> dict[int, str]:
    folder = resources.files("payment_service") / "schema"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return {int(name.partition("_")[0]): (folder / name).read_text(encoding="utf-8") for name in names}


def _connect(dsn: str) -> psycopg.Connection[tuple[object, ...]]:
    try:
        return psycopg.connect(dsn, autocommit=True, connect_timeout=5, application_name="payment-service migrate")
    except psycopg.OperationalError as error:
        raise DatabaseUnavailable(str(error).strip()) from error
