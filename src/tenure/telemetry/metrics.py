"""The ``/metrics`` answer, computed from one status at the request.

Three names are fixed by the alerts that must find them: ``raft_state``, ``raft_election_count`` and
``fencing_token_failures``. Two traps decide their form. ``count(raft_state{state="leader"})`` counts
series, not values, so only the present state may have a series. ``rate()`` cannot see the first increase of
a counter that was not there before, so both counters are exposed from the start, at 0.

The counters end in no ``_total``. The text format takes that; OpenMetrics allows it only for the type
``unknown``, so the type that is announced depends on the format that was asked for.

This module must never keep a state of its own: a cached gauge outlives the lease that it speaks of (R8).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric, UnknownMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from tenure.types import State, Status

#: Counters by their exact names, as the alert rules read them.
ELECTION_COUNT = "raft_election_count"
FENCING_FAILURES = "fencing_token_failures"


def render_metrics(status: Status, *, accept: str | None = None) -> tuple[bytes, str]:
    """Render ``status`` in the format that ``accept`` (an HTTP Accept header) prefers; (body, content type).

    Pure and quick: it reads no clock and waits for nothing, so it may be called on any thread. Without a
    header, or with one that names no OpenMetrics, the format is the plain text format 0.0.4.
    """
    encoder, content_type = choose_encoder(accept or "")
    body = encoder(_StatusCollector(status))
    if content_type.startswith("text/plain"):
        for name in (ELECTION_COUNT, FENCING_FAILURES):
            body = body.replace(f"# TYPE {name} untyped\n".encode(), f"# TYPE {name} counter\n".encode())
    return body, content_type


class _StatusCollector(Collector):
    """Metric families of one status. Made for one rendering and thrown away."""

    def __init__(self, status: Status) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        """Yield every family, the three fixed names first."""
        status = self._status
        state = GaugeMetricFamily(
            "raft_state",
            "The present state of this member; the one series there is has the value 1.",
            labels=["state"],
        )
        state.add_metric([status.state.value], 1)
        yield state
        yield UnknownMetricFamily(
            ELECTION_COUNT,
            "Changes of term that this member observed since it started.",
            status.elections_observed,
        )
        yield UnknownMetricFamily(
            FENCING_FAILURES,
            "Writes that the fence refused since this member started.",
            status.stale_token_refusals,
        )
        yield GaugeMetricFamily(
            "tenure_is_leader",
            "1 while this member is shown as leader, so over a raised fence, else 0.",
            int(status.state is State.LEADER),
        )
        yield GaugeMetricFamily("tenure_term", "The highest term that this member durably knows.", status.term)
        yield GaugeMetricFamily(
            "tenure_lease_remaining_seconds",
            "Seconds for which this member may still believe that it leads; 0 without a lease.",
            status.lease_remaining_ms / 1000,
        )
        yield GaugeMetricFamily(
            "tenure_work_overdue",
            "1 while work of an ended leadership has not returned, so that this member may not lead, else 0.",
            int(status.work_overdue is not None),
        )
        if status.fencing_token is not None:
            yield GaugeMetricFamily(
                "tenure_fencing_token",
                "The fencing token of this member's present holding.",
                status.fencing_token,
            )
        yield InfoMetricFamily("tenure_build", "The version of Tenure that runs here.", {"version": _version()})


@cache
def _version() -> str:
    try:
        return version("tenure")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "unknown"
