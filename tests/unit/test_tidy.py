"""The house rules, as tests: who may import what, sizes, what never belongs into a file, documents that stay true."""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

import tenure
from tenure.config import Config, from_mapping

ROOT = Path(__file__).parents[2]
LINES_MAX = 500
FUNCTION_LINES_MAX = 70
IMPURE_MODULES = (
    "asyncio|concurrent|io|multiprocessing|os|pathlib|random|secrets|select|selectors|shutil|signal|socket|sqlite3|ssl"
    "|subprocess|tempfile|threading|time|uuid"
)
PUBLIC_TO_APPLICATIONS = {
    "tenure",
    "tenure.config",
    "tenure.errors",
    "tenure.fence",
    "tenure.raft",
    "tenure.telemetry",
    "tenure.types",
}
MACHINE_PATHS = re.compile("/" + r"(?:work|root)/")
REGISTRY_OPTIONS = re.compile(r"(?<![\w-])--(?:extra-)?index-" + "url|--trusted-" + "host|--find-" + "links")
CARGO_SOURCE = 'source = "registry+https://github.com/rust-lang/crates.io-index"'


@cache
def tracked() -> tuple[Path, ...]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git does not say which files belong to the project")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(path for name in names.split("\0") if name and (path := ROOT / name).is_file())


def files(*folders: str, suffix: str) -> list[Path]:
    found = [p for p in tracked() if p.suffix == suffix and any(p.is_relative_to(ROOT / folder) for folder in folders)]
    assert found, f"no {suffix} files in {folders}: the test looks in the wrong place"
    return found


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[tuple[str, str | None]]:
    """Every (module, name) that the file imports anywhere in it; the name is None for a plain import."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from ((node.module or "", alias.name) for alias in node.names)


def where(path: Path) -> str:
    return str(path.relative_to(ROOT))


# -- who may import what ----------------------------------------------------------------------------------------------


def rooms() -> dict[str, set[str]]:
    """The table of rooms in ARCHITECTURE.md: what each may import."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    table = text.partition("## The rooms")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("| `")
    ]
    return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[1])) for row in rows}


def room_of(module: str, name: str | None, known: set[str]) -> str | None:
    """The room that an import leads into, or None if it leads out of the distribution."""
    parts = module.split(".")
    if parts[0] != "tenure":
        return None
    if len(parts) > 1:
        return parts[1]
    return name if name in known else "tenure"


def test_rooms_import_only_what_the_architecture_names():
    law = rooms()
    problems, used = [], {room: set() for room in law}
    for path in files("src/tenure", suffix=".py"):
        parts = path.relative_to(ROOT / "src/tenure").parts
        own = "tenure" if parts == ("__init__.py",) else parts[0].removesuffix(".py")
        if own not in law:
            problems.append(f"{where(path)}: ARCHITECTURE.md has no room {own!r}")
            continue
        for module, name in imported(path):
            target = room_of(module, name, set(law))
            if target is None or target == own:
                continue
            used[own].add(target)
            if target not in law[own]:
                problems.append(f"{where(path)}: {own} must not import {target}")
    unused = [
        f"ARCHITECTURE.md lets {own} import {room}, which it does not" for own in law for room in law[own] - used[own]
    ]
    assert not problems + unused


def test_rooms_have_no_cycle():
    order = list(rooms())
    for room, allowed in rooms().items():
        later = {name for name in allowed if order.index(name) > order.index(room)}
        assert not later, f"{room} imports {later}, which the table of rooms puts below it"


def test_fence_knows_no_elector():
    assert rooms()["fence"] <= {"errors", "types", "instants", "invariants"}


def test_core_reads_no_clock_and_touches_nothing():
    problems = []
    for path in files("src/tenure/core", suffix=".py"):
        problems += [
            f"{where(path)}: {module}" for module, _ in imported(path) if re.match(rf"(?:{IMPURE_MODULES})\b", module)
        ]
        problems += [
            f"{where(path)}:{node.lineno}: {node.func.attr}() reads a clock"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in {"now", "utcnow", "today", "open"}
        ]
    assert not problems


def test_engine_is_imported_in_one_place_and_the_application_nowhere():
    for path in files("src/tenure", suffix=".py"):
        modules = {module.partition(".")[0] for module, _ in imported(path)}
        assert "payment_service" not in modules, where(path)
        assert "tenure_raft" not in modules or where(path) == "src/tenure/node/engine.py", where(path)


def test_payment_service_uses_public_names_only():
    problems = []
    for path in files("payments/src", suffix=".py"):
        for module, name in imported(path):
            if module.partition(".")[0] != "tenure":
                continue
            public = (
                name is None
                or module != "tenure"
                or name in tenure.__all__
                or f"tenure.{name}" in PUBLIC_TO_APPLICATIONS
            )
            if module not in PUBLIC_TO_APPLICATIONS or not public:
                problems.append(f"{where(path)}: {module}.{name}")
    assert not problems


# -- sizes and what never belongs into a file -------------------------------------------------------------------------


def test_files_and_functions_keep_their_size():
    problems = []
    for path in files(".", suffix=".py") + files(".", suffix=".rs"):
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > LINES_MAX:
            problems.append(f"{where(path)} has {length} lines, {LINES_MAX} are allowed")
        for node in ast.walk(tree_of(path)) if path.suffix == ".py" else ():
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    problems.append(f"{where(path)}: {node.name} has {length} lines, {FUNCTION_LINES_MAX} are allowed")
    assert not problems


def test_source_checks_with_invariants_and_never_with_assert():
    for path in files("src", "payments/src", "raft/python", suffix=".py"):
        lines = [node.lineno for node in ast.walk(tree_of(path)) if isinstance(node, ast.Assert)]
        assert not lines, f"{where(path)}: assert in lines {lines}; it vanishes under python -O"


def test_modules_say_what_they_are_for():
    for path in files(".", suffix=".py"):
        assert ast.get_docstring(tree_of(path)) or not path.read_text(encoding="utf-8").strip(), where(path)


def test_no_file_names_a_registry_or_a_path_of_one_machine():
    problems = []
    for path in tracked():
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        for number, line in enumerate(lines, start=1):
            foreign_crate = path.name == "Cargo.lock" and line.startswith("source =") and line != CARGO_SOURCE
            if MACHINE_PATHS.search(line) or REGISTRY_OPTIONS.search(line) or foreign_crate:
                problems.append(f"{where(path)}:{number}: {line.strip()[:80]}")
    assert not problems


# -- documents that stay true -----------------------------------------------------------------------------------------


@functools.cache
def known_tests() -> set[str]:
    """The name of every test, those in Rust included."""
    names = {
        node.name
        for path in files("tests", suffix=".py")
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }
    rust = "\n".join(path.read_text(encoding="utf-8") for path in files("raft", suffix=".rs"))
    return names | set(re.findall(r"#\[test\]\s+fn (\w+)\(", rust))


def test_every_test_of_a_rule_was_seen_to_fail():
    listed = set(re.findall(r"\btest_\w+", (ROOT / "tests/rules.md").read_text(encoding="utf-8")))
    of_rules = {name for name in known_tests() if re.match(r"test_R\d", name)}
    assert not of_rules - listed, "break the code once, see them fail, and put the row into tests/rules.md"
    assert not listed - known_tests(), "tests/rules.md lists tests that are not there"


def test_documents_name_tests_that_exist():
    cited = {
        (where(path), name)
        for path in files(".", suffix=".md")
        for name in re.findall(r"`(test_\w+)`", path.read_text(encoding="utf-8"))
    }
    assert not {(path, name) for path, name in cited if name not in known_tests()}


def test_rules_of_the_guarantees_are_complete_and_tested_where_they_are_kept():
    text = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8")
    status = {
        int(n): word for n, word in re.findall(r"^\| R(\d+) \|.*\| (kept|partly|later)\b[^|]*\|$", text, re.MULTILINE)
    }
    assert sorted(status) == list(range(1, 35))
    tested = {int(n) for name in known_tests() if name.startswith("test_R") for n in re.findall(r"_R(\d+)", name)}
    assert not {rule for rule, word in status.items() if word != "later" and rule not in tested}


def slugs(path: Path) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_of_documents_lead_somewhere():
    broken = []
    for path in files(".", suffix=".md"):
        text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            if re.match(r"[a-z]+:", link):
                continue
            name, _, anchor = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            if not target.exists() or (anchor and anchor not in slugs(target)):
                broken.append(f"{where(path)}: {link}")
    assert not broken


def test_configuration_page_names_every_setting_with_its_default():
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `(\w+\.\w+)` \| `([^`]*)` \|", text, re.MULTILINE))
    defaults = msgspec.to_builtins(Config())
    true = {
        f"{section}.{key}": msgspec.json.encode(value).decode()
        for section, values in defaults.items()
        for key, value in values.items()
    }
    assert shown == true


def test_configuration_page_shows_a_file_that_is_valid():
    text = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    (file,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert from_mapping(tomllib.loads(file)).node.name == "payment-1a"
