"""Leadership for threads: the scope without an event loop, over a real node."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

import tenure
import tenure.leadership
from support.single_member import BOUND_SECONDS, config_of
from tenure import LeadershipLost, LossReason, State

#: A loop over the terms that is dropped gives back what it handed out.
_LOOPS: list[Iterator[tenure.SyncLeadership]] = []


def won(member: tenure.SyncMember) -> tenure.SyncLeadership:
    """The next leadership, its loop kept."""
    _LOOPS.append(member.terms())
    return next(_LOOPS[-1])


@pytest.fixture(autouse=True)
def _loops() -> Iterator[None]:
    yield
    _LOOPS.clear()


@pytest.fixture
def member(tmp_path: Path) -> Iterator[tenure.SyncMember]:
    with tenure.open_sync(config_of(tmp_path)) as opened:
        yield opened


def test_thread_leads_again_and_again_and_ends_quietly_when_leadership_is_lost(member: tenure.SyncMember):
    """A loss raises in check alone; the loop over the terms goes on with a higher token."""
    tokens = []
    for leadership in member.terms():
        with leadership:
            leadership.check()
            assert leadership.remaining() > 0.0
            assert member.leadership is leadership
            assert member.status().state is State.LEADER
            tokens.append(leadership.token)
            assert member.step_down()
            assert leadership.wait_lost(BOUND_SECONDS) is LossReason.STEPPED_DOWN
            assert leadership.remaining() == 0.0
            leadership.check()
            pytest.fail("check passed after the loss")
        if len(tokens) == 3:
            break
    assert tokens == sorted(set(tokens))


def test_body_that_returns_gives_leadership_up(member: tenure.SyncMember):
    """RELEASE is written as soon as the with statement is left."""
    terms = member.terms()
    first = next(terms)
    with first:
        pass
    assert first.reason is LossReason.STEPPED_DOWN
    second = next(terms)
    assert second.term > first.term


@pytest.mark.parametrize("asks", [True, False])
def test_R9_body_on_another_thread_has_not_returned_when_the_next_leadership_is_asked_for(
    member: tenure.SyncMember, asks: bool
):
    """Whoever waits for the loss only, while another thread works, must not have its RELEASE written."""
    entered, release = threading.Event(), threading.Event()
    terms = member.terms()
    first = next(terms)

    def work() -> None:
        with first:
            entered.set()
            release.wait(BOUND_SECONDS)

    worker = threading.Thread(target=work)
    worker.start()
    assert entered.wait(BOUND_SECONDS)
    assert member.step_down()
    assert first.wait_lost(BOUND_SECONDS) is LossReason.STEPPED_DOWN
    if not asks:
        terms.close()
        terms = member.terms()
    second = futures.ThreadPoolExecutor(1).submit(next, terms)
    try:
        # Five leases: as long as the work runs, this member may not lead again (R10).
        assert not futures.wait({second}, 1.0).done
    finally:
        release.set()
        worker.join(BOUND_SECONDS)
    assert second.result(BOUND_SECONDS).token > first.token


def test_error_of_the_body_passes_through(member: tenure.SyncMember):
    """Only the error that tells of this very loss is swallowed."""
    leadership = won(member)
    with pytest.raises(ZeroDivisionError), leadership:
        _ = 1 / 0
    other = won(member)
    with pytest.raises(LeadershipLost), other:
        raise LeadershipLost(term=other.term + 1, reason="another one's")


def test_loss_is_told_by_callback_and_by_waiting(member: tenure.SyncMember):
    told: list[LossReason] = []
    with won(member) as leadership:
        leadership.on_lost(told.append)
        assert leadership.wait_lost(0.0) is None
        assert told == []
        member.step_down()
        assert leadership.wait_lost(BOUND_SECONDS) is LossReason.STEPPED_DOWN
        assert leadership.lost.result(BOUND_SECONDS) is LossReason.STEPPED_DOWN
        leadership.on_lost(told.append)
    assert told == [LossReason.STEPPED_DOWN] * 2


def test_R9_nothing_is_released_while_a_thread_has_not_returned(
    member: tenure.SyncMember, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The member neither leads nor stands until the body returns, and says who keeps it from that (R10)."""
    monkeypatch.setattr(tenure.leadership, "OVERDUE_SECONDS", 0.05)
    hung, release = threading.Event(), threading.Event()

    def hang() -> None:
        with won(member):
            hung.set()
            release.wait(BOUND_SECONDS)

    worker = threading.Thread(target=hang, name="the-worker")
    worker.start()
    assert hung.wait(BOUND_SECONDS)
    member.step_down()
    waiting = threading.Thread(target=lambda: won(member))
    waiting.start()
    try:
        waiting.join(1.0)
        assert waiting.is_alive()
        assert member.status().state is not State.LEADER
        overdue = member.status().work_overdue
        assert overdue is not None
        assert overdue.startswith("the-worker in wait (")
        assert overdue in caplog.text
    finally:
        release.set()
    waiting.join(BOUND_SECONDS)
    assert not waiting.is_alive()
    assert member.status().work_overdue is None


def test_R13_leadership_is_given_up_when_the_work_said_that_it_gets_on_and_stops_saying_so(tmp_path: Path):
    """A body that computes for long is honest work; one that has called heartbeat is held to it."""
    config = config_of(tmp_path, lease={"application_heartbeat_timeout_ms": 300})
    with tenure.open_sync(config) as member:
        with won(member) as leadership:
            assert leadership.wait_lost(0.8) is None
            for _ in range(8):
                leadership.heartbeat()
                assert leadership.wait_lost(0.1) is None
            assert leadership.wait_lost(BOUND_SECONDS) is LossReason.APPLICATION_STALLED
        with won(member) as again:
            assert again.wait_lost(0.5) is None


def test_R13_leadership_that_nobody_enters_is_given_up(tmp_path: Path):
    """Nobody works under it: another member, whose application does, is to lead."""
    config = config_of(tmp_path, lease={"application_heartbeat_timeout_ms": 300})
    with tenure.open_sync(config) as member:
        leadership = won(member)
        assert leadership.wait_lost(BOUND_SECONDS) is LossReason.APPLICATION_STALLED


def test_member_closes_while_another_thread_waits_for_a_term(tmp_path: Path):
    ended = threading.Event()
    with tenure.open_sync(config_of(tmp_path)) as member, won(member):

        def wait() -> None:
            for _ in member.terms():
                pass
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
    assert ended.wait(BOUND_SECONDS)
    with pytest.raises(tenure.NodeClosed):
        member.step_down()


def test_nothing_is_left_running_when_the_member_cannot_be_opened(tmp_path: Path):
    config = config_of(tmp_path)
    before = threading.active_count()
    with tenure.open_sync(config), pytest.raises(tenure.DirectoryInUse), tenure.open_sync(config):
        pytest.fail("the same directory was opened twice")
    assert threading.active_count() <= before + 1


FORKING = """
import os, sys, threading
from pathlib import Path
import tenure
sys.path.insert(0, {tests!r})
from support.single_member import config_of

def told(call):
    try:
        return str(call())
    except tenure.TenureError as error:
        return f"{{type(error).__name__}}: {{error}}"

with tenure.open_sync(config_of(Path({folder!r}))) as member:
    for leadership in member.terms():
        with leadership:
            child = os.fork()
            if child == 0:
                for call in (leadership.check, lambda: leadership.credential, lambda: member.leadership,
                             lambda: next(member.terms()), member.status, member.step_down, leadership.wait_leased,
                             leadership.remaining, lambda: leadership.wait_lost(2.0)):
                    print(told(call), flush=True)
                member.close()
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            leadership.check()
            print("the parent leads", flush=True)
        break
"""


def test_member_and_leadership_are_void_in_a_forked_child_and_the_parent_goes_on(tmp_path: Path):
    """A pre-forking server that opens its member too early hears of it at the first use."""
    code = FORKING.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=os.environ.copy()
    )
    assert run.returncode == 0, run.stderr
    lines = run.stdout.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        "LeadershipLost",
        "LeadershipLost",
        "NodeClosed",
        "NodeClosed",
        "NodeClosed",
        "NodeClosed",
        "LeadershipLost",
        "0.0",
        "forked",
        "the parent leads",
    ]
    assert all("forked" in line for line in lines[:7])


def test_application_thread_is_named_and_does_not_keep_the_process(member: tenure.SyncMember):
    threads = {thread.name: thread for thread in threading.enumerate()}
    assert threads["tenure-application"].daemon
    logging.getLogger("tenure").debug("%s is open", member.name)
