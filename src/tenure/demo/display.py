"""What the person sees while the demo runs: a live picture on a terminal, plain lines anywhere else.

Everything here goes to stderr; the summary alone is data. It must never colour what is not a terminal.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Protocol

from tenure.demo.clients import Load
from tenure.demo.cluster import Cluster

if TYPE_CHECKING:
    from rich.console import Group

LINE_SECONDS = 1.0
LIVE_SECONDS = 0.25
NOTES_SHOWN = 6
_STYLES = {"leader": "bold green", "follower": "cyan", "candidate": "yellow", "lost": "bold red"}


class Display(Protocol):
    """Where the demo tells what happens."""

    def say(self, text: str) -> None:
        """Show a line that stays, exactly as it is: a command that can be copied."""
        ...

    def note(self, text: str) -> None:
        """Show one event, with its time."""
        ...

    async def follow(self, cluster: Cluster, load: Load) -> None:
        """Show cluster and load until cancelled."""
        ...


class LineDisplay:
    """One line for each event and one for each second."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        """Print a line as it is."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def note(self, text: str) -> None:
        """Print one event after the seconds since the start."""
        self.say(f"{time.monotonic() - self._started:7.1f}s  {text}")

    async def follow(self, cluster: Cluster, load: Load) -> None:
        """Print who leads and how fast payments go, every second."""
        while True:
            await asyncio.sleep(LINE_SECONDS)
            nodes = "  ".join(f"{node.name}={node.state}({node.pid or '-'})" for node in cluster.nodes)
            self.note(f"{_headline(cluster, load)}  {nodes}")


class LiveDisplay:
    """A picture that is redrawn in place: the nodes, the stream of payments, the last events."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._notes: deque[str] = deque(maxlen=NOTES_SHOWN)
        self._live = False

    def say(self, text: str) -> None:
        """Print a line as it is; the terminal alone may wrap it, so that a copy of it is one line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def note(self, text: str) -> None:
        """Show one event: in the picture while there is one, as a line before and after."""
        if self._live:
            self._notes.append(f"{time.strftime('%H:%M:%S')}  {text}")
        else:
            self.say(text)

    async def follow(self, cluster: Cluster, load: Load) -> None:
        """Redraw the picture four times a second; the last one stays on the screen."""
        from rich.live import Live

        self._live = True
        try:
            with Live(console=self._console, auto_refresh=False, redirect_stdout=False) as live:
                while True:
                    live.update(self._picture(cluster, load), refresh=True)
                    await asyncio.sleep(LIVE_SECONDS)
        finally:
            self._live = False

    def _picture(self, cluster: Cluster, load: Load) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        nodes = Table("node", "state", "term", "pid", "URL", box=None, padding=(0, 2), title_justify="left")
        for node in cluster.nodes:
            nodes.add_row(
                node.name,
                Text(node.state, style=_STYLES.get(node.state, "magenta")),
                str(node.fact("term") or "-"),
                str(node.pid or "-"),
                node.plan.url,
            )
        stream = Table("payment", "amount", "node", "token", box=None, padding=(0, 2))
        for payment in list(load.recent):
            amount = f"{payment['amount'] / 100:.2f} {payment['currency']}"
            stream.add_row(payment["id"], amount, payment["node"], str(payment["fencing_token"]))
        notes = [Text(note, style="dim") for note in self._notes]
        return Group(Text(_headline(cluster, load), style="bold"), Text(), nodes, Text(), stream, Text(), *notes)


def choose(*, machine: bool) -> Display:
    """The live picture for a person at a terminal, lines for everybody else."""
    if machine or not sys.stderr.isatty():
        return LineDisplay()
    from rich.console import Console

    return LineDisplay() if Console(stderr=True).is_dumb_terminal else LiveDisplay()


def _headline(cluster: Cluster, load: Load) -> str:
    leader = cluster.leader
    outside = cluster.leader_from_outside
    who = f"{outside} leads (not started by this demo)" if outside else "no leader"
    if leader is not None:
        who = f"{leader.name} leads  term {leader.fact('term')}  token {leader.fact('fencing_token')}"
    return f"{who}  {load.rate_now:.0f} payments/s  {load.acknowledged} acknowledged"
