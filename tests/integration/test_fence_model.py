"""The simulator's database behaves as PostgreSQL does: both keep the same promises, and the suite is not blind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

from conftest import fresh_database, running_server
from tenure import fence
from tenure.core.commands import Settings
from tenure.core.fsm import ClusterState
from tenure.demo.postgres import EmbeddedPostgres
from tenure.fence import FenceStore
from tenure.node.fencing import FenceAdapter
from tenure.testing import FenceConformance
from tenure.testing.fence import ENDED, KEY_REUSED, REPLAYED, SERVER_CHANGED, STALE, WRITTEN, Floor, RaiseAnswer
from tenure.testing.simulation.fence import Database, WriteAnswer
from tenure.testing.simulation.ledger import Ledger, Payment, Write
from tenure.testing.simulation.parts import LOST
from tenure.testing.simulation.world import World
from tenure.types import Credential, ElectorIdentity

SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)
LASTS_NS = 10**9
_WORDS = {
    WriteAnswer.WRITTEN: WRITTEN,
    WriteAnswer.REPLAYED: REPLAYED,
    WriteAnswer.KEY_REUSED: KEY_REUSED,
    WriteAnswer.STALE: STALE,
    WriteAnswer.SERVER_CHANGED: SERVER_CHANGED,
    LOST: ENDED,
}


class Model:
    """The simulator's database, called at once."""

    def __init__(self) -> None:
        self.world = World(1)
        self.ledger = Ledger()
        self.database = Database(self.world, lambda token, holder: None, self.ledger)

    def read(self, identity: ElectorIdentity, last_count: int) -> Floor:
        return self._answer(lambda reply: self.database.read(identity, last_count, reply))

    def raise_token(self, credential: Credential, expected: object, identity: ElectorIdentity) -> RaiseAnswer:
        return self._answer(
            lambda reply: self.database.raise_token(
                credential,
                expected,
                generation=identity.generation,
                lineage=identity.lineage,
                holder="n1",
                elector_id=identity.elector_id,
                reply=reply,
            )
        )

    def write(self, credential: Credential, key: str, payment: int) -> str:
        write = self._attempt(credential, key, payment)
        return _WORDS[self._answer(lambda reply: self.database.write(credential, write, reply))]

    def begin_write(self, credential: Credential, key: str, payment: int) -> ModelWrite:
        write, answers = self._attempt(credential, key, payment), list[object]()
        self.database.write(credential, write, answers.append, lasts_ns=LASTS_NS)
        return ModelWrite(self, answers)

    def keys(self) -> set[str]:
        return set(self.ledger.rows)

    def restart(self) -> None:
        self.database.restart()

    def rebase(self) -> None:
        self.database.rebase()

    def _attempt(self, credential: Credential, key: str, payment: int) -> Write:
        return self.ledger.attempt(Payment(payment, key), credential.token, "n1")

    def _answer(self, ask: Callable[[Callable[[object], None]], None]) -> Any:
        answers: list[object] = []
        ask(answers.append)
        while not answers:
            assert self.world.step(self.world.now + LASTS_NS), "the database never answers"
        return answers[0]


@dataclass
class ModelWrite:
    model: Model
    answers: list[object]

    def commit(self) -> str:
        self.model.world.advance(2 * LASTS_NS)
        return _WORDS[self.answers[0]]


class Postgres:
    """A real server behind the node's own adapter, with statements as an application sends them."""

    def __init__(self, server: EmbeddedPostgres, dsn: str) -> None:
        self.server, self.dsn = server, dsn
        with psycopg.connect(dsn, autocommit=True) as connection:
            connection.execute("CREATE TABLE payment (key text PRIMARY KEY, payment bigint, fencing_token bigint)")
        fence.install(dsn, "payments", tables=["payment"])

    def read(self, identity: ElectorIdentity, last_count: int) -> Floor:
        state = ClusterState(SETTINGS, identity.lineage, generation=identity.generation, last_count=last_count)
        return asyncio.run(self._with(identity, lambda adapter: adapter.read(state)))

    def raise_token(self, credential: Credential, expected: object, identity: ElectorIdentity) -> RaiseAnswer:
        return asyncio.run(
            self._with(
                identity,
                lambda adapter: adapter.raise_token(
                    credential, expected, generation=identity.generation, lineage=identity.lineage
                ),
            )
        )

    def write(self, credential: Credential, key: str, payment: int) -> str:
        with psycopg.connect(self.dsn, autocommit=True) as connection, connection.transaction():
            try:
                return self._insert(connection, credential, key, payment)
            except psycopg.Error as error:
                return error.sqlstate or "lost"

    def begin_write(self, credential: Credential, key: str, payment: int) -> PostgresWrite:
        connection = psycopg.connect(self.dsn)
        assert self._insert(connection, credential, key, payment) == WRITTEN
        return PostgresWrite(connection)

    def keys(self) -> set[str]:
        with psycopg.connect(self.dsn) as connection:
            return {key for (key,) in connection.execute("SELECT key FROM payment").fetchall()}

    def restart(self) -> None:
        self.server.restart()

    def rebase(self) -> None:
        fence.rebase(self.dsn, "payments", who="test", why="the suite")

    @staticmethod
    def _insert(connection: psycopg.Connection[Any], credential: Credential, key: str, payment: int) -> str:
        connection.execute("SELECT tenure.assert_leader('payments', %s)", [credential.encode()])
        made = connection.execute(
            "INSERT INTO payment VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", [key, payment, credential.token]
        )
        if made.rowcount:
            return WRITTEN
        [stored] = connection.execute("SELECT payment FROM payment WHERE key = %s", [key]).fetchone() or [None]
        return REPLAYED if stored == payment else KEY_REUSED

    async def _with(self, identity: ElectorIdentity, ask: Callable[[FenceAdapter], Any]) -> Any:
        store = FenceStore(self.dsn, "payments")
        cluster_id = identity.elector_id.removeprefix("raft:")
        adapter = FenceAdapter(store, cluster_id=cluster_id, resource="payments", holder="n1")
        try:
            return await ask(adapter)
        finally:
            await adapter.close()


@dataclass
class PostgresWrite:
    connection: psycopg.Connection[Any]

    def commit(self) -> str:
        try:
            self.connection.commit()
        except psycopg.OperationalError:
            return ENDED
        finally:
            self.connection.close()
        return WRITTEN


class TestModel(FenceConformance):
    def open_database(self) -> Model:
        return Model()


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """One of this module alone: some promises restart it."""
    with running_server() as server:
        yield server


class TestPostgres(FenceConformance):
    @pytest.fixture(autouse=True)
    def fresh(self, server: EmbeddedPostgres) -> Iterator[None]:
        for dsn in fresh_database(server):
            self.server, self.dsn = server, dsn
            yield

    def open_database(self) -> Postgres:
        return Postgres(self.server, self.dsn)


def _tests() -> list[str]:
    return sorted(name for name in vars(FenceConformance) if name.startswith("test_"))


def _blind(change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The promises that a model with this fault breaks."""
    change(monkeypatch)
    broken = []
    for name in _tests():
        try:
            getattr(TestModel(), name)()
        except AssertionError:
            broken.append(name)
    return broken


@pytest.mark.parametrize(
    ("attribute", "fault", "promise"),
    [
        ("_check", lambda self, credential: None, "test_write_needs_token_and_nonce_of_the_last_raise"),
        ("rebase", lambda self: None, "test_rebase_refuses_everybody_until_a_greater_token_is_raised"),
        (
            "restart",
            lambda self, down_ns=0: None,
            "test_server_that_started_anew_takes_no_write_until_a_greater_token_is_raised",
        ),
        ("_clear_the_way", lambda self: self._go_on(), "test_open_write_is_ended_by_a_raise_and_leaves_nothing"),
    ],
)
def test_suite_goes_red_when_the_model_has_a_fault(
    attribute: str, fault: Callable[..., object], promise: str, monkeypatch: pytest.MonkeyPatch
):
    assert promise in _blind(lambda patch: patch.setattr(Database, attribute, fault), monkeypatch)


@pytest.mark.parametrize(
    ("rule", "verdict", "promise"),
    [
        ("judge_raise", "moved", "test_raise_is_refused_when_the_fence_moved_since_it_was_read"),
        ("judge_floor", "floor", "test_count_above_the_own_is_suspected"),
    ],
)
def test_suite_goes_red_when_a_rule_is_not_asked(
    rule: str, verdict: str, promise: str, monkeypatch: pytest.MonkeyPatch
):
    from tenure.fence.judge import FenceRow, judge_raise

    def grant(row: Any, live: Any, request: Any) -> Any:
        judged = judge_raise(row, live, request)
        if judged == verdict:
            return FenceRow(
                row.resource,
                request.identity.elector_id,
                0,
                request.identity.lineage,
                request.credential.token,
                request.credential.nonce,
                row.version + 1,
                live.timeline,
                live.server_start,
                request.holder,
            )
        return judged

    faulty = grant if rule == "judge_raise" else (lambda row, me, last_count: row.token)
    assert promise in _blind(
        lambda patch: patch.setattr(f"tenure.testing.simulation.fence.{rule}", faulty), monkeypatch
    )
