"""Draw what the benchmark measured.

    make -s bench-failover > results.txt
    .venv/bin/python -m bench.failover.plot results.txt > docs/internals/failover.svg

A panel for each fault, a bar for each system: its median, a line to its highest. The axis begins at zero.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.failover.arena import FAULTS
from bench.failover.systems import SYSTEMS

_WIDTH, _LABELS, _FIGURES = 980, 400, 210
_ROW, _HEAD, _TITLE, _FOOT = 24, 46, 34, 30
_OURS, _OTHERS, _INK = "#0072b2", "#8c9aa5", "#6b7680"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:12px;fill:#57606a}.head{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b1}}"
)
_HEADS = {
    "kill": "kill -9 of the leader",
    "stop": "SIGSTOP of the leader",
    "cut": "the leader's cable to the others is pulled",
    "transfer": "planned hand-over, from the last write before it",
}


def plot(report: Mapping[str, Any]) -> str:
    """The SVG of one report. ValueError if it holds no figures."""
    parts: list[str] = []
    top = _TITLE
    for fault in FAULTS:
        rows = {name: of[fault] for name, of in report["systems"].items() if fault in of}
        if rows:
            parts += _panel(fault, rows, top)
            top += _HEAD + _ROW * len(rows)
    if not parts:
        raise ValueError("the report holds no figures: every system was left out or failed")
    title = "Milliseconds until another node leads: medians, and lines to the highest"
    machine = report["machine"]
    foot = f"{machine['cores']} cores, Python {machine['python']}, commit {(machine['commit'] or 'unknown')[:7]}."
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + _FOOT}" role="img">'
    drawn = [_text(0, 20, title, "head"), *parts, _text(0, top + _FOOT - 8, foot, "small")]
    return "\n".join([head, f"<title>{escape(title)}</title>", f"<style>{_STYLE}</style>", *drawn, "</svg>\n"])


def _panel(fault: str, rows: Mapping[str, Mapping[str, Any]], top: int) -> list[str]:
    scale = (_WIDTH - _LABELS - _FIGURES) / max(row["lease_ms"]["highest"] for row in rows.values())
    parts = [_text(0, top + 30, _HEADS[fault], "head")]
    for place, name in enumerate(name for name in SYSTEMS if name in rows):
        lease, write = rows[name]["lease_ms"], rows[name].get("write_ms")
        y = top + _HEAD + place * _ROW
        said = f"{lease['median']:,.0f} ms" + (f", write {write['median']:,.0f} ms" if write else "")
        colour = _OURS if SYSTEMS[name].is_ours else _OTHERS
        parts += [
            _text(0, y + 13, SYSTEMS[name].label, "small"),
            f'<rect x="{_LABELS}" y="{y}" width="{scale * lease["median"]:.1f}" height="18" fill="{colour}"/>',
            f'<path d="M{_LABELS + scale * lease["median"]:.1f} {y + 9}H{_LABELS + scale * lease["highest"]:.1f}" '
            f'stroke="{_INK}" stroke-width="2"/>',
            _text(_WIDTH - _FIGURES + 12, y + 13, said, "small"),
        ]
    return parts


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def main() -> int:
    """Read the file that the command line names and write the SVG to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.failover.plot", description="draw what was measured")
    parser.add_argument("results", type=Path, help="the output of make bench-failover")
    lines = parser.parse_args().results.read_text(encoding="utf-8").splitlines()
    try:
        sys.stdout.write(plot(json.loads(lines[-1]) if lines else {}))
    except (KeyError, ValueError) as error:
        sys.stderr.write(f"no plot: the last line is no report with figures ({error!r})\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
