"""The demo's data folder: logs, node directories, acknowledged payments and ``demo.json``.

A fresh temporary folder by default, removed at the end unless something went wrong: messages name files in it. A
folder that the user named is kept and can be used again with the same number of nodes. It must never change the mode
of a folder that it did not make itself, nor be used by two demos at once. Files that hold a secret (settings,
``demo.json``) have mode 0600.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tenure.demo.problems import DemoError


class DataFolder:
    """One demo's files. Made by :func:`open_folder`, which holds the folder for as long as it is used."""

    def __init__(self, root: Path, *, temporary: bool) -> None:
        self.root = root
        self.temporary = temporary
        #: Set where the files are evidence: a temporary folder is then left for the reader.
        self.keep = not temporary
        self.logs = root / "logs"
        self.nodes = root / "nodes"
        self.acknowledged = root / "acknowledged.txt"
        self.record = root / "demo.json"

    def prepare(self, names: list[str]) -> None:
        """Make what is missing; refuse a folder that another set of nodes was founded in.

        Raises:
            DemoError: the folder belongs to a demo with other nodes.
        """
        self.logs.mkdir(exist_ok=True)
        self.nodes.mkdir(mode=0o700, exist_ok=True)
        founded = sorted(entry.name for entry in self.nodes.iterdir())
        if founded and founded != sorted(names):
            raise DemoError(
                f"{self.root} was made with {len(founded)} nodes ({', '.join(founded)}), not {len(names)}",
                f"tenure demo --nodes {len(founded)} --data-dir {self.root}, or name a new folder",
            )
        for name in names:
            (self.nodes / name).mkdir(mode=0o700, exist_ok=True)

    def write_record(self, record: Mapping[str, Any]) -> None:
        """Replace ``demo.json`` in one step, so that a reader sees the old one or the new one, never a half."""
        write_private(self.record, json.dumps(record, indent=2) + "\n")


def write_private(path: Path, text: str) -> None:
    """Replace ``path`` atomically with a file that only its owner can read."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600, exist_ok=False)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


@contextmanager
def open_folder(path: Path | None) -> Iterator[DataFolder]:
    """Hold ``path`` (or a fresh temporary folder, removed at the end of a demo that went well) for one demo.

    Raises:
        DemoError: the folder cannot be made or written, or another demo runs in it.
    """
    if path is None:
        root = Path(tempfile.mkdtemp(prefix="tenure-demo-"))
        folder = DataFolder(root, temporary=True)
        try:
            yield folder
        except Exception:
            folder.keep = True
            raise
        finally:
            if not folder.keep:
                shutil.rmtree(root, ignore_errors=True)
        return
    root = path.absolute()
    try:
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
    except OSError as error:
        raise DemoError(f"{root} cannot be used: {error.strerror}", "name a folder that you may write to") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError(f"another demo runs in {root}", "stop it, or name another --data-dir") from None
        yield DataFolder(root, temporary=False)
