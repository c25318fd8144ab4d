"""R16 and R7: the two sides of a recovery, and old copies, do not take each other for members."""

from __future__ import annotations

from pathlib import Path

from support.recovered_directories import (
    MEMBERS,
    RECORD,
    hello,
)
from tenure.core.fsm import Enrolment, Membership
from tenure.core.roster import Roster
from tenure.storage import DataDirectory


def recovered_membership(lineage: str = "f" * 16) -> Membership:
    return Membership(index=50, members=MEMBERS[1:2], voters=(2,), generation=1, lineage=lineage)


def test_R16_the_two_sides_of_a_recovery_refuse_each_others_frames():
    """Each of them, with what to do; the founders know each other's directories and would have let them in."""
    old = Roster(Enrolment(record=RECORD, raft_id=1))
    new = Roster(Enrolment(record=RECORD, raft_id=2, membership=recovered_membership()))
    own, other = hello("a"), hello("b", lineage="f" * 16)
    for problem in (old.admit(own, other), new.admit(other, own)):
        assert problem is not None
        assert "follows lineage" in problem
        assert "tenure member add" in problem


def test_R16_members_of_another_lineage_are_not_heard_of():
    """What a recovered member tells of its cluster is none of the old one's business, however high its index."""
    old = Roster(Enrolment(record=RECORD, raft_id=1))
    assert not old.hear(recovered_membership())
    assert old.hear(recovered_membership(lineage=RECORD.lineage))


def test_R7_old_copy_is_known_by_the_opening_that_it_lacks():
    """However often it was opened, less often than the original too; a member that was away for long is let in."""
    roster = Roster(Enrolment(record=RECORD, raft_id=1), seen={"b" * 32: (5, 55)})
    own = hello("a")
    copy = tuple((count, 100 + count) for count in range(1, 10))
    for starts in (3, 5, 6, 9):
        problem = roster.admit(own, hello("b", starts=starts, incarnation=100 + starts, openings=copy[:starts]))
        assert problem is not None
        assert "old copy" in problem
        assert "tenure member replace b" in problem
    true = ((4, 44), (5, 55), (6, 66), (9, 99))
    assert roster.admit(own, hello("b", starts=9, incarnation=99, openings=true)) is None


def test_R7_directory_keeps_its_last_openings(tmp_path: Path):
    """Each with the count that it had, the newest last, and no more than are told."""
    for number in range(1, 70):
        directory = DataDirectory.open(tmp_path / "d", node_name="a", cluster_name="c")
        openings = directory.note_opening(1000 + number)
        directory.close()
    assert openings == tuple((number, 1000 + number) for number in range(6, 70))
