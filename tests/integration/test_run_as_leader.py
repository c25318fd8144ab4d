"""``tenure.run_as_leader``: done, failed, lost and stopped are told apart, for coroutines and for plain functions."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tenure
import tenure.leading
from support.single_member import BOUND_SECONDS, config_of
from tenure import HeldLeadership, LeadershipLost, LossReason, StaleToken, SyncLeadership


def refusal() -> StaleToken:
    return StaleToken("refused", resource="payments", held=1, seen=2)


def test_value_of_a_coroutine_is_returned_when_it_returns_while_it_leads(tmp_path: Path):
    async def main(leadership: HeldLeadership) -> int:
        leadership.check()
        return leadership.token

    assert tenure.run_as_leader(main, config=config_of(tmp_path)) == 1
    assert tenure.run_as_leader(main, config=config_of(tmp_path)) == 2


def test_value_of_a_function_is_returned_when_it_returns_while_it_leads(tmp_path: Path):
    def main(leadership: SyncLeadership) -> str:
        leadership.check()
        return threading.current_thread().name

    assert tenure.run_as_leader(main, config=config_of(tmp_path)) == "tenure-leader"


def test_error_goes_on_when_the_work_fails(tmp_path: Path):
    async def fails(_: HeldLeadership) -> None:
        raise ZeroDivisionError

    def fails_too(_: SyncLeadership) -> None:
        raise ZeroDivisionError

    for main in (fails, fails_too):
        with pytest.raises(ZeroDivisionError):
            tenure.run_as_leader(main, config=config_of(tmp_path))


def test_coroutine_runs_again_when_leadership_was_lost(tmp_path: Path):
    """Cancelled, refused by the database, or returning by itself upon the loss: none of it is its end."""
    tokens: list[int] = []

    async def main(leadership: HeldLeadership) -> int | None:
        tokens.append(leadership.token)
        if len(tokens) == 1:
            raise refusal()
        if len(tokens) == 2:
            leadership.report_refused(refusal())
            await asyncio.Event().wait()
        if len(tokens) == 3:
            leadership.report_refused(refusal())
            return None
        return len(tokens)

    assert tenure.run_as_leader(main, config=config_of(tmp_path)) == 4
    assert tokens == [1, 2, 3, 4]


def test_function_runs_again_when_leadership_was_lost(tmp_path: Path):
    tokens: list[int] = []

    def main(leadership: SyncLeadership) -> int | None:
        tokens.append(leadership.token)
        if len(tokens) == 1:
            raise refusal()
        if len(tokens) == 2:
            leadership.report_refused(refusal())
            assert leadership.wait_lost(BOUND_SECONDS) is LossReason.REFUSED
            leadership.check()
        if len(tokens) == 3:
            leadership.report_refused(refusal())
            return None
        return len(tokens)

    assert tenure.run_as_leader(main, config=config_of(tmp_path)) == 4
    assert tokens == [1, 2, 3, 4]


SCRIPT = """
import asyncio, sys, threading, time
from pathlib import Path
import tenure
sys.path.insert(0, {tests!r})
from support.single_member import config_of

async def on_loop(leadership):
    print("leads", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        print("ended", flush=True)

def on_thread(leadership):
    print("leads", flush=True)
    print("ended", leadership.wait_lost(), flush=True)

async def stubborn(leadership):
    print("leads", flush=True)
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        print("ended", flush=True)
    return "value"

async def clinging(leadership):
    leadership.report_refused(tenure.StaleToken("refused", resource="payments", held=1, seen=2))
    for line in ("leads", "ended"):
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print(line, flush=True)

def hangs(leadership):
    print("leads", flush=True)
    time.sleep(60)

tenure.leading.STOP_SECONDS = 0.3
print("returned", tenure.run_as_leader({main}, config=config_of(Path({folder!r}))), flush=True)
"""


@pytest.mark.parametrize(
    ("main", "number", "expected"),
    [
        ("on_loop", signal.SIGTERM, ["ended", "returned None"]),
        ("on_loop", signal.SIGINT, ["ended", "returned None"]),
        ("stubborn", signal.SIGTERM, ["ended", "returned None"]),
        ("clinging", signal.SIGTERM, ["ended", "returned None"]),
        ("on_thread", signal.SIGTERM, ["ended closed", "returned None"]),
        ("hangs", signal.SIGTERM, ["returned None"]),
    ],
)
def test_work_is_ended_and_the_process_goes_on_when_a_signal_comes(
    tmp_path: Path, main: str, number: signal.Signals, expected: list[str]
):
    """The process ends 0 in all of these; a thread that does not return is left behind and holds nothing up.

    Work that swallows its cancellation has not had its way either, whether it was leading or had lost it before.
    """
    code = SCRIPT.format(tests=str(Path(__file__).parents[1]), folder=str(tmp_path), main=main)
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ.copy(),
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        process.send_signal(number)
        out, err = process.communicate(timeout=BOUND_SECONDS)
    finally:
        process.kill()
        process.wait()
    assert out.splitlines() == expected, err
    assert process.returncode == 0, err
    assert ("left behind" in err) == (main == "hangs")


def test_call_on_another_thread_leaves_the_signals_alone(tmp_path: Path):
    """Only the main thread may take them."""
    got: list[object] = []

    async def main(leadership: HeldLeadership) -> int:
        return leadership.term

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: got.append(tenure.run_as_leader(main, config=config_of(tmp_path))))
    thread.start()
    thread.join(BOUND_SECONDS)
    assert got == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_lost_is_no_error_when_it_is_raised_by_a_check(tmp_path: Path):
    runs: list[int] = []

    def main(leadership: SyncLeadership) -> int:
        runs.append(leadership.term)
        if len(runs) == 1:
            leadership.report_refused(refusal())
            with pytest.raises(LeadershipLost):
                leadership.check()
            leadership.check()
        return len(runs)

    assert tenure.run_as_leader(main, config=config_of(tmp_path)) == 2
