"""What the summary counts, asked of a real PostgreSQL: each kind of harm is seen when it is there."""

from __future__ import annotations

import uuid
from pathlib import Path

import psycopg
import pytest

from tenure.demo import report

# The columns that the counts read, without the constraints and the fence that make the harm impossible.
TABLES = """
CREATE TABLE payment_events (
    event_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, payment_id uuid, node_id text, fencing_token bigint,
    term bigint, reference text, client_id text DEFAULT 'anonymous', idempotency_key text
);
CREATE SCHEMA tenure;
CREATE TABLE tenure.ledger (id bigserial, resource text, action text);
"""


class Ledger:
    """Writes what a run would have left behind."""

    def __init__(self, dsn: str, path: Path) -> None:
        self.dsn = dsn
        self.path = path
        self.execute(TABLES)

    def execute(self, query: str, *values: object) -> None:
        with psycopg.connect(self.dsn) as connection:
            connection.execute(query, values or None)

    def pay(self, key: str, *, token: int = 1, reference: str | None = None, acknowledged: bool = True) -> None:
        payment = uuid.uuid4()
        self.execute(
            "INSERT INTO payment_events (payment_id, node_id, fencing_token, term, reference, idempotency_key) "
            "VALUES (%s, 'payment-1a', %s, 1, %s, %s)",
            payment,
            token,
            reference or f"demo {key}",
            key,
        )
        if acknowledged:
            self.acknowledge(payment)

    def acknowledge(self, payment: uuid.UUID) -> None:
        with self.path.open("a") as file:
            file.write(f"pay_{payment}\n")

    def count(self) -> report.Counts:
        return report.count(self.dsn, self.path)


@pytest.fixture
def ledger(database: str, tmp_path: Path) -> Ledger:
    return Ledger(database, tmp_path / "acknowledged.txt")


def test_report_counts_no_harm_when_tokens_rise_and_everything_is_there(ledger) -> None:
    for number, token in enumerate((1, 1, 2, 5)):
        ledger.pay(f"k{number}", token=token)
    ledger.pay("unknown outcome", token=5, acknowledged=False)
    for action in ("install", "raise", "refused", "raise", "raise"):
        ledger.execute("INSERT INTO tenure.ledger (resource, action) VALUES ('payments', %s)", action)
    ledger.execute("INSERT INTO tenure.ledger (resource, action) VALUES ('other', 'raise')")
    counts = ledger.count()
    assert (counts.payments_acknowledged, counts.payments_in_database) == (4, 5)
    assert (counts.lost, counts.doubled, counts.stale_rows) == (0, 0, 0)
    assert counts.takeovers == report.takeovers(ledger.dsn) == 2
    assert (counts.leader, counts.term, counts.fencing_token) == ("payment-1a", 1, 5)


def test_report_counts_a_lost_payment_when_an_acknowledged_id_is_not_in_the_database(ledger) -> None:
    ledger.pay("k1")
    ledger.acknowledge(uuid.uuid4())
    assert ledger.count().lost == 1


def test_report_counts_a_doubled_key_when_it_has_two_payments(ledger) -> None:
    ledger.pay("k1")
    ledger.pay("k1", reference="another text", acknowledged=False)
    assert ledger.count().doubled == 1


def test_report_counts_a_doubled_payment_when_only_its_reference_tells(ledger) -> None:
    """The clients' own copy of the key is counted too: the check must not lean on the index that it checks."""
    ledger.pay("k1")
    ledger.pay("k2", reference="demo k1", acknowledged=False)
    ledger.pay("k3", reference="rent")
    ledger.pay("k4", reference="rent")
    assert ledger.count().doubled == 1


def test_report_counts_every_row_with_a_lower_token_when_it_follows_a_higher_one(ledger) -> None:
    for number, token in enumerate((1, 3, 2, 3, 1)):
        ledger.pay(f"k{number}", token=token)
    assert ledger.count().stale_rows == 2


@pytest.mark.parametrize("lost", [0, 1])
def test_report_counts_what_was_acknowledged_as_lost_when_there_are_no_tables(ledger, lost: int) -> None:
    ledger.execute("DROP TABLE payment_events; DROP SCHEMA tenure CASCADE")
    for _ in range(lost):
        ledger.acknowledge(uuid.uuid4())
    counts = ledger.count()
    assert (counts.leader, counts.takeovers, counts.payments_acknowledged, counts.lost) == (None, 0, lost, lost)


def test_report_counts_nothing_when_there_was_no_payment(ledger) -> None:
    counts = ledger.count()
    assert counts.leader is None
    assert (counts.takeovers, counts.payments_acknowledged, counts.payments_in_database) == (0, 0, 0)
