"""Who reaches the database, and to whom a leader that has lost it hands over."""

from __future__ import annotations

from tenure.core.database import DatabaseSights
from tenure.instants import Reading

SECOND = 1_000_000_000
VOTERS = (1, 2, 3)


def at(seconds: float) -> Reading:
    return Reading(int(seconds * SECOND), int(seconds * SECOND))


def sights() -> DatabaseSights:
    seen = DatabaseSights(timeout_ns=3 * SECOND, started=at(0))
    seen.unanswered(at(0))
    return seen


def hears(seen: DatabaseSights, peer: int, *, of: float, now: float) -> None:
    """``peer`` says at ``now`` that it had its last answer at ``of``."""
    seen.heard(peer, silent_ns=int((now - of) * SECOND), now=at(now))


def test_leader_hands_over_when_it_alone_has_lost_the_database():
    seen = sights()
    seen.answered(at(1))
    seen.unanswered(at(1.7))
    hears(seen, 2, of=1.2, now=3.8)
    hears(seen, 3, of=3.7, now=3.8)
    assert seen.heir(VOTERS, at(3.9)) is None
    assert seen.heir(VOTERS, at(4)) == 3


def test_leader_keeps_the_office_when_all_have_lost_the_database():
    """A hand-over would mend nothing, and would go round and round; who had the last answer is chance."""
    seen = sights()
    assert seen.heir(VOTERS, at(10)) is None
    seen.answered(at(10))
    seen.unanswered(at(10.7))
    hears(seen, 2, of=11.4, now=12.9)
    hears(seen, 3, of=10.3, now=12.9)
    assert seen.heir(VOTERS, at(13)) is None


def test_report_is_worth_nothing_when_it_is_old_or_of_no_voter():
    seen = sights()
    hears(seen, 2, of=2, now=2)
    assert seen.heir(VOTERS, at(3.5)) == 2
    assert seen.heir(VOTERS, at(5)) is None
    hears(seen, 4, of=5, now=5)
    assert seen.heir(VOTERS, at(6)) is None


def test_latest_answer_wins_when_there_are_several():
    seen = sights()
    hears(seen, 3, of=4, now=5)
    hears(seen, 2, of=4.5, now=4.6)
    assert seen.heir(VOTERS, at(6)) == 2


def test_own_answer_ends_it_when_it_comes():
    seen = sights()
    hears(seen, 2, of=5, now=5)
    assert seen.heir(VOTERS, at(6)) == 2
    seen.answered(at(5.9))
    assert seen.silent_ns(at(6)) == SECOND // 10
    assert seen.heir(VOTERS, at(6)) is None


def test_restarted_member_says_nothing_until_the_database_has_answered_it():
    """With a fresh clock it would seem to have had an answer later than everybody else, and be handed an office."""
    seen = DatabaseSights(timeout_ns=3 * SECOND, started=at(2))
    assert seen.told_ns(at(2.5)) is None
    assert seen.silent_ns(at(2.5)) == SECOND // 2
    seen.answered(at(3))
    assert seen.told_ns(at(3.5)) == SECOND // 2


def test_leader_keeps_the_office_when_the_database_is_slow_for_all():
    """Every question takes 1.9 s, for whoever puts it: the next leader would have to hand over as well, and so on."""
    seen = sights()
    seen.answered(at(0))
    seen.unanswered(at(2.65))
    hears(seen, 2, of=1.5, now=3.4)
    assert seen.heir(VOTERS, at(4.15)) is None
    seen.answered(at(2.65))
    seen.unanswered(None)
    assert seen.heir(VOTERS, at(5.7)) is None
