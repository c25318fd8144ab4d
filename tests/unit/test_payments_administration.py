"""The operator's routes over a stand-in for the member: who may ask, what is answered, and that nothing is guessed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import structlog
from payments_fakes import FakeLeadership, FakeMember

from payment_service import administration
from payment_service.app import build_application
from payment_service.problems import KINDS
from tenure import (
    MembershipRefused,
    NodeClosed,
    NotCaughtUp,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    SnapshotRefused,
    StorageError,
)
from tenure.config import from_mapping
from tenure.raft import LogState, MemberList, MemberRole, MemberState, Settings, SnapshotState, StorageReport

pytestmark = pytest.mark.asyncio

TOKEN = {"Authorization": "Bearer operator-token-of-the-test"}
COMMANDS = [
    ("POST", "/v1/members"),
    ("DELETE", "/v1/members/payment-1b"),
    ("POST", "/v1/members/payment-1b/promote"),
    ("POST", "/v1/members/payment-1b/demote"),
    ("POST", "/v1/leadership/step-down"),
    ("POST", "/v1/leadership/transfer"),
    ("POST", "/v1/snapshots"),
    ("GET", "/v1/snapshots"),
    ("GET", "/v1/log"),
    ("POST", "/v1/log/verify"),
    ("GET", "/v1/settings"),
    ("PATCH", "/v1/settings"),
]
ON_THE_LEADER = [
    ("POST", "/v1/members", {"name": "payment-1d"}),
    ("POST", "/v1/members", {"name": "payment-1d", "role": "learner"}),
    ("DELETE", "/v1/members/payment-1b", None),
    ("POST", "/v1/members/payment-1b/promote", None),
    ("POST", "/v1/members/payment-1b/demote", None),
    ("POST", "/v1/leadership/transfer", {"to": "payment-1b"}),
    ("PATCH", "/v1/settings", {"lease_duration_ms": 2000}),
]


def member_state(number: int, name: str, role: MemberRole = MemberRole.VOTER) -> MemberState:
    return MemberState(
        name=name,
        raft_id=number,
        role=role,
        address=f"127.0.0.1:908{number}",
        url=f"http://127.0.0.1:808{number}",
        leads=number == 1,
        acknowledged_index=40,
        active=True,
    )


class AdministeredMember(FakeMember):
    """A member that does at once what it is told, or raises ``error``."""

    def __init__(self, *, leads: bool) -> None:
        super().__init__(FakeLeadership(token=6, term=6) if leads else None)
        self.states = [member_state(1, "payment-1a"), member_state(2, "payment-1b")]
        self.times = Settings(
            heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
        )
        self.error: Exception | None = None
        self.refused_snapshot: Exception | None = None
        self.applied_index = 44
        self.caught_up = asyncio.Event()
        self.caught_up.set()
        self.calls: list[tuple[Any, ...]] = []

    def done(self, *call: Any) -> None:
        if self.error is not None:
            raise self.error
        self.calls.append(call)

    async def members(self) -> MemberList:
        return MemberList("c0ffee", 7, tuple(self.states), ("payment-1d",), "2 voters survive nothing")

    async def add_learner(self, name: str, *, timeout_ms: int = 0) -> None:
        self.done("add_learner", name)
        self.states.append(member_state(4, name, MemberRole.LEARNER))

    async def add_voter(self, name: str) -> None:
        await self.caught_up.wait()
        self.done("add_voter", name)
        self.states[-1] = member_state(4, name)

    async def promote(self, name: str) -> None:
        self.done("promote", name)

    async def demote(self, name: str) -> None:
        self.done("demote", name)

    async def remove(self, name: str) -> None:
        self.done("remove", name)

    async def transfer_leadership(self, to: str | None = None) -> str:
        self.done("transfer", to)
        return to or "payment-1b"

    async def snapshot(self) -> int:
        if self.refused_snapshot is not None:
            raise self.refused_snapshot
        self.done("snapshot")
        return 41

    async def stored_snapshots(self) -> list[SnapshotState]:
        self.done("stored_snapshots")
        whole = SnapshotState(id="41-6", index=41, term=6, voters=(1, 2), learners=(9,), size=3, sha256="ab")
        return [whole, SnapshotState(id="11-2", problem="it fails its checksum")]

    async def log_state(self) -> LogState:
        self.done("log_state")
        return LogState(term=6, commit_index=45, applied_index=self.applied_index, snapshot_index=41, last_index=46)

    async def verify_storage(self) -> StorageReport:
        self.done("verify_storage")
        return StorageReport(valid=False, records=3, snapshots=(), problem="damaged", path="raft.sqlite3", index=9)

    async def settings(self) -> Settings:
        self.done("settings")
        return self.times

    async def change_settings(self, **changed: int) -> Settings:
        self.done("change_settings", changed)
        return self.times


class Rig:
    def __init__(
        self, client: httpx2.AsyncClient, member: AdministeredMember, log: structlog.testing.LogCapture
    ) -> None:
        self.client, self.member, self.log = client, member, log

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> httpx2.Response:
        return await self.client.request(method, path, json=body, headers={**TOKEN, **headers})


@asynccontextmanager
async def service(*, leads: bool = True, operator_token: str = "operator-token-of-the-test") -> AsyncIterator[Rig]:
    config = from_mapping(
        {
            "node": {"name": "payment-1a"},
            "raft": {"peers": {"payment-1a": {"raft": "127.0.0.1:9080", "url": "http://127.0.0.1:8080"}}},
            "http": {"operator_token": operator_token},
        }
    )
    member, log = AdministeredMember(leads=leads), structlog.testing.LogCapture()
    application = build_application(
        config,
        member=member,  # type: ignore[arg-type]
        writer=None,  # type: ignore[arg-type]
        reader=None,  # type: ignore[arg-type]
        client=None,  # type: ignore[arg-type]
        logger=structlog.wrap_logger(None, processors=[log]),
    )
    transport = httpx2.ASGITransport(app=application, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=transport, base_url="http://payment-1a:8080") as client:
        yield Rig(client, member, log)


def check_problem(answer: httpx2.Response, status: int, code: str) -> dict[str, Any]:
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (status, code), problem
    assert answer.headers["content-type"] == "application/problem+json"
    assert problem["retryable"] is KINDS[code].retryable
    assert ("retry-after" in answer.headers) is (status == 503)
    return problem


async def test_members_are_told_to_everybody_when_asked():
    async with service(operator_token="") as rig:
        listed = (await rig.client.get("/v1/members")).json()
        assert (listed["leader"], listed["term"], listed["index"], listed["commit_index"]) == ("payment-1a", 6, 7, 1)
        assert (listed["applicants"], listed["warning"]) == (["payment-1d"], "2 voters survive nothing")
        assert listed["members"][1] == {
            "name": "payment-1b",
            "raft_id": 2,
            "role": "voter",
            "address": "127.0.0.1:9082",
            "url": "http://127.0.0.1:8082",
            "leads": False,
            "acknowledged_index": 40,
            "active": True,
        }
        assert (await rig.client.get("/v1/members/payment-1b")).json() == listed["members"][1]
        check_problem(await rig.client.get("/v1/members/nobody"), 404, "not_found")


@pytest.mark.parametrize(("method", "path"), COMMANDS)
async def test_nothing_is_done_without_the_operators_token(method: str, path: str):
    async with service() as rig:
        for header in ("", "Bearer wrong", "Basic operator-token-of-the-test"):
            answer = await rig.client.request(method, path, headers={"Authorization": header})
            check_problem(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert rig.member.calls == []
        assert rig.member.stepped_down == 0
    async with service(operator_token="") as rig:
        answer = await rig.client.request(method, path, headers={"Authorization": "Bearer "})
        check_problem(answer, 403, "forbidden")


@pytest.mark.parametrize(("method", "path", "body"), ON_THE_LEADER)
async def test_leader_is_named_when_a_follower_is_asked(method: str, path: str, body: Any):
    async with service(leads=False) as rig:
        answer = await rig.ask(method, path, body)
        problem = check_problem(answer, 503, "not_leader")
        assert answer.headers["tenure-leader"] == problem["leader"] == "http://127.0.0.1:8081"
        assert rig.member.calls == []


async def test_member_is_changed_when_the_operator_asks_for_it():
    async with service() as rig:
        added = await rig.ask("POST", "/v1/members", {"name": "payment-1d", "role": "learner"})
        assert (added.status_code, added.headers["location"]) == (201, "/v1/members/payment-1d")
        assert added.json()["role"] == "learner"
        assert (await rig.ask("POST", "/v1/members/payment-1b/demote")).json()["name"] == "payment-1b"
        assert (await rig.ask("POST", "/v1/members/payment-1b/promote")).status_code == 200
        removed = await rig.ask("DELETE", "/v1/members/payment-1b")
        assert (removed.status_code, removed.content) == (204, b"")
        assert rig.member.calls == [
            ("add_learner", "payment-1d"),
            ("demote", "payment-1b"),
            ("promote", "payment-1b"),
            ("remove", "payment-1b"),
        ]
        outcomes = [(line["path"], line["outcome"]) for line in rig.log.entries if line["event"] == "operator_command"]
        assert outcomes[0] == ("/v1/members", "done")
        assert len(outcomes) == 4


async def test_voter_is_answered_202_and_goes_on_when_it_has_not_caught_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(administration, "JOIN_WAIT_SECONDS", 0.01)
    async with service() as rig:
        rig.member.caught_up.clear()
        begun = await rig.ask("POST", "/v1/members", {"name": "payment-1d"})
        assert (begun.status_code, begun.headers["location"], begun.json()["role"]) == (
            202,
            "/v1/members/payment-1d",
            "learner",
        )
        assert (await rig.ask("POST", "/v1/members", {"name": "payment-1d"})).status_code == 202
        rig.member.caught_up.set()
        monkeypatch.setattr(administration, "JOIN_WAIT_SECONDS", 5)
        done = await rig.ask("POST", "/v1/members", {"name": "payment-1d"})
        assert (done.status_code, done.json()["role"]) == (201, "voter")
        # One addition for three requests.
        assert rig.member.calls == [("add_learner", "payment-1d"), ("add_voter", "payment-1d")]


async def test_voter_that_fails_to_join_later_is_written_to_the_log(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(administration, "JOIN_WAIT_SECONDS", 0.01)
    async with service() as rig:
        rig.member.caught_up.clear()
        assert (await rig.ask("POST", "/v1/members", {"name": "payment-1d"})).status_code == 202
        rig.member.error = NotLeader()
        rig.member.caught_up.set()
        async with asyncio.timeout(5):
            while not any(line["event"] == "member_not_added" for line in rig.log.entries):  # noqa: ASYNC110 - a log.
                await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("error", "status", "code", "words"),
    [
        (MembershipRefused("no voter would be left"), 409, "membership_refused", "no voter would be left"),
        (NotCaughtUp("1500 behind", name="payment-1b", behind=1500), 409, "not_caught_up", "1500 behind"),
        (ProposalDropped("another took its place"), 503, "proposal_dropped", "surely not done"),
        (OutcomeUnknown("no answer"), 504, "outcome_unknown", "look before you repeat"),
        (NodeClosed(), 504, "outcome_unknown", "may or may not"),
        (NotLeader(leader_url="http://127.0.0.1:8081"), 503, "not_leader", "nothing was done"),
        (StorageError("secret path"), 500, "internal_error", "request_id"),
    ],
)
async def test_outcome_is_told_and_never_guessed_when_a_change_fails(
    error: Exception, status: int, code: str, words: str
):
    async with service() as rig:
        rig.member.error = error
        answer = await rig.ask("POST", "/v1/members/payment-1b/promote")
        problem = check_problem(answer, status, code)
        assert words in problem["detail"]
        assert rig.log.entries[-1]["outcome"] == code
        if code == "not_caught_up":
            assert problem["behind"] == 1500
        if code == "not_leader":
            assert answer.headers["tenure-leader"] == "http://127.0.0.1:8081"


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("POST", "/v1/members", {"name": ""}, "invalid_field"),
        ("POST", "/v1/members", {"name": "d", "role": "king"}, "invalid_field"),
        ("POST", "/v1/members", {"name": "d", "rank": 1}, "invalid_field"),
        ("POST", "/v1/members", {}, "invalid_field"),
        ("POST", "/v1/leadership/transfer", {"to": 7}, "invalid_field"),
        ("PATCH", "/v1/settings", {}, "invalid_field"),
        ("PATCH", "/v1/settings", {"lease_duration_ms": "1s"}, "invalid_field"),
    ],
)
async def test_nothing_is_done_when_a_field_is_wrong(method: str, path: str, body: Any, code: str):
    async with service() as rig:
        check_problem(await rig.ask(method, path, body), 400, code)
        assert rig.member.calls == []


async def test_nothing_is_done_when_the_body_is_no_json_or_too_long():
    async with service() as rig:
        headers = {**TOKEN, "Content-Type": "application/json"}
        check_problem(await rig.client.post("/v1/members", content=b"{", headers=headers), 400, "malformed_json")
        twice = b'{"name": "payment-1d", "name": "payment-1e"}'
        said = check_problem(await rig.client.post("/v1/members", content=twice, headers=headers), 400, "invalid_field")
        assert said["param"] == "name"
        assert rig.member.calls == []
        long = b" " * (administration.BODY_BYTES_MAX + 1)
        check_problem(await rig.client.post("/v1/members", content=long, headers=headers), 413, "body_too_large")
        check_problem(await rig.client.post("/v1/members", headers=TOKEN), 415, "unsupported_media_type")


async def test_leadership_is_handed_over_when_the_operator_asks_for_it():
    async with service() as rig:
        assert (await rig.ask("POST", "/v1/leadership/transfer")).json()["leader"] == "payment-1b"
        named = (await rig.ask("POST", "/v1/leadership/transfer", {"to": "payment-1b"})).json()
        assert named == {"leader": "payment-1b", "leader_url": "http://127.0.0.1:8081", "term": 6}
        assert rig.member.calls == [("transfer", None), ("transfer", "payment-1b")]


async def test_log_and_snapshots_of_any_node_are_told_when_the_operator_asks():
    async with service(leads=False) as rig:
        assert (await rig.ask("POST", "/v1/snapshots")).json() == {
            "node": "payment-1a",
            "index": 41,
            "taken": True,
        }
        listed = (await rig.ask("GET", "/v1/snapshots")).json()
        assert listed["log_starts_with"] == {"index": 41}
        assert [(s["id"], s["verified"], s["members"]) for s in listed["snapshots"]] == [
            ("41-6", True, ["payment-1a", "payment-1b", "9 (learner)"]),
            ("11-2", False, []),
        ]
        log = (await rig.ask("GET", "/v1/log")).json()
        assert log == {
            "node": "payment-1a",
            "term": 6,
            "commit_index": 45,
            "applied_index": 44,
            "snapshot_index": 41,
            "last_index": 46,
        }
        report = (await rig.ask("POST", "/v1/log/verify")).json()
        assert (report["valid"], report["problem"], report["index"]) == (False, "damaged", 9)


async def test_snapshot_is_not_taken_and_that_is_no_error_when_there_is_nothing_new():
    async with service(leads=False) as rig:
        rig.member.refused_snapshot = SnapshotRefused("nothing was applied since the last snapshot")
        # Entries wait that were applied after it: then it was refused for another reason.
        check_problem(await rig.ask("POST", "/v1/snapshots"), 409, "snapshot_refused")
        rig.member.applied_index = 41
        answer = await rig.ask("POST", "/v1/snapshots")
        assert (answer.status_code, answer.json()) == (200, {"node": "payment-1a", "index": 41, "taken": False})
        rig.member.error = NodeClosed("it belongs to no cluster yet")
        check_problem(await rig.ask("POST", "/v1/snapshots"), 409, "snapshot_refused")


async def test_settings_are_told_and_changed_when_the_operator_asks():
    async with service() as rig:
        assert (await rig.ask("GET", "/v1/settings")).json()["lease_duration_ms"] == 1000
        await rig.ask("PATCH", "/v1/settings", {"lease_duration_ms": 2000, "heartbeat_interval_ms": None})
        assert rig.member.calls[-1] == ("change_settings", {"lease_duration_ms": 2000})
        await rig.ask("PATCH", "/v1/settings", {"wait_out": "fenced-only"})
        assert rig.member.calls[-1] == ("change_settings", {"wait_out": "fenced-only"})


async def test_node_that_belongs_to_no_cluster_says_so_when_its_log_is_asked_for():
    async with service(leads=False) as rig:
        rig.member.error = NodeClosed()
        check_problem(await rig.ask("GET", "/v1/log"), 503, "not_ready")
        rig.member.error = StorageError("OwnStore cannot be checked while it is used")
        assert "OwnStore" in check_problem(await rig.ask("POST", "/v1/log/verify"), 500, "storage_error")["detail"]


async def test_all_methods_are_named_when_a_wrong_one_is_used():
    async with service() as rig:
        answer = await rig.ask("PUT", "/v1/members")
        check_problem(answer, 405, "method_not_allowed")
        assert {method.strip() for method in answer.headers["allow"].split(",")} >= {"GET", "POST"}
