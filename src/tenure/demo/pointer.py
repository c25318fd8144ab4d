"""Where a running demo is found: one well-known place per user that points at its ``demo.json``.

``tenure demo`` publishes, every other command only looks. The pointer is a symbolic link in a folder that
belongs to this user alone; a folder that somebody else owns or may write is refused, since ``demo.json``
names a database with its password and processes to kill.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path


def path() -> Path:
    """The place of the pointer: ``$XDG_RUNTIME_DIR/tenure/demo.json``, else in the temporary folder."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        return Path(runtime) / "tenure" / "demo.json"
    return Path(tempfile.gettempdir()) / f"tenure-demo-{os.getuid()}" / "demo.json"


def publish(demo_json: Path) -> None:
    """Point at ``demo_json`` from now on; an older demo's pointer is replaced atomically.

    Raises:
        OSError: the folder cannot be made, or it is not this user's alone.
    """
    pointer = path()
    pointer.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_private(pointer.parent):
        raise PermissionError(f"{pointer.parent} is not a folder of this user's alone; remove it or set TMPDIR")
    fresh = pointer.with_name(f".demo.json.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(demo_json.absolute())
    fresh.replace(pointer)


def withdraw(demo_json: Path) -> None:
    """Remove the pointer if it still points at ``demo_json``; a newer demo's pointer stays."""
    pointer = path()
    try:
        if pointer.readlink() == demo_json.absolute():
            pointer.unlink()
    except OSError:  # nothing there, or not a link of ours
        return


def find() -> Path | None:
    """The ``demo.json`` of the newest demo that still has one, or None."""
    pointer = path()
    if not _is_private(pointer.parent) or not pointer.is_file():
        return None
    return pointer.resolve()


def _is_private(folder: Path) -> bool:
    try:
        facts = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(facts.st_mode) and facts.st_uid == os.getuid() and not facts.st_mode & 0o022
