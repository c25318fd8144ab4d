"""Small parts of the service that need neither a cluster nor a database."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path

import pytest
from payments_fakes import FakeLeadership

from payment_service import service
from payment_service.cli import exit_code
from payment_service.log import ServiceLog
from payment_service.models import PaymentRequest
from payment_service.pause import VARIABLE, pause_hook
from payment_service.session import NewRow
from tenure import ConfigError, FoundingRefused, InvariantViolated, MemberRemoved, TenureError


def test_pause_hook_is_off_when_the_variable_is_not_set():
    assert pause_hook({}) is None
    assert pause_hook({VARIABLE: ""}) is None


def test_pause_hook_does_nothing_when_the_file_does_not_exist(tmp_path: Path):
    hook = pause_hook({VARIABLE: str(tmp_path / "pause")})
    assert hook is not None
    hook()
    assert list(tmp_path.iterdir()) == []


class FailedMember:
    def __init__(self, error: TenureError) -> None:
        self.failed = asyncio.get_running_loop().create_future()
        self.failed.set_result(error)


@pytest.mark.asyncio
async def test_R2_process_ends_at_once_with_1_when_the_member_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    log = ServiceLog(tmp_path, cluster="payments", node="payment-1a")
    await service._end_if_failed(FailedMember(InvariantViolated("two terms at once")), log)  # type: ignore[arg-type]
    log.close()
    assert ended == [1]
    line = json.loads(log.path.read_text())
    assert (line["event"], line["level"]) == ("node_failed", "critical")
    assert "two terms at once" in line["reason"]
    assert capfd.readouterr().err == log.path.read_text()


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("error", "event"),
    [(FoundingRefused("a wiped directory"), "node_failed"), (MemberRemoved("removed"), "member_removed")],
)
async def test_process_ends_with_4_when_the_other_members_refuse_or_removed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: TenureError, event: str
):
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    log = ServiceLog(tmp_path, cluster="payments", node="payment-1a")
    await service._end_if_failed(FailedMember(error), log)  # type: ignore[arg-type]
    log.close()
    assert ended == [4]
    assert json.loads(log.path.read_text())["event"] == event
    assert exit_code(error) == 4


def test_port_is_refused_with_the_field_named_when_it_is_taken():
    with service.bind("127.0.0.1:0") as listener:
        listener.listen()
        with pytest.raises(ConfigError, match=r"http\.listen"):
            service.bind("127.0.0.1:%d" % listener.getsockname()[1])  # noqa: UP031


def test_log_tells_libraries_records_as_json_when_attached(tmp_path: Path):
    root, level = logging.getLogger(), logging.getLogger().level
    log = ServiceLog(tmp_path / "new" / "folder", cluster="payments", node="payment-1a")
    log.attach_standard_logging()
    try:
        logging.getLogger("tenure.journal").info("role_changed", extra={"tenure": {"state": "leader", "term": 6}})
        try:
            raise ValueError('near "INSERT INTO payment_events"')
        except ValueError:
            logging.getLogger("any").exception("failed %s", "badly")
    finally:
        log.close()
        root.setLevel(level)
    first, second = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert (first["event"], first["state"], first["term"]) == ("role_changed", "leader", 6)
    assert (first["node"], first["cluster"], first["level"]) == ("payment-1a", "payments", "info")
    assert (second["event"], second["level"]) == ("failed badly", "error")
    # The words that tell of a commit appear in no other line, even where an error quotes the statement.
    assert "ValueError" in second["exception"]
    assert "INSERT INTO payment_events" not in log.path.read_text()


def test_log_writes_one_line_for_each_row_when_a_batch_was_committed(tmp_path: Path):
    log = ServiceLog(tmp_path, cluster="payments", node="payment-1a")
    request = PaymentRequest(amount=5, currency="EUR", debtor="alice", creditor="bob")
    rows = [
        NewRow(payment_id=service_uuid(n), request=request, request_hash=b"", client_id="anonymous", key=f"secret-{n}")
        for n in range(3)
    ]
    log.committed(rows, FakeLeadership(token=7, term=6))
    log.committed([], FakeLeadership())
    log.close()
    lines = log.path.read_text().splitlines()
    assert len(lines) == 3
    assert all("INSERT INTO payment_events" in line for line in lines)
    facts = json.loads(lines[0])
    assert (facts["event"], facts["node"], facts["token"], facts["term"], facts["amount"]) == (
        "payment_committed",
        "payment-1a",
        7,
        6,
        5,
    )
    assert "unit-test-nonce" not in log.path.read_text()


def service_uuid(number: int):
    import uuid

    return uuid.UUID(int=number)
