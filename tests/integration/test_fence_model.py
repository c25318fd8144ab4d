"""The simulator's database behaves as PostgreSQL does: both keep the same promises, and the suite is not blind."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from msgspec.structs import replace

from conftest import fresh_database, running_server
from tenure import fence
from tenure.core.commands import Settings
from tenure.core.fsm import ClusterState
from tenure.demo.postgres import EmbeddedPostgres
from tenure.fence import FenceStore
from tenure.fence.judge import Expected, FenceRow, LiveServer, RaiseRequest, Refusal, judge_raise
from tenure.node.fencing import FenceAdapter
from tenure.testing import FenceConformance
from tenure.testing.fence import (
    ENDED,
    KEY_REUSED,
    NO_CREDENTIAL,
    REPLAYED,
    SERVER_CHANGED,
    STALE,
    WRITTEN,
    Floor,
    RaiseAnswer,
)
from tenure.testing.simulation.fence import Database, WriteAnswer
from tenure.testing.simulation.ledger import Ledger, Payment, Write
from tenure.testing.simulation.parts import LOST, Reply
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
    WriteAnswer.NO_CREDENTIAL: NO_CREDENTIAL,
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

    def write(self, credential: Credential | None, key: str, payment: int) -> str:
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

    def copy(self) -> None:
        self.copied = len(self.database._log)

    def put_back(self, *, promoted: bool) -> None:
        go_back = self.database.fail_over if promoted else self.database.restore
        go_back(lose=len(self.database._log) - self.copied)

    def _attempt(self, credential: Credential | None, key: str, payment: int) -> Write:
        return self.ledger.attempt(Payment(payment, key), credential.token if credential else 0, "n1")

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

    def write(self, credential: Credential | None, key: str, payment: int) -> str:
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

    def copy(self) -> None:
        self.server.halt()
        subprocess.run(["cp", "-a", self.server.home / "pgdata", self.server.home / "copy"], check=True)
        self.server.run()

    def put_back(self, *, promoted: bool) -> None:
        home = self.server.home
        self.server.halt()
        shutil.rmtree(home / "pgdata")
        (home / "copy").rename(home / "pgdata")
        if promoted:
            (home / "pgdata" / "standby.signal").touch()
        self.server.run()
        if promoted:
            with psycopg.connect(self.dsn, autocommit=True) as connection:
                connection.execute("SELECT pg_promote()")

    @staticmethod
    def _insert(connection: psycopg.Connection[Any], credential: Credential | None, key: str, payment: int) -> str:
        if credential is not None:
            connection.execute("SELECT tenure.assert_leader('payments', %s)", [credential.encode()])
        token = credential.token if credential else 0
        made = connection.execute(
            "INSERT INTO payment VALUES (%s, %s, %s) ON CONFLICT DO NOTHING", [key, payment, token]
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


def _promises() -> list[str]:
    return sorted(name for name in vars(FenceConformance) if name.startswith("test_"))


def _granting(*wrongly: Refusal) -> Callable[..., Any]:
    """A judge of raises that grants what it should refuse."""

    def judge(row: FenceRow, live: LiveServer, request: RaiseRequest) -> FenceRow | Refusal:
        judged = judge_raise(row, live, request)
        if judged not in wrongly:
            return judged
        unclaimed = replace(row, elector_id=None, generation=0, token=-1)
        expected = Expected(row.version, live.timeline, live.server_start)
        granted = judge_raise(unclaimed, live, replace(request, expected=expected))
        assert isinstance(granted, FenceRow)
        return granted

    return judge


def _refusing_mine(row: FenceRow, live: LiveServer, request: RaiseRequest) -> FenceRow | Refusal:
    judged = judge_raise(row, live, request)
    return Refusal.TOKEN_NOT_GREATER if judged is row else judged


def _check_without_nonce(self: Database, credential: Credential | None) -> WriteAnswer | None:
    mine = None if credential is None else Credential(credential.token, self.row.nonce)
    return _CHECK(self, mine)


def _check_credential_first(self: Database, credential: Credential | None) -> WriteAnswer | None:
    return WriteAnswer.NO_CREDENTIAL if credential is None else _CHECK(self, credential)


def _forget_key(self: Database, credential: Credential, write: Write, reply: Reply, *, lasts_ns: int = 0) -> None:
    self.ledger.rows.pop(write.payment.key, None)
    _WRITE(self, credential, write, reply, lasts_ns=lasts_ns)


def _lose_commit(self: Database, key: str) -> None:
    self._open.pop(key).reply(LOST)


def _replace_unseen(self: Database, lose: int, timeline: str, down_ns: int) -> None:
    live = self._live
    _REPLACE(self, lose, timeline, down_ns)
    self._live = live


_CHECK, _WRITE, _REPLACE = Database._check, Database.write, Database._replace
_HERE = "tenure.testing.simulation.fence."
_DATABASE = _HERE + "Database."
#: For each promise the fault in the model that breaks it.
_FAULTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "test_floor_of_a_new_fence_is_zero": (_HERE + "judge_floor", lambda row, me, last_count: row.token + 1),
    "test_raise_of_mine_is_granted_again": (_HERE + "judge_raise", _refusing_mine),
    "test_raise_is_refused_to_the_winner_that_comes_after_a_later_one": (
        _HERE + "judge_raise",
        _granting(Refusal.TOKEN_NOT_GREATER),
    ),
    "test_raise_is_refused_when_the_fence_moved_since_it_was_read": (_HERE + "judge_raise", _granting(Refusal.MOVED)),
    "test_raise_is_refused_to_a_token_that_is_not_greater": (
        _HERE + "judge_raise",
        _granting(Refusal.TOKEN_NOT_GREATER),
    ),
    "test_raise_is_refused_to_another_elector_lineage_and_lower_generation": (
        _HERE + "judge_floor",
        lambda row, me, last_count: row.token,
    ),
    "test_count_above_the_own_is_suspected": (_HERE + "judge_floor", lambda row, me, last_count: row.token),
    "test_write_needs_token_and_nonce_of_the_last_raise": (_DATABASE + "_check", _check_without_nonce),
    "test_write_without_a_credential_is_refused_and_another_server_is_told_first": (
        _DATABASE + "_check",
        _check_credential_first,
    ),
    "test_key_is_written_once_and_tells_its_payment": (_DATABASE + "write", _forget_key),
    "test_open_write_is_ended_by_a_raise_and_leaves_nothing": (_DATABASE + "_clear_the_way", lambda self: None),
    "test_open_write_is_ended_by_a_rebase_and_leaves_nothing": (_DATABASE + "_clear_the_way", lambda self: None),
    "test_open_write_is_ended_when_the_server_starts_anew": (_DATABASE + "_drop_sessions", lambda self: None),
    "test_open_write_is_left_alone_by_a_raise_that_is_refused": (
        _DATABASE + "_must_wait",
        lambda self, request: bool(self._open),
    ),
    "test_open_write_is_committed_when_nothing_comes_between": (_DATABASE + "_end", _lose_commit),
    "test_server_that_started_anew_takes_no_write_until_a_greater_token_is_raised": (
        _DATABASE + "_replace",
        _replace_unseen,
    ),
    "test_older_copy_takes_no_write_until_a_greater_token_is_raised": (_DATABASE + "_replace", _replace_unseen),
    "test_promoted_standby_takes_no_write_until_a_greater_token_is_raised": (_DATABASE + "_replace", _replace_unseen),
    "test_raise_is_refused_when_an_older_copy_has_the_version_that_was_read": (
        _DATABASE + "_replace",
        _replace_unseen,
    ),
    "test_rebase_refuses_everybody_until_a_greater_token_is_raised": (_DATABASE + "rebase", lambda self: None),
}


@pytest.mark.parametrize("promise", _promises())
def test_promise_is_seen_to_break_when_the_model_has_a_fault(promise: str, monkeypatch: pytest.MonkeyPatch):
    where, fault = _FAULTS[promise]
    monkeypatch.setattr(where, fault)
    with pytest.raises(AssertionError):
        getattr(TestModel(), promise)()
