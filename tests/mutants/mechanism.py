"""How a mutant is switched on: its file is compiled from replaced text when this process imports it.

It must be installed before anything of the product is imported; a text that is not there exactly once is an error, so
that a mutant cannot quietly become a copy of the real code.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

ROOT = Path(__file__).resolve().parents[2]
_SQL_READER = "src/tenure/fence/queries.py"
_SQL_READ = '(resources.files(_PACKAGE) / folder / name).read_text(encoding="utf-8")'


class MutantError(Exception):
    """The mutant cannot be switched on: its text is not in the source, or the source is imported already."""


@dataclass(frozen=True)
class Mutant:
    """One fault: in ``file`` the text ``old``, which is there once, becomes ``new``.

    ``tests`` are the directed cases that must catch it. Without any, a simulated seed must.
    """

    name: str
    rule: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...] = ()

    def mutated(self, text: str) -> str:
        """``text`` of the file with the fault in it."""
        found = text.count(self.old)
        if found != 1:
            raise MutantError(f"{self.name}: the text to replace is {found} times in {self.file}, and must be once")
        return text.replace(self.old, self.new)

    def check(self) -> None:
        """Raise :class:`MutantError` unless the fault can be put into today's source."""
        self.mutated((ROOT / self.file).read_text(encoding="utf-8"))


class _Loader(SourceFileLoader):
    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self._mutant = mutant

    def get_code(self, fullname: str) -> CodeType:
        # Never from or into the cache of compiled files: the next process must find the real code there.
        return compile(self._mutant.mutated(Path(self.path).read_text(encoding="utf-8")), self.path, "exec")


class _Finder(MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self._mutant = mutant
        self._path = str(ROOT / mutant.file)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        found = PathFinder.find_spec(fullname, path, target)
        if found is None or found.origin != self._path:
            return None
        return importlib.util.spec_from_file_location(
            fullname,
            self._path,
            loader=_Loader(fullname, self._path, self._mutant),
            submodule_search_locations=found.submodule_search_locations,
        )


def install(mutant: Mutant) -> None:
    """Switch ``mutant`` on for this process; :class:`MutantError` if that is not possible any more."""
    mutant.check()
    if mutant.file.endswith(".sql"):
        mutant = _reading(mutant)
    path = str(ROOT / mutant.file)
    if any(getattr(module, "__file__", None) == path for module in list(sys.modules.values())):
        raise MutantError(f"{mutant.name}: {mutant.file} is imported already")
    sys.meta_path.insert(0, _Finder(mutant))


def _reading(mutant: Mutant) -> Mutant:
    """The same fault for a file of SQL, which is data: its reader replaces the text."""
    name = Path(mutant.file).name
    replaced = f"{_SQL_READ}.replace(*(({mutant.old!r}, {mutant.new!r}) if name == {name!r} else ('', '')))"
    # Replacing nothing by nothing would put nothing between all characters, which is the text itself.
    return Mutant(mutant.name, mutant.rule, mutant.what, _SQL_READER, _SQL_READ, replaced, mutant.tests)
