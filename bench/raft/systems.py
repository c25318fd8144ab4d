"""The systems that are compared: how a node of each is started, what must be there first, and how it is labelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.raft import ours, preparation
from bench.raft.cluster import NodeCommand


@dataclass(frozen=True)
class System:
    """One row of the table. ``syncs`` tells how many fsyncs a node makes for a batch of entries before it answers."""

    name: str
    label: str
    syncs: str
    prepare: Callable[[], None]
    command: NodeCommand
    is_reference: bool = False


def hashicorp(*flags: str) -> NodeCommand:
    """The command of a hashicorp/raft node with these flags."""

    def command(index: int, voters: Sequence[str], directory: Path) -> list[str]:
        place = [f"-index={index}", f"-voters={','.join(voters)}", f"-directory={directory}"]
        return [str(preparation.HASHICORP_BINARY), *place, *flags]

    return command


def pysyncobj(*flags: str) -> NodeCommand:
    """The command of a PySyncObj node with these flags."""

    def command(index: int, voters: Sequence[str], directory: Path) -> list[str]:
        place = [f"--index={index}", f"--voters={','.join(voters)}", f"--directory={directory}"]
        return [str(preparation.PYSYNCOBJ_PYTHON), "-m", "bench.raft.pysyncobj_node", *place, *flags]

    return command


def _hashicorp(name: str, label: str, syncs: str, *flags: str) -> System:
    return System(
        f"hashicorp-{name}",
        f"hashicorp/raft 1.7.3, {label}",
        syncs,
        preparation.build_hashicorp,
        hashicorp(*flags),
        is_reference=True,
    )


def _pysyncobj(name: str, label: str, *flags: str) -> System:
    label = f"PySyncObj 0.3.17, {label} (not durable)"
    return System(f"pysyncobj{name}", label, "0", preparation.install_pysyncobj, pysyncobj(*flags))


#: In the order of the table. The log cache is how hashicorp's own servers run it, so its best includes it.
SYSTEMS = {
    system.name: system
    for system in (
        System("ours", "tenure.raft", "1", ours.prepare, ours.command),
        _hashicorp("bolt", "raft-boltdb 2.3.1", "2", "-store=bolt"),
        _hashicorp("bolt-tuned", "raft-boltdb 2.3.1, tuned", "2", "-store=bolt", "-tuned"),
        _hashicorp("wal", "raft-wal 0.4.0", "1", "-store=wal"),
        _hashicorp("wal-tuned", "raft-wal 0.4.0, tuned", "1", "-store=wal", "-tuned"),
        _hashicorp(
            "wal-tuned-cache", "raft-wal 0.4.0, tuned, log cache", "1", "-store=wal", "-tuned", "-log-cache=512"
        ),
        _pysyncobj("", "period 1 ms"),
        _pysyncobj("-unbatched", "batching off", "--unbatched"),
    )
}
