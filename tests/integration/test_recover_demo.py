"""The survey of a running demo: real payment nodes, one of which is paused and wakes up again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.processes, pytest.mark.timeout(180)]

TENURE = Path(sys.executable).with_name("tenure")


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Demo and survey meet in a folder of this test's own."""
    others = {name: value for name, value in os.environ.items() if not name.startswith("TENURE_")}
    return {**others, "XDG_RUNTIME_DIR": str(tmp_path)}


@pytest.fixture
def demo(tmp_path: Path, environment: dict[str, str]) -> Iterator[Path]:
    """A demo of three nodes; its data folder."""
    folder = tmp_path / "demo"
    arguments = [TENURE, "demo", "--port", str(free_base_port()), "--data-dir", folder, "-o", "json"]
    with (tmp_path / "demo.stderr").open("w") as errors:
        process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, env=environment
        )
        try:
            yield folder
        finally:
            process.terminate()
            process.wait(60)
            # Run by root, the demo keeps its database where the database's own user can reach it.
            if (folder / "postgres").is_symlink():
                shutil.rmtree((folder / "postgres").resolve().parent)


def free_base_port() -> int:
    """A port whose neighbours, and those a thousand above, are free too."""
    for base in range(20_000 + os.getpid() % 5_000, 30_000, 10):
        sockets = [socket.socket() for _ in range(6)]
        try:
            for index, probe in enumerate(sockets):
                probe.bind(("127.0.0.1", base + index % 3 + 1000 * (index // 3)))
        except OSError:
            continue
        finally:
            for probe in sockets:
                probe.close()
        return base
    raise AssertionError("no free ports")


def survey_until(
    environment: dict[str, str], wanted: Callable[[int, dict[str, Any]], bool], seconds: float = 60
) -> dict[str, Any]:
    """Survey until what is found is wanted; fail with the last answer at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        result = subprocess.run(
            [TENURE, "recover", "survey", "-o", "json"], env=environment, capture_output=True, text=True, check=False
        )
        document = json.loads(result.stdout) if result.stdout else {}
        if document and wanted(result.returncode, document):
            return document
        assert time.monotonic() < deadline, f"exit code {result.returncode}: {result.stdout}{result.stderr}"
        time.sleep(0.2)


def verdict_of(document: dict[str, Any], name: str) -> str:
    return next(node["verdict"] for node in document["nodes"] if node["name"] == name)


def test_survey_follows_the_true_leader_when_the_old_one_is_paused_and_wakes_up(
    demo: Path, environment: dict[str, str]
):
    first = survey_until(environment, lambda code, found: code == 0 and bool(found["who_writes"]))
    old = first["true_leader"]
    assert first["basis"] == "fence"
    assert sorted(node["verdict"] for node in first["nodes"]) == ["follower", "follower", "true_leader"]
    (pid,) = (node["pid"] for node in first["nodes"] if node["name"] == old)

    os.kill(pid, signal.SIGSTOP)
    try:
        second = survey_until(environment, lambda code, found: code == 0 and found["true_leader"] not in (None, old))
    finally:
        os.kill(pid, signal.SIGCONT)
    assert verdict_of(second, old) == "silent"
    assert second["fence"]["token"] > first["fence"]["token"]
    assert {"run": f"kill -9 {pid}", "expect": None} in second["steps"][0]["commands"]

    third = survey_until(environment, lambda code, found: code == 0 and verdict_of(found, old) == "follower")
    assert third["true_leader"] == second["true_leader"]
    assert all("two writers" not in finding and "past the fence" not in finding for finding in third["findings"])
