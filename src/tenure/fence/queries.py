"""The SQL of the fence, kept in ``queries/*.sql`` and ``migrations/*.sql``. Only identifiers are composed into it."""

from __future__ import annotations

import functools
from importlib import resources

from psycopg import sql

SCHEMA = "tenure"
_PACKAGE = "tenure.fence"


def query(name: str, **parts: sql.Composable) -> sql.Composed:
    """The text of ``queries/<name>.sql`` with identifiers and fixed fragments put into its braces."""
    return _text("queries", f"{name}.sql").format(**parts)


def migrations() -> list[tuple[int, sql.SQL]]:
    """Every migration of the schema as (version, text), in order."""
    folder = resources.files(_PACKAGE) / "migrations"
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(int(name.split("_")[0]), _text("migrations", name)) for name in names]


def fence_relation(group: str) -> sql.Identifier:
    """The relation that holds the fence rows of ``group``."""
    return sql.Identifier(SCHEMA, f"fence_{group}")


@functools.cache
def _text(folder: str, name: str) -> sql.SQL:
    text = (resources.files(_PACKAGE) / folder / name).read_text(encoding="utf-8")
    # The files are part of this package, as trusted as its code: no input ever becomes part of them.
    return sql.SQL(text)  # pyright: ignore[reportArgumentType]
