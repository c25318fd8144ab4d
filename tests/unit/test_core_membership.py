"""What a change of the members may be: judged on what the leader has applied and what its engine knows. Pure."""

from __future__ import annotations

import pytest

import tenure
from tenure.core.commands import MemberRecord, Settings, decode_members
from tenure.core.fsm import ClusterState
from tenure.core.membership import CAUGHT_UP_ENTRIES, Add, Change, Demote, Promote, Remove, Standing, even_warning, plan

SETTINGS = Settings(
    heartbeat_interval_ms=100, election_timeout_ms=1000, lease_duration_ms=1000, clock_rate_error_ppm=10_000
)


def record(raft_id: int, name: str) -> MemberRecord:
    return MemberRecord(raft_id=raft_id, name=name, directory_id=f"d-{name}", address="", url="")


STATE = ClusterState(
    settings=SETTINGS,
    lineage="l",
    members=(record(1, "a"), record(2, "b"), record(3, "c"), record(4, "d")),
    last_raft_id=7,
)


def standing(*, acknowledged: int = 5000, commit: int = 5000, active: bool = True) -> Standing:
    """Three voters and the learner d, of which this leader knows that much."""
    return Standing(
        [1, 2, 3], [4], commit, [(1, commit, commit + 1, True), (4, acknowledged, acknowledged + 1, active)]
    )


def test_learner_is_promoted_when_it_lacks_no_more_than_it_gets_in_a_moment():
    """The bound itself is allowed; one entry more is not, and the refusal says how many are missing."""
    steps, _ = plan([Promote("d")], STATE, standing(acknowledged=5000 - CAUGHT_UP_ENTRIES))
    assert steps == [("add_voter", 4)]
    with pytest.raises(tenure.NotCaughtUp, match="1001 entries behind") as refused:
        plan([Promote("d")], STATE, standing(acknowledged=5000 - CAUGHT_UP_ENTRIES - 1))
    assert (refused.value.name, refused.value.behind) == ("d", CAUGHT_UP_ENTRIES + 1)


@pytest.mark.parametrize("silent", [{"active": False}, {"acknowledged": 0, "commit": 10}])
def test_learner_is_not_promoted_when_it_has_not_answered(silent: dict[str, int]):
    """The engine takes a new one for active, and a young log is never far behind: it must have acknowledged."""
    with pytest.raises(tenure.NotCaughtUp, match="has not answered lately"):
        plan([Promote("d")], STATE, standing(**silent))


def test_new_member_gets_a_raft_id_that_was_never_given():
    """Not the next free one: 5 to 7 were given once and are gone (R7)."""
    steps, context = plan([Add(record(0, "e")), Add(record(0, "f"))], STATE, standing())
    assert steps == [("add_learner", 8), ("add_learner", 9)]
    assert [member.raft_id for member in decode_members(context, index=1).added] == [8, 9]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ([], "no change was named"),
        ([Add(record(0, "a"))], "its data directory is a member already"),
        ([Add(MemberRecord(raft_id=0, name="a", directory_id="new"))], "tenure member replace a"),
        ([Remove("a"), Add(MemberRecord(raft_id=0, name="a", directory_id="new"))], "remove it first"),
        ([Remove("x")], "the members are a, b, c, d"),
        ([Promote("a")], "a voter already"),
        ([Demote("d")], "a learner already"),
        ([Remove("a"), Remove("b"), Demote("c")], "no voter would be left"),
    ],
)
def test_change_that_cannot_be_is_refused_with_the_reason(changes: list[Change], why: str):
    """Nothing is proposed then."""
    with pytest.raises(tenure.MembershipRefused, match=why):
        plan(changes, STATE, standing())


def test_even_number_of_voters_is_warned_about():
    """It needs one answer more and survives no more losses."""
    assert [even_warning(voters) is None for voters in (1, 2, 3, 4, 5)] == [True, False, True, False, True]
