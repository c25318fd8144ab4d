"""Draw what the benchmark measured.

    make -s bench-raft > results.txt
    .venv/bin/python -m bench.raft.plot results.txt > docs/internals/raft-throughput.svg

Reads the output of ``bench.raft.run`` (its last line is the JSON) and writes one SVG: a panel for each number in
flight, a bar for each system with its median, a line over the range of its rounds, and the p99 beside it. It must never
draw figures of more than one run, nor begin an axis elsewhere than at zero.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from bench.raft.systems import SYSTEMS

_WIDTH, _LABELS, _FIGURES = 980, 330, 200
_ROW, _HEAD, _TITLE, _FOOT = 24, 46, 34, 30
#: Colours that can be told apart on white and on black, and in grey.
_OURS, _DURABLE, _VOLATILE, _INK = "#0072b2", "#8c9aa5", "#d9a441", "#6b7680"
_STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#24292f}.small{font-size:12px;fill:#57606a}.head{font-weight:600}"
    "@media(prefers-color-scheme:dark){text{fill:#e6edf3}.small{fill:#9da7b1}}"
)


def plot(report: Mapping[str, Any]) -> str:
    """The SVG of one report of ``bench.raft.run``. ValueError if it holds no figures."""
    loads = sorted({int(load) for of in report["systems"].values() for load in of})
    if not loads:
        raise ValueError("the report holds no figures: every system was left out or failed")
    parts: list[str] = []
    top = _TITLE
    for load in loads:
        rows = {name: of[str(load)] for name, of in report["systems"].items() if str(load) in of}
        parts += _panel(load, rows, top)
        top += _HEAD + _ROW * len(rows)
    parts.append(_text(0, top + _FOOT - 8, _legend(report), "small"))
    title = _text(0, 20, _title(report), "head")
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top + _FOOT}" role="img">',
            f"<title>{escape(_title(report))}</title>",
            f"<style>{_STYLE}</style>",
            title,
            *parts,
            "</svg>\n",
        )
    )


def _panel(load: int, rows: Mapping[str, Mapping[str, Any]], top: int) -> list[str]:
    room = _WIDTH - _LABELS - _FIGURES
    scale = room / max(row["ops_per_second"]["high"] for row in rows.values())
    parts = [_text(0, top + 30, f"{load} in flight", "head")]
    for place, name in enumerate(name for name in SYSTEMS if name in rows):
        rate, p99 = rows[name]["ops_per_second"], rows[name]["p99_ms"]["median"]
        y = top + _HEAD + place * _ROW
        middle = y + 9
        low, high = (_LABELS + scale * rate[end] for end in ("low", "high"))
        parts += [
            _text(0, y + 13, SYSTEMS[name].label, "small"),
            f'<rect x="{_LABELS}" y="{y}" width="{scale * rate["median"]:.1f}" height="18" fill="{_colour(name)}"/>',
            f'<path d="M{low:.1f} {middle}H{high:.1f}" stroke="{_INK}" stroke-width="2"/>',
            _text(_WIDTH - _FIGURES + 12, y + 13, f"{rate['median']:,.0f}/s, p99 {p99:.1f} ms", "small"),
        ]
    return parts


def _colour(name: str) -> str:
    if name == "ours":
        return _OURS
    return _VOLATILE if SYSTEMS[name].syncs == "0" else _DURABLE


def _title(report: Mapping[str, Any]) -> str:
    settings = report["settings"]
    return (
        f"Operations a second, {settings['voters']} processes on loopback, {settings['payload_bytes']}-byte payloads, "
        f"medians of {settings['rounds']} rounds"
    )


def _legend(report: Mapping[str, Any]) -> str:
    machine, commit = report["machine"], (report["machine"]["commit"] or "unknown")[:7]
    return (
        f"Bars: medians; lines: range of the rounds. Yellow never calls fsync. {machine['cores']} cores, "
        f"Python {machine['python']}, commit {commit}."
    )


def _text(x: int, y: int, text: str, kind: str) -> str:
    return f'<text x="{x}" y="{y}" class="{kind}">{escape(text)}</text>'


def main() -> int:
    """Read the file that the command line names and write the SVG to the standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.raft.plot", description="draw what the benchmark measured")
    parser.add_argument("results", type=Path, help="the output of bench.raft.run")
    lines = parser.parse_args().results.read_text(encoding="utf-8").splitlines()
    try:
        report = json.loads(lines[-1]) if lines else {}
        sys.stdout.write(plot(report))
    except (KeyError, ValueError) as error:
        print(f"no plot: the last line is no report of bench.raft.run with figures ({error!r})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
