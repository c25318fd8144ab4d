"""A replicated dictionary in less than a hundred lines: three processes, one log, no payment in sight.

Run each member in a terminal of its own and type commands; writes go to the leader, reads are confirmed by a quorum:

    python replicated_dictionary.py one 127.0.0.1:9101 127.0.0.1:9102 127.0.0.1:9103
    python replicated_dictionary.py two 127.0.0.1:9101 127.0.0.1:9102 127.0.0.1:9103
    python replicated_dictionary.py three 127.0.0.1:9101 127.0.0.1:9102 127.0.0.1:9103

    > set colour blue
    > get colour
    > del colour
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterable
from typing import Any

import tenure
from tenure.config import from_mapping
from tenure.raft import Node, Ports

NAMES = ("one", "two", "three")


class Dictionary:
    """The replicated state. Deterministic: the same commands give the same dictionary on every member."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        """Apply one committed command; its result goes back to who proposed it."""
        verb, key, *rest = json.loads(data)
        if verb == "set":
            self.values[key] = rest[0]
            return f"{key} = {rest[0]} (entry {index})"
        return f"{key} was {self.values.pop(key, 'not set')}"

    def snapshot(self) -> list[bytes]:
        """The whole state, so that the log need not be kept for ever."""
        return [json.dumps(self.values).encode()]

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Take a snapshot over."""
        self.values = json.loads(b"".join(chunks))


async def answer(node: Node, state: Dictionary, line: str) -> str:
    """Carry out one typed command."""
    words = line.split(maxsplit=2)
    try:
        match words:
            case ["get", key]:
                value = state.values.get(key, "not set")
                await node.verify_leader()  # read, then verify: what was read is not stale
                return f"{key} = {value}"
            case ["set", _, _] | ["del", _]:
                return str(await node.apply(json.dumps(words).encode()))
            case _:
                return "set KEY VALUE, get KEY, or del KEY"
    except tenure.NotLeader as error:
        return f"ask the leader: {error.leader_name or 'none is known yet'}"
    except tenure.ProposalDropped as error:
        return f"surely not done, try again: {error}"
    except (tenure.OutcomeUnknown, tenure.QuorumUnavailable) as error:
        return f"unknown, look before you try again: {error}"


async def main(name: str, addresses: list[str], ports: Ports | None = None) -> None:
    """Run one member until its input ends."""
    peers = {peer: {"raft": address, "url": "http://unused"} for peer, address in zip(NAMES, addresses, strict=True)}
    config = from_mapping(
        {
            "cluster": {"name": "dictionary"},
            "node": {"name": name, "data_dir": f"dictionary-{name}"},
            "raft": {"listen": peers[name]["raft"], "peers": peers},
        }
    )
    state = Dictionary()
    async with Node.open(config, state, ports=ports) as node:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        while line := (await reader.readline()).decode():
            if line.strip():
                print(await answer(node, state, line.strip()), flush=True)


if __name__ == "__main__":
    if len(sys.argv) != 5 or sys.argv[1] not in NAMES:
        sys.exit(__doc__)
    asyncio.run(main(sys.argv[1], sys.argv[2:]))
