"""``tenure demo``: the whole way on this machine, with one command.

An embedded PostgreSQL, payment nodes as real processes and a stream of payments; at the end a summary that is
counted from the database. Ends with 0 only if nothing was lost, paid twice or written under an old token, else
with 5. Ctrl-C is an ordinary end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import Parameter
from cyclopts.validators import Number

from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_text
from tenure.demo.plan import NODES_MAX, Fault, Options


def demo(
    *,
    nodes: Annotated[int, Parameter(validator=Number(gte=1, lte=NODES_MAX))] = 3,
    port: Annotated[int, Parameter(validator=Number(gte=1, lte=65535))] = 8080,
    data_dir: Path | None = None,
    duration: Annotated[float | None, Parameter(name="--for", validator=Number(gt=0))] = None,
    fault: Fault = Fault.NONE,
    every: Annotated[float, Parameter(validator=Number(gt=0))] = 10.0,
    rate: Annotated[float, Parameter(validator=Number(gt=0, lte=2000))] = 100.0,
    output: Output = "table",
) -> int:
    """Run a database, payment nodes and a stream of payments here, until Ctrl-C or for a time.

    Args:
        nodes: how many payment nodes.
        port: HTTP port of the first node; the others follow, and the Raft ports are 1000 above.
        data_dir: keep everything in this folder (it can be run again); a temporary folder by default.
        duration: run for so many seconds, then print the summary.
        fault: what to do to the leader again and again: kill (kill -9), stop (SIGSTOP) or none.
        every: seconds from one fault to the next.
        rate: payments per second to send.
        output: form of the summary.
    """
    from tenure.demo.display import choose
    from tenure.demo.problems import DemoError
    from tenure.demo.run import demonstrate

    options = Options(nodes=nodes, port=port, data_dir=data_dir, duration=duration, fault=fault, every=every, rate=rate)
    try:
        summary = demonstrate(options, choose(machine=output == "json"))
    except DemoError as error:
        raise CommandError(str(error), next_step=error.next_step) from None
    facts = msgspec.to_builtins(summary)
    if output == "json":
        emit_json(facts)
    else:
        for name, value in facts.items():
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            emit_text(f"{name.replace('_', ' '):<24}{'-' if shown in (None, '') else shown}")
    return ExitCode.OK if summary.clean else ExitCode.VERIFICATION_FAILED
