"""What the simulator's database promises as PostgreSQL does: a suite that both are run through.

::

    class TestModel(FenceConformance):              # the simulator's own
    class TestPostgres(FenceConformance):           # a real server, the real triggers, the real adapter

Whatever the simulator proves rests on its database behaving like the real one where the fence is concerned: who may
raise, who may write, what a server that took another's place takes, and what becomes of a write that holds the fence
while a raise comes. Each ``test_`` method is one promise.
"""

from __future__ import annotations

from typing import Protocol, cast

from tenure.core.holding import FenceRefused, FloorRead, Raised, RaiseMoved
from tenure.testing.expectations import expect, expect_equal
from tenure.types import GENERATION_SHIFT, Credential, ElectorIdentity

#: What a write is answered; refusals by their SQLSTATE.
WRITTEN, REPLAYED, KEY_REUSED = "written", "replayed", "key_reused"
STALE, NO_CREDENTIAL, SERVER_CHANGED = "TN001", "TN003", "TN004"
ENDED = "ended"

FIRST, SECOND = Credential(1, "a" * 32), Credential(2, "b" * 32)
CLUSTER = "11aa"
ME = ElectorIdentity(f"raft:{CLUSTER}", 0, "lineage-1")

Floor = FloorRead | FenceRefused
RaiseAnswer = Raised | RaiseMoved | FenceRefused


class OpenWrite(Protocol):
    """A transaction that has passed the check and is not committed."""

    def commit(self) -> str:
        """``written``, or ``ended`` if its session was ended meanwhile."""
        ...


class FencedDatabase(Protocol):
    """One database with a fence that nobody has raised, and a table of payments behind it."""

    def read(self, identity: ElectorIdentity, last_count: int) -> Floor:
        """As ``node/fencing.py`` answers."""
        ...

    def raise_token(self, credential: Credential, expected: object, identity: ElectorIdentity) -> RaiseAnswer:
        """As ``node/fencing.py`` answers; ``expected`` is what a floor named."""
        ...

    def write(self, credential: Credential | None, key: str, payment: int) -> str:
        """Make a payment under a key, and commit; one of the words above."""
        ...

    def begin_write(self, credential: Credential, key: str, payment: int) -> OpenWrite:
        """The same, not committed yet."""
        ...

    def keys(self) -> set[str]:
        """The keys of all payments that are committed."""
        ...

    def restart(self) -> None:
        """Start the server again."""
        ...

    def rebase(self) -> None:
        """``tenure fence rebase``."""
        ...

    def copy(self) -> None:
        """Keep a copy of the server's files as they are now; the server may start again for it."""
        ...

    def put_back(self, *, promoted: bool) -> None:
        """Start the copy in the server's place, as it is, or as a standby that is promoted to a new timeline."""
        ...


class FenceConformance:
    """Each ``test_`` method is one promise."""

    def open_database(self) -> FencedDatabase:
        """A new one."""
        raise NotImplementedError

    # -- who may raise ------------------------------------------------------------------------------------------------

    def test_floor_of_a_new_fence_is_zero(self) -> None:
        """And whoever comes first may raise it."""
        database = self.open_database()
        expect_equal(_floor(database).token, 0, "nobody has raised it")
        expect_equal(_raise(database, FIRST), Raised(), "the first raise is granted")
        expect_equal(_floor(database, last_count=1).token, 1, "the floor is what was raised")

    def test_raise_of_mine_is_granted_again(self) -> None:
        """So that a member may ask again after an unknown outcome."""
        database = self.open_database()
        expected = _floor(database).expected
        expect_equal(database.raise_token(FIRST, expected, ME), Raised(), "the first is granted")
        expect_equal(database.raise_token(FIRST, expected, ME), Raised(), "and the same again")

    def test_raise_is_refused_to_the_winner_that_comes_after_a_later_one(self) -> None:
        """R15: two winners raise in the wrong order, and the later holding keeps the fence."""
        database = self.open_database()
        expected = _floor(database).expected
        expect_equal(database.raise_token(SECOND, expected, ME), Raised(), "the later winner comes first")
        answer = database.raise_token(FIRST, expected, ME)
        expect(isinstance(answer, FenceRefused), f"the earlier winner is refused, and not answered {answer}")
        expect_equal(database.write(SECOND, "k", 1), WRITTEN, "the later winner writes")
        expect_equal(database.write(FIRST, "l", 2), STALE, "the earlier one does not")

    def test_raise_is_refused_when_the_fence_moved_since_it_was_read(self) -> None:
        """R20: a winner that slept after its reading must read and prove again."""
        database = self.open_database()
        expected = _floor(database).expected
        _raise(database, FIRST)
        answer = database.raise_token(SECOND, expected, ME)
        expect(isinstance(answer, RaiseMoved), f"it has moved, and the answer is {answer}")
        expect_equal(_raise(database, SECOND, last_count=1), Raised(), "read again it is granted")

    def test_raise_is_refused_to_a_token_that_is_not_greater(self) -> None:
        """Also with another nonce: one token is never two holdings."""
        database = self.open_database()
        _raise(database, FIRST)
        answer = database.raise_token(Credential(1, "c" * 32), _floor(database, last_count=1).expected, ME)
        expect(isinstance(answer, FenceRefused), f"an equal token is refused, and not answered {answer}")

    def test_raise_is_refused_to_another_elector_lineage_and_lower_generation(self) -> None:
        """R16, R17; a higher generation is granted, and the lower one is out for good."""
        database = self.open_database()
        _raise(database, FIRST)
        for stranger in (
            ElectorIdentity("raft:22bb", 0, "lineage-1"),
            ElectorIdentity(ME.elector_id, 0, "lineage-2"),
        ):
            expect(isinstance(database.read(stranger, 9), FenceRefused), f"{stranger} may not lead on it")
        recovered = ElectorIdentity(ME.elector_id, 1, "lineage-3")
        floor = database.read(recovered, 0)
        expect(isinstance(floor, FloorRead), f"the recovered cluster may: {floor}")
        if isinstance(floor, FloorRead):
            token = Credential((1 << GENERATION_SHIFT) + 1, "d" * 32)
            expect_equal(database.raise_token(token, floor.expected, recovered), Raised(), "and it raises")
        expect(isinstance(database.read(ME, 9), FenceRefused), "the cluster before it is refused for good")

    def test_count_above_the_own_is_suspected(self) -> None:
        """R16: a copy of this cluster may have minted it."""
        database = self.open_database()
        _raise(database, SECOND)
        answer = database.read(ME, 1)
        suspected = answer.suspected_count if isinstance(answer, FenceRefused) else None
        expect_equal(suspected, 2, "the count of the fence is told")

    # -- who may write ------------------------------------------------------------------------------------------------

    def test_write_needs_token_and_nonce_of_the_last_raise(self) -> None:
        """G3, R18: an older token, and the same token with another nonce, write nothing."""
        database = self.open_database()
        _raise(database, FIRST)
        expect_equal(database.write(FIRST, "a", 1), WRITTEN, "the holder writes")
        expect_equal(database.write(Credential(1, "e" * 32), "b", 2), STALE, "another nonce does not")
        _raise(database, SECOND, last_count=1)
        expect_equal(database.write(FIRST, "c", 3), STALE, "the older holding does not any more")
        expect_equal(database.write(SECOND, "d", 4), WRITTEN, "the newer one does")
        expect_equal(database.keys(), {"a", "d"}, "what was refused left nothing")

    def test_key_is_written_once_and_tells_its_payment(self) -> None:
        """R28: the same payment again is a replay, another one under the key is refused."""
        database = self.open_database()
        _raise(database, FIRST)
        expect_equal(database.write(FIRST, "a", 1), WRITTEN, "the first time")
        expect_equal(database.write(FIRST, "a", 1), REPLAYED, "the second time")
        expect_equal(database.write(FIRST, "a", 2), KEY_REUSED, "another payment")
        _raise(database, SECOND, last_count=1)
        expect_equal(database.write(SECOND, "a", 1), REPLAYED, "and the next leader answers the same")

    def test_open_write_is_ended_by_a_raise_and_leaves_nothing(self) -> None:
        """R20: who holds the fence still cannot keep a raise out, and is never committed after it."""
        database = self.open_database()
        _raise(database, FIRST)
        held = database.begin_write(FIRST, "a", 1)
        expect_equal(_raise(database, SECOND, last_count=1), Raised(), "the raise is granted all the same")
        expect_equal(held.commit(), ENDED, "the write's session was ended")
        expect_equal(database.keys(), set(), "and it left nothing")

    def test_open_write_is_committed_when_nothing_comes_between(self) -> None:
        """Who holds the fence still may commit."""
        database = self.open_database()
        _raise(database, FIRST)
        expect_equal(database.begin_write(FIRST, "a", 1).commit(), WRITTEN, "it is committed")
        expect_equal(database.keys(), {"a"}, "and it is there")

    def test_open_write_is_left_alone_by_a_raise_that_is_refused(self) -> None:
        """A raise that cannot succeed ends nobody's session."""
        database = self.open_database()
        expected = _floor(database).expected
        _raise(database, SECOND)
        held = database.begin_write(SECOND, "a", 1)
        answer = database.raise_token(FIRST, expected, ME)
        expect(isinstance(answer, FenceRefused), f"a lower token is refused, and not answered {answer}")
        expect_equal(held.commit(), WRITTEN, "the holder of the fence does not notice")

    def test_open_write_is_ended_by_a_rebase_and_leaves_nothing(self) -> None:
        """R17: nobody who was checked before it is committed after it."""
        database = self.open_database()
        _raise(database, FIRST)
        held = database.begin_write(FIRST, "a", 1)
        database.rebase()
        expect_equal(held.commit(), ENDED, "the write's session was ended")
        expect_equal(database.keys(), set(), "and it left nothing")

    def test_open_write_is_ended_when_the_server_starts_anew(self) -> None:
        """What was not committed is gone."""
        database = self.open_database()
        _raise(database, FIRST)
        held = database.begin_write(FIRST, "a", 1)
        database.restart()
        expect_equal(held.commit(), ENDED, "the write's session is gone")
        expect_equal(database.keys(), set(), "and it left nothing")

    def test_write_without_a_credential_is_refused_and_another_server_is_told_first(self) -> None:
        """The order of the answers: another server, no credential, another credential."""
        database = self.open_database()
        _raise(database, FIRST)
        expect_equal(database.write(None, "a", 1), NO_CREDENTIAL, "it carries none")
        database.restart()
        expect_equal(database.write(None, "a", 1), SERVER_CHANGED, "the server is told before that")
        expect_equal(database.write(SECOND, "a", 1), SERVER_CHANGED, "and before another credential")
        expect_equal(database.keys(), set(), "nothing was written")

    # -- another server -----------------------------------------------------------------------------------------------

    def test_server_that_started_anew_takes_no_write_until_a_greater_token_is_raised(self) -> None:
        """R23: who held the fence before must win a new token first."""
        database = self.open_database()
        _raise(database, FIRST)
        database.restart()
        expect_equal(database.write(FIRST, "a", 1), SERVER_CHANGED, "the old credential is refused")
        answer = _raise(database, FIRST, last_count=1)
        expect(isinstance(answer, FenceRefused), f"the old token is not raised again, and not answered {answer}")
        expect_equal(_raise(database, SECOND, last_count=1), Raised(), "a greater one is")
        expect_equal(database.write(SECOND, "b", 2), WRITTEN, "and its holder writes")

    def test_older_copy_takes_no_write_until_a_greater_token_is_raised(self) -> None:
        """R23: neither of the holder whose raise is lost, nor of the one whose token the copy holds."""
        _go_back(self.open_database(), promoted=False)

    def test_promoted_standby_takes_no_write_until_a_greater_token_is_raised(self) -> None:
        """R23: the same on another timeline."""
        _go_back(self.open_database(), promoted=True)

    def test_raise_is_refused_when_an_older_copy_has_the_version_that_was_read(self) -> None:
        """R20: the version alone does not tell; the server does."""
        database = self.open_database()
        _raise(database, FIRST)
        database.copy()
        expected = _floor(database, last_count=1).expected
        database.put_back(promoted=False)
        answer = database.raise_token(SECOND, expected, ME)
        expect(isinstance(answer, RaiseMoved), f"the server has changed, and the answer is {answer}")

    def test_rebase_refuses_everybody_until_a_greater_token_is_raised(self) -> None:
        """R17: the token stays, its holder is out, and another elector may come."""
        database = self.open_database()
        _raise(database, FIRST)
        database.rebase()
        expect_equal(database.write(FIRST, "a", 1), STALE, "nobody writes")
        stranger = ElectorIdentity("raft:22bb", 0, "lineage-9")
        floor = database.read(stranger, 0)
        expect_equal(floor.token if isinstance(floor, FloorRead) else floor, 1, "the floor is what it was")
        if isinstance(floor, FloorRead):
            expect_equal(database.raise_token(SECOND, floor.expected, stranger), Raised(), "another elector raises")
        expect_equal(database.write(SECOND, "b", 2), WRITTEN, "and its holder writes")


def _go_back(database: FencedDatabase, *, promoted: bool) -> None:
    """To a copy from before the second holding's raise."""
    _raise(database, FIRST)
    expect_equal(database.write(FIRST, "a", 1), WRITTEN, "written before the copy")
    database.copy()
    # The copy may have cost a start of the server: the second holding raises on whichever runs now.
    expect_equal(_raise(database, SECOND, last_count=1), Raised(), "the second holding raises")
    expect_equal(database.write(SECOND, "b", 2), WRITTEN, "written after the copy")
    database.put_back(promoted=promoted)
    expect_equal(database.keys(), {"a"}, "what came after the copy is lost")
    expect_equal(_floor(database, last_count=2).token, 1, "the raise is, too")
    expect_equal(database.write(SECOND, "c", 3), SERVER_CHANGED, "the last holder is refused")
    expect_equal(database.write(FIRST, "d", 4), SERVER_CHANGED, "and so is the one that the copy knows")
    answer = _raise(database, FIRST, last_count=2)
    expect(isinstance(answer, FenceRefused), f"its token is not raised again, and not answered {answer}")
    third = Credential(3, "f" * 32)
    expect_equal(_raise(database, third, last_count=3), Raised(), "a greater one is")
    expect_equal(database.write(third, "b", 2), WRITTEN, "and its holder writes what was lost")


def _floor(database: FencedDatabase, *, last_count: int = 0) -> FloorRead:
    answer = database.read(ME, last_count)
    expect(isinstance(answer, FloorRead), f"the fence can be read by its own elector: {answer}")
    return cast("FloorRead", answer)


def _raise(database: FencedDatabase, credential: Credential, *, last_count: int = 0) -> RaiseAnswer:
    return database.raise_token(credential, _floor(database, last_count=last_count).expected, ME)
