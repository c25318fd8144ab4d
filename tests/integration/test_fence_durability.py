"""The server's settings that weaken a guarantee are named at the start, and a sound server is left in peace."""

from __future__ import annotations

import subprocess
import time

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tenure.demo.postgres import EmbeddedPostgres
from tenure.fence import durability_warnings


def test_sound_server_gives_no_warning(any_database: str):
    """The defaults of PostgreSQL are what the guarantees rest on."""
    assert durability_warnings(any_database) == []


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"fsync": "off"}, "fsync is off"),
        ({"synchronous_commit": "off"}, "synchronous_commit is off"),
        ({"max_prepared_transactions": "3"}, "max_prepared_transactions is 3"),
    ],
)
def test_R22_weak_setting_is_named_with_the_cure(settings: dict[str, str], says: str):
    """G5 and R25: each setting that takes something away, in a sentence of its own."""
    with EmbeddedPostgres.start(settings=settings) as server:
        warnings = durability_warnings(server.dsn)
    assert [says in warning for warning in warnings] == [True]


def test_R22_asynchronous_standby_is_named(private_postgres: EmbeddedPostgres, tmp_path):
    """A failover to it can lose acknowledged payments: said at every start, until it is synchronous."""
    facts = conninfo_to_dict(private_postgres.dsn)
    standby = subprocess.Popen(
        [private_postgres.bin_dir / "pg_receivewal", "-D", tmp_path, "-h", str(facts["host"]), "-p", str(facts["port"]),
         "-U", str(facts["user"]), "--no-loop"],
        env={"PGPASSWORD": str(facts["password"])},
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 20
        while not (warnings := durability_warnings(private_postgres.dsn)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert ["asynchronous" in warning for warning in warnings] == [True]
        with psycopg.connect(private_postgres.dsn, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
        while (warnings := durability_warnings(private_postgres.dsn)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert warnings == []
    finally:
        standby.terminate()
        standby.wait(10)
