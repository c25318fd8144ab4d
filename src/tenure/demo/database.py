"""Where the demo's PostgreSQL keeps its files.

A server started by root runs as an unprivileged user, who may be unable to reach the folder that the user named
(``mktemp -d`` makes such folders). The mode of that folder is the user's business: the server's files then go to a
private folder of the demo's own, and a symbolic link in the named folder leads there, also for the next run.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tenure.demo.folder import DataFolder
from tenure.demo.postgres import EmbeddedPostgres
from tenure.errors import ConfigError

#: Survives a restart of the machine, as the folder that the user named does; everybody may pass through it.
ELSEWHERE = Path("/var/tmp")  # noqa: S108 - a folder with a random name is made inside, not a file that one can guess


def start_database(folder: DataFolder, note: Callable[[str], None]) -> EmbeddedPostgres:
    """Start the server of this data folder; the calling thread must live as long as the server.

    Raises:
        ConfigError, DatabaseUnavailable: the server cannot run, with the reason.
    """
    if folder.temporary:
        return EmbeddedPostgres.start()
    home = folder.root / "postgres"
    if home.is_symlink() and not home.exists():
        home.unlink()
    try:
        return EmbeddedPostgres.start(home)
    except ConfigError as error:
        if error.field != "data_dir":
            raise
    with suppress(FileNotFoundError):
        home.rmdir()
    private = Path(tempfile.mkdtemp(prefix="tenure-demo-", dir=ELSEWHERE))
    private.chmod(0o711)
    home.symlink_to(private / "postgres")
    note(f"the database's user cannot reach {folder.root}: its files are in {private}")
    return EmbeddedPostgres.start(home)
