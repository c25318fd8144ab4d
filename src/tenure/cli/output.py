"""What every command shares: exit codes, the option ``-o``, JSON on stdout, words on stderr, one-line errors.

It must never print a secret and never colour what is not a terminal (``NO_COLOR`` is honoured by rich).
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from tenure.errors import (
    ConfigError,
    DatabaseUnavailable,
    DirectoryInUse,
    FenceError,
    FoundingRefused,
    LeadershipLost,
    MemberRemoved,
    NotLeader,
    OutcomeUnknown,
    QuorumUnavailable,
    TenureError,
    WrongCluster,
)

if TYPE_CHECKING:
    from rich.console import Console

#: The version of the JSON that commands print; it rises when a field changes its meaning or goes away.
SCHEMA = 1

OutputForm = Literal["table", "json"]
#: The option ``-o``: ``table`` for people, ``json`` for machines (one object, on one line).
Output = Annotated[OutputForm, Parameter(name=["--output", "-o"], help="Form of what is printed.")]


class ExitCode(enum.IntEnum):
    """How a command ended. Stable numbers: scripts depend on them."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NO_LEADER = 3
    REFUSED = 4
    VERIFICATION_FAILED = 5
    UNREACHABLE = 6
    NOT_ALLOWED = 7
    OUTCOME_UNKNOWN = 8
    LEADERSHIP_LOST = 75
    TIMED_OUT = 124
    INTERRUPTED = 130


class CommandError(Exception):
    """A command cannot go on: ``message`` says why, ``next_step`` what to do, ``code`` how it ends."""

    def __init__(self, message: str, *, next_step: str | None = None, code: ExitCode = ExitCode.FAILED) -> None:
        self.message = message
        self.next_step = next_step
        self.code = code
        super().__init__(message)


_CODES: tuple[tuple[type[TenureError], ExitCode], ...] = (
    (ConfigError, ExitCode.USAGE),
    (NotLeader, ExitCode.NO_LEADER),
    (QuorumUnavailable, ExitCode.NO_LEADER),
    (LeadershipLost, ExitCode.LEADERSHIP_LOST),
    (FenceError, ExitCode.REFUSED),
    (FoundingRefused, ExitCode.REFUSED),
    (MemberRemoved, ExitCode.REFUSED),
    (WrongCluster, ExitCode.REFUSED),
    (DirectoryInUse, ExitCode.REFUSED),
    (DatabaseUnavailable, ExitCode.UNREACHABLE),
    (OutcomeUnknown, ExitCode.OUTCOME_UNKNOWN),
)


def exit_code(error: TenureError) -> ExitCode:
    """The exit code that an error of the library ends a command with."""
    return next((code for kind, code in _CODES if isinstance(error, kind)), ExitCode.FAILED)


def emit_json(document: Mapping[str, Any]) -> None:
    """Print one object on one line of stdout, its ``schema`` version first. Times must already be text."""
    emit_text(json.dumps({"schema": SCHEMA, **document}))


def emit_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table to stdout: bordered on a terminal, plain tab-separated lines anywhere else."""
    if not sys.stdout.isatty():
        emit_text("\n".join("\t".join(row) for row in (columns, *rows)))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console().print(table)


def emit_text(text: str) -> None:
    """Print lines of data to stdout, at once: a reader that went away is noticed here, not at exit."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def console() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def say(text: str) -> None:
    """Tell the person something that is not data: it goes to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def fail(message: str, next_step: str | None = None) -> None:
    """Say on stderr why a command failed, in one line, and what to do next in another."""
    say(f"tenure: {message}")
    if next_step:
        say(f"  next: {next_step}")
