"""The writer's check, with real PostgreSQL of two versions: what commits and what never does (R18, R24, R26, G3)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from fence_tools import (
    RESOURCE,
    assert_leader,
    credential,
    is_waiting_for_a_lock,
    make_table,
    raise_to,
    rows,
    wait_until,
)
from psycopg import IsolationLevel, sql

from tenure import fence
from tenure.types import Credential

LEVELS = [IsolationLevel.READ_COMMITTED, IsolationLevel.REPEATABLE_READ, IsolationLevel.SERIALIZABLE]
LEVEL_NAMES = [level.name.lower() for level in LEVELS]

#: One of every kind; each changes the table of `held_by_two` if it commits. The token written is the *right* one, so
#: that only the credential can give a stale writer away.
STATEMENTS = {
    "insert": "INSERT INTO payment_events VALUES (2, 2, 'new')",
    "update": "UPDATE payment_events SET note = 'changed' WHERE id = 1",
    "delete": "DELETE FROM payment_events WHERE id = 1",
    "truncate": "TRUNCATE payment_events",
    "upsert": "INSERT INTO payment_events VALUES (1, 2, 'new') ON CONFLICT (id) DO UPDATE SET note = 'changed'",
    "merge_update": (
        "MERGE INTO payment_events AS e USING (VALUES (1)) AS v (id) ON e.id = v.id "
        "WHEN MATCHED THEN UPDATE SET note = 'changed'"
    ),
    "merge_insert": (
        "MERGE INTO payment_events AS e USING (VALUES (2)) AS v (id) ON e.id = v.id "
        "WHEN NOT MATCHED THEN INSERT VALUES (2, 2, 'new')"
    ),
    "merge_delete": (
        "MERGE INTO payment_events AS e USING (VALUES (1)) AS v (id) ON e.id = v.id WHEN MATCHED THEN DELETE"
    ),
    "cte": "WITH gone AS (DELETE FROM payment_events WHERE id = 1 RETURNING id) SELECT count(*) FROM gone",
    "copy": "COPY payment_events FROM STDIN",
}


def run_statement(connection: psycopg.Connection[Any], kind: str) -> None:
    if kind == "copy":
        with connection.cursor().copy("COPY payment_events FROM STDIN") as copy:
            copy.write_row((2, 2, "new"))
    else:
        connection.execute(STATEMENTS[kind])


class TwoHoldings:
    """A fence that A (token 1) held before B (token 2), with one row that A wrote."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.a, self.b = credential(1), credential(2)
        make_table(dsn)
        asyncio.run(raise_to(dsn, self.a, holder="a"))
        with psycopg.connect(dsn) as connection:
            assert_leader(connection, self.a)
            connection.execute("INSERT INTO payment_events VALUES (1, 1, 'old')")

    def let_b_win(self) -> TwoHoldings:
        asyncio.run(raise_to(self.dsn, self.b, holder="b"))
        return self


@pytest.fixture
def held_by_one(any_database: str) -> TwoHoldings:
    return TwoHoldings(any_database)


@pytest.fixture
def held_by_two(any_database: str) -> TwoHoldings:
    return TwoHoldings(any_database).let_b_win()


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_R18_R26_every_kind_of_statement_is_refused_when_its_credential_is_not_the_present_one(
    held_by_two: TwoHoldings, level: IsolationLevel
) -> None:
    """A stale token, the right token with another nonce, and no credential at all; the right one as the control."""
    before = rows(held_by_two.dsn)
    wrong = {
        "TN001 stale": held_by_two.a,
        "TN001 wrong nonce": credential(held_by_two.b.token),
        "TN001 future": credential(99),
        "TN003 none": None,
    }
    with psycopg.connect(held_by_two.dsn) as connection:
        connection.isolation_level = level
        for kind in STATEMENTS:
            for expected, sent in wrong.items():
                if sent is not None:
                    assert_leader(connection, sent)
                with pytest.raises(psycopg.Error) as refused:
                    run_statement(connection, kind)
                connection.rollback()
                assert refused.value.sqlstate == expected.split()[0], (kind, expected)
                assert rows(held_by_two.dsn) == before, (kind, expected)
            assert_leader(connection, held_by_two.b)
            run_statement(connection, kind)
            changed = connection.execute("SELECT id, fencing_token, note FROM payment_events ORDER BY id").fetchall()
            assert changed != before, f"{kind} changes nothing: it tests nothing"
            connection.rollback()


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_R18_case_A_raise_waits_for_the_writer_that_was_checked_first(
    held_by_one: TwoHoldings, level: IsolationLevel
) -> None:
    """The checked write commits before the raise does, and nothing of that writer commits after it."""
    raised: list[float] = []
    with psycopg.connect(held_by_one.dsn) as writer, bare_raise(held_by_one) as raise_:
        writer.isolation_level = level
        assert_leader(writer, held_by_one.a)
        writer.execute("INSERT INTO payment_events VALUES (2, 1, 'in time')")
        thread = threading.Thread(target=lambda: raised.append(raise_(commit=True)))
        thread.start()
        wait_until(lambda: is_waiting_for_a_lock(held_by_one.dsn, raise_.pid))
        assert not raised
        writer.commit()
        thread.join(10)
        assert raised
        assert_leader(writer, held_by_one.a)
        with pytest.raises(psycopg.Error) as refused:
            writer.execute("INSERT INTO payment_events VALUES (3, 1, 'too late')")
        assert refused.value.sqlstate == "TN001"
    assert [row[0] for row in rows(held_by_one.dsn)] == [1, 2]


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_R18_case_B_writer_is_refused_when_the_raise_was_under_way_before_it(
    held_by_one: TwoHoldings, level: IsolationLevel
) -> None:
    outcome: list[str | None] = []
    with psycopg.connect(held_by_one.dsn) as writer, bare_raise(held_by_one) as raise_:
        writer.isolation_level = level
        assert_leader(writer, held_by_one.a)
        raise_(commit=False)
        thread = threading.Thread(target=lambda: outcome.append(write_state(writer)))
        thread.start()
        wait_until(lambda: is_waiting_for_a_lock(held_by_one.dsn, writer.info.backend_pid))
        raise_.connection.commit()
        thread.join(10)
        assert outcome == ["TN001" if level is IsolationLevel.READ_COMMITTED else "40001"]
        writer.rollback()
    assert [row[0] for row in rows(held_by_one.dsn)] == [1]


@pytest.mark.parametrize("level", LEVELS, ids=LEVEL_NAMES)
def test_R18_case_C_writer_is_refused_when_its_snapshot_is_older_than_the_raise(
    held_by_one: TwoHoldings, level: IsolationLevel
) -> None:
    with psycopg.connect(held_by_one.dsn) as writer:
        writer.isolation_level = level
        assert_leader(writer, held_by_one.a)
        writer.execute("SELECT count(*) FROM payment_events")
        held_by_one.let_b_win()
        assert write_state(writer) == ("TN001" if level is IsolationLevel.READ_COMMITTED else "40001")
        writer.rollback()
    assert [row[0] for row in rows(held_by_one.dsn)] == [1]


def test_R18_insert_is_refused_when_the_rows_own_token_is_another(held_by_two: TwoHoldings) -> None:
    """One bad row among many, under the right credential."""
    with psycopg.connect(held_by_two.dsn) as connection:
        for bad in (1, 3, None):
            assert_leader(connection, held_by_two.b)
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(
                    "INSERT INTO payment_events SELECT n, CASE WHEN n = 500 THEN %s ELSE 2 END, '' "
                    "FROM generate_series(2, 1000) AS n",
                    [bad],
                )
            assert refused.value.sqlstate == "TN001"
            connection.rollback()


def test_R18_hot_statement_carries_the_credential_by_itself(held_by_two: TwoHoldings) -> None:
    statement = fence.ASSERT_LEADER_CTE + (
        " INSERT INTO payment_events SELECT v.id, 2, 'hot' FROM unnest(%(ids)s::int[]) AS v (id), tenure_assertion"
    )
    with psycopg.connect(held_by_two.dsn, autocommit=True) as connection:
        values = {"resource": RESOURCE, "credential": held_by_two.b.encode(), "ids": [2, 3]}
        assert connection.execute(statement, values).statusmessage == "INSERT 0 2"
        with pytest.raises(psycopg.Error) as stale:
            connection.execute(statement, values | {"credential": held_by_two.a.encode(), "ids": [4]})
        assert stale.value.sqlstate == "TN001"
        with pytest.raises(psycopg.Error) as forgotten:
            connection.execute("INSERT INTO payment_events VALUES (5, 2, 'after')")
        assert forgotten.value.sqlstate == "TN003", "the credential must end with its transaction"


def test_R19_savepoint_cannot_take_the_check_away_from_a_write(held_by_one: TwoHoldings) -> None:
    """SAVEPOINT, write, ROLLBACK TO gives up the lock; the next write is checked anew and refused."""
    with psycopg.connect(held_by_one.dsn) as writer:
        assert_leader(writer, held_by_one.a)
        writer.execute("SAVEPOINT s")
        writer.execute("INSERT INTO payment_events VALUES (2, 1, 'undone')")
        writer.execute("ROLLBACK TO SAVEPOINT s")
        held_by_one.let_b_win()
        assert write_state(writer) == "TN001"
    assert [row[0] for row in rows(held_by_one.dsn)] == [1]


def test_R18_error_tells_the_tokens_and_never_the_nonce(held_by_two: TwoHoldings) -> None:
    with psycopg.connect(held_by_two.dsn) as connection:
        assert_leader(connection, held_by_two.a)
        with pytest.raises(psycopg.Error) as refused:
            connection.execute(STATEMENTS["update"])
    mapped = fence.map_error(refused.value, RESOURCE)
    assert mapped is not None
    assert (mapped.resource, mapped.held, mapped.seen) == (RESOURCE, 1, 2)
    everything = str(refused.value) + repr(mapped)
    assert held_by_two.a.nonce not in everything
    assert held_by_two.b.nonce not in everything


def test_R18_malformed_credential_is_refused_and_not_repeated(held_by_two: TwoHoldings) -> None:
    for text in ("", ".", "2", f".{held_by_two.b.nonce}", held_by_two.b.nonce, "9" * 40 + ".x", "2.secret-of-mine"):
        with psycopg.connect(held_by_two.dsn) as connection:
            connection.execute("SELECT tenure.assert_leader(%s, %s)", [RESOURCE, text])
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(STATEMENTS["delete"])
            assert refused.value.sqlstate == ("TN001" if text else "TN003")
            assert held_by_two.b.nonce not in str(refused.value)
            assert "secret-of-mine" not in str(refused.value)


def test_R18_write_is_refused_when_there_is_no_fence_row(any_database: str) -> None:
    make_table(any_database)
    with psycopg.connect(any_database) as connection:
        # Only a superuser who switches the guard off can get here.
        connection.execute("ALTER TABLE tenure.fence_payments DISABLE TRIGGER USER")
        connection.execute("DELETE FROM tenure.fence_payments")
        assert_leader(connection, credential(1))
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("INSERT INTO payment_events VALUES (1, 1, '')")
    assert refused.value.sqlstate == "TN002"


def test_R18_partition_and_foreign_key_cascade_are_checked_too(any_database: str) -> None:
    with psycopg.connect(any_database) as connection:
        connection.execute("CREATE TABLE ledger (id int, fencing_token bigint) PARTITION BY RANGE (id)")
        connection.execute("CREATE TABLE ledger_low PARTITION OF ledger FOR VALUES FROM (0) TO (10)")
        connection.execute("CREATE TABLE account (id int PRIMARY KEY)")
        connection.execute("CREATE TABLE booking (account int REFERENCES account ON DELETE CASCADE)")
        connection.execute("INSERT INTO account VALUES (1); INSERT INTO booking VALUES (1)")
    fence.install(any_database, RESOURCE, tables=["ledger", "booking"])
    for statement in (
        "INSERT INTO ledger VALUES (1, 1)",
        "INSERT INTO ledger_low VALUES (1, 1)",
        "TRUNCATE ledger_low",
        "DELETE FROM account",
    ):
        with psycopg.connect(any_database) as connection, pytest.raises(psycopg.Error) as refused:
            connection.execute(statement)
        assert refused.value.sqlstate == "TN003", statement


def test_R24_trigger_fires_when_a_superuser_turns_ordinary_triggers_off(held_by_two: TwoHoldings) -> None:
    with psycopg.connect(held_by_two.dsn) as connection:
        connection.execute("SET session_replication_role = replica")
        assert write_state(connection) == "TN003"


BACKWARDS = {
    "UPDATE tenure.fence_payments SET token = 1, version = version + 1": "TN001",
    "UPDATE tenure.fence_payments SET nonce = 'mine'": "TN001",
    "UPDATE tenure.fence_payments SET token = 9": "TN001",
    "UPDATE tenure.fence_payments SET version = version - 1": "TN001",
    "UPDATE tenure.fence_payments SET generation = -1, version = version + 1": "TN001",
    "UPDATE tenure.fence_payments SET resource = 'other', version = version + 1": "42501",
    "DELETE FROM tenure.fence_payments": "42501",
    "TRUNCATE tenure.fence_payments": "42501",
    "UPDATE tenure.ledger SET why = ''": "42501",
    "DELETE FROM tenure.ledger": "42501",
    "TRUNCATE tenure.ledger": "42501",
}


def test_R24_fence_only_moves_forward_even_for_a_superuser(held_by_two: TwoHoldings) -> None:
    with psycopg.connect(held_by_two.dsn, autocommit=True) as connection:
        connection.execute("SET session_replication_role = replica")
        for statement, state in BACKWARDS.items():
            with pytest.raises(psycopg.Error) as refused:
                connection.execute(statement)
            assert refused.value.sqlstate == state, statement


@contextmanager
def app_role(dsn: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection as a role that may write the table and owns nothing."""
    database = psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
    role = sql.Identifier(f"app_{database}")
    with psycopg.connect(dsn, autocommit=True) as owner:
        owner.execute(sql.SQL("CREATE ROLE {}").format(role))
        try:
            owner.execute(sql.SQL("GRANT SELECT, INSERT, UPDATE, DELETE ON payment_events TO {}").format(role))
            owner.execute(
                sql.SQL("GRANT TEMPORARY, CREATE ON DATABASE {} TO {}").format(sql.Identifier(database), role)
            )
            with psycopg.connect(dsn, autocommit=True) as connection:
                connection.execute(sql.SQL("SET ROLE {}").format(role))
                yield connection
        finally:
            owner.execute(sql.SQL("DROP OWNED BY {0} CASCADE; DROP ROLE {0}").format(role))


def test_R24_app_role_writes_with_the_credential_and_can_do_nothing_else_to_the_fence(held_by_two: TwoHoldings) -> None:
    forbidden = (
        "SELECT nonce FROM tenure.fence_payments",
        "SELECT 1 FROM tenure.fence_payments FOR SHARE",
        "UPDATE tenure.fence_payments SET version = version + 1",
        "LOCK TABLE tenure.fence_payments IN ACCESS SHARE MODE",
        "INSERT INTO tenure.ledger (resource, action, who, why) VALUES ('x', 'x', 'x', 'x')",
        "ALTER TABLE payment_events DISABLE TRIGGER ALL",
        "DROP TRIGGER tenure_fence_insert ON payment_events",
        "SET session_replication_role = replica",
        "SELECT tenure.refuse('00000', '', '', 1, '', '')",
        "CREATE TABLE tenure.mine ()",
    )
    with app_role(held_by_two.dsn) as connection:
        for statement in forbidden:
            with pytest.raises(psycopg.Error) as refused, connection.transaction():
                connection.execute(statement)
            assert refused.value.sqlstate == "42501", statement
        assert write_state(connection) == "TN003"
        with connection.transaction():
            assert_leader(connection, held_by_two.b)
            connection.execute("INSERT INTO payment_events VALUES (2, 2, 'app')")
    assert (2, 2, "app") in rows(held_by_two.dsn)


def test_R24_search_path_of_the_writer_cannot_change_the_meaning_of_the_check(held_by_two: TwoHoldings) -> None:
    """An operator that always says "equal", and tables of the same names, in schemas that come first."""
    with app_role(held_by_two.dsn) as connection:
        connection.execute("CREATE SCHEMA evil")
        connection.execute(
            "CREATE FUNCTION evil.never(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false'; "
            "CREATE OPERATOR evil.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = evil.never)"
        )
        connection.execute("CREATE TEMPORARY TABLE fence_payments (resource text, token bigint, nonce text)")
        connection.execute("SET search_path = evil, pg_temp, pg_catalog, public")
        with connection.transaction(force_rollback=True):
            assert_leader(connection, held_by_two.a)
            with pytest.raises(psycopg.Error) as refused:
                connection.execute("UPDATE public.payment_events SET note = 'stale'")
    assert refused.value.sqlstate == "TN001"


class BareRaise:
    """The raise's own statements by hand, so that a test can stop between them; it ends nobody's session."""

    def __init__(self, holdings: TwoHoldings, connection: psycopg.Connection[Any]) -> None:
        self.held: Credential = holdings.b
        self.connection = connection
        self.pid = connection.info.backend_pid

    def __call__(self, *, commit: bool) -> float:
        self.connection.execute("LOCK TABLE tenure.fence_payments IN EXCLUSIVE MODE")
        self.connection.execute(
            "UPDATE tenure.fence_payments SET token = %s, nonce = %s, version = version + 1",
            [self.held.token, self.held.nonce],
        )
        if commit:
            self.connection.commit()
        return 0.0


@contextmanager
def bare_raise(holdings: TwoHoldings) -> Iterator[BareRaise]:
    with psycopg.connect(holdings.dsn) as connection:
        yield BareRaise(holdings, connection)


def write_state(connection: psycopg.Connection[Any]) -> str | None:
    """The SQLSTATE that a write of the stale leader gets; None if it was let through."""
    try:
        connection.execute("INSERT INTO payment_events VALUES (9, 1, 'stale')")
    except psycopg.Error as error:
        return error.sqlstate
    return None
