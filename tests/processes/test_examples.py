"""The example of the README as its reader would run it: three processes, one of them killed, one table that tells."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from support.services import free_ports, wait_for
from tenure.demo import child
from tenure.fence import install

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "only_the_leader_writes.py"
pytestmark = pytest.mark.processes


@contextmanager
def three_processes(folder: Path, dsn: str) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    ports = dict(zip("abc", free_ports(3), strict=True))
    peers = ", ".join(
        f'{name} = {{ raft = "127.0.0.1:{port}", url = "http://{name}.test" }}' for name, port in ports.items()
    )
    processes: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, port in ports.items():
            environment = {
                **os.environ,
                "TENURE_DATABASE__DSN": dsn,
                "TENURE_NODE__NAME": name,
                "TENURE_NODE__DATA_DIR": str(folder / name),
                "TENURE_RAFT__LISTEN": f"127.0.0.1:{port}",
                "TENURE_RAFT__PEERS": f"{{ {peers} }}",
            }
            with (folder / f"{name}.stderr").open("wb") as errors:
                processes[name] = child.start([sys.executable, str(EXAMPLE)], stderr=errors, env=environment)
        yield processes
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_example_writes_under_one_leader_and_goes_on_when_that_one_is_killed(tmp_path: Path, database: str) -> None:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE beats (at timestamptz DEFAULT now(), node text, fencing_token bigint)")
        install(database, "heart", tables=["beats"])

        def writers() -> list[tuple[str, int]]:
            return connection.execute("SELECT node, fencing_token FROM beats ORDER BY ctid").fetchall()

        with three_processes(tmp_path, database) as processes:
            first = wait_for("a row of the first leader", writers)
            leader, token = first[0]
            processes[leader].send_signal(signal.SIGKILL)
            wait_for("a row of another leader", lambda: [row for row in writers() if row[0] != leader])
        rows = writers()

    tokens = [number for _, number in rows]
    assert tokens == sorted(tokens), "a row under an old token after a newer one"
    assert {number for node, number in rows if node == leader} == {token}


def test_readme_shows_the_example_as_it_is() -> None:
    shown = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    code = EXAMPLE.read_text(encoding="utf-8")
    assert code[code.index("import asyncio") :] in shown
