"""The whole survey against real HTTP nodes, a real PostgreSQL with the fence, and real log files."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from recovery_stubs import StubNode, stub_nodes

from payment_service.migrations import migrate
from tenure.cli import main
from tenure.fence import FenceStore, RaiseRequest
from tenure.recovery.database import query, read_database
from tenure.types import Credential, ElectorIdentity

IDENTITY = ElectorIdentity(elector_id="raft:test", generation=0, lineage="one")
INSERT = """
WITH tenure_assertion AS MATERIALIZED (SELECT tenure.assert_leader('payments', %(credential)s) AS asserted)
INSERT INTO payment_events (payment_id, node_id, fencing_token, term, type, amount, currency, debtor, creditor,
                            reference, client_id, request_hash)
SELECT gen_random_uuid(), %(node)s, %(token)s, 6, 'payment', 100, 'EUR', 'a', 'b', '', 'c', '' FROM tenure_assertion
"""


@pytest.fixture(autouse=True)
def no_outside_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a demo nor the environment of this machine may be surveyed."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    for name in ("TENURE_ENDPOINTS", "TENURE_DATABASE__DSN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def nodes() -> Iterator[list[StubNode]]:
    with stub_nodes(3) as stubs:
        yield stubs


@pytest.fixture
def fenced(database: str) -> str:
    migrate(database, "payments")
    return database


def lead(dsn: str, node: str, token: int) -> Credential:
    """Raise the fence for ``node`` as a member does."""

    async def raised() -> Credential:
        store = FenceStore(dsn, "payments")
        credential = Credential(token=token, nonce=secrets.token_hex(16))
        expected = (await store.read()).expected
        await store.raise_token(RaiseRequest(identity=IDENTITY, credential=credential, holder=node, expected=expected))
        await store.close()
        return credential

    return asyncio.run(raised())


def write(dsn: str, node: str, credential: Credential, rows: int = 1) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for _ in range(rows):
            connection.execute(INSERT, {"credential": credential.encode(), "node": node, "token": credential.token})


def survey(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main(["recover", "survey", "-o", "json", "--timeout", "0.5", *arguments])
    captured = capsys.readouterr()
    assert captured.err == ""
    return code, json.loads(captured.out)


def endpoints(nodes: list[StubNode]) -> list[str]:
    return [part for node in nodes for part in ("--endpoint", node.url)]


def verdicts(document: dict[str, Any]) -> dict[str, str]:
    return {node["name"]: node["verdict"] for node in document["nodes"]}


def healthy(nodes: list[StubNode]) -> None:
    nodes[0].says("payment-1a", "follower", 6, leader_name="payment-1b")
    nodes[1].says("payment-1b", "leader", 6, fencing_token=2, votes_for_me=2, votes_needed=2)
    nodes[2].says("payment-1c", "follower", 6, leader_name="payment-1b")


def test_survey_ends_with_zero_when_the_holder_of_the_fence_leads_alone(
    nodes: list[StubNode], fenced: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write(fenced, "payment-1c", lead(fenced, "payment-1c", 1), rows=2)
    write(fenced, "payment-1b", lead(fenced, "payment-1b", 2), rows=3)
    healthy(nodes)
    log = tmp_path / "payment-1b.log"
    log.write_text('{"statement": "INSERT INTO payment_events", "node": "payment-1b", "token": 2}\n')
    code, document = survey(capsys, *endpoints(nodes), "--dsn", fenced, "--log", str(log))
    assert code == 0
    assert document["schema"] == 1
    assert (document["verdict"], document["true_leader"], document["basis"]) == ("one_leader", "payment-1b", "fence")
    assert verdicts(document) == {
        "payment-1a": "follower",
        "payment-1b": "true_leader",
        "payment-1c": "follower",
    }
    assert [(row["node_id"], row["count"]) for row in document["who_writes"]] == [("payment-1b", 3), ("payment-1c", 2)]
    assert document["fence"]["token"] == 2
    assert document["fence"]["holder"] == "payment-1b"
    assert [row["action"] for row in document["ledger"]] == ["raise", "raise", "install"]
    assert document["nodes"][1]["log"]["token"] == 2
    assert document["missing"] == []
    assert document["findings"] == []


def test_survey_convicts_the_old_leader_when_it_wakes_up_and_still_says_leader(
    nodes: list[StubNode], fenced: str, capsys: pytest.CaptureFixture[str]
):
    write(fenced, "payment-1c", lead(fenced, "payment-1c", 1))
    write(fenced, "payment-1b", lead(fenced, "payment-1b", 2))
    healthy(nodes)
    nodes[2].says("payment-1c", "leader", 5, fencing_token=1, votes_for_me=2, votes_needed=2)
    code, document = survey(capsys, *endpoints(nodes), "--dsn", fenced, "--namespace", "pay")
    assert code == 5
    assert document["verdict"] == "split_brain"
    assert document["true_leader"] == "payment-1b"
    assert document["looks"] == 2
    assert verdicts(document)["payment-1c"] == "stale_leader"
    reasons = " ".join(document["nodes"][2]["reasons"])
    assert "says leader in term 5" in reasons
    assert "shows token 1, but the fence holds token 2, raised by payment-1b" in reasons
    assert "last wrote with token 1 at" in reasons
    commands = [command for step in document["steps"] for command in step["commands"]]
    assert commands[0]["run"] == "kubectl delete pod payment-1c -n pay"
    assert {"run": f"curl {nodes[1].url}/v1/state", "expect": '{"state": "leader", "term": 6}'} in commands


def test_takeover_is_no_split_brain_when_the_second_look_finds_it_done(
    nodes: list[StubNode], capsys: pytest.CaptureFixture[str]
):
    healthy(nodes)
    nodes[2].says("payment-1c", "leader", 5)
    serve = nodes[2].answers

    class Changing(dict[str, Any]):
        def get(self, path: str, default: Any = None) -> Any:
            answer = serve.get(path, default)
            if path == "/v1/node":
                nodes[2].says("payment-1c", "follower", 6)
            return answer

    nodes[2].answers = Changing()
    code, document = survey(capsys, *endpoints(nodes))
    assert code == 0
    assert document["looks"] == 2
    assert any("a first look" in finding for finding in document["findings"])


def test_incident_is_told_when_two_leaders_have_one_vote_each_and_the_table_has_no_tokens(
    nodes: list[StubNode], database: str, capsys: pytest.CaptureFixture[str]
):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute('CREATE TABLE payment_events (node_id text, amount int, "timestamp" timestamp)')
        connection.execute(
            "INSERT INTO payment_events VALUES ('payment-1b', 100, '2026-11-23 02:16'), "
            "('payment-1c', 50, '2026-11-23 02:15:30'), ('payment-1c', 50, '2026-11-23 02:15:40')"
        )
    nodes[0].answers = {"/v1/state": {"state": "follower", "term": 5}}
    for node, name in zip(nodes[1:], ("payment-1b", "payment-1c"), strict=True):
        node.says(name, "leader", 5, leader_id=name, votes_for_me=1, votes_needed=2)
    code, document = survey(capsys, *endpoints(nodes), "--dsn", database)
    assert code == 5
    assert document["true_leader"] is None
    assert list(verdicts(document).values()) == ["follower", "stale_leader", "stale_leader"]
    assert "has 1 vote of 2 needed: it convicts itself" in document["nodes"][1]["reasons"]
    assert [(row["node_id"], row["count"]) for row in document["who_writes"]] == [("payment-1b", 1), ("payment-1c", 2)]
    assert any("fencing_token" in sentence for sentence in document["missing"])
    assert any("there is no fence" in sentence for sentence in document["missing"])


def test_newest_rows_name_the_leader_when_only_states_and_rows_are_known(
    nodes: list[StubNode], database: str, capsys: pytest.CaptureFixture[str]
):
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute('CREATE TABLE payment_events (node_id text, "timestamp" timestamptz)')
        connection.execute(
            "INSERT INTO payment_events VALUES ('payment-1b', '2026-11-23 02:16Z'), ('payment-1c', '2026-11-23 02:15Z')"
        )
    nodes[1].says("payment-1b", "leader", 5)
    nodes[2].says("payment-1c", "leader", 5)
    code, document = survey(capsys, *endpoints(nodes[1:]), "--dsn", database)
    assert code == 5
    assert (document["true_leader"], document["basis"]) == ("payment-1b", "rows")


def test_survey_ends_with_three_when_nobody_leads(
    nodes: list[StubNode], fenced: str, capsys: pytest.CaptureFixture[str]
):
    lead(fenced, "payment-1b", 1)
    nodes[0].says("payment-1a", "candidate", 7)
    nodes[1].answers = {}
    code, document = survey(capsys, *endpoints(nodes[:1]), "--dsn", fenced)
    assert code == 3
    assert verdicts(document) == {"payment-1a": "follower", "payment-1b": "silent"}
    assert any("nobody can write until" in reason for reason in document["nodes"][1]["reasons"])


def test_survey_ends_with_six_when_nothing_answers(capsys: pytest.CaptureFixture[str]):
    dsn = "postgresql://me:hunter2@127.0.0.1:1/payments"
    code, document = survey(capsys, "--endpoint", "http://127.0.0.1:1", "--dsn", dsn)
    assert code == 6
    assert verdicts(document) == {"127.0.0.1:1": "unreachable"}
    assert any(sentence.startswith("database: ") for sentence in document["missing"])
    assert "hunter2" not in json.dumps(document)


def test_logs_alone_are_enough_when_nothing_else_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "payment-1b.log").write_text("INSERT INTO payment_events token=7\n")
    code, document = survey(capsys, "--log", str(tmp_path / "*.log"))
    assert code == 3
    assert verdicts(document) == {"payment-1b": "silent"}


def test_logs_may_be_given_as_the_shell_expands_them_when_a_pattern_is_not_quoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("payment-1a", "payment-1b"):
        (tmp_path / f"{name}.log").write_text("INSERT INTO payment_events token=7\n")
    code, document = survey(capsys, "--log", *map(str, tmp_path.glob("*.log")))
    assert code == 3
    assert list(verdicts(document)) == ["payment-1a", "payment-1b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "nothing to look at"),
        (["--endpoint", "ftp://payment-1b"], "--endpoint"),
        (["--demo", "/nowhere/demo.json"], "--demo"),
        (["--timeout", "0", "--log", "x"], "--timeout"),
        (["--no-such-flag"], "--no-such-flag"),
    ],
)
def test_survey_ends_with_two_when_it_is_used_wrongly(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
):
    assert main(["recover", "survey", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err


def test_text_tells_verdicts_reasons_and_commands_when_people_read_it(
    nodes: list[StubNode], fenced: str, capsys: pytest.CaptureFixture[str]
):
    write(fenced, "payment-1b", lead(fenced, "payment-1b", 2))
    healthy(nodes)
    nodes[2].says("payment-1c", "leader", 5, fencing_token=1)
    words = ["--dsn", fenced, "--timeout", "0.5", "--namespace", "payment"]
    assert main(["recover", "survey", *endpoints(nodes), *words]) == 5
    text = capsys.readouterr().out
    for expected in (
        "SPLIT BRAIN: payment-1b is the true leader",
        "payment-1c: stale leader",
        "kubectl delete pod payment-1c -n payment",
        f"curl {nodes[1].url}/v1/state",
        '# should return: {"state": "leader", "term": 6}',
        "ORDER BY MAX(timestamp) DESC;",
        "fence of payments: token 2, holder payment-1b",
    ):
        assert expected in text


def test_question_is_the_one_of_the_source_document_when_the_database_is_asked():
    assert query("who_writes").decode() == (
        "SELECT node_id, COUNT(*), MAX(timestamp)\n"
        "FROM payment_events\n"
        "GROUP BY node_id\n"
        "ORDER BY MAX(timestamp) DESC;\n"
    )


def test_stale_row_is_found_when_the_trigger_was_removed(fenced: str):
    old = lead(fenced, "payment-1c", 1)
    write(fenced, "payment-1b", lead(fenced, "payment-1b", 2))
    with psycopg.connect(fenced, autocommit=True) as connection:
        connection.execute("ALTER TABLE payment_events DISABLE TRIGGER USER")
    write(fenced, "payment-1c", old)
    facts = read_database(fenced, "payments", timeout_s=2)
    spans = {span.node: span for span in facts.spans}
    assert spans["payment-1c"].last_at > spans["payment-1b"].first_at
    assert spans["payment-1c"].token == 1


def test_fence_is_said_to_have_moved_when_the_server_was_restarted_under_it(private_postgres: Any):
    dsn = private_postgres.dsn
    migrate(dsn, "payments")
    lead(dsn, "payment-1b", 1)
    private_postgres.restart()
    facts = read_database(private_postgres.dsn, "payments", timeout_s=5)
    assert facts.fence is not None
    assert facts.fence.server_changed


def test_nothing_is_changed_when_the_database_is_read(fenced: str):
    lead(fenced, "payment-1b", 1)

    def content() -> list[tuple[Any, ...]]:
        with psycopg.connect(fenced) as connection:
            fence = connection.execute("SELECT * FROM tenure.fence_payments").fetchall()
            return fence + connection.execute("SELECT * FROM tenure.ledger").fetchall()

    before = content()
    read_database(fenced, "payments", timeout_s=2)
    assert content() == before


def test_database_that_takes_too_long_is_given_up_when_a_table_is_locked(fenced: str):
    with psycopg.connect(fenced) as holder:
        holder.execute("LOCK TABLE payment_events IN ACCESS EXCLUSIVE MODE")
        facts = read_database(fenced, "payments", timeout_s=0.2)
    assert facts.reached
    assert facts.fence is not None
    assert [sentence.split(":")[0] for sentence in facts.missing] == ["rows", "tokens"]


def test_fence_is_read_all_the_same_when_the_session_is_ended_in_the_middle_of_a_question(fenced: str):
    ended: list[bool] = []

    def end() -> None:
        with psycopg.connect(fenced, autocommit=True) as watcher:
            deadline = time.monotonic() + 10
            while not ended and time.monotonic() < deadline:
                ended.extend(
                    done
                    for (done,) in watcher.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'tenure recover' AND wait_event_type = 'Lock'"
                    )
                )

    with psycopg.connect(fenced) as holder:
        holder.execute("LOCK TABLE payment_events IN ACCESS EXCLUSIVE MODE")
        ender = threading.Thread(target=end)
        ender.start()
        try:
            facts = read_database(fenced, "payments", timeout_s=5)
        finally:
            ender.join()
    assert facts.reached
    assert facts.fence is not None
    assert [sentence.split(":")[0] for sentence in facts.missing] == ["database"]


def test_database_is_given_up_when_its_session_is_frozen(fenced: str):
    """A frozen backend answers neither the statement nor its timeout."""
    frozen: list[int] = []

    def freeze() -> None:
        with psycopg.connect(fenced, autocommit=True) as watcher:
            deadline = time.monotonic() + 10
            while not frozen and time.monotonic() < deadline:
                frozen.extend(
                    pid
                    for (pid,) in watcher.execute(
                        "SELECT pid FROM pg_stat_activity WHERE application_name = 'tenure recover' "
                        "AND wait_event_type = 'Lock'"
                    )
                )
            os.kill(frozen[0], signal.SIGSTOP)

    with psycopg.connect(fenced) as holder:
        holder.execute("LOCK TABLE payment_events IN ACCESS EXCLUSIVE MODE")
        freezer = threading.Thread(target=freeze)
        freezer.start()
        try:
            start = time.monotonic()
            facts = read_database(fenced, "payments", timeout_s=1)
            assert time.monotonic() - start < 8
            assert facts.missing == ["database: it stopped answering"]
        finally:
            freezer.join()
            os.kill(frozen[0], signal.SIGCONT)


def test_dsn_is_not_shown_when_it_cannot_be_read():
    facts = read_database("postgresql://me:hunter2@h/d?nonsense=1", "payments", timeout_s=1)
    assert not facts.reached
    assert "hunter2" not in " ".join(facts.missing)
