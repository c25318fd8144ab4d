"""What the commands share that look into the data directory of a stopped node: finding it, reading it, checking it.

They read a copy of the log and change nothing, and they never guess: a record that fails its checksum is named, and
nothing that comes after it is shown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from tenure.cli.output import CommandError, ExitCode
from tenure.errors import DirectoryInUse, LogCorrupt

if TYPE_CHECKING:
    from tenure.core.manifest import Manifest
    from tenure.storage import DataDirectory, SnapshotInfo, StoredLog

DataDir = Annotated[
    Path | None,
    Parameter(name="--data-dir", env_var="TENURE_NODE__DATA_DIR", help="The data directory of a stopped node."),
]
ConfigFile = Annotated[
    Path | None,
    Parameter(
        name=["--config", "-c"], help="The node's TOML file; its node.data_dir is taken unless --data-dir names one."
    ),
]


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the log."""

    index: int
    term: int
    kind: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Log:
    """A stored log: as it is stored, and the entries that it comes to, those above its snapshot."""

    stored: StoredLog
    manifest: Manifest | None
    entries: list[Entry]


@contextlib.contextmanager
def stopped(data_dir: Path | None, config: Path | None) -> Iterator[DataDirectory]:
    """The directory that the options name, opened to be read and no more.

    Raises:
        CommandError: none is named, or a running node holds it.
        ConfigError: the file is no good, or the compiled binding is not installed.
        LogCorrupt: a record of it is damaged.
        StorageError: it is no data directory, or cannot be read.
    """
    from tenure.node.engine import require_engine
    from tenure.storage import DataDirectory

    require_engine()
    with contextlib.ExitStack() as scope:
        try:
            directory = scope.enter_context(DataDirectory.inspect(_folder(data_dir, config)))
        except DirectoryInUse as error:
            raise CommandError(
                str(error),
                next_step="stop the node first, or ask it while it runs: the same command with --endpoint URL",
                code=ExitCode.REFUSED,
            ) from None
        yield directory


def _folder(data_dir: Path | None, config: Path | None) -> Path:
    if data_dir is not None:
        return data_dir
    if config is None:
        raise CommandError(
            "name a stopped node's directory (--data-dir DIR, or --config FILE), or running nodes (--endpoint URL)",
            code=ExitCode.USAGE,
        )
    from tenure.config import load

    return Path(load(config).config.node.data_dir)


def read_log(directory: DataDirectory) -> Log:
    """The log, every record of it checked and replayed.

    Raises:
        LogCorrupt: a checksum, a batch or the manifest is wrong, or entries are missing.
    """
    from tenure.node.engine import entries_of, restored_at

    stored = directory.log.load()
    path = str(directory.log_path)
    base = stored.snapshot.index if stored.snapshot is not None else 0
    entries: list[Entry] = []
    for batch in stored.batches:
        try:
            decoded = [Entry(*entry) for entry in entries_of(batch)]
        except ValueError as error:
            raise LogCorrupt(f"{path}: a batch of log entries is malformed ({error})", path=path) from None
        first, end = decoded[0].index, base + len(entries)
        if first > end + 1:
            raise LogCorrupt(f"{path}: the entries between {end} and {first} are missing", path=path, index=end + 1)
        del entries[max(0, first - base - 1) :]
        entries += [entry for entry in decoded if entry.index > base]
    end = base + len(entries)
    if stored.commit > end:
        raise LogCorrupt(f"{path}: the log ends at {end}, and {stored.commit} was committed", path=path, index=end + 1)
    return Log(stored, restored_at(stored), entries)


def check_snapshot(directory: DataDirectory, snapshot_id: str) -> SnapshotInfo:
    """Read a snapshot to its end; :class:`tenure.LogCorrupt` if a checksum of it is wrong."""
    with directory.snapshots.open(snapshot_id) as reader:
        return reader.info


def check_content(directory: DataDirectory, log: Log) -> None:
    """The content that the log's snapshot names must be there, and be that one; :class:`tenure.LogCorrupt` if not."""
    content = log.manifest.content if log.manifest is not None else None
    if content is None:
        return
    path = str(directory.path / "snapshots" / content.id)
    if content.id not in directory.snapshots.ids():
        raise LogCorrupt(f"{path}: the log starts with this snapshot, and it is not there", path=path)
    info = check_snapshot(directory, content.id)
    if (info.size, info.sha256) != (content.size, content.sha256):
        raise LogCorrupt(f"{path}: the log starts with another snapshot of this name", path=path)
