"""Scripts: read them, run them, write down what they show.

A script is blocks, an empty line between two of them::

    # A comment, kept as it is.
    verb word word option=value
    ----
    what the verb showed when the script was written

The run is compared with the text; with REWRITE=1 the text becomes what the run showed, and its diff is reviewed. A verb
that fails (``expect``, an invariant) fails in both cases: rewriting cannot bless it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from datadriven.verbs import call
from datadriven.world import World

RULE = "----"


class ScriptError(Exception):
    """The script cannot be read, or one of its commands failed; the text names file and line."""


@dataclass
class Command:
    """One command, the comments above it, and what it showed."""

    line: int
    text: str
    comments: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join([*self.comments, self.text, RULE, *self.shown])


def parse(path: Path) -> list[Command]:
    """The commands of a script."""
    commands: list[Command] = []
    comments: list[str] = []
    lines = path.read_text(encoding="utf-8").splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if line.startswith("#"):
            comments.append(line)
            continue
        if not line.strip():
            if comments:
                comments.append("")
            continue
        command, comments = Command(number, line.strip(), comments), []
        if number < len(lines) and lines[number] == RULE:
            number += 1
            while number < len(lines) and lines[number].strip():
                command.shown.append(lines[number])
                number += 1
        commands.append(command)
    if comments:
        raise ScriptError(f"{path.name}: comments at the end stand above no command")
    return commands


def run(path: Path) -> str:
    """The text of the script as it would read if it were written now."""
    world = World()
    commands = parse(path)
    for command in commands:
        try:
            shown = call(world, command.text)
        except (AssertionError, ValueError) as error:
            raise ScriptError(f"{path.name}:{command.line}: {command.text}\n{error}") from error
        if any(not line.strip() for line in shown):
            raise ScriptError(f"{path.name}:{command.line}: {command.text} shows an empty line, which ends a block")
        command.shown = shown
    return "\n\n".join(str(command) for command in commands) + "\n"
