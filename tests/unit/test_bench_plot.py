"""The benchmark's plot shows the figures of its report, all of them and no others."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # The benchmarks are no installed package; they run from the top folder.

from bench.raft import plot  # noqa: E402

SVG = "{http://www.w3.org/2000/svg}"


def row(median: float) -> dict[str, Any]:
    rate = {"median": median, "low": median / 2, "high": median * 2, "rounds": 3}
    return {"ops_per_second": rate, "p99_ms": {"median": 1.25}}


def report_of(**systems: dict[str, Any]) -> dict[str, Any]:
    return {
        "settings": {"voters": 3, "payload_bytes": 256, "rounds": 3},
        "machine": {"cores": 2, "python": "3.11.7", "commit": None},
        "systems": {name.replace("_", "-"): figures for name, figures in systems.items()},
    }


def test_plot_has_a_bar_in_proportion_for_each_figure() -> None:
    report = report_of(ours={"1": row(2000), "16": row(9000)}, hashicorp_wal={"1": row(1000)})
    drawn = ET.fromstring(plot.plot(report))
    widths = [float(bar.attrib["width"]) for bar in drawn.iter(f"{SVG}rect")]
    assert len(widths) == 3
    assert widths[0] == pytest.approx(2 * widths[1], rel=0.01)
    assert widths[0] == widths[2]
    texts = [text.text or "" for text in drawn.iter(f"{SVG}text")]
    assert "2,000/s, p99 1.2 ms" in texts
    assert [text for text in texts if text.endswith("in flight")] == ["1 in flight", "16 in flight"]


def test_plot_is_drawn_from_the_last_line_of_the_benchmarks_output(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.txt"
    results.write_text(f"a table\n{json.dumps(report_of(ours={'1': row(2000)}))}\n")
    monkeypatch.setattr(sys, "argv", ["plot", str(results)])
    assert plot.main() == 0
    assert ET.fromstring(capsys.readouterr().out).tag == f"{SVG}svg"


@pytest.mark.parametrize("text", ["", "no json\n", "{}\n", json.dumps(report_of())])
def test_plot_is_refused_when_there_are_no_figures(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results.txt"
    results.write_text(text)
    monkeypatch.setattr(sys, "argv", ["plot", str(results)])
    assert plot.main() == 1
    assert "no plot" in capsys.readouterr().err
