"""Fixtures that real servers stand behind: nothing here is a double.

``postgres``            a PostgreSQL 18 (the wheel's), one for the whole run, started when first asked for
``postgres15``          the same with Debian's PostgreSQL 15; skips where it is absent, and says how to get it
``any_postgres``        both in turn
``database``            URL of a fresh, empty database on ``postgres``
``any_database``        the same on ``any_postgres``
``private_postgres``    a PostgreSQL 18 of the test's own, which it may crash and restart
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from tenure.demo.postgres import EmbeddedPostgres

DEBIAN_15 = Path("/usr/lib/postgresql/15/bin")
SETTINGS = {"shared_buffers": "32MB", "max_connections": "100"}
_numbers = itertools.count(1)


@contextlib.contextmanager
def running_server(bin_dir: Path | None = None) -> Iterator[EmbeddedPostgres]:
    """A server with its data in memory where there is room: a process that crashes loses nothing of it there either."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 4 << 30
    with tempfile.TemporaryDirectory(prefix="tenure-test-", dir=memory if roomy else None) as folder:
        Path(folder).chmod(0o755)
        with EmbeddedPostgres.start(Path(folder) / "server", bin_dir=bin_dir, settings=SETTINGS) as server:
            yield server


@pytest.fixture(scope="session")
def postgres() -> Iterator[EmbeddedPostgres]:
    with running_server() as server:
        yield server


@pytest.fixture(scope="session")
def postgres15() -> Iterator[EmbeddedPostgres]:
    if not (DEBIAN_15 / "postgres").exists():
        pytest.skip(f"no PostgreSQL 15 in {DEBIAN_15}: apt-get install postgresql-15")
    with running_server(DEBIAN_15) as server:
        yield server


@pytest.fixture(params=["postgres", "postgres15"])
def any_postgres(request: pytest.FixtureRequest) -> EmbeddedPostgres:
    return request.getfixturevalue(request.param)


@pytest.fixture
def private_postgres() -> Iterator[EmbeddedPostgres]:
    with running_server() as server:
        yield server


@pytest.fixture
def database(postgres: EmbeddedPostgres) -> Iterator[str]:
    yield from fresh_database(postgres)


@pytest.fixture
def any_database(any_postgres: EmbeddedPostgres) -> Iterator[str]:
    yield from fresh_database(any_postgres)


def fresh_database(server: EmbeddedPostgres) -> Iterator[str]:
    # It is not dropped: that takes a checkpoint each time, and the whole server goes at the end anyway.
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    yield server.dsn_of(name)
