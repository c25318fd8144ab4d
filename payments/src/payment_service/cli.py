"""The command ``payment-service``: run a node, or bring its tables up to date.

Exit codes: 0 stopped as asked, 1 failed, 2 wrong usage or configuration, 4 refused as unsafe (a node that was removed
from its cluster, too), 6 the database cannot be reached. Errors are one line on stderr that names the field and the
fix; no traceback for what a user can mend.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import msgspec
from cyclopts import App, CycloptsError, Parameter

from payment_service import __version__
from tenure import (
    ConfigError,
    DatabaseUnavailable,
    DirectoryInUse,
    FenceError,
    FoundingRefused,
    MemberRemoved,
    TenureError,
    WrongCluster,
)
from tenure.config import Config, check_folder, from_mapping, load

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_USAGE: Final = 2
EXIT_REFUSED: Final = 4
EXIT_UNREACHABLE: Final = 6

ConfigFile = Annotated[Path | None, Parameter(name=["--config", "-c"], help="The node's TOML file.")]
Dsn = Annotated[str | None, Parameter(name="--dsn", help="PostgreSQL; overrides [database] dsn.")]
Directory = Annotated[Path | None, Parameter(help="Overrides the file's setting of the same name in [node].")]

app = App(
    name="payment-service",
    version=f"payment-service {__version__}",
    help="A payment service whose writes the database fences.\n\n"
    "Every setting of the TOML file can also come from the environment as TENURE_SECTION__KEY, for example "
    "TENURE_DATABASE__DSN; a flag overrides both.",
    result_action="return_value",
)


@app.command
def run(*, config: ConfigFile = None, dsn: Dsn = None, data_dir: Directory = None, log_dir: Directory = None) -> int:
    """Run one payment node until SIGTERM or SIGINT; with raft.tls, SIGHUP reloads the certificate.

    It takes its ports, waits for the database, brings the tables up to date (unless database.auto_migrate is off),
    joins its cluster and serves HTTP.
    """
    from payment_service import migrations, service
    from payment_service.log import ServiceLog
    from tenure.fence import durability_warnings

    # Until the event loop has handlers of its own, both signals end the start in the same way.
    signal.signal(signal.SIGTERM, _interrupt)
    settings = _settings(config, {"database.dsn": dsn, "node.data_dir": data_dir, "node.log_dir": log_dir})
    if settings.raft.tls.configured:
        # It asks for new certificates; until there is a member to ask, they are read anyway.
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    database, cluster, node = settings.database, settings.cluster, settings.node
    check_folder("node.data_dir", node.data_dir)
    check_folder("node.log_dir", node.log_dir)
    with (
        closing(service.bind(settings.http.listen)) as listener,
        closing(ServiceLog(node.log_dir, cluster=cluster.name, node=node.name)) as log,
    ):
        log.attach_standard_logging()
        migrations.wait_for_database(database.dsn, timeout_ms=database.start_timeout_ms)
        if database.auto_migrate:
            migrations.migrate(database.dsn, settings.fence.resource)
        else:
            migrations.check_schema(database.dsn)
        for warning in durability_warnings(database.dsn):
            log.logger.warning("database_setting", reason=warning)
        with asyncio.Runner(loop_factory=service.loop_factory()) as runner:
            runner.run(service.serve(settings, log=log, listener=listener, environ=os.environ))
    return EXIT_OK


@app.command
def migrate(*, config: ConfigFile = None, dsn: Dsn = None) -> int:
    """Create or update the service's tables and install the fence over them; safe to repeat.

    Needs --config, or --dsn (or TENURE_DATABASE__DSN) alone.
    """
    from payment_service import migrations

    if config is not None:
        settings = _settings(config, {"database.dsn": dsn})
        dsn, resource = settings.database.dsn, settings.fence.resource
        timeout_ms = settings.database.start_timeout_ms
    else:
        dsn = dsn or os.environ.get("TENURE_DATABASE__DSN")
        resource = os.environ.get("TENURE_FENCE__RESOURCE", Config().fence.resource)
        timeout_ms = Config().database.start_timeout_ms
        if not dsn:
            raise ConfigError("database.dsn", "name the database with --config, --dsn or TENURE_DATABASE__DSN")
    migrations.wait_for_database(dsn, timeout_ms=timeout_ms)
    applied = migrations.migrate(dsn, resource)
    done = f"applied migrations {', '.join(map(str, applied))}" if applied else "the tables were up to date"
    sys.stdout.write(f"{done}; the fence {resource!r} guards {', '.join(migrations.TABLES)}\n")
    return EXIT_OK


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and end the process with its exit code."""
    sys.exit(execute(sys.argv[1:] if argv is None else argv))


def execute(argv: Sequence[str]) -> int:
    """Run one command; the exit code that the process should end with."""
    try:
        result = app(list(argv), exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return _fail(f"{' '.join(str(error).split())} See: payment-service --help", EXIT_USAGE)
    except TenureError as error:
        return _fail(str(error), exit_code(error))
    except KeyboardInterrupt:
        return EXIT_OK
    return result if isinstance(result, int) else EXIT_OK


def exit_code(error: TenureError) -> int:
    """The exit code for an error that ended a command."""
    from payment_service.migrations import SchemaMissing

    if isinstance(error, ConfigError):
        return EXIT_USAGE
    if isinstance(error, DatabaseUnavailable):
        return EXIT_UNREACHABLE
    if isinstance(error, FoundingRefused | MemberRemoved | WrongCluster | DirectoryInUse | FenceError | SchemaMissing):
        return EXIT_REFUSED
    return EXIT_FAILED


def _settings(path: Path | None, flags: dict[str, Any]) -> Config:
    """The configuration with the flags laid over it, judged as a whole."""
    loaded = load(path)
    values, origins = msgspec.to_builtins(loaded.config), dict(loaded.origins)
    for field, value in flags.items():
        if value is not None:
            section, _, key = field.partition(".")
            values[section][key] = str(value)
            origins[field] = f"flag --{key.replace('_', '-')}"
    config = from_mapping(values, origins=origins)
    if not config.database.dsn:
        raise ConfigError("database.dsn", "name the database, for example postgresql://user@host/payments")
    return config


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"payment-service: {message}\n")
    return code


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
