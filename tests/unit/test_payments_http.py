"""The HTTP side over stand-ins for member and database: answers byte for byte, problems, bad input, probes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
import structlog
from payments_fakes import NOW, FakeLeadership, FakeMember, FakeSession

from payment_service.app import build_application
from payment_service.identifiers import format_payment_id, uuid7
from payment_service.models import Payment, PaymentRequest, payment_from_row
from payment_service.problems import KINDS
from payment_service.reader import Page
from payment_service.writer import GroupCommitWriter
from tenure import DatabaseUnavailable, FenceMissing, OutcomeUnknown, ServerChanged, StaleToken, TokenRequired
from tenure.config import Config, from_mapping

pytestmark = pytest.mark.asyncio

GOOD: dict[str, Any] = {
    "amount": 1250,
    "currency": "EUR",
    "debtor": "alice",
    "creditor": "bob",
    "reference": "invoice 7",
}
OPERATOR_TOKEN = "operator-token-of-the-test"


class FakeReader:
    def __init__(self) -> None:
        self.payments: list[Payment] = []
        self.error: Exception | None = None

    async def get(self, payment_id: uuid.UUID) -> Payment | None:
        await self.ping()
        return next((payment for payment in self.payments if payment.id == format_payment_id(payment_id)), None)

    async def page(self, *, limit: int, starting_after: uuid.UUID | None) -> Page | None:
        await self.ping()
        ids = [payment.id for payment in self.payments]
        start = 0
        if starting_after is not None:
            if format_payment_id(starting_after) not in ids:
                return None
            start = ids.index(format_payment_id(starting_after)) + 1
        return Page(data=self.payments[start : start + limit], has_more=len(ids) > start + limit)

    async def ping(self) -> None:
        if self.error is not None:
            raise self.error


class Rig:
    def __init__(
        self, client: httpx2.AsyncClient, member: FakeMember, session: FakeSession, reader: FakeReader
    ) -> None:
        self.client = client
        self.member = member
        self.session = session
        self.reader = reader

    async def pay(
        self, body: object = GOOD, *, key: str | None = "k-1", content: bytes | None = None, **headers: str
    ) -> httpx2.Response:
        given = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        if key is not None:
            given["Idempotency-Key"] = key
        return await self.client.post(
            "/v1/payments", content=json.dumps(body) if content is None else content, headers=given
        )


@asynccontextmanager
async def service(*, leads: bool = True, peers: httpx2.AsyncClient | None = None, **http: Any) -> AsyncIterator[Rig]:
    config = settings(**http)
    member = FakeMember(FakeLeadership(token=6, term=6) if leads else None)
    session, reader = FakeSession(), FakeReader()
    writer = GroupCommitWriter(
        session,  # type: ignore[arg-type]
        node="payment-1a",
        batch_rows_max=100,
        queue_rows_max=100,
        key_wait_ms=1000,
        on_committed=lambda *_: None,
    )
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(unreachable)) as default_peers:
        application = build_application(
            config,
            member=member,  # type: ignore[arg-type]
            writer=writer,
            reader=reader,  # type: ignore[arg-type]
            client=peers or default_peers,
            logger=structlog.wrap_logger(None, processors=[structlog.testing.LogCapture()]),
        )
        task = asyncio.create_task(writer.run())
        transport = httpx2.ASGITransport(app=application, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://payment-1a:8080") as client:
            try:
                yield Rig(client, member, session, reader)
            finally:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task


def settings(**http: Any) -> Config:
    return from_mapping(
        {
            "node": {"name": "payment-1a"},
            "raft": {"peers": {"payment-1a": {"raft": "127.0.0.1:9080", "url": "http://127.0.0.1:8080"}}},
            "http": {"operator_token": OPERATOR_TOKEN, **http},
        }
    )


def unreachable(request: httpx2.Request) -> httpx2.Response:
    raise httpx2.ConnectError("connection refused", request=request)


def check_problem(answer: httpx2.Response, status: int, code: str, *, param: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert {"type", "title", "status", "detail", "instance", "code", "param", "retryable", "request_id"} <= set(problem)
    assert (problem["status"], problem["code"], problem["param"]) == (status, code, param)
    assert problem["instance"] == answer.request.url.path
    assert problem["request_id"] == answer.headers["request-id"]
    assert problem["retryable"] is KINDS[code].retryable
    assert ("retry-after" in answer.headers) is (status == 503)
    return problem


# -- POST /v1/payments ------------------------------------------------------------------------------------------------


async def test_payment_is_answered_with_its_row_when_it_is_written():
    async with service() as rig:
        answer = await rig.pay()
        payment = answer.json()
        assert answer.status_code == 201
        assert list(payment) == [
            "id",
            "amount",
            "currency",
            "debtor",
            "creditor",
            "reference",
            "status",
            "node",
            "fencing_token",
            "term",
            "created_at",
        ]
        assert payment | GOOD == payment
        assert payment["id"].startswith("pay_")
        assert (payment["status"], payment["node"], payment["fencing_token"], payment["term"]) == (
            "accepted",
            "payment-1a",
            6,
            6,
        )
        assert payment["created_at"] == "2026-11-24T12:00:00.123456Z"
        assert answer.headers["location"] == f"/v1/payments/{payment['id']}"
        assert answer.headers["request-id"].startswith("req_")
        assert "idempotent-replayed" not in answer.headers


async def test_payment_is_answered_with_the_same_bytes_when_it_is_replayed():
    async with service() as rig:
        first, again = await rig.pay(), await rig.pay(key='"k-1"')
        assert (again.status_code, again.headers["idempotent-replayed"]) == (201, "true")
        assert again.content == first.content


async def test_key_is_refused_when_another_body_used_it():
    async with service() as rig:
        await rig.pay()
        check_problem(await rig.pay(GOOD | {"amount": 1}), 422, "idempotency_key_reused", param="Idempotency-Key")


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"amount": -1}, "amount"),
        ({"amount": 1.5}, "amount"),
        ({"currency": "XYZ"}, "currency"),
        ({"fee": 1}, "fee"),
        ({"debtor": ""}, "debtor"),
        ({"creditor": "c" * 65}, "creditor"),
        ({"reference": "r" * 141}, "reference"),
    ],
)
async def test_nothing_is_written_when_a_field_is_wrong(change: dict[str, Any], param: str):
    async with service() as rig:
        problem = check_problem(await rig.pay(GOOD | change), 400, "invalid_field", param=param)
        assert param in problem["detail"]
        assert rig.session.batches == []


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 8000, b"\xff"])
async def test_nothing_is_written_when_the_body_is_malformed(body: bytes):
    async with service() as rig:
        check_problem(await rig.pay(content=body), 400, "malformed_json")
        assert rig.session.batches == []


async def test_nothing_is_written_when_the_body_is_too_large():
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    async with service(max_body_bytes=1000) as rig:
        check_problem(await rig.pay(content=b" " * 1001), 413, "body_too_large", param="body")
        headers = {"Content-Type": "application/json", "Idempotency-Key": "k"}
        undeclared = await rig.client.post("/v1/payments", content=chunks(), headers=headers)
        check_problem(undeclared, 413, "body_too_large", param="body")
        assert rig.session.batches == []


async def test_nothing_is_written_when_a_header_is_wrong():
    async with service() as rig:
        check_problem(await rig.pay(key=None), 400, "idempotency_key_missing", param="Idempotency-Key")
        check_problem(await rig.pay(key="k" * 256), 400, "idempotency_key_invalid", param="Idempotency-Key")
        check_problem(await rig.pay(key=""), 400, "idempotency_key_invalid", param="Idempotency-Key")
        check_problem(await rig.pay(Content_Type="text/plain"), 415, "unsupported_media_type", param="Content-Type")
        assert rig.session.batches == []


async def test_follower_names_the_leader_when_it_is_asked_to_pay():
    async with service(leads=False) as rig:
        answer = await rig.pay()
        problem = check_problem(answer, 503, "not_leader")
        assert answer.headers["tenure-leader"] == problem["leader"] == "http://127.0.0.1:8081"
        assert answer.headers["retry-after"] == "1"
        assert rig.session.batches == []


async def test_follower_names_nobody_when_no_leader_is_known_or_it_is_named_itself():
    async with service(leads=False) as rig:
        rig.member.leader_name = rig.member.leader_url = None
        assert "tenure-leader" not in (await rig.pay()).headers
        rig.member.leader_name, rig.member.leader_url = rig.member.name, "http://127.0.0.1:8080"
        assert "tenure-leader" not in (await rig.pay()).headers


@pytest.mark.parametrize("kind", [StaleToken, ServerChanged, FenceMissing, TokenRequired])
async def test_R31_client_is_told_to_retry_and_nothing_is_kept_when_the_fence_refuses(kind):
    async with service() as rig:
        rig.session.errors = [kind("refused", resource="payments", held=6, seen=7)]
        rig.member.leader_name, rig.member.leader_url = "payment-1b", "http://127.0.0.1:8081"
        answer = await rig.pay()
        problem = check_problem(answer, 503, "not_leader")
        assert (problem["reason"], problem["token_sent"], problem["token_current"]) == ("stale_token", 6, 7)
        assert answer.headers["tenure-leader"] == "http://127.0.0.1:8081"
        rig.member.held = FakeLeadership(token=8, term=8)
        again = await rig.pay()
        assert (again.status_code, again.json()["fencing_token"]) == (201, 8)
        assert "idempotent-replayed" not in again.headers


async def test_outcome_is_called_unknown_when_it_is():
    async with service() as rig:
        rig.session.errors = [OutcomeUnknown("lost"), DatabaseUnavailable("away"), ZeroDivisionError()]
        assert "same Idempotency-Key" in check_problem(await rig.pay(), 504, "outcome_unknown")["detail"]
        check_problem(await rig.pay(), 503, "database_unavailable")


# -- state, probes, metrics -------------------------------------------------------------------------------------------


async def test_state_is_two_keys_byte_for_byte_when_asked():
    async with service() as rig:
        answer = await rig.client.get("/v1/state")
        assert answer.content == b'{"state": "leader", "term": 6}'
        assert answer.headers["content-type"] == "application/json"
        # Computed at the request: the lease ends, and the very next answer says so.
        rig.member.held.valid = False
        assert (await rig.client.get("/v1/state")).content == b'{"state": "follower", "term": 6}'


async def test_node_tells_the_whole_status_when_asked():
    async with service() as rig:
        node = (await rig.client.get("/v1/node")).json()
        assert (node["name"], node["state"], node["fencing_token"], node["pid"]) == (
            "payment-1a",
            "leader",
            6,
            os.getpid(),
        )
        assert node["incarnation"] == 7
        assert node["version"]


async def test_cluster_tells_every_node_and_which_is_silent_when_asked():
    async with service() as rig:
        cluster = (await rig.client.get("/v1/cluster")).json()
        assert (cluster["cluster"], cluster["cluster_id"], cluster["leader"]) == ("payments", "c0ffee", "payment-1a")
        assert cluster["members"][1] == {
            "name": "payment-1b",
            "url": "http://127.0.0.1:8081",
            "raft_address": "127.0.0.1:9081",
        }
        assert cluster["nodes"][0]["state"] == "leader"
        assert cluster["nodes"][1]["name"] == "payment-1b"
        assert "connection refused" in cluster["nodes"][1]["error"]


async def test_cluster_passes_on_what_a_node_says_when_it_answers():
    def answer(request: httpx2.Request) -> httpx2.Response:
        assert str(request.url) == "http://127.0.0.1:8081/v1/node"
        return httpx2.Response(200, json={"name": "payment-1b", "state": "follower"})

    async with (
        httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as peers,
        service(peers=peers) as rig,
    ):
        cluster = (await rig.client.get("/v1/cluster")).json()
        assert cluster["nodes"][1] == {"name": "payment-1b", "state": "follower"}


@pytest.mark.parametrize(("leads", "leader", "replica"), [(True, 200, 503), (False, 503, 200)])
async def test_role_probes_follow_the_state_when_a_load_balancer_asks(leads: bool, leader: int, replica: int):
    async with service(leads=leads) as rig:
        for method in ("GET", "HEAD", "OPTIONS"):
            assert (await rig.client.request(method, "/leader")).status_code == leader
            assert (await rig.client.request(method, "/replica")).status_code == replica


async def test_readiness_is_not_leadership_but_the_database_when_asked():
    async with service(leads=False) as rig:
        assert (await rig.client.get("/readyz")).status_code == 200
        rig.reader.error = DatabaseUnavailable("away")
        assert (await rig.client.get("/readyz")).status_code == 503
        assert (await rig.client.get("/livez")).status_code == 200
        check_problem(await rig.client.get("/v1/payments"), 503, "database_unavailable")


async def test_readiness_tells_what_the_node_waits_for_when_it_belongs_to_no_cluster():
    async with service(leads=False) as rig:
        assert rig.member.reason is None
        assert (await rig.client.get("/readyz")).json() == {"status": "ok", "database": "ok"}
        rig.member.cluster_id, rig.member.reason = None, "waiting to be added: run 'tenure member add payment-1a'"
        answer = await rig.client.get("/readyz")
        assert (answer.status_code, answer.json()["cluster"]) == (200, rig.member.reason)


async def test_metrics_have_the_three_names_when_scraped():
    async with service() as rig:
        answer = await rig.client.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        for line in ('raft_state{state="leader"} 1.0', "raft_election_count 1.0", "fencing_token_failures 0.0"):
            assert line in answer.text.splitlines()


# -- reads ------------------------------------------------------------------------------------------------------------


def stored_payment() -> Payment:
    return payment_from_row(
        payment_id=uuid7(),
        request=PaymentRequest(**GOOD),
        node="payment-1a",
        fencing_token=6,
        term=6,
        created_at=NOW,
    )


async def test_payment_is_found_by_its_id_when_it_exists():
    async with service(leads=False) as rig:
        rig.reader.payments = [stored_payment()]
        assert (await rig.client.get(f"/v1/payments/{rig.reader.payments[0].id}")).json()["amount"] == 1250
        for unknown in (format_payment_id(uuid7()), "pay_1", "x" * 300):
            check_problem(await rig.client.get(f"/v1/payments/{unknown}"), 404, "not_found", param="id")
        bare = rig.reader.payments[0].id.removeprefix("pay_")  # as the database shows it
        problem = check_problem(await rig.client.get(f"/v1/payments/{bare}"), 404, "not_found", param="id")
        assert "an id is pay_ and a UUID" in problem["detail"]


async def test_list_is_paged_when_there_are_more_than_the_limit():
    async with service(leads=False) as rig:
        rig.reader.payments = [stored_payment() for _ in range(3)]
        ids = [payment.id for payment in rig.reader.payments]
        first = (await rig.client.get("/v1/payments?limit=2")).json()
        assert ([payment["id"] for payment in first["data"]], first["has_more"]) == (ids[:2], True)
        second = (await rig.client.get(f"/v1/payments?limit=2&starting_after={ids[1]}")).json()
        assert ([payment["id"] for payment in second["data"]], second["has_more"]) == (ids[2:], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=101", "limit"),
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("limit=%C2%B2", "limit"),
        ("starting_after=x", "starting_after"),
        (f"starting_after={format_payment_id(uuid.UUID(int=1))}", "starting_after"),
        ("offset=1", "offset"),
    ],
)
async def test_list_refuses_a_parameter_when_it_is_wrong(query: str, param: str):
    async with service() as rig:
        check_problem(await rig.client.get(f"/v1/payments?{query}"), 400, "invalid_field", param=param)


async def test_unknown_paths_and_methods_are_problems_when_asked():
    async with service() as rig:
        check_problem(await rig.client.get("/v2/payments"), 404, "not_found")
        check_problem(await rig.client.get("/v1/payments/"), 404, "not_found", param=None)
        answer = await rig.client.put("/v1/payments")
        check_problem(answer, 405, "method_not_allowed")
        assert answer.headers["allow"] == "GET, HEAD, POST"
        check_problem(await rig.client.delete("/v1/state"), 405, "method_not_allowed")


# -- the operator's command -------------------------------------------------------------------------------------------


async def test_step_down_needs_the_operator_token_when_one_is_set():
    async with service() as rig:
        path = "/v1/leadership/step-down"
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {OPERATOR_TOKEN}"}):
            answer = await rig.client.post(path, headers=headers)
            check_problem(answer, 401, "unauthorized", param="Authorization")
            assert answer.headers["www-authenticate"] == "Bearer"
        assert rig.member.stepped_down == 0
        right = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
        answer = await rig.client.post(path, headers=right)
        assert (answer.status_code, rig.member.stepped_down) == (200, 1)
        check_problem(await rig.client.post(path, headers=right), 503, "not_leader")


async def test_step_down_is_forbidden_when_no_operator_token_is_set():
    async with service(operator_token="") as rig:
        answer = await rig.client.post("/v1/leadership/step-down", headers={"Authorization": "Bearer "})
        check_problem(answer, 403, "forbidden")
        assert rig.member.stepped_down == 0


async def test_answer_is_a_problem_without_details_when_the_service_itself_fails():
    async with service() as rig:
        rig.reader.error = ZeroDivisionError("secret detail")
        problem = check_problem(await rig.client.get("/v1/payments"), 500, "internal_error")
        assert "secret" not in json.dumps(problem)
