"""Directories of stopped nodes with a log of a few entries, and what their nodes say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest

from tenure.core import commands
from tenure.core.commands import Acquire, MemberRecord, MembersChange, Settings
from tenure.core.founding import PROTOCOL_VERSION, Hello
from tenure.core.fsm import ClusterRecord
from tenure.node.engine import batch_of, conf_change_of
from tenure.storage import DataDirectory

SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)
MEMBERS = tuple(
    MemberRecord(raft_id=number, name=name, directory_id=name * 32, url=f"http://{name}.invalid")
    for number, name in enumerate("abc", start=1)
)
CLUSTER = "e" * 32
RECORD = ClusterRecord(
    format=1, cluster_name="c", cluster_id=CLUSTER, lineage="e" * 16, members=MEMBERS, settings=SETTINGS
)
ACQUIRE = Acquire(
    holder=2, term=1, incarnation=7, floor=0, duration_ns=5, rate_error_ppm=2, cover_ns=9, cover_rate_error_ppm=4
)
WORD = "--the-others-are-dead-for-good"

#: The second is the format of a directory that an earlier version made.
WHEREVER_THE_LOG_IS = pytest.mark.parametrize("kept_in", ["segments", "database"])

Entry = tuple[Literal["command", "empty", "conf_change"], bytes]


def entry(command: commands.Command) -> Entry:
    return "command", commands.encode(command)


def change(steps: list[tuple[Any, int]], context: MembersChange | None) -> Entry:
    return "conf_change", conf_change_of(steps, b"" if context is None else commands.encode_members(context))


def directory_of(
    folder: Path, entries: list[Entry], *, name: str = "b", commit: int = 1, kept_in: str = "segments"
) -> Path:
    """The directory of a stopped founder whose log holds these entries behind the leader's own, all of term 1."""
    directory = DataDirectory.open(folder, node_name=name, cluster_name="c")
    directory.found(RECORD)
    log = [(index, 1, kind, data) for index, (kind, data) in enumerate([("empty", b""), *entries], start=1)]
    store = directory.log if kept_in == "segments" else directory.store
    store.save(first=1, last=len(log), entries=batch_of(log), hard_state=(1, 1, commit))
    directory.close()
    return folder


def hello(name: str, **fields: Any) -> Hello:
    values: dict[str, Any] = {
        "protocol": PROTOCOL_VERSION,
        "cluster_name": "c",
        "cluster_id": CLUSTER,
        "name": name,
        "directory_id": name * 32,
        "incarnation": 1,
        "member_names": ("a", "b", "c"),
        "settings": SETTINGS,
        "lineage": RECORD.lineage,
    }
    return Hello(**(values | fields))
