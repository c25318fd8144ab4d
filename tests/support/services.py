"""Three ``payment-service`` processes by hand, as a user starts them: one TOML file each, a PostgreSQL by its DSN."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import httpx2

from tenure.demo import child

SERVICE = Path(sys.executable).with_name("payment-service")
NAMES = ("payment-1a", "payment-1b", "payment-1c")
BOUND_SECONDS = 30.0
PAYMENT = {"amount": 100, "currency": "EUR", "debtor": "alice", "creditor": "bob", "reference": "test"}
Found = TypeVar("Found")


def wait_for(what: str, ask: Callable[[], Found | None], *, seconds: float = BOUND_SECONDS) -> Found:
    """Ask until the answer is true; fails with ``what`` after the bound."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = ask()
        if found:
            return found
        time.sleep(0.02)
    raise AssertionError(f"{what}: not within {seconds:g} s")


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


class Services:
    """The processes and what one may do to them."""

    def __init__(self, folder: Path, dsn: str, *, environment: dict[str, str] | None = None) -> None:
        self.folder, self.dsn = folder, dsn
        self.environment = {**os.environ, **(environment or {})}
        ports = free_ports(2 * len(NAMES))
        self.http = dict(zip(NAMES, ports[: len(NAMES)], strict=True))
        self.raft = dict(zip(NAMES, ports[len(NAMES) :], strict=True))
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.client = httpx2.Client(timeout=5.0, trust_env=False)

    def config(self, name: str, *, data_dir: Path | None = None) -> Path:
        """Write the TOML file of one node."""
        peers = ", ".join(
            f'{peer} = {{raft = "127.0.0.1:{self.raft[peer]}", url = "{self.url(peer)}"}}' for peer in NAMES
        )
        path = self.folder / f"{name}.toml"
        path.write_text(
            f'[node]\nname = "{name}"\ndata_dir = "{data_dir or self.folder / name}"\nlog_dir = "{self.logs}"\n'
            f'[raft]\nlisten = "127.0.0.1:{self.raft[name]}"\npeers = {{{peers}}}\n'
            f'[http]\nlisten = "127.0.0.1:{self.http[name]}"\n'
            f'[database]\ndsn = "{self.dsn}"\n'
        )
        return path

    @property
    def logs(self) -> Path:
        return self.folder / "logs"

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.http[name]}"

    def start(self, name: str) -> None:
        with (self.folder / f"{name}.stderr").open("ab") as errors:
            self.processes[name] = child.start(
                [SERVICE, "run", "--config", self.config(name)],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                env=self.environment,
            )

    def signal(self, name: str, number: signal.Signals) -> None:
        self.processes[name].send_signal(number)
        if number is signal.SIGKILL:
            self.processes[name].wait(10)

    def stop(self) -> None:
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGCONT)
        for process in self.processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        self.client.close()

    # -- what is asked ----------------------------------------------------------------------------------------------

    def ask(self, name: str, path: str) -> dict[str, Any] | None:
        try:
            answer = self.client.get(f"{self.url(name)}{path}")
        except httpx2.HTTPError:
            return None
        return answer.json() if answer.status_code == 200 else None

    def leader(self, *, other_than: str | None = None) -> str:
        """The name of the node that says it leads, once one does."""

        def find() -> str | None:
            for name in NAMES:
                if name != other_than and self.processes[name].poll() is None:
                    state = self.ask(name, "/v1/state")
                    if state is not None and state["state"] == "leader":
                        return name
            return None

        return wait_for("a leader", find)

    def pay(self, name: str, key: str, **changes: object) -> httpx2.Response:
        return self.client.post(
            f"{self.url(name)}/v1/payments", json={**PAYMENT, **changes}, headers={"Idempotency-Key": key}
        )

    def pay_until_acknowledged(self, key: str, *, seconds: float = BOUND_SECONDS) -> dict[str, Any]:
        """Retry the same key against every node until one acknowledges it, as a careful client does."""

        def attempt() -> dict[str, Any] | None:
            for name in NAMES:
                try:
                    answer = self.pay(name, key)
                except httpx2.HTTPError:
                    continue
                if answer.status_code == 201:
                    return answer.json()
            return None

        return wait_for(f"payment {key} acknowledged", attempt, seconds=seconds)


@contextmanager
def running(folder: Path, dsn: str, *, environment: dict[str, str] | None = None) -> Iterator[Services]:
    """Three services on ``dsn``, stopped at the end whatever happened."""
    services = Services(folder, dsn, environment=environment)
    try:
        for name in NAMES:
            services.start(name)
        yield services
    finally:
        services.stop()


def new_key() -> str:
    return uuid.uuid4().hex
