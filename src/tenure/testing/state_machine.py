"""The promises of :class:`tenure.raft.StateMachine`, as a suite that any state machine can be run through.

What it cannot see: a state machine that differs from process to process (the order of a set of strings, a clock, a
random number, the environment) may still agree with itself in one process.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tenure.core.state_machine import StateMachine
from tenure.testing.expectations import expect, expect_equal

_PIECES_MAX = 100_000


class StateMachineConformance:
    """Each ``test_`` method is one promise. Results and digests are compared by ``==``."""

    # -- what a subclass says about its state machine ----------------------------------------------------------------

    def make(self) -> StateMachine:
        """A new, empty state machine; the same at every call."""
        raise NotImplementedError

    def commands(self) -> Sequence[bytes]:
        """Commands that leave traces in the state: at least two, of every kind that there is."""
        raise NotImplementedError

    def digest(self, machine: StateMachine) -> object:
        """What two machines of the same state have in common; override it if the order of a snapshot may differ."""
        return b"".join(machine.snapshot())

    # -- the same commands, the same state ---------------------------------------------------------------------------

    def test_machines_agree_when_they_apply_the_same_commands(self) -> None:
        """The same results and the same state, step by step: that makes them replicas."""
        one, other = self.make(), self.make()
        digests = [self.digest(one)]
        expect_equal(self.digest(other), digests[0], "two new machines are in the same state")
        for number, data in enumerate(self._commands()):
            expect_equal(_apply(other, number, data), _apply(one, number, data), f"command {number} has one result")
            digests.append(self.digest(one))
            expect_equal(self.digest(other), digests[-1], f"command {number} leads to one state")
        expect(any(digest != digests[0] for digest in digests), "the commands of the suite change the state")

    def test_apply_takes_index_and_term_by_name(self) -> None:
        """Where the entry stands in the log comes with every command; indices and terms rise, with gaps."""
        machine = self.make()
        for number, data in enumerate(self._commands()):
            try:
                _apply(machine, number, data)
            except TypeError as error:
                raise AssertionError(f"apply takes the command, index= and term=: {error}") from error

    # -- snapshots ---------------------------------------------------------------------------------------------------

    def test_snapshot_consists_of_bytes(self) -> None:
        """Pieces of any size, none included."""
        for _, machine in self._cuts():
            pieces = list(machine.snapshot())
            expect(all(isinstance(piece, bytes) for piece in pieces), "a snapshot consists of bytes objects")

    def test_snapshot_changes_nothing_when_it_is_taken(self) -> None:
        """A member that takes one stays a replica of those that do not."""
        one, other = self.make(), self.make()
        for number, data in enumerate(self._commands()):
            list(one.snapshot())
            expect_equal(_apply(one, number, data), _apply(other, number, data), "a snapshot changes no later result")
        expect_equal(self.digest(one), self.digest(other), "a snapshot leaves the state as it is")

    def test_snapshot_is_of_the_moment_of_the_call_when_it_is_read_later(self) -> None:
        """It is read on another thread, while more commands are applied."""
        for read_before in (0, 1):
            for cut, machine in self._cuts():
                promised, chunks = self.digest(machine), machine.snapshot()
                with ThreadPoolExecutor(1) as thread:
                    pieces = thread.submit(iter, chunks).result()
                    first = thread.submit(list, itertools.islice(pieces, read_before)).result()
                    self._apply_from(machine, cut)
                    rest = thread.submit(list, pieces).result()
                restored = self.make()
                restored.restore(iter(first + rest))
                what = f"what was applied behind command {cut} is not in the snapshot"
                expect_equal(self.digest(restored), promised, what)

    def test_snapshot_that_is_never_read_changes_nothing(self) -> None:
        """A member that fails to write it goes on."""
        for cut, machine in self._cuts():
            unread = machine.snapshot()
            promised = self.make()
            self._apply_from(promised, 0)
            self._apply_from(machine, cut)
            del unread
            expect_equal(self.digest(machine), self.digest(promised), "a snapshot that nobody reads changes nothing")

    # -- restoring ---------------------------------------------------------------------------------------------------

    def test_restored_machine_goes_on_like_the_one_of_the_snapshot(self) -> None:
        """The same state, and the same results of all that follows."""
        for cut, machine in self._cuts():
            restored = self.make()
            restored.restore(iter(list(machine.snapshot())))
            expect_equal(self.digest(restored), self.digest(machine), f"a restore behind command {cut} gives the state")
            promised = self._apply_from(machine, cut)
            expect_equal(self._apply_from(restored, cut), promised, "a restored machine gives the same later results")
            expect_equal(self.digest(restored), self.digest(machine), "a restored machine comes to the same state")

    def test_restore_replaces_everything_that_was_there(self) -> None:
        """A member that lagged behind, or was ahead of what the cluster was set back to, keeps nothing of its own."""
        for cut, machine in self._cuts():
            used = self.make()
            self._apply_from(used, 0)
            used.restore(iter(list(machine.snapshot())))
            expect_equal(self.digest(used), self.digest(machine), f"a restore to command {cut} leaves nothing older")
            promised = self._apply_from(machine, cut)
            expect_equal(self._apply_from(used, cut), promised, "what was there before changes no later result")

    def test_restore_does_not_depend_on_the_sizes_of_the_chunks(self) -> None:
        """They are cut anew on their way; none is empty, and of an empty snapshot there is none."""
        for cut, machine in self._cuts():
            content, promised = b"".join(machine.snapshot()), self.digest(machine)
            for size in (1, 7, 1 << 20):
                if len(content) // size > _PIECES_MAX:
                    continue
                restored = self.make()
                restored.restore(_cut(content, size))
                expect_equal(
                    self.digest(restored), promised, f"chunks of {size} bytes give the state behind command {cut}"
                )

    # -- inside ------------------------------------------------------------------------------------------------------

    def _commands(self) -> list[bytes]:
        commands = list(self.commands())
        expect(len(commands) >= 2, "the suite needs two commands at least")
        return commands

    def _cuts(self) -> Iterator[tuple[int, StateMachine]]:
        """Machines that have applied none, one, half and all of the commands, each with their number."""
        commands = self._commands()
        for cut in sorted({0, 1, len(commands) // 2, len(commands)}):
            machine = self.make()
            for number, data in enumerate(commands[:cut]):
                _apply(machine, number, data)
            yield cut, machine

    def _apply_from(self, machine: StateMachine, first: int) -> list[Any]:
        return [_apply(machine, number, data) for number, data in list(enumerate(self._commands()))[first:]]


def _apply(machine: StateMachine, number: int, data: bytes) -> Any:
    """The cluster's own entries lie between those of a user."""
    return machine.apply(data, index=3 + 2 * number, term=1 + number // 3)


def _cut(content: bytes, size: int) -> Iterable[bytes]:
    return (content[start : start + size] for start in range(0, len(content), size))
