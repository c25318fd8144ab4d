"""What the demo proves at its end: counted from the database and from the file of acknowledged payments alone.

Nothing here asks the nodes or the clients' counters for a fact about payments. The counts cover the whole data
folder, earlier demos in it included; the speed and the takeover times are of this run.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, LiteralString

import msgspec
import psycopg

from tenure.demo.clients import REFERENCE_PREFIX
from tenure.demo.plan import RESOURCE

#: The brief's own question: who writes?
WHO_WRITES = (
    "SELECT node_id, COUNT(*), MAX(timestamp) FROM payment_events GROUP BY node_id ORDER BY MAX(timestamp) DESC"
)
_PAYMENTS = "SELECT count(DISTINCT payment_id) FROM payment_events"
_LOST = """
    SELECT count(*) FROM unnest(%(ids)s::uuid[]) AS acknowledged (payment_id)
    WHERE NOT EXISTS (SELECT FROM payment_events AS e WHERE e.payment_id = acknowledged.payment_id)
"""
# A key with more than one payment, counted twice over: by the key column, and by the copy of the key that the
# demo's clients put into the reference, so that the count does not lean on the unique index that it checks.
_DOUBLED = """
    SELECT count(*) FROM (
        SELECT idempotency_key FROM payment_events
        WHERE idempotency_key IS NOT NULL
        GROUP BY client_id, idempotency_key HAVING count(DISTINCT payment_id) > 1
        UNION
        SELECT substr(reference, %(skip)s) FROM payment_events
        WHERE starts_with(reference, %(prefix)s)
        GROUP BY reference HAVING count(DISTINCT payment_id) > 1
    ) AS doubled
"""
_STALE = """
    SELECT count(*) FROM (
        SELECT fencing_token, max(fencing_token) OVER (ORDER BY event_id) AS highest_so_far FROM payment_events
    ) AS rows WHERE fencing_token < highest_so_far
"""
_RAISES = "SELECT count(*) FROM tenure.ledger WHERE resource = %(resource)s AND action = 'raise'"
_LAST = "SELECT node_id, term, fencing_token FROM payment_events ORDER BY event_id DESC LIMIT 1"


class Counts(msgspec.Struct, frozen=True):
    """The facts that the database and the file of acknowledged payments tell."""

    leader: str | None
    term: int | None
    fencing_token: int | None
    takeovers: int
    payments_acknowledged: int
    payments_in_database: int
    lost: int
    doubled: int
    stale_rows: int


class Summary(msgspec.Struct, frozen=True):
    """The object that ``tenure demo -o json`` prints."""

    leader: str | None
    term: int | None
    fencing_token: int | None
    takeovers: int
    faults: int
    payments_acknowledged: int
    payments_in_database: int
    lost: int
    doubled: int
    stale_rows: int
    payments_per_second: float
    takeover_seconds: list[float]
    seconds: float
    data_dir: str | None

    @property
    def clean(self) -> bool:
        """True if nothing was lost, nothing paid twice and nothing written under an old token."""
        return self.lost == self.doubled == self.stale_rows == 0


def read_acknowledged(path: Path) -> list[uuid.UUID]:
    """The ids in the file, once each. A last line without its end was never acknowledged: the demo was killed."""
    if not path.exists():
        return []
    complete, _, _ = path.read_text(encoding="ascii").rpartition("\n")
    return list(dict.fromkeys(uuid.UUID(line.removeprefix("pay_")) for line in complete.split()))


def takeovers(dsn: str) -> int:
    """How often the leadership has passed on so far: the raises in the fence's ledger, but for the first."""
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        return _takeovers(connection)


def _takeovers(connection: psycopg.Connection[tuple[Any, ...]]) -> int:
    row = connection.execute(_RAISES, {"resource": RESOURCE}).fetchone()
    return max(0, int(row[0]) - 1) if row is not None else 0


def count(dsn: str, acknowledged: Path) -> Counts:
    """Ask the database for every fact of the summary, in one transaction with one view of it."""
    ids = read_acknowledged(acknowledged)
    with psycopg.connect(dsn, connect_timeout=10) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ

        def one(query: LiteralString, **parameters: object) -> int:
            row = connection.execute(query, parameters).fetchone()
            return int(row[0]) if row is not None else 0

        if connection.execute("SELECT to_regclass('payment_events') IS NULL").fetchone() == (True,):
            # Stopped before the first node had made the tables: whatever was acknowledged is not there.
            return Counts(None, None, None, 0, len(ids), 0, lost=len(ids), doubled=0, stale_rows=0)
        last = connection.execute(_LAST).fetchone()
        leader, term, token = last if last is not None else (None, None, None)
        return Counts(
            leader=leader,
            term=term,
            fencing_token=token,
            takeovers=_takeovers(connection),
            payments_acknowledged=len(ids),
            payments_in_database=one(_PAYMENTS),
            lost=one(_LOST, ids=ids),
            doubled=one(_DOUBLED, prefix=REFERENCE_PREFIX, skip=len(REFERENCE_PREFIX) + 1),
            stale_rows=one(_STALE),
        )
