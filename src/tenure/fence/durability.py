"""What a server's own settings take away from the guarantees, as sentences to warn with at the start (G5, R22, R25).

It only reads. The raise itself is durable whatever the defaults are; these sentences are about the application's
writes, and about a failover.
"""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg.rows import dict_row

from tenure.fence.answers import explain
from tenure.fence.queries import query


def durability_warnings(dsn: str) -> list[str]:
    """One sentence for each setting of the server behind ``dsn`` that weakens a guarantee; empty if none does.

    Raises:
        DatabaseUnavailable: the database did not answer.
    """
    try:
        with psycopg.Connection[dict[str, Any]].connect(
            dsn, autocommit=True, connect_timeout=10, row_factory=dict_row
        ) as connection:
            found = connection.execute(query("durability")).fetchone()
    except psycopg.Error as error:
        raise explain(error, "the database") from error
    warnings: list[str] = []
    if found is None:
        return warnings
    if not found["fsync"]:
        warnings.append(
            "fsync is off: a crash can lose acknowledged writes, and no leader can raise the fence; turn it on"
        )
    if found["synchronous_commit"] in ("off", "local"):
        warnings.append(
            f"synchronous_commit is {found['synchronous_commit']} by default: acknowledged writes can be lost in a "
            "crash or a failover; set it to on for the application's role"
        )
    if found["standbys"] and not found["synchronous_standbys"]:
        warnings.append(
            "the standby is asynchronous: a failover to it can lose acknowledged writes; name it in "
            "synchronous_standby_names, or accept that loss"
        )
    if found["prepared_transactions"]:
        warnings.append(
            f"max_prepared_transactions is {found['prepared_transactions']}: a prepared transaction can hold the fence "
            "and cannot be ended for a new leader; set it to 0"
        )
    return warnings
