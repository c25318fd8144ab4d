"""Payments against a real PostgreSQL with a real fence: R14, R23, R25, R28, R31, the log, and the reads."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import psycopg
import pytest
from payments_rig import GOOD, Node, execute, fetch, install, payment_node, payments_in, raise_fence, until

from tenure.demo.postgres import EmbeddedPostgres
from tenure.fence import rebase

pytestmark = pytest.mark.asyncio


# -- the way of a payment ------------------------------------------------------------------------------------------


async def test_payment_is_one_row_with_node_and_token_when_it_is_acknowledged(any_database: str, tmp_path: Path):
    await install(any_database)
    async with payment_node(any_database, await raise_fence(any_database, 6), tmp_path) as node:
        answer = await node.pay("k-1")
        assert answer.status_code == 201, answer.text
        payment = answer.json()
        rows = await fetch(
            any_database,
            "SELECT 'pay_' || payment_id, node_id, fencing_token, term, type, amount, currency, debtor, creditor,"
            " reference, client_id, idempotency_key FROM payment_events",
        )
        assert rows == [
            (
                payment["id"],
                "payment-1a",
                6,
                6,
                "payment.accepted",
                1250,
                "EUR",
                "alice",
                "bob",
                "invoice 7",
                "anonymous",
                "k-1",
            )
        ]
        read = await node.client.get(f"/v1/payments/{payment['id']}")
        assert read.content == answer.content


async def test_query_of_the_brief_names_each_writer_when_two_nodes_have_written(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        await node.pay("k-1")
        await node.pay("k-2")
    async with payment_node(database, await raise_fence(database, 2), tmp_path, name="payment-1b") as node:
        await node.pay("k-3")
    rows = await fetch(
        database,
        "SELECT node_id, COUNT(*), MAX(timestamp) FROM payment_events GROUP BY node_id ORDER BY MAX(timestamp) DESC",
    )
    assert [row[:2] for row in rows] == [("payment-1b", 1), ("payment-1a", 2)]


async def test_log_has_one_line_for_each_committed_row_and_none_for_a_refused_one(database: str, tmp_path: Path):
    await install(database)
    leadership = await raise_fence(database, 1)
    async with payment_node(database, leadership, tmp_path) as node:
        answers = await asyncio.gather(*(node.pay(f"k-{number}", amount=number + 1) for number in range(20)))
        await node.pay("k-0", amount=1)
        await raise_fence(database, 2, holder="payment-1b")
        assert (await node.pay("refused", amount=999)).status_code == 503
        lines = node.committed_lines()
        assert sorted(line["payment_id"] for line in lines) == sorted(answer.json()["id"] for answer in answers)
        assert {(line["node"], line["token"], line["term"]) for line in lines} == {("payment-1a", 1, 1)}
        assert sorted(line["amount"] for line in lines) == list(range(1, 21))
        assert node.log_path.name == "payment-1a.log"
        text = node.log_path.read_text()
        assert "payment_refused" in text
        assert leadership.credential.nonce not in text


async def test_payments_share_a_commit_when_they_arrive_together(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        answers = await asyncio.gather(*(node.pay(f"k-{number}") for number in range(200)))
        assert {answer.status_code for answer in answers} == {201}
        rows = await fetch(database, "SELECT count(DISTINCT xmin::text), count(*) FROM payment_events")
        assert rows[0][1] == 200
        assert rows[0][0] < 20


async def test_pages_of_payments_neither_overlap_nor_skip_when_they_are_read_to_the_end(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        made = [(await node.pay(f"k-{number}")).json()["id"] for number in range(7)]
    async with payment_node(database, None, tmp_path, name="payment-1b") as follower:
        assert (await follower.pay("k")).status_code == 503
        seen: list[str] = []
        page: dict[str, Any] = {"has_more": True}
        while page["has_more"]:
            after = f"&starting_after={seen[-1]}" if seen else ""
            page = (await follower.client.get(f"/v1/payments?limit=3{after}")).json()
            seen += [payment["id"] for payment in page["data"]]
        assert seen == made[::-1]


# -- bad input -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "headers", "status", "code", "param"),
    [
        (b"{", {}, 400, "malformed_json", None),
        (b" " * 20_000, {}, 413, "body_too_large", "body"),
        (json.dumps(GOOD | {"amount": -5}).encode(), {}, 400, "invalid_field", "amount"),
        (json.dumps(GOOD | {"amount": 12.5}).encode(), {}, 400, "invalid_field", "amount"),
        (json.dumps(GOOD | {"amount": "12"}).encode(), {}, 400, "invalid_field", "amount"),
        (json.dumps(GOOD | {"currency": "ABC"}).encode(), {}, 400, "invalid_field", "currency"),
        (json.dumps(GOOD | {"colour": "red"}).encode(), {}, 400, "invalid_field", "colour"),
        (json.dumps(GOOD | {"debtor": "a\x00"}).encode(), {}, 400, "invalid_field", "debtor"),
        (json.dumps(GOOD).encode(), {"Idempotency-Key": "k" * 256}, 400, "idempotency_key_invalid", "Idempotency-Key"),
        (json.dumps(GOOD).encode(), {"Content-Type": "text/xml"}, 415, "unsupported_media_type", "Content-Type"),
    ],
)
async def test_nothing_is_written_when_the_input_is_bad(
    database: str,
    tmp_path: Path,
    content: bytes,
    headers: dict[str, str],
    status: int,
    code: str,
    param: str | None,
):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        given = {"Content-Type": "application/json", "Idempotency-Key": "k-1"} | headers
        answer = await node.client.post("/v1/payments", content=content, headers=given)
        problem = answer.json()
        assert (answer.status_code, problem["code"], problem["param"]) == (status, code, param)
        assert await payments_in(database) == 0
        # The key is free still: nothing of a refused request is kept.
        assert (await node.pay("k-1")).status_code == 201


async def test_names_are_stored_as_they_came_when_they_are_not_ascii(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        names = {"debtor": "Zoë \u202e💶", "creditor": "O'Hara; DROP TABLE payment_events --", "reference": "{},\\\"'"}
        answer = await node.pay("k-1", **names)
        assert answer.json() | names == answer.json()
        assert await fetch(database, "SELECT debtor, creditor, reference FROM payment_events") == [
            tuple(names.values())
        ]


# -- R28: one key, one payment -------------------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_R28_one_payment_is_made_when_two_requests_with_one_key_share_a_batch(
    database: str, tmp_path: Path, isolation: str
):
    await install(database)
    await execute(
        database, f"ALTER DATABASE {database_name(database)} SET default_transaction_isolation = '{isolation}'"
    )
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        answers = await asyncio.gather(*(node.pay("same") for _ in range(10)))
        assert {answer.status_code for answer in answers} == {201}
        assert len({answer.content for answer in answers}) == 1
        assert sorted("idempotent-replayed" in answer.headers for answer in answers) == [False] + [True] * 9
        assert await payments_in(database) == 1


@pytest.mark.parametrize("isolation", ["read committed", "repeatable read", "serializable"])
async def test_R28_one_payment_is_made_when_two_writers_race_with_the_same_keys(
    any_database: str, tmp_path: Path, isolation: str
):
    """Two writers that hold one credential send the same keys, in opposite orders, at the same time."""
    await install(any_database)
    await execute(
        any_database, f"ALTER DATABASE {database_name(any_database)} SET default_transaction_isolation = '{isolation}'"
    )
    leadership = await raise_fence(any_database, 1)
    keys = [f"k-{number:03}" for number in range(100)]
    async with (
        payment_node(any_database, leadership, tmp_path, name="payment-1a") as one,
        payment_node(any_database, leadership, tmp_path, name="payment-1b") as other,
    ):
        answers = await asyncio.gather(*(one.pay(key) for key in keys), *(other.pay(key) for key in reversed(keys)))
        assert {answer.status_code for answer in answers} == {201}, {answer.text for answer in answers}
        ours, theirs = answers[:100], answers[100:][::-1]
        assert [answer.content for answer in ours] == [answer.content for answer in theirs]
        replayed = ["idempotent-replayed" in answer.headers for answer in answers]
        assert replayed.count(True) == 100
        rows = await fetch(any_database, "SELECT count(*), count(DISTINCT idempotency_key) FROM payment_events")
        assert rows == [(100, 100)]


async def test_R28_second_writer_waits_and_replays_when_the_first_has_not_committed_yet(database: str, tmp_path: Path):
    await install(database)
    leadership = await raise_fence(database, 1)
    async with await psycopg.AsyncConnection.connect(database) as slow:
        await slow.execute("SELECT tenure.assert_leader('payments', %s)", (leadership.credential.encode(),))
        async with payment_node(database, leadership, tmp_path, lease_ms=5000) as node:
            first = await node.pay("copied")
            await slow.execute(COPY_UNDER_KEY_SLOW)
            waiting = asyncio.create_task(node.pay("slow"))
            await until(lambda: fetch(database, "SELECT 1 FROM pg_stat_activity WHERE wait_event = 'transactionid'"))
            assert not waiting.done()
            await slow.commit()
            answer = await waiting
        assert (answer.status_code, answer.json()["node"]) == (201, "payment-1z")
        assert answer.headers["idempotent-replayed"] == "true"
        assert first.json()["id"] != answer.json()["id"]


async def test_R28_writer_reads_committed_rows_when_the_database_default_is_another(database: str, tmp_path: Path):
    await install(database)
    await execute(
        database, f"ALTER DATABASE {database_name(database)} SET default_transaction_isolation = 'serializable'"
    )
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        await node.pay("k-1")
        assert await setting_of(node, "transaction_isolation") == "read committed"


async def test_R25_no_wait_of_the_writer_outlives_the_lease_when_its_session_is_open(database: str, tmp_path: Path):
    await install(database)
    given = psycopg.conninfo.make_conninfo(database, options="-c statement_timeout=60s -c work_mem=1234kB")
    async with payment_node(given, await raise_fence(database, 1), tmp_path, lease_ms=700) as node:
        await node.pay("k-1")
        assert await setting_of(node, "statement_timeout") == "700ms"
        assert await setting_of(node, "idle_in_transaction_session_timeout") == "700ms"
        # What else the DSN asks for stays.
        assert await setting_of(node, "work_mem") == "1234kB"


async def test_R28_key_is_refused_when_another_body_used_it_before_a_takeover(database: str, tmp_path: Path):
    await install(database)
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        first = await node.pay("k-1")
    async with payment_node(database, await raise_fence(database, 2), tmp_path, name="payment-1b") as node:
        again = await node.pay("k-1")
        assert (again.content, again.headers["idempotent-replayed"]) == (first.content, "true")
        other = await node.pay("k-1", amount=1)
        assert (other.status_code, other.json().get("code")) == (422, "idempotency_key_reused")
        assert await payments_in(database) == 1


async def test_R28_only_the_bad_row_fails_when_the_database_refuses_one_of_a_batch(database: str, tmp_path: Path):
    await install(database)
    await execute(database, "ALTER TABLE payment_events ADD CONSTRAINT no_beast CHECK (amount <> 666)")
    async with payment_node(database, await raise_fence(database, 1), tmp_path) as node:
        amounts = [666 if number == 33 else number + 1 for number in range(64)]
        answers = await asyncio.gather(*(node.pay(f"k-{a}", amount=a) for a in amounts))
        assert sorted(answer.status_code for answer in answers) == [201] * 63 + [400]
        refused = answers[33].json()
        assert (refused["code"], "23514" in refused["detail"]) == ("invalid_field", True)
        assert await payments_in(database) == 63
        assert len(node.committed_lines()) == 63


# -- the fence -----------------------------------------------------------------------------------------------------


async def test_R31_refused_payment_is_made_once_when_it_is_sent_again_to_the_new_leader(database: str, tmp_path: Path):
    await install(database)
    old = await raise_fence(database, 1)
    async with payment_node(database, old, tmp_path) as stale:
        await stale.pay("before")
        new = await raise_fence(database, 2, holder="payment-1b")
        refused = await stale.pay("k-1")
        problem = refused.json()
        assert (refused.status_code, problem.get("code"), problem.get("reason")) == (503, "not_leader", "stale_token")
        assert (problem["token_sent"], problem["token_current"], problem["retryable"]) == (1, 2, True)
        assert refused.headers["retry-after"] == "1"
        assert [type(error).__name__ for error in old.refusals] == ["StaleToken"]
        assert await payments_in(database) == 1
        # Nothing was kept under the key: the retry pays, and a retry of the retry replays.
        async with payment_node(database, new, tmp_path, name="payment-1b") as leader:
            paid, replayed = await leader.pay("k-1"), await leader.pay("k-1")
            assert (paid.status_code, "idempotent-replayed" in paid.headers) == (201, False)
            assert (replayed.content, replayed.headers["idempotent-replayed"]) == (paid.content, "true")
        assert (await stale.pay("k-2")).json()["code"] == "not_leader"
        assert len(old.refusals) == 1


async def test_R14_every_payment_of_a_batch_is_refused_when_the_fence_rises_between_check_and_insert(
    database: str, tmp_path: Path
):
    """The zombie in one process: the check has passed, then another raises, and only then does the INSERT go out."""
    await install(database)
    old = await raise_fence(database, 1)
    raised: list[bool] = []

    def another_wins() -> None:
        # A thread with a loop of its own, while this loop stands still, as a paused process would.
        if not raised:
            import threading

            thread = threading.Thread(target=lambda: asyncio.run(raise_fence(database, 2, holder="payment-1b")))
            thread.start()
            thread.join()
            raised.append(True)

    async with payment_node(database, old, tmp_path, before_insert=another_wins) as node:
        answers = await asyncio.gather(*(node.pay(f"k-{number}") for number in range(20)))
        assert {(answer.status_code, answer.json().get("code")) for answer in answers} == {(503, "not_leader")}
        assert await payments_in(database) == 0
        assert node.committed_lines() == []
        assert len(old.refusals) == 1


async def test_stale_row_lands_when_the_trigger_of_the_fence_is_gone(database: str, tmp_path: Path):
    """The control of the tests above: it is the trigger that refuses, and not something beside it."""
    await install(database)
    old = await raise_fence(database, 1)
    await raise_fence(database, 2, holder="payment-1b")
    for (name,) in await fetch(
        database, "SELECT tgname FROM pg_trigger WHERE tgrelid = 'payment_events'::regclass AND NOT tgisinternal"
    ):
        await execute(database, f"DROP TRIGGER {name} ON payment_events")
    async with payment_node(database, old, tmp_path) as node:
        assert (await node.pay("stale")).status_code == 201
        assert await fetch(database, "SELECT fencing_token FROM payment_events") == [(1,)]


async def test_payment_is_refused_when_the_fence_was_rebased(database: str, tmp_path: Path):
    await install(database)
    old = await raise_fence(database, 1)
    async with payment_node(database, old, tmp_path) as node:
        await node.pay("k-1")
        await asyncio.to_thread(rebase, database, "payments", who="test", why="the elector is gone")
        assert (await node.pay("k-2")).json()["reason"] == "stale_token"


async def test_R23_payment_is_refused_until_the_fence_is_raised_again_when_the_server_restarts(
    private_postgres: EmbeddedPostgres, tmp_path: Path
):
    dsn = private_postgres.dsn
    await install(dsn)
    first = await raise_fence(dsn, 1)
    async with payment_node(dsn, first, tmp_path) as node:
        assert (await node.pay("k-1")).status_code == 201
        await asyncio.to_thread(private_postgres.restart)
        refused = await node.pay("k-2")
        assert (refused.status_code, refused.json().get("code")) == (503, "not_leader")
        assert [type(error).__name__ for error in first.refusals] == ["ServerChanged"]
        node.member.held = await raise_fence(dsn, 2)
        assert (await node.pay("k-2")).status_code == 201


COPY_UNDER_KEY_SLOW = """
INSERT INTO payment_events (payment_id, node_id, fencing_token, term, type, amount, currency, debtor, creditor,
                            reference, client_id, idempotency_key, request_hash)
SELECT gen_random_uuid(), 'payment-1z', 1, 1, type, amount, currency, debtor, creditor,
       reference, client_id, 'slow', request_hash
FROM payment_events
"""


async def setting_of(node: Node, name: str) -> str:
    connection = node.session._connection
    assert connection is not None
    row = await (await connection.execute(f"SHOW {name}")).fetchone()
    assert row is not None
    return row[0]


def database_name(dsn: str) -> str:
    return psycopg.conninfo.conninfo_to_dict(dsn)["dbname"]
