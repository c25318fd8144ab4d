"""The verbs of scripts: a table that the files of this package fill, and the dispatcher over it."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datadriven.world import World


@dataclass
class Line:
    """A command taken apart. What a verb does not take is refused."""

    words: list[str]
    options: dict[str, str] = field(default_factory=dict)

    def word(self) -> str:
        """The next word."""
        if not self.words:
            raise ValueError("a word is missing")
        return self.words.pop(0)

    def option(self, name: str, default: str) -> str:
        """The value of an option."""
        return self.options.pop(name, default)

    def number(self, name: str, default: int) -> int:
        """The value of an option that is a number."""
        return int(self.option(name, str(default)))


@dataclass(frozen=True)
class Verb:
    """A verb by its name, with one command that shows how it is used and one line that says what it does."""

    name: str
    example: str
    summary: str
    run: Callable[[World, Line], list[str] | None]


VERBS: dict[str, Verb] = {}


def verb(example: str) -> Callable[[Callable[[World, Line], list[str] | None]], Callable[..., object]]:
    """Enter a function into the table under the first word of its example; its docstring is the summary."""

    def enter(run: Callable[[World, Line], list[str] | None]) -> Callable[..., object]:
        name = example.split(maxsplit=1)[0]
        VERBS[name] = Verb(name, example, (run.__doc__ or "").strip(), run)
        return run

    return enter


def call(world: World, text: str) -> list[str]:
    """Run one command; what it shows. A typo is answered with an example of every verb that may have been meant."""
    name, *rest = text.split()
    known = VERBS.get(name)
    if known is None:
        meant = difflib.get_close_matches(name, VERBS, n=3) or sorted(VERBS)
        examples = "\n".join(f"  {VERBS[other].example:44} {VERBS[other].summary}" for other in meant)
        raise ValueError(f"there is no verb {name!r}; for example:\n{examples}")
    line = Line(
        words=[word for word in rest if "=" not in word],
        options=dict(word.split("=", 1) for word in rest if "=" in word),
    )
    try:
        shown = known.run(world, line)
        left = line.words + [f"{option}={value}" for option, value in line.options.items()]
        if left:
            raise ValueError(f"{name} does not take {' '.join(left)}")
    except ValueError as error:
        raise ValueError(f"{error}\n  for example: {known.example}") from error
    return (world.events() if shown is None else shown) or ["ok"]


for module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{module.name}")
