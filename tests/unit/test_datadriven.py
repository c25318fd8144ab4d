"""The scripts of tests/datadriven show what they record; REWRITE=1 records what they show."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

import pytest

from datadriven.script import ScriptError, parse, run
from datadriven.verbs import VERBS, call
from datadriven.verbs.look import OF_A_MEMBER, OF_THE_CLUSTER
from datadriven.world import World

FOLDER = Path(__file__).parents[1] / "datadriven"
PAGE = Path(__file__).parents[2] / "docs/internals/datadriven.md"
SCRIPTS = sorted(FOLDER.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_shows_what_it_records(path: Path):
    """Compared line by line; with REWRITE=1 the file is written instead, and its diff is reviewed."""
    recorded, shown = path.read_text(encoding="utf-8"), run(path)
    if os.environ.get("REWRITE") == "1":
        if shown != recorded:
            path.write_text(shown, encoding="utf-8")
        return
    diff = "\n".join(difflib.unified_diff(recorded.splitlines(), shown.splitlines(), "recorded", "shown", lineterm=""))
    assert shown == recorded, f"REWRITE=1 pytest tests/unit/test_datadriven.py records this:\n{diff}"


def test_every_script_says_what_it_is_about_and_demands_something():
    """A comment with a rule at the top, and an expect, without which rewriting would bless anything."""
    for path in SCRIPTS:
        first, *rest = parse(path)
        assert re.search(r"\bR\d+\b", "\n".join(first.comments)), f"{path.name} names no rule"
        demands = [command for command in [first, *rest] if re.search(r"^expect |\bmust=", command.text)]
        assert demands, f"{path.name} demands nothing"


def test_same_script_shows_the_same_when_it_runs_twice():
    """Everything random comes from the seed."""
    path = FOLDER / "leader_isolated.txt"
    assert run(path) == run(path)


def test_typo_is_answered_with_examples_of_what_may_have_been_meant():
    with pytest.raises(ValueError, match="there is no verb 'isolat'") as caught:
        call(World(), "isolat old")
    assert "isolate old" in str(caught.value)
    with pytest.raises(ValueError, match="there is no verb 'xyzzy'") as caught:
        call(World(), "xyzzy")
    assert all(verb.example in str(caught.value) for verb in VERBS.values())


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("advance soon", "no number of milliseconds"),
        ("advance", "a word is missing"),
        ("isolate nobody", "'nobody' is no member"),
        ("cut 1", "write it as a->b"),
        ("heal 1", "heal does not take 1"),
        ("expect weather=fair", "conditions are leader"),
        ("status color=red", "status does not take color=red"),
    ],
)
def test_wrong_argument_is_answered_with_the_example_of_its_verb(command: str, problem: str):
    world = World()
    call(world, "cluster 3")
    with pytest.raises(ValueError, match=problem) as caught:
        call(world, command)
    assert VERBS[command.split(maxsplit=1)[0]].example in str(caught.value)


def test_verb_before_the_cluster_is_answered_with_how_to_begin():
    with pytest.raises(ValueError, match="begin with `cluster 3`"):
        call(World(), "status")


@pytest.mark.parametrize("command", ["expect leader=1", "advance 100 until=leader:1"])
def test_expectation_that_fails_is_an_error_when_rewriting_too(tmp_path: Path, command: str):
    """Otherwise a run would write down its own failure as what is wanted."""
    script = tmp_path / "script.txt"
    script.write_text(f"cluster 3\n----\n\n{command}\n----\nok\n")
    with pytest.raises(ScriptError, match=r"script\.txt:4: "):
        run(script)


def test_script_is_read_and_written_back_as_it_is(tmp_path: Path):
    script = tmp_path / "script.txt"
    text = "# Why.\n\n# More.\ncluster 3\n----\n3 members, nobody leads\n\nheal\n----\nok\n"
    script.write_text(text)
    assert run(script) == text
    script.write_text("cluster 3\n----\n\n# Of what?\n")
    with pytest.raises(ScriptError, match="stand above no command"):
        run(script)


def test_page_lists_every_verb_and_condition():
    """The table of docs/internals/datadriven.md is the table of the code."""
    text = PAGE.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `([^`]+)` \| (.+) \|$", text, re.MULTILINE))
    assert {example: listed.get(example) for example in (verb.example for verb in VERBS.values())} == {
        verb.example: verb.summary for verb in VERBS.values()
    }
    assert set(re.findall(r"`(\w+)=", text.partition("## Conditions")[2])) >= {*OF_THE_CLUSTER, *OF_A_MEMBER}
