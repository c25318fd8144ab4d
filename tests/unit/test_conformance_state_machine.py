"""The state machines of the examples and the tests keep the promises, and the suite catches those that do not."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from support.replicas import Numbers
from tenure.testing import StateMachineConformance

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from replicated_dictionary import Dictionary


def command(*words: str) -> bytes:
    return json.dumps(words).encode()


class TestDictionary(StateMachineConformance):
    make = Dictionary

    def commands(self) -> Sequence[bytes]:
        return [command("set", "a", "1"), command("set", "b", "2"), command("del", "a"), command("set", "b", "3")]


class TestNumbers(StateMachineConformance):
    make = Numbers

    def commands(self) -> Sequence[bytes]:
        return [b"%d" % number for number in range(20)]


# -- the suite is not blind -------------------------------------------------------------------------------------------


class Lines:
    """A list of lines that is right; each of the others breaks one thing."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        self.lines.append(data)
        return len(self.lines)

    def snapshot(self) -> Iterable[bytes]:
        return [line + b"\n" for line in self.lines]

    def restore(self, chunks: Iterable[bytes]) -> None:
        self.lines = b"".join(chunks).splitlines()


class CountsItsSiblings(Lines):
    """The result depends on something outside the log."""

    applied = 0

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        super().apply(data, index=index, term=term)
        CountsItsSiblings.applied += 1
        return CountsItsSiblings.applied


class WritesItsAddress(Lines):
    """The state depends on something outside the log."""

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        return super().apply(b"%s %d" % (data, id(self)), index=index, term=term)


class WantsPositions(Lines):
    def apply(self, data: bytes, index: int, time: int) -> Any:  # type: ignore[override]
        return super().apply(data, index=index, term=time)


class SnapshotsText(Lines):
    def snapshot(self) -> Iterable[Any]:
        return [line.decode() + "\n" for line in self.lines]

    def restore(self, chunks: Iterable[Any]) -> None:
        self.lines = "".join(chunks).encode().splitlines()


class SnapshotForgets(Lines):
    """A snapshot that empties what it read."""

    def snapshot(self) -> Iterable[bytes]:
        pieces = list(super().snapshot())
        self.lines = self.lines[:-1]
        return pieces


class SnapshotIsLive(Lines):
    """A generator over the list that goes on growing."""

    def snapshot(self) -> Iterable[bytes]:
        return (line + b"\n" for line in self.lines)


class SnapshotIsLate(Lines):
    """A generator function: it looks at the list when it is read for the first time."""

    def snapshot(self) -> Iterable[bytes]:
        yield b"".join(line + b"\n" for line in self.lines)


class UnreadSnapshotBlocks(Lines):
    """While a snapshot is open nothing is applied."""

    open = False

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        return None if self.open else super().apply(data, index=index, term=term)

    def snapshot(self) -> Iterable[bytes]:
        self.open = True
        return self._pieces(list(super().snapshot()))

    def _pieces(self, pieces: list[bytes]) -> Iterable[bytes]:
        yield from pieces
        self.open = False


class LosesTheLast(Lines):
    def restore(self, chunks: Iterable[bytes]) -> None:
        super().restore(chunks)
        self.lines = self.lines[:-1]


class ForgetsTheCount(Lines):
    """The state comes back, what the results are made of does not."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def apply(self, data: bytes, *, index: int, term: int) -> Any:
        super().apply(data, index=index, term=term)
        self.count += 1
        return self.count


class RestoresOnTop(Lines):
    def restore(self, chunks: Iterable[bytes]) -> None:
        self.lines += b"".join(chunks).splitlines()


class TakesChunksForLines(Lines):
    def restore(self, chunks: Iterable[bytes]) -> None:
        self.lines = [chunk.rstrip(b"\n") for chunk in chunks]


class ReadsTwice(Lines):
    """Counts the chunks before it reads them; they can be read once."""

    def restore(self, chunks: Iterable[bytes]) -> None:
        if sum(1 for _ in chunks):
            super().restore(chunks)


SUITE = sorted(name for name in dir(StateMachineConformance) if name.startswith("test_"))
AGREE = "test_machines_agree_when_they_apply_the_same_commands"
BY_NAME = "test_apply_takes_index_and_term_by_name"
OF_BYTES = "test_snapshot_consists_of_bytes"
CHANGES_NOTHING = "test_snapshot_changes_nothing_when_it_is_taken"
OF_ITS_MOMENT = "test_snapshot_is_of_the_moment_of_the_call_when_it_is_read_later"
UNREAD = "test_snapshot_that_is_never_read_changes_nothing"
GOES_ON = "test_restored_machine_goes_on_like_the_one_of_the_snapshot"
REPLACES = "test_restore_replaces_everything_that_was_there"
ANY_SIZE = "test_restore_does_not_depend_on_the_sizes_of_the_chunks"


def run_suite(machine: type[Any], commands: Sequence[bytes] = (b"a", b"b", b"c", b"d")) -> dict[str, str]:
    """The promises that the suite finds broken, each with what it says."""

    class Suite(StateMachineConformance):
        make = machine

        def commands(self) -> Sequence[bytes]:
            return commands

        def digest(self, machine: Any) -> object:
            return list(machine.lines)

    found = {}
    for name in SUITE:
        try:
            getattr(Suite(), name)()
        except Exception as error:  # noqa: BLE001 - a broken machine may break in any way; most say which promise.
            found[name] = f"{type(error).__name__}: {error}"
    return found


def test_suite_finds_nothing_when_the_machine_is_right():
    assert run_suite(Lines) == {}


@pytest.mark.parametrize(
    ("machine", "promise", "says"),
    [
        (CountsItsSiblings, AGREE, "has one result"),
        (WritesItsAddress, AGREE, "leads to one state"),
        (WantsPositions, BY_NAME, "index= and term="),
        (SnapshotsText, OF_BYTES, "bytes objects"),
        (SnapshotForgets, CHANGES_NOTHING, "changes no later result"),
        (SnapshotIsLive, OF_ITS_MOMENT, "is not in the snapshot"),
        (SnapshotIsLate, OF_ITS_MOMENT, "is not in the snapshot"),
        (UnreadSnapshotBlocks, UNREAD, "nobody reads"),
        (LosesTheLast, GOES_ON, "gives the state"),
        (ForgetsTheCount, GOES_ON, "the same later results"),
        (RestoresOnTop, REPLACES, "leaves nothing older"),
        (TakesChunksForLines, ANY_SIZE, "chunks of 1 bytes"),
        (ReadsTwice, GOES_ON, "gives the state"),
    ],
    ids=lambda value: value.__name__ if isinstance(value, type) else "is",
)
def test_suite_catches_a_machine_when_it_breaks_one_promise(machine: type[Any], promise: str, says: str):
    CountsItsSiblings.applied = 0
    found = run_suite(machine)
    assert found[promise].startswith("AssertionError: ")
    assert says in found[promise]


def test_suite_says_so_when_its_commands_show_nothing():
    assert "two commands" in run_suite(Lines, [b"a"])[AGREE]

    class Idle(Lines):
        def apply(self, data: bytes, *, index: int, term: int) -> Any:
            return None

    assert "change the state" in run_suite(Idle)[AGREE]
