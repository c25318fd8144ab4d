"""The root of the command line: which commands there are, and how each way of failing ends the process.

Commands are named by import path, so that ``tenure version`` does not pay for ``tenure demo``. Nothing here
may print a traceback for a mistake of the user's or of the world; a bug of ours (``InvariantViolated``) keeps
its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from cyclopts import App, CycloptsError, MissingArgumentError

from tenure.cli.output import CommandError, ExitCode, exit_code, fail
from tenure.errors import TenureError

_COMMANDS = {
    "demo": ("tenure.cli.demo:demo", "A database, payment nodes and a stream of payments on this machine."),
    "run": ("tenure.cli.run:run", "Runs a command on one of several machines: on the one that leads."),
    "recover": ("tenure.cli.recover:app", "Says which node is the true leader; gives a lost majority up."),
    "member": ("tenure.cli.member:app", "Lists and changes the members of a running cluster."),
    "settings": ("tenure.cli.settings:app", "Shows or changes the times of a running cluster."),
    "fence": ("tenure.cli.fence:app", "Installs, shows and rebases the fence in PostgreSQL."),
    "log": ("tenure.cli.log:app", "Checks or shows the log of a node."),
    "snapshot": ("tenure.cli.snapshot:app", "Takes or shows the snapshots of a node."),
    "certs": ("tenure.cli.certs:app", "Makes and shows the certificates that members know each other by."),
    "config": ("tenure.cli.config:app", "Shows or checks the settings of a node."),
    "version": ("tenure.cli.version:version", "Says which versions are installed."),
}


def build() -> App:
    """The application with every command of this version."""
    from tenure.cli.version import text

    app = App(
        name="tenure",
        help="Makes split brain impossible: quorum election, leader lease, and fencing tokens that the "
        "database enforces.",
        version=text,
        result_action="return_value",
    )
    for name, (path, summary) in _COMMANDS.items():
        app.command(path, name=name, help=summary)
    return app


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the code that the process should end with."""
    tokens = list(sys.argv[1:] if argv is None else argv)
    try:
        result = build()(tokens, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        fail(_mistake(error), " ".join(["tenure", *(error.command_chain or ()), "--help"]))
        return ExitCode.USAGE
    except CommandError as error:
        fail(error.message, error.next_step)
        return error.code
    except TenureError as error:
        fail(str(error))
        return exit_code(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) went away: nobody is left to tell. Python's own flush at exit must not
        # fail either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    return result if isinstance(result, int) else ExitCode.OK


def _mistake(error: CycloptsError) -> str:
    """What is wrong with the command line; of a missing option also where else it may come from."""
    text = " ".join(str(error).split())
    argument = error.argument
    if not isinstance(error, MissingArgumentError) or argument is None or argument.tokens:
        return text
    elsewhere = " or ".join(argument.parameter.env_var or ())
    return f"{argument.name} is missing" + (f", and {elsewhere} is not set" if elsewhere else "")
