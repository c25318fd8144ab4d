"""What is made of measurements: ranks, medians, ratios and the table for people. Pure: no clock, process or file.

It must never join figures of different runs: a ratio holds only between rows of the same interleaved rounds, because
the machine and its disk are not the same an hour later.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import TypeVar

Item = TypeVar("Item")


@dataclass(frozen=True)
class Measured:
    """What one load gave. Processor time is of whole processes; that of the followers is their mean."""

    in_flight: int
    payload_bytes: int
    ops: int
    seconds: float
    p50_ms: float
    p99_ms: float
    leader_cpu_us_per_op: float
    follower_cpu_us_per_op: float

    @property
    def ops_per_second(self) -> float:
        """The rate of acknowledged operations."""
        return self.ops / self.seconds


@dataclass(frozen=True)
class Idle:
    """What a cluster costs that does nothing: resident megabytes and percent of a core, of followers the mean."""

    leader_memory_mb: float
    leader_cpu_percent: float
    follower_memory_mb: float
    follower_cpu_percent: float


@dataclass(frozen=True)
class Spread:
    """One quantity over all rounds."""

    median: float
    low: float
    high: float
    rounds: int


@dataclass(frozen=True)
class Row:
    """One system under one load, over all rounds. ``ratio`` is to the best row of the reference; None without one."""

    system: str
    in_flight: int
    ops_per_second: Spread
    p50_ms: Spread
    p99_ms: Spread
    leader_cpu_us_per_op: Spread
    follower_cpu_us_per_op: Spread
    ratio: float | None = None


@dataclass(frozen=True)
class IdleSpread:
    """What a cluster costs that does nothing, over all rounds."""

    leader_memory_mb: Spread
    leader_cpu_percent: Spread
    follower_memory_mb: Spread
    follower_cpu_percent: Spread


def percentile(ordered: Sequence[float], percent: int) -> float:
    """The nearest rank in samples that are already sorted; 0 if there are none."""
    if not ordered:
        return 0.0
    rank = (len(ordered) * percent + 99) // 100
    return ordered[max(rank, 1) - 1]


def spread(samples: Sequence[float]) -> Spread:
    """Median and range. ValueError if there is no sample."""
    if not samples:
        raise ValueError("a median of no samples was asked for")
    return Spread(statistics.median(samples), min(samples), max(samples), len(samples))


def rotated(items: Sequence[Item], round_number: int) -> list[Item]:
    """The order of one round: each system comes first once before any comes first again."""
    shift = round_number % len(items) if items else 0
    return [*items[shift:], *items[:shift]]


def rows(measured: Mapping[str, Iterable[Measured]], reference: Iterable[str]) -> list[Row]:
    """One row for each system and load, with its ratio to the best median of the ``reference`` systems at that load."""
    plain = [_row(system, in_flight, group) for system, of in measured.items() for in_flight, group in _by_load(of)]
    best = best_rows(plain, reference)
    return [
        _with_ratio(row, best[row.in_flight].ops_per_second.median if row.in_flight in best else None) for row in plain
    ]


def best_rows(all_rows: Iterable[Row], reference: Iterable[str]) -> dict[int, Row]:
    """For each number in flight, the ``reference`` row with the highest median rate."""
    names, best = set(reference), dict[int, Row]()
    for row in all_rows:
        if row.system not in names:
            continue
        champion = best.get(row.in_flight)
        if champion is None or row.ops_per_second.median > champion.ops_per_second.median:
            best[row.in_flight] = row
    return best


def median_idle(rounds: Sequence[Idle]) -> Idle:
    """Each figure's own median. ValueError if there is no round."""
    over = idle_spread(rounds)
    return Idle(
        leader_memory_mb=over.leader_memory_mb.median,
        leader_cpu_percent=over.leader_cpu_percent.median,
        follower_memory_mb=over.follower_memory_mb.median,
        follower_cpu_percent=over.follower_cpu_percent.median,
    )


def idle_spread(rounds: Sequence[Idle]) -> IdleSpread:
    """Each figure's own median and range. ValueError if there is no round."""
    if not rounds:
        raise ValueError("the cost of idling was asked for, and no round idled")
    columns = zip(*(astuple(one) for one in rounds), strict=True)
    return IdleSpread(*(spread(column) for column in columns))


def table(
    all_rows: Sequence[Row], labels: Mapping[str, str], syncs: Mapping[str, str], *, payload_bytes: int | None = None
) -> str:
    """The figures for people: one block for each number in flight, systems in the order of ``labels``.

    With ``payload_bytes``, the size of each operation, there is a column for the megabytes a second that were carried.
    """
    wide = max((len(label) for label in labels.values()), default=0)
    head = (
        f"  {'':{wide}}  {'syncs':>5}  {'ops/s':>8}  {'[range]':>19}  {'p50 ms':>8}  {'p99 ms':>8}"
        f"  {'CPU us/op: leader':>17}  {'follower':>8}  {'x best of hashicorp':>19}"
    )
    if payload_bytes is not None:
        head += f"  {'MB/s':>7}"
    lines: list[str] = []
    for in_flight in sorted({row.in_flight for row in all_rows}):
        lines += ["", f"{in_flight} in flight", head]
        of_load = {row.system: row for row in all_rows if row.in_flight == in_flight}
        lines += [
            _line(of_load[name], labels[name], syncs[name], wide, payload_bytes) for name in labels if name in of_load
        ]
    return "\n".join(lines[1:])


def _line(row: Row, label: str, sync: str, wide: int, payload_bytes: int | None) -> str:
    rate = row.ops_per_second
    ratio = "-" if row.ratio is None else f"{row.ratio:.2f}"
    carried = "" if payload_bytes is None else f"  {rate.median * payload_bytes / 1e6:7.2f}"
    return (
        f"  {label:{wide}}  {sync:>5}  {rate.median:8,.0f}  {f'[{rate.low:,.0f}-{rate.high:,.0f}]':>19}"
        f"  {row.p50_ms.median:8.2f}  {row.p99_ms.median:8.2f}"
        f"  {row.leader_cpu_us_per_op.median:17.1f}  {row.follower_cpu_us_per_op.median:8.1f}  {ratio:>19}{carried}"
    )


def _by_load(measured: Iterable[Measured]) -> list[tuple[int, list[Measured]]]:
    groups: dict[int, list[Measured]] = {}
    for one in measured:
        groups.setdefault(one.in_flight, []).append(one)
    return sorted(groups.items())


def _row(system: str, in_flight: int, group: Sequence[Measured]) -> Row:
    return Row(
        system=system,
        in_flight=in_flight,
        ops_per_second=spread([one.ops_per_second for one in group]),
        p50_ms=spread([one.p50_ms for one in group]),
        p99_ms=spread([one.p99_ms for one in group]),
        leader_cpu_us_per_op=spread([one.leader_cpu_us_per_op for one in group]),
        follower_cpu_us_per_op=spread([one.follower_cpu_us_per_op for one in group]),
    )


def _with_ratio(row: Row, best: float | None) -> Row:
    return row if not best else replace(row, ratio=row.ops_per_second.median / best)
