"""``tenure settings show|change``: the times of a running cluster, which its log keeps (R4).

The files of the nodes only found them; after that a change goes through the log, so that every member has the same.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from tenure.cli.cluster import Connection
from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, say

app = App(name="settings", help="Shows or changes the times of a running cluster.", result_action="return_value")

_NAMES = ("heartbeat_interval_ms", "election_timeout_ms", "lease_duration_ms", "clock_rate_error_ppm", "wait_out")


@app.command
def show(*, connection: Connection | None = None, output: Output = "table") -> None:
    """Print the times that the cluster's log has."""
    with (connection or Connection()).open() as cluster:
        _print(cluster.anywhere("/v1/settings"), output)


@app.command
def change(
    *,
    heartbeat_interval_ms: Annotated[int | None, Parameter(help="How often the leader speaks.")] = None,
    election_timeout_ms: Annotated[int | None, Parameter(help="At least five heartbeats.")] = None,
    lease_duration_ms: Annotated[int | None, Parameter(help="At least three heartbeats.")] = None,
    clock_rate_error_ppm: Annotated[int | None, Parameter(help="10000 is one percent.")] = None,
    wait_out: Annotated[
        Literal["always", "fenced-only"] | None,
        Parameter(help="Whether fenced transactions wait for older leases, too."),
    ] = None,
    connection: Connection | None = None,
    output: Output = "table",
) -> None:
    """Change times of the cluster; those that are not named stay.

    Lease, rate error and wait-out count from the next leadership on, heartbeat and election timeout from each node's
    next start.
    """
    given = (heartbeat_interval_ms, election_timeout_ms, lease_duration_ms, clock_rate_error_ppm, wait_out)
    changed = {name: value for name, value in zip(_NAMES, given, strict=True) if value is not None}
    if not changed:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in _NAMES)
        raise CommandError(f"name what to change: {options}", code=ExitCode.USAGE)
    with (connection or Connection()).open() as cluster:
        settings = cluster.on_leader("PATCH", "/v1/settings", changed).require()
    _print(settings, output)
    if {"lease_duration_ms", "clock_rate_error_ppm", "wait_out"} & set(changed):
        say("what concerns the lease counts from the next leadership on: tenure member transfer makes one")
    if {"heartbeat_interval_ms", "election_timeout_ms"} & set(changed):
        say("heartbeat and election timeout count from each node's next start: restart one after the other")


def _print(settings: dict[str, Any], output: str) -> None:
    if output == "json":
        emit_json(settings)
    else:
        emit_table(("setting", "value"), [(name, str(settings.get(name, "-"))) for name in _NAMES])
