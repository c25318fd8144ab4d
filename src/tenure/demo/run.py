"""The course of one demo: database, nodes, clients, faults, count, and everything stopped again.

Order of the end: the clients stop, then the nodes, and only then is the database asked, so that no late write can
change what was counted. Whatever happens, every process that was started is gone when :func:`demonstrate` returns;
a ``kill -9`` of this process ends them through their parent-death signals.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shlex
import signal
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec

from tenure.demo import pointer, report
from tenure.demo.clients import Load
from tenure.demo.cluster import Cluster
from tenure.demo.database import start_database
from tenure.demo.display import Display
from tenure.demo.faults import FaultInjector
from tenure.demo.folder import DataFolder, open_folder, write_private
from tenure.demo.plan import CLUSTER, NodePlan, Options, as_toml, check_ready, node_settings, plan_nodes
from tenure.demo.postgres import EmbeddedPostgres

LEADER_SECONDS = 60.0
DRAIN_SECONDS = 10.0
#: After a signal the person waits: answers still owed are given up sooner.
HASTY_DRAIN_SECONDS = 2.0
#: What a person's first payment needs beside the leader's address.
PAY_BY_HAND = (
    "-H 'Content-Type: application/json' -H 'Idempotency-Key: by-hand-1' "
    """-d '{"amount": 1250, "currency": "EUR", "debtor": "alice", "creditor": "bob"}'"""
)
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def demonstrate(options: Options, display: Display) -> report.Summary:
    """Run the demo to its end (``options.duration``, or SIGINT, SIGTERM, SIGHUP) and return what was counted.

    It must be called from the main thread, which the children's lives are tied to.

    Raises:
        DemoError: something that it needs is missing, or the nodes cannot be kept running.
        ConfigError, DatabaseUnavailable: the embedded PostgreSQL cannot run.
    """
    check_ready(options)
    with open_folder(options.data_dir) as folder:
        try:
            summary = asyncio.run(_Demo(options, folder, display).run())
        except Exception:
            display.say(f"the demo's files are kept: {folder.root}")
            raise
        if not summary.clean:
            # The database and the logs are the evidence of the harm.
            folder.keep = True
        return msgspec.structs.replace(summary, data_dir=str(folder.root) if folder.keep else None)


class _Demo:
    def __init__(self, options: Options, folder: DataFolder, display: Display) -> None:
        self._options = options
        self._folder = folder
        self._display = display
        self._operator_token = secrets.token_urlsafe(24)
        self._stop = asyncio.Event()

    async def run(self) -> report.Summary:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, self._stop.set)
        plans = plan_nodes(self._options, self._folder.root)
        self._folder.prepare([plan.name for plan in plans])
        self._display.note("starting PostgreSQL 18")
        # Started by this very thread, which blocks the loop for a second: see tenure.demo.child.
        with start_database(self._folder, self._display.note) as database:
            for plan in plans:
                settings = node_settings(
                    plan, plans, self._folder.root, dsn=database.dsn, operator_token=self._operator_token
                )
                write_private(plan.config, as_toml(settings))
            try:
                return await self._with_database(plans, database)
            finally:
                pointer.withdraw(self._folder.record)

    async def _with_database(self, plans: list[NodePlan], database: EmbeddedPostgres) -> report.Summary:
        cluster = Cluster(
            plans,
            note=self._display.note,
            changed=lambda: self._folder.write_record(self._record(cluster, database)),
            environment=_environment(),
        )
        load = Load([plan.url for plan in plans], rate=self._options.rate, acknowledged=self._folder.acknowledged)
        injector = FaultInjector(
            cluster, load, fault=self._options.fault, every=self._options.every, note=self._display.note
        )
        self._folder.write_record(self._record(cluster, database))
        try:
            pointer.publish(self._folder.record)
        except OSError as error:
            self._display.note(f"other commands will not find this demo by themselves: {error}")
        self._display.note(f"starting {len(plans)} nodes: {', '.join(plan.name for plan in plans)}")
        facts: dict[str, Any] = {}
        async with cluster:
            await self._first(cluster.wait_for_leader(LEADER_SECONDS), cluster.failed)
            if not self._stop.is_set():
                self._show_commands(cluster, database)
                await self._under_load(cluster, load, injector)
            if (leader := cluster.leader) is not None:
                facts = {"leader": leader.name, "term": leader.fact("term")}
                facts["fencing_token"] = leader.fact("fencing_token")
            elif (outside := cluster.leader_from_outside) is not None:
                facts = {"leader": outside}
            if facts:
                # Counted before the nodes stop: a leader that is stopped politely hands over to one that still runs.
                facts["takeovers"] = report.takeovers(database.dsn)
        counts = msgspec.structs.asdict(report.count(database.dsn, self._folder.acknowledged))
        return report.Summary(
            **(counts | facts),
            faults=injector.count,
            payments_per_second=round(load.rate_overall, 1),
            takeover_seconds=injector.takeover_seconds,
            seconds=round(load.seconds, 1),
            data_dir=None,
        )

    async def _under_load(self, cluster: Cluster, load: Load, injector: FaultInjector) -> None:
        """Clients, faults and the display, until the time is over, a signal comes or something fails."""
        clients = load.start()
        faults = asyncio.create_task(injector.run())
        shown = asyncio.create_task(self._display.follow(cluster, load))
        try:
            await self._first(self._wait_for_the_end(), cluster.failed, clients, faults)
            injector.finish()
            if not self._stop.is_set():
                await self._first(asyncio.shield(faults), cluster.failed, clients)
            await load.stop(patience=HASTY_DRAIN_SECONDS if self._stop.is_set() else DRAIN_SECONDS)
        finally:
            for task in (faults, shown):
                task.cancel()
            await asyncio.gather(faults, shown, return_exceptions=True)
            await load.stop(patience=0)

    async def _wait_for_the_end(self) -> None:
        if self._options.duration is None:
            await self._stop.wait()
        else:
            await asyncio.sleep(self._options.duration)

    async def _first(self, work: Awaitable[object], *failures: asyncio.Future[None]) -> None:
        """Wait for ``work`` or a stop signal; raise what ``work`` or one of ``failures`` raises meanwhile."""
        main: asyncio.Future[Any] = asyncio.ensure_future(work)
        stop: asyncio.Future[Any] = asyncio.create_task(self._stop.wait())
        try:
            done, _ = await asyncio.wait({main, stop, *failures}, return_when=asyncio.FIRST_COMPLETED)
            for future in done:
                future.result()
        finally:
            for future in (main, stop):
                future.cancel()
            await asyncio.gather(main, stop, return_exceptions=True)

    def _record(self, cluster: Cluster, database: EmbeddedPostgres) -> dict[str, Any]:
        """The content of ``demo.json``."""
        return {
            "schema": 1,
            "cluster": CLUSTER,
            "pid": os.getpid(),
            "data_dir": str(self._folder.root),
            "acknowledged": str(self._folder.acknowledged),
            "database": {"dsn": database.dsn, "pid": database.pid},
            "operator_token": self._operator_token,
            "nodes": [
                {
                    "name": node.name,
                    "pid": node.pid,
                    "url": node.plan.url,
                    "raft": node.plan.raft_address,
                    "log": str(node.plan.log),
                    "config": str(node.plan.config),
                    "state": node.state,
                }
                for node in cluster.nodes
            ],
        }

    def _show_commands(self, cluster: Cluster, database: EmbeddedPostgres) -> None:
        leader = cluster.leader or cluster.nodes[0]
        query = shlex.join([_short(database.bin_dir / "psql"), database.dsn, "-c", report.WHO_WRITES])
        tenure = shlex.quote(_short(Path(sys.executable).with_name("tenure")))
        record = shlex.quote(str(self._folder.record))
        # A cluster of one or two has no quorum without its leader.
        others = "another takes over" if len(cluster.nodes) > 2 else "it leads again when the demo has restarted it"
        lines = [
            f"{leader.name} leads term {leader.fact('term')} with token {leader.fact('fencing_token')}. Try next:",
            *(f"  curl {node.plan.url}/v1/state" for node in cluster.nodes),
            f"  curl {leader.plan.url}/v1/payments {PAY_BY_HAND}",
            f"  {query}",
            f'  grep "INSERT INTO payment_events" {shlex.quote(str(self._folder.logs))}/*.log | tail -20',
            f"  kill -9 {leader.pid}  # the leader; {others}, nothing is lost or paid twice",
            f"  {tenure} recover survey --demo {record}",
            f"Ctrl-C stops everything. Process ids, addresses and the DSN: {record}",
        ]
        for line in lines:
            self._display.say(line)


def _short(path: Path) -> str:
    """The path as one would type it here."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _environment() -> dict[str, str]:
    """This process's environment without what would overlay the settings that the demo itself makes.

    Times (``TENURE_LEASE__…``, ``TENURE_RAFT__…_MS``) and manners pass through: they are worth playing with.
    """
    own = ("CLUSTER", "NODE", "HTTP", "DATABASE", "FENCE", "ELECTOR", "RAFT__LISTEN", "RAFT__PEERS")
    prefixes = tuple(f"TENURE_{name}" for name in own)
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
