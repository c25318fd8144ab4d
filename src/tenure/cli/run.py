"""``tenure run -- COMMAND``: a command that runs on one machine of several, while this member leads.

What the command writes goes where this process's output goes; the supervisor's own lines go to stderr. It never prints
a credential. Ends with the command's exit code, with 128 + n when signal n ended it, with 75 when the leadership was
lost, 127 or 126 when the command cannot be started, else as every command.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from tenure.cli.output import SCHEMA, CommandError, ExitCode, Output, fail, say
from tenure.config import load

NOT_FOUND = 127
_TEXTS = {
    "waiting": "waits to lead; the leader is {leader}",
    "started": "leads term {term} with token {token}: started process {pid}",
    "lost": "lost the leadership of term {term} ({reason})",
    "ended": "the command ended with {code}",
    "not_started": "the command cannot be started: {reason}",
    "failed": "the node had to stop: {reason}",
    "log": "{message}",
}


def run(
    *command: Annotated[str, Parameter(allow_leading_hyphen=True, help="After --: the command and its arguments.")],
    config: Annotated[Path | None, Parameter(name=["--config", "-c"], help="The TOML file of this member.")] = None,
    grace: Annotated[
        float, Parameter(validator=Number(gt=0, lte=3600), help="Seconds from SIGTERM to SIGKILL.")
    ] = 10.0,
    once: Annotated[
        bool, Parameter(negative="", help="End with 75 when leadership is lost; do not stand again.")
    ] = False,
    output: Output = "table",
) -> int:
    """Run a command each time this member leads, and end it with everything that it started when it does not.

    The command finds TENURE_TOKEN, TENURE_CREDENTIAL, TENURE_TERM and TENURE_RESOURCE in its environment. On loss it
    gets SIGTERM, and SIGKILL before the lease is over; so too when this process is killed or paused.
    """
    from tenure.supervision.supervisor import supervise

    if not command:
        raise CommandError("name the command: tenure run [OPTIONS] -- COMMAND ARGUMENTS", code=ExitCode.USAGE)
    settings = load(config).config
    if shutil.which(command[0]) is None:
        fail(f"{command[0]} is not a command that can be started here")
        return NOT_FOUND
    tell = _tell_json if output == "json" else _tell_text
    logger = logging.getLogger("tenure")
    logger.addHandler(_ToTell(tell))
    logger.propagate = False
    if not settings.database.dsn:
        logger.warning(
            "database.dsn is not set: there is no fence, and nothing refuses the late write of a paused machine"
        )
    return asyncio.run(supervise(settings, command, grace_seconds=grace, once=once, tell=tell))


def _tell_text(event: str, **facts: object) -> None:
    shown = {name: "not known" if value is None else value for name, value in facts.items()}
    text = _TEXTS[event].format(**shown)
    if event in ("waiting", "ended") and facts.get("reason") is not None:
        text += f" ({facts['reason']})"
    say(f"tenure: {text}")


def _tell_json(event: str, **facts: object) -> None:
    say(json.dumps({"schema": SCHEMA, "event": event, **facts}))


class _ToTell(logging.Handler):
    """Warnings of the library, as lines of the supervisor's own."""

    def __init__(self, tell: object) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Tell one record."""
        if callable(self._tell):
            self._tell("log", message=record.getMessage(), level=record.levelname.lower())
