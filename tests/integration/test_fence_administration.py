"""Install, rebase and show, in Python and on the command line, with real PostgreSQL."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading

import psycopg
import pytest
from fence_tools import RESOURCE, credential, ledger, make_table, raise_to

from tenure import fence
from tenure.cli.app import run
from tenure.errors import ConfigError, DatabaseUnavailable, FenceMissing
from tenure.fence import administration


@pytest.fixture
def dsn(any_database: str) -> str:
    with psycopg.connect(any_database) as connection:
        connection.execute("CREATE TABLE payment_events (id int PRIMARY KEY, fencing_token bigint, note text)")
    return any_database


def test_install_changes_nothing_when_it_is_done_again(dsn: str) -> None:
    first = fence.install(dsn, RESOURCE, tables=["payment_events"])
    assert first.tables == ("payment_events",)
    assert len(first.changes) == 3
    before = fence.show(dsn, RESOURCE)
    assert fence.install(dsn, RESOURCE, tables=["public.payment_events"]).changes == ()
    assert fence.show(dsn, RESOURCE) == before
    with psycopg.connect(dsn) as connection:
        found = connection.execute("SELECT relation::text, resource FROM tenure.fenced_table").fetchall()
    assert found == [("payment_events", RESOURCE)]


def test_install_repeats_without_waiting_when_a_writer_is_stuck(dsn: str) -> None:
    """A paused leader with an open transaction must not hold up the start of another node."""
    fence.install(dsn, RESOURCE, tables=["payment_events"])
    with psycopg.connect(dsn) as stuck:
        stuck.execute("LOCK TABLE payment_events IN ROW EXCLUSIVE MODE")
        stuck.execute("LOCK TABLE tenure.fence_payments IN ROW SHARE MODE")
        thread = threading.Thread(target=fence.install, args=(dsn, RESOURCE), kwargs={"tables": ["payment_events"]})
        thread.start()
        thread.join(5)
        assert not thread.is_alive()


def test_install_makes_one_fence_when_many_nodes_start_together(dsn: str) -> None:
    results: list[fence.Installed] = []
    threads = [
        threading.Thread(target=lambda: results.append(fence.install(dsn, RESOURCE, tables=["payment_events"])))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert sorted(len(result.changes) for result in results) == [0, 0, 0, 0, 0, 3]


@pytest.mark.parametrize("damage", ["DISABLE TRIGGER tenure_fence_update", "ENABLE TRIGGER tenure_fence_update"])
def test_install_puts_a_trigger_back_when_it_was_weakened(dsn: str, damage: str) -> None:
    fence.install(dsn, RESOURCE, tables=["payment_events"])
    with psycopg.connect(dsn) as connection:
        connection.execute(f"ALTER TABLE payment_events {damage}")
    assert fence.install(dsn, RESOURCE, tables=["payment_events"]).changes == ("triggers on payment_events",)
    with psycopg.connect(dsn) as connection:
        connection.execute("SET session_replication_role = replica")
        with pytest.raises(psycopg.Error) as refused:
            connection.execute("UPDATE payment_events SET note = ''")
    assert refused.value.sqlstate == "TN003"


def test_install_checks_the_rows_token_when_the_column_came_later(dsn: str) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE plain (id int)")
    fence.install(dsn, RESOURCE, tables=["plain"])
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE plain ADD fencing_token bigint")
    assert fence.install(dsn, RESOURCE, tables=["plain"]).changes == ("triggers on plain",)


def test_G4_install_brings_a_lost_row_back_above_every_token_of_the_ledger(dsn: str) -> None:
    make_table(dsn, "other")
    for token in (3, 7):
        asyncio.run(raise_to(dsn, credential(token)))
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE tenure.fence_payments DISABLE TRIGGER USER; DELETE FROM tenure.fence_payments")
    fence.install(dsn, RESOURCE, tables=["other"])
    view, _ = fence.show(dsn, RESOURCE)
    assert (view.token, view.elector_id) == (7, None)


@pytest.mark.parametrize(
    ("resource", "tables", "group", "text"),
    [
        ("Payments", ["payment_events"], None, "starting with a letter"),
        ("p" * 41, ["payment_events"], None, "1 to 40"),
        ("payments'; DROP TABLE x", ["payment_events"], None, "1 to 40"),
        ("payments", ["payment_events"], "a-b", "group"),
        ("payments", ["nowhere"], None, "there is no table 'nowhere'"),
        ("payments", ["a.b.c.d"], None, "name of a table"),
        ("payments", ['"unclosed'], None, "table"),
        ("payments", ["pg_stat_activity"], None, "is not a table"),
    ],
)
def test_install_names_what_is_wrong_and_changes_nothing(
    dsn: str, resource: str, tables: list[str], group: str | None, text: str
) -> None:
    with pytest.raises(ConfigError, match=text):
        fence.install(dsn, resource, tables=tables, group=group)
    with psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT to_regnamespace('tenure')").fetchone() == (None,)


def test_install_refuses_another_resource_on_a_table_and_another_group_of_a_resource(dsn: str) -> None:
    fence.install(dsn, RESOURCE, tables=["payment_events"])
    with pytest.raises(ConfigError, match="fenced for 'payments' already"):
        fence.install(dsn, "parcels", tables=["payment_events"])
    with pytest.raises(ConfigError, match="does not change its group"):
        fence.install(dsn, RESOURCE, tables=["payment_events"], group="parcels")


def test_install_refuses_when_the_schema_is_of_a_newer_version(dsn: str) -> None:
    fence.install(dsn, RESOURCE, tables=["payment_events"])
    with psycopg.connect(dsn) as connection:
        connection.execute("INSERT INTO tenure.schema_version (version) VALUES (999)")
    with pytest.raises(ConfigError, match="upgrade"):
        fence.install(dsn, RESOURCE, tables=["payment_events"])


def test_rebase_ends_a_stuck_writer_and_is_written_down(dsn: str) -> None:
    fence.install(dsn, RESOURCE, tables=["payment_events"])
    with contextlib.closing(psycopg.connect(dsn, autocommit=True, application_name="zombie")) as stuck:
        stuck.execute("BEGIN; SELECT 1 FROM tenure.fence_payments FOR SHARE")
        view = fence.rebase(dsn, RESOURCE, who="anna", why="data centre burnt down")
    assert (view.token, view.version) == (0, 2)
    lines = [(line.action, line.who, line.why) for line in ledger(dsn)]
    assert lines[0] == ("rebase", "anna", "data centre burnt down")
    assert lines[1][0] == "terminate"
    assert "zombie" in lines[1][2]


def test_rebase_and_show_say_missing_when_there_is_no_fence(dsn: str) -> None:
    for _ in range(2):
        with pytest.raises(FenceMissing, match="tenure fence install parcels"):
            fence.rebase(dsn, "parcels", who="anna", why="test")
        with pytest.raises(FenceMissing, match="tenure fence install parcels"):
            fence.show(dsn, "parcels")
        fence.install(dsn, RESOURCE, tables=["payment_events"])


def test_every_operation_says_unavailable_when_nobody_listens() -> None:
    nowhere = "postgresql://127.0.0.1:1/none"
    for operation in (
        lambda: fence.install(nowhere, RESOURCE, tables=["x"]),
        lambda: fence.rebase(nowhere, RESOURCE, who="anna", why="test"),
        lambda: fence.show(nowhere, RESOURCE),
    ):
        with pytest.raises(DatabaseUnavailable, match="refused"):
            operation()


@pytest.mark.parametrize(
    ("dsn", "resource", "field"),
    [("postgresql//anna:hunter2@db/payments", RESOURCE, "database.dsn"), ("postgresql://db/x", "Bad Name", "resource")],
)
def test_every_operation_names_the_field_and_no_secret_when_it_is_malformed(
    dsn: str, resource: str, field: str
) -> None:
    for operation in (
        lambda: fence.install(dsn, resource, tables=["x"]),
        lambda: fence.rebase(dsn, resource, who="anna", why="test"),
        lambda: fence.show(dsn, resource),
    ):
        with pytest.raises(ConfigError) as refused:
            operation()
        assert refused.value.field == field
        assert "hunter2" not in str(refused.value)


def test_command_line_installs_rebases_and_shows(
    dsn: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENURE_DATABASE__DSN", dsn)
    assert run(["fence", "show", RESOURCE]) == 4
    assert run(["fence", "install", RESOURCE, "--table", "payment_events"]) == 0
    assert run(["fence", "rebase", RESOURCE]) == 2
    assert run(["fence", "rebase", RESOURCE, "--reason", " "]) == 2
    assert run(["fence", "rebase", RESOURCE, "--reason", "new cluster"]) == 0
    assert run(["fence", "install", RESOURCE, "--table", "nowhere"]) == 2
    assert run(["fence", "show", RESOURCE, "--dsn", "postgresql://127.0.0.1:1/none"]) == 6
    capsys.readouterr()
    assert run(["fence", "show", RESOURCE, "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["schema"] == 1
    assert shown["fence"]["version"] == 2
    assert shown["fence"]["valid"] is True
    assert "nonce" not in shown["fence"]
    assert [line["action"] for line in shown["ledger"]] == ["rebase", "install"]
    assert run(["fence", "show", RESOURCE]) == 0
    assert "new cluster" in capsys.readouterr().out


def test_rebase_says_unavailable_when_the_database_does_not_answer(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(administration, "_REBASE_TIMEOUT_S", 0.3)
    fence.install(dsn, RESOURCE, tables=["payment_events"])
    with psycopg.connect(dsn) as holder:
        # Even a plain look at the row waits for this one.
        holder.execute("LOCK TABLE tenure.resource IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DatabaseUnavailable, match="did not answer"):
            fence.rebase(dsn, RESOURCE, who="anna", why="test")
    assert fence.show(dsn, RESOURCE)[0].version == 1
