"""The failover benchmark's own arithmetic: what counts from when, and what is drawn."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # The benchmarks are no installed package; they run from the top folder.

from bench.failover.arena import Arena, FaultFailed  # noqa: E402
from bench.failover.plot import plot  # noqa: E402
from bench.failover.run import Spans  # noqa: E402

#: A system whose first node leads at once, hands over when asked, and whose second node takes over when the first ends.
_NODE = """
import json, sys, time
index = int(sys.argv[1])
def say(**fields): print(json.dumps(fields), flush=True)
if index == 0:
    say(event="lease"); say(event="wrote")
    for line in sys.stdin:
        say(event="lost", last_write=time.monotonic())
        break
if index == 1:
    time.sleep(float(sys.argv[2]))
    say(event="lease"); say(event="wrote")
sys.stdin.read()
"""


def arena_of(folder: Path, *, takes_over_after: str) -> Arena:
    def command(index: int, *_: object) -> list[str]:
        return [sys.executable, "-c", _NODE, str(index), takes_over_after]

    return Arena(command, folder, writes=True, cables=None)


def test_spans_are_the_runs_own_values():
    spans = Spans.of([0.003, 0.001, 0.002, 0.010])
    assert (spans.runs, spans.median, spans.highest) == (4, 3.0, 10.0)
    assert Spans.of([0.25]) == Spans(runs=1, median=250.0, p90=250.0, highest=250.0)


def test_takeover_counts_from_the_kill_and_from_another_node(tmp_path: Path):
    with Arena(
        lambda index, *_: [sys.executable, "-c", _NODE, str(index), "1.0"], tmp_path, writes=True, cables=None
    ) as arena:
        takeover = arena.suffer("kill", settle_seconds=0.0)
    assert 0.0 < takeover.lease <= takeover.write


def test_takeover_that_does_not_come_is_no_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("bench.failover.arena.FAULT_SECONDS_MAX", 0.2)
    monkeypatch.setattr("bench.failover.arena.END_SECONDS_MAX", 0.1)
    with (
        Arena(
            lambda index, *_: [sys.executable, "-c", _NODE, str(index), "60"], tmp_path, writes=True, cables=None
        ) as arena,
        pytest.raises(FaultFailed, match="told of nothing"),
    ):
        arena.suffer("kill", settle_seconds=0.0)


def test_plot_draws_each_fault_and_refuses_an_empty_report():
    spans = {"runs": 1, "median": 190.0, "p90": 200.0, "highest": 200.0}
    machine = {"cores": 2, "python": "3.11.7", "commit": None}
    drawn = plot({"systems": {"tenure-tight": {"kill": {"lease_ms": spans, "write_ms": spans}}}, "machine": machine})
    assert "kill -9 of the leader" in drawn
    assert "190 ms, write 190 ms" in drawn
    with pytest.raises(ValueError, match="no figures"):
        plot({"systems": {}, "machine": machine})
