"""What is compared: how a node of each system is started, with which times, and what it can be measured for."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from bench.failover.arena import FAULTS, NodeCommand
from bench.raft.preparation import HASHICORP_BINARY, PYSYNCOBJ_PYTHON, build_hashicorp, install_pysyncobj

from tenure import fence

#: Times that a service in one data centre can have. The election timeout stays long: a death is not found by it.
TIGHT = {"heartbeat_interval_ms": 25, "election_timeout_ms": 400}
TIGHT_LEASE = {"duration_ms": 120, "margin_ms": 10}


@dataclass(frozen=True)
class Round:
    """What the systems of one round share: the database and a number that makes their names new."""

    number: int
    dsn: str
    #: How many writers the leader runs; one leaves the machine idle, so that the fault alone is measured.
    writers: int = 1


@dataclass(frozen=True)
class System:
    """One row of the table. ``writes``: it also tells when its first write is committed."""

    name: str
    label: str
    prepare: Callable[[], None]
    command: Callable[[Round], NodeCommand]
    writes: bool
    faults: tuple[str, ...] = FAULTS
    is_ours: bool = False


def _ours(name: str, label: str, raft: dict[str, Any], lease: dict[str, Any]) -> System:
    def command(of: Round) -> NodeCommand:
        resource = f"{name.replace('-', '_')}_{of.number}"
        table = f"bench_{resource}"
        with psycopg.connect(of.dsn, autocommit=True) as connection:
            # Our own names.
            connection.execute(
                f"CREATE TABLE {table} (token bigint NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp())"
            )
        fence.install(of.dsn, resource, tables=[table])

        def node(index: int, addresses: Sequence[str], directory: Path) -> list[str]:
            peers = {f"node-{i}": {"raft": address, "url": "http://unused"} for i, address in enumerate(addresses)}
            config = {
                "cluster": {"name": "bench"},
                "node": {"name": f"node-{index}", "data_dir": str(directory / "data")},
                "raft": {"listen": addresses[index], "peers": peers, "allow_plaintext": True, **raft},
                "lease": lease,
                "database": {"dsn": of.dsn},
                "fence": {"resource": resource},
            }
            given = json.dumps({"config": config, "resource": resource, "table": table, "writers": of.writers})
            return [sys.executable, "-m", "bench.failover.tenure_node", given]

        return node

    return System(name, label, lambda: None, command, writes=True, is_ours=True)


def _hashicorp(of: Round) -> NodeCommand:
    def node(index: int, addresses: Sequence[str], directory: Path) -> list[str]:
        place = [f"-index={index}", f"-voters={','.join(addresses)}", f"-directory={directory}"]
        return [str(HASHICORP_BINARY), *place, "-store=wal", "-times=200,200,100"]

    return node


def _pysyncobj(of: Round) -> NodeCommand:
    def node(index: int, addresses: Sequence[str], directory: Path) -> list[str]:
        module = "bench.failover.pysyncobj_node"
        return [str(PYSYNCOBJ_PYTHON), "-m", module, str(index), ",".join(addresses), str(directory)]

    return node


def _advisory(of: Round) -> NodeCommand:
    def node(index: int, addresses: Sequence[str], directory: Path) -> list[str]:
        return [sys.executable, "-m", "bench.failover.advisory_node", of.dsn, str(of.number)]

    return node


SYSTEMS = {
    system.name: system
    for system in (
        _ours("tenure", "tenure, default times (heartbeat 100 ms, election 1 s, lease 1 s)", {}, {}),
        _ours("tenure-tight", "tenure, tight times (25 ms, 400 ms, 120 ms)", TIGHT, TIGHT_LEASE),
        _ours(
            "tenure-fenced-only",
            "the same, fenced writes before the wait is over",
            TIGHT,
            {**TIGHT_LEASE, "wait_out": "fenced-only"},
        ),
        System(
            "hashicorp",
            "hashicorp/raft 1.7.3 (200, 200, 100 ms), leader by its own word",
            build_hashicorp,
            _hashicorp,
            writes=False,
            faults=("kill", "stop", "cut"),
        ),
        System(
            "pysyncobj",
            "PySyncObj 0.3.17, tight, leader by its own word",
            install_pysyncobj,
            _pysyncobj,
            writes=False,
            faults=("kill", "stop", "cut"),
        ),
        System(
            "advisory-lock",
            "PostgreSQL advisory lock, tried every 100 ms",
            lambda: None,
            _advisory,
            writes=True,
            faults=("kill",),
        ),
    )
}
