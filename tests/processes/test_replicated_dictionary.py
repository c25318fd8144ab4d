"""The example that is no payment service, as its first lines say to run it: three processes, typed commands, a kill."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.services import free_ports

pytestmark = [pytest.mark.processes, pytest.mark.timeout(120)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "replicated_dictionary.py"
NAMES = ("one", "two", "three")


class Terminal:
    """One member and the terminal it runs in."""

    def __init__(self, name: str, addresses: list[str], folder: Path) -> None:
        self.name = name
        self.process = subprocess.Popen(
            [sys.executable, EXAMPLE, name, *addresses],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def type(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


def type_until(terminals: list[Terminal], line: str, starts: str) -> str:
    """Type ``line`` into one terminal after the other until one answers as it should."""
    deadline = time.monotonic() + 30
    said = ""
    while time.monotonic() < deadline:
        for terminal in terminals:
            said = terminal.type(line)
            if said.startswith(starts):
                return terminal.name
        time.sleep(0.1)
    raise AssertionError(f"nobody answered {line!r} with {starts!r}; the last answer was {said!r}")


def test_dictionary_survives_the_death_of_its_leader(tmp_path: Path):
    """A key that was set is there on the next leader, and the members name the leader to whoever asks them."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(3)]
    terminals = {name: Terminal(name, addresses, tmp_path) for name in NAMES}
    try:
        leader = type_until(list(terminals.values()), "set colour blue", "colour = blue")
        other = next(terminal for name, terminal in terminals.items() if name != leader)
        assert other.type("set colour red") == f"ask the leader: {leader}"
        assert other.type("help") == "set KEY VALUE, get KEY, or del KEY"
        terminals.pop(leader).end()
        survivors = list(terminals.values())
        successor = type_until(survivors, "get colour", "colour = blue")
        assert successor != leader
        assert terminals[successor].type("del colour") == "colour was blue"
    finally:
        for terminal in terminals.values():
            terminal.end()
