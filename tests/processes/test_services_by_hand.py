"""The main job with real processes: three nodes by hand, faults, and PostgreSQL itself asked for the facts."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.services import NAMES, Services, new_key, running, wait_for
from tenure.demo.postgres import EmbeddedPostgres

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

STALE_ROWS = """
    SELECT count(*) FROM (
        SELECT fencing_token, max(fencing_token) OVER (ORDER BY event_id) AS highest FROM payment_events
    ) AS rows WHERE fencing_token < highest
"""
DROP_TRIGGERS = """
    DO $$ DECLARE name text; BEGIN
        FOR name IN SELECT tgname FROM pg_trigger WHERE tgrelid = 'payment_events'::regclass AND NOT tgisinternal LOOP
            EXECUTE format('DROP TRIGGER %I ON payment_events', name);
        END LOOP;
    END $$
"""
TAKEOVER_SECONDS_MAX = 5.0


def facts(dsn: str, acknowledged: list[str]) -> tuple[int, int, int]:
    """Lost, doubled and stale rows, from the database alone."""
    with psycopg.connect(dsn) as connection:
        ids = [name.removeprefix("pay_") for name in acknowledged]
        present = connection.execute(
            "SELECT count(DISTINCT payment_id) FROM payment_events WHERE payment_id = ANY(%s::uuid[])", (ids,)
        ).fetchone()
        doubled = connection.execute(
            "SELECT count(*) FROM (SELECT idempotency_key FROM payment_events GROUP BY 1 "
            "HAVING count(DISTINCT payment_id) > 1) AS keys"
        ).fetchone()
        stale = connection.execute(STALE_ROWS).fetchone()
    assert present is not None
    assert doubled is not None
    assert stale is not None
    return len(set(ids)) - present[0], doubled[0], stale[0]


@contextmanager
def payments_flowing(services: Services) -> Iterator[list[str]]:
    """A client that keeps paying; yields the list of acknowledged ids."""
    acknowledged: list[str] = []
    stopping = threading.Event()

    def pay() -> None:
        while not stopping.is_set():
            acknowledged.append(services.pay_until_acknowledged(new_key())["id"])

    client = threading.Thread(target=pay)
    client.start()
    try:
        yield acknowledged
    finally:
        stopping.set()
        client.join()


def more_than(acknowledged: list[str], count: int, *, seconds: float = 30.0) -> None:
    wait_for(f"{count} more payments", lambda: len(acknowledged) > count, seconds=seconds)


def test_R34_payments_go_on_through_kill_stop_and_restart(tmp_path: Path, database: str):
    """kill -9 of the leader, SIGSTOP and SIGCONT across a takeover, restart of all: none lost, doubled or stale."""
    with running(tmp_path, database) as services, payments_flowing(services) as acknowledged:
        leader = services.leader()
        more_than(acknowledged, 20)

        services.signal(leader, signal.SIGKILL)
        services.leader(other_than=leader)
        more_than(acknowledged, len(acknowledged), seconds=TAKEOVER_SECONDS_MAX)
        services.start(leader)

        stopped = services.leader()
        services.signal(stopped, signal.SIGSTOP)
        successor = services.leader(other_than=stopped)
        more_than(acknowledged, len(acknowledged))
        services.signal(stopped, signal.SIGCONT)
        wait_for(
            "the old leader follows", lambda: (services.ask(stopped, "/v1/state") or {}).get("state") == "follower"
        )
        assert services.leader() == successor

        for name in NAMES:
            services.signal(name, signal.SIGKILL)
        before = len(acknowledged)
        for name in NAMES:
            services.start(name)
        more_than(acknowledged, before + 20)
    assert facts(database, acknowledged) == (0, 0, 0)


@pytest.mark.parametrize("fenced", [True, False], ids=["fenced", "trigger_removed"])
def test_R14_zombie_write_is_refused_by_the_database_and_lands_without_the_trigger(
    tmp_path: Path, database: str, *, fenced: bool
):
    """The brief's zombie: paused between its own check and its INSERT, resumed after a successor has written."""
    trigger = tmp_path / "pause"
    with running(tmp_path, database, environment={"PAYMENT_SERVICE_PAUSE_BEFORE_INSERT": str(trigger)}) as services:
        old = services.leader()
        services.pay_until_acknowledged(new_key())
        if not fenced:
            with psycopg.connect(database) as connection:
                connection.execute(DROP_TRIGGERS)
        trigger.touch()
        zombie_key = new_key()
        answers: list[int] = []

        def pay_the_zombie() -> None:
            with services.client.stream(
                "POST",
                f"{services.url(old)}/v1/payments",
                json={"amount": 1, "currency": "EUR", "debtor": "a", "creditor": "b", "reference": "zombie"},
                headers={"Idempotency-Key": zombie_key},
                timeout=60,
            ) as answer:
                answers.append(answer.status_code)

        request = threading.Thread(target=pay_the_zombie)
        request.start()
        mark = trigger.with_name("pause.paused")
        wait_for("the leader stands between its check and its INSERT", mark.exists)
        trigger.unlink()
        successor = services.leader(other_than=old)
        written = services.pay(successor, new_key()).json()
        services.signal(old, signal.SIGCONT)
        request.join(60)

        with psycopg.connect(database) as connection:
            landed = connection.execute(
                "SELECT count(*) FROM payment_events WHERE idempotency_key = %s", (zombie_key,)
            ).fetchone()
            stale = connection.execute(STALE_ROWS).fetchone()
        assert written["node"] == successor
        if not fenced:
            assert (landed, stale) == ((1,), (1,)), "without the trigger the stale row must land, or the test is blind"
            return
        assert (landed, stale) == ((0,), (0,))
        assert answers == [503]
        node = wait_for("the refusal is counted", lambda: refusals(services, old))
        assert node >= 1
        metrics = services.client.get(f"{services.url(old)}/metrics").text
        assert re.search(r"^fencing_token_failures 1(\.0)?$", metrics, re.MULTILINE)
        log = (services.logs / f"{old}.log").read_text()
        assert f'"{zombie_key}"' not in "".join(
            line for line in log.splitlines() if "INSERT INTO payment_events" in line
        )


def refusals(services: Services, name: str) -> int:
    return int((services.ask(name, "/v1/node") or {}).get("stale_token_refusals", 0))


def test_brief_ways_of_looking_work_as_written(tmp_path: Path, database: str):
    """The brief's grep, its SQL, and the exact bytes of ``/v1/state``."""
    with running(tmp_path, database) as services:
        leader = services.leader()
        payments = [services.pay_until_acknowledged(new_key()) for _ in range(3)]
        grep = subprocess.run(
            f'grep "INSERT INTO payment_events" {services.logs}/*.log | tail -20',
            shell=True, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert len(grep.stdout.splitlines()) == 3
        assert all(leader in line for line in grep.stdout.splitlines())
        with psycopg.connect(database) as connection:
            rows = connection.execute(
                "SELECT node_id, COUNT(*), MAX(timestamp)\nFROM payment_events\nGROUP BY node_id\n"
                "ORDER BY MAX(timestamp) DESC"
            ).fetchall()
        assert [(row[0], row[1]) for row in rows] == [(leader, 3)]
        term = payments[0]["term"]
        states = {name: services.client.get(f"{services.url(name)}/v1/state").content for name in NAMES}
        assert states.pop(leader) == b'{"state": "leader", "term": %d}' % term
        assert set(states.values()) == {b'{"state": "follower", "term": %d}' % term}


def test_follower_names_the_leader_and_when_to_retry(tmp_path: Path, database: str):
    """503 problem+json with Tenure-Leader and Retry-After; nothing is written."""
    with running(tmp_path, database) as services:
        leader = services.leader()
        follower = next(name for name in NAMES if name != leader)
        wait_for("the follower knows the leader", lambda: (services.ask(follower, "/v1/node") or {})["leader_name"])
        answer = services.pay(follower, new_key())
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.headers["tenure-leader"] == services.url(leader)
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["code"] == "not_leader"
        with psycopg.connect(database) as connection:
            assert connection.execute("SELECT count(*) FROM payment_events").fetchone() == (0,)


@pytest.mark.parametrize("immediate", [True, False], ids=["crash", "restart"])
def test_R23_database_that_restarts_is_led_again_under_a_higher_token(
    tmp_path: Path, private_postgres: EmbeddedPostgres, *, immediate: bool
):
    """The server changed under the fence: the old token is refused, a newly won one is raised, nothing is lost."""
    dsn = private_postgres.dsn
    with running(tmp_path, dsn) as services, payments_flowing(services) as acknowledged:
        services.leader()
        more_than(acknowledged, 20)
        before = len(acknowledged)
        private_postgres.restart(immediate=immediate)
        more_than(acknowledged, before + 20)
        with psycopg.connect(dsn) as connection:
            tokens = connection.execute("SELECT count(DISTINCT fencing_token) FROM payment_events").fetchone()
    assert tokens is not None
    assert tokens[0] > 1
    assert facts(dsn, acknowledged) == (0, 0, 0)


def test_new_directories_on_the_old_database_need_a_rebase(tmp_path: Path, database: str):
    """Nobody leads, the reason names the command, and after it a leader's token lies above every old one."""
    with running(tmp_path, database) as services:
        services.leader()
        old = services.pay_until_acknowledged(new_key())["fencing_token"]
    (tmp_path / "again").mkdir()
    with running(tmp_path / "again", database) as services:

        def refusing() -> bool:
            reasons = [(services.ask(name, "/v1/node") or {}).get("reason") or "" for name in NAMES]
            return any("tenure fence rebase payments" in reason for reason in reasons)

        wait_for("the reason names the command", refusing)
        subprocess.run(
            [Path(sys.executable).with_name("tenure"), "fence", "rebase", "payments", "--dsn", database,
             "--reason", "the old data directories are gone"],
            check=True, capture_output=True,
        )  # fmt: skip
        services.leader()
        assert services.pay_until_acknowledged(new_key())["fencing_token"] > old
    assert facts(database, []) == (0, 0, 0)
