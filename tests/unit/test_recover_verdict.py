"""The verdict: a table of what a survey can see, and who is then the true leader."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.core.verdict import (
    Basis,
    ClusterVerdict,
    Evidence,
    FenceFacts,
    Judgement,
    LogWrite,
    NodeVerdict,
    NodeView,
    WriteSpan,
    judge,
)

QUARTER_PAST_TWO = datetime(2026, 11, 23, 2, 15, tzinfo=UTC)
TRUE, FOLLOWER = NodeVerdict.TRUE_LEADER, NodeVerdict.FOLLOWER
STALE, SILENT, UNREACHABLE = NodeVerdict.STALE_LEADER, NodeVerdict.SILENT, NodeVerdict.UNREACHABLE
ONE, NONE, SPLIT = ClusterVerdict.ONE_LEADER, ClusterVerdict.NO_LEADER, ClusterVerdict.SPLIT_BRAIN


def at(seconds: float) -> datetime:
    return QUARTER_PAST_TWO + timedelta(seconds=seconds)


def node(zone: str, state: str | None, term: int | None = 6, **fields: Any) -> NodeView:
    if state is None:
        fields.setdefault("problem", "did not answer within 2 s")
        term = None
    return NodeView(name=f"payment-{zone}", state=state, term=term, **fields)


def span(zone: str, token: int | None, first: float, last: float, rows: int = 10) -> WriteSpan:
    return WriteSpan(node=f"payment-{zone}", token=token, rows=rows, first_at=at(first), last_at=at(last))


def fence(token: int, zone: str | None, **fields: Any) -> FenceFacts:
    return FenceFacts(resource="payments", token=token, holder=zone and f"payment-{zone}", **fields)


def verdicts(judgement: Judgement) -> list[NodeVerdict]:
    return [judged.verdict for judged in judgement.nodes]


def reasons(judgement: Judgement, zone: str) -> str:
    return "; ".join(next(judged for judged in judgement.nodes if judged.view.name == f"payment-{zone}").reasons)


HEALTHY = (
    node("1a", "follower", leader_name="payment-1b"),
    node("1b", "leader", fencing_token=7, votes_for_me=2, votes_needed=2),
    node("1c", "follower", leader_name="payment-1b"),
)

CASES = {
    "one leader that holds the fence": (
        Evidence(nodes=HEALTHY, fence=fence(7, "1b"), writes=(span("1b", 7, 0, 9),)),
        (ONE, "1b", Basis.FENCE, [FOLLOWER, TRUE, FOLLOWER]),
    ),
    "a paused leader wakes up and still says leader": (
        Evidence(
            nodes=(*HEALTHY[:2], node("1c", "leader", 5, fencing_token=6, votes_for_me=2, votes_needed=2)),
            fence=fence(7, "1b"),
        ),
        (SPLIT, "1b", Basis.FENCE, [FOLLOWER, TRUE, STALE]),
    ),
    "the stale leader has the higher term, yet the fence decides": (
        Evidence(nodes=(*HEALTHY[:2], node("1c", "leader", 99, fencing_token=6)), fence=fence(7, "1b")),
        (SPLIT, "1b", Basis.FENCE, [FOLLOWER, TRUE, STALE]),
    ),
    "the holder of the fence is silent and nobody leads": (
        Evidence(nodes=(HEALTHY[0], node("1b", None), HEALTHY[2]), fence=fence(7, "1b")),
        (NONE, None, Basis.NONE, [FOLLOWER, SILENT, FOLLOWER]),
    ),
    "the holder of the fence is silent and a stale leader is left": (
        Evidence(nodes=(node("1b", None), node("1c", "leader", 5, fencing_token=6)), fence=fence(7, "1b")),
        (SPLIT, None, Basis.NONE, [SILENT, STALE]),
    ),
    "the holder was never asked": (
        Evidence(nodes=(HEALTHY[0],), fence=fence(7, "1b")),
        (NONE, None, Basis.NONE, [FOLLOWER, SILENT]),
    ),
    "a fence without a holder names nobody": (
        Evidence(nodes=HEALTHY, fence=fence(7, None)),
        (SPLIT, None, Basis.NONE, [FOLLOWER, STALE, FOLLOWER]),
    ),
    "a copy shows the very token, but the fence names the other": (
        Evidence(nodes=(node("1a", "leader", fencing_token=7), HEALTHY[1]), fence=fence(7, "1b")),
        (SPLIT, "1b", Basis.FENCE, [STALE, TRUE]),
    ),
    "a leader that tells only its state is the holder by name": (
        Evidence(nodes=(node("1a", "follower"), node("1b", "leader")), fence=fence(7, "1b")),
        (ONE, "1b", Basis.FENCE, [FOLLOWER, TRUE]),
    ),
    "an election is under way": (
        Evidence(nodes=(node("1a", "candidate"), node("1b", "follower"), node("1c", None, refused=True))),
        (NONE, None, Basis.NONE, [FOLLOWER, FOLLOWER, UNREACHABLE]),
    ),
    "the incident: two leaders in term 5, each with its own vote alone": (
        Evidence(
            nodes=(
                node("1a", "follower", 5),
                node("1b", "leader", 5, votes_for_me=1, votes_needed=2),
                node("1c", "leader", 5, votes_for_me=1, votes_needed=2),
            ),
            writes=(span("1b", None, 0, 30), span("1c", None, 0, 20)),
        ),
        (SPLIT, None, Basis.NONE, [FOLLOWER, STALE, STALE]),
    ),
    "no fence, and one of the two leaders has the votes it needs": (
        Evidence(
            nodes=(
                node("1b", "leader", 5, votes_for_me=2, votes_needed=2),
                node("1c", "leader", 5, votes_for_me=1, votes_needed=2),
            ),
            writes=(span("1b", None, 0, 20), span("1c", None, 0, 30)),
        ),
        (SPLIT, "1b", Basis.VOTES, [TRUE, STALE]),
    ),
    "no fence, both were elected: the later election counts": (
        Evidence(
            nodes=(
                node("1b", "leader", 6, votes_for_me=2, votes_needed=2),
                node("1c", "leader", 5, votes_for_me=2, votes_needed=2),
            ),
            writes=(span("1b", None, 0, 20), span("1c", None, 0, 30)),
        ),
        (SPLIT, "1b", Basis.TERM, [TRUE, STALE]),
    ),
    "no fence and no votes known: the newest rows count": (
        Evidence(
            nodes=(node("1b", "leader", 5), node("1c", "leader", 9)),
            writes=(span("1b", None, 0, 30), span("1c", None, 0, 20)),
        ),
        (SPLIT, "1b", Basis.ROWS, [TRUE, STALE]),
    ),
    "no fence, but tokens: the higher token counts, not the newer row": (
        Evidence(
            nodes=(node("1b", "leader", 5), node("1c", "leader", 5)),
            writes=(span("1b", 7, 10, 20), span("1c", 6, 0, 30)),
        ),
        (SPLIT, "1b", Basis.TOKEN, [TRUE, STALE]),
    ),
    "no database at all: the higher term counts": (
        Evidence(nodes=(node("1b", "leader", 6), node("1c", "leader", 5))),
        (SPLIT, "1b", Basis.TERM, [TRUE, STALE]),
    ),
    "no database, and nothing tells the two apart": (
        Evidence(nodes=(node("1b", "leader", 5), node("1c", "leader", 5))),
        (SPLIT, None, Basis.NONE, [STALE, STALE]),
    ),
    "no database and one leader": (
        Evidence(nodes=(node("1a", "follower"), node("1b", "leader"))),
        (ONE, "1b", Basis.ONLY_CLAIM, [FOLLOWER, TRUE]),
    ),
    "a lone leader without its votes is no leader": (
        Evidence(nodes=(node("1b", "leader", 5, votes_for_me=1, votes_needed=2), node("1c", None))),
        (SPLIT, None, Basis.NONE, [STALE, SILENT]),
    ),
    "a silent node still writes with the old token": (
        Evidence(
            nodes=(*HEALTHY[:2], node("1c", None)),
            fence=fence(7, "1b"),
            writes=(span("1b", 7, 10, 20), span("1c", 6, 0, 15)),
        ),
        (SPLIT, "1b", Basis.FENCE, [FOLLOWER, TRUE, STALE]),
    ),
    "a clean takeover leaves the old leader a follower with older rows": (
        Evidence(
            nodes=HEALTHY,
            fence=fence(7, "1b"),
            writes=(span("1b", 7, 10, 20), span("1c", 6, 0, 9.999)),
        ),
        (ONE, "1b", Basis.FENCE, [FOLLOWER, TRUE, FOLLOWER]),
    ),
    "nothing was seen": (Evidence(), (NONE, None, Basis.NONE, [])),
    "only the database was seen": (
        Evidence(writes=(span("1b", 7, 10, 20), span("1c", 6, 0, 9)), fence=fence(7, "1b")),
        (NONE, None, Basis.NONE, [SILENT, SILENT]),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_verdict_is_the_one_told_when_the_evidence_is(case: str):
    evidence, (verdict, leader, basis, nodes) = CASES[case]
    judgement = judge(evidence)
    assert verdicts(judgement) == nodes
    assert judgement.verdict is verdict
    assert judgement.true_leader == (leader and f"payment-{leader}")
    assert judgement.basis is basis


def test_incident_convicts_both_leaders_when_each_has_one_vote_of_two():
    judgement = judge(CASES["the incident: two leaders in term 5, each with its own vote alone"][0])
    for zone in ("1b", "1c"):
        assert "says leader in term 5" in reasons(judgement, zone)
        assert "has 1 vote of 2 needed: it convicts itself" in reasons(judgement, zone)
    assert any("payment-1b, payment-1c say leader" in finding for finding in judgement.findings)


def test_stale_leader_is_told_both_tokens_when_the_fence_holds_another():
    judgement = judge(
        Evidence(
            nodes=(HEALTHY[1], node("1c", "leader", 5, fencing_token=6)),
            fence=fence(7, "1b"),
            writes=(span("1b", 7, 10, 20), span("1c", 6, 0, 9, rows=41)),
            logs=(LogWrite(node="payment-1c", path="c.log", at="2026-11-23T02:15:09Z", token=6),),
        )
    )
    told = reasons(judgement, "1c")
    assert "says leader in term 5" in told
    assert "shows token 6, but the fence holds token 7, raised by payment-1b" in told
    assert "last wrote with token 6 at 2026-11-23 02:15:09.000Z (41 rows in all), the fence holds 7" in told
    assert "its log's last write has token 6 at 2026-11-23T02:15:09Z" in told


def test_stale_row_is_told_when_it_is_younger_than_the_first_row_of_the_newest_token():
    judgement = judge(CASES["a silent node still writes with the old token"][0])
    assert "a stale write landed" in reasons(judgement, "1c")
    assert any("triggers" in finding for finding in judgement.findings)


def test_late_row_does_not_convict_when_it_is_of_an_older_takeover():
    writes = (span("1a", 5, 0, 12), span("1c", 6, 10, 20), span("1b", 7, 30, 40))
    judgement = judge(Evidence(nodes=(*HEALTHY[1:], node("1a", None)), fence=fence(7, "1b"), writes=writes))
    assert verdicts(judgement) == [SILENT, TRUE, FOLLOWER]


def test_weaker_evidence_is_called_so_when_no_fence_was_seen():
    judgement = judge(CASES["no fence and no votes known: the newest rows count"][0])
    assert "weaker evidence than a fence" in reasons(judgement, "1b")
    assert "no fence was seen: the verdict rests on weaker evidence" in judgement.findings


def test_two_writers_under_one_token_are_found_when_the_rows_show_them():
    judgement = judge(Evidence(nodes=HEALTHY, writes=(span("1b", 5, 0, 20), span("1c", 5, 0, 19))))
    assert any("token 5 was written by payment-1b and payment-1c" in finding for finding in judgement.findings)


def test_holder_that_waits_is_told_when_it_does_not_lead_yet():
    judgement = judge(Evidence(nodes=(node("1b", "candidate"),), fence=fence(7, "1b")))
    assert judgement.verdict is NONE
    assert "the fence names it as its holder, but it does not lead" in reasons(judgement, "1b")


def test_server_change_is_found_when_the_fence_was_raised_on_another_server():
    judgement = judge(Evidence(nodes=HEALTHY, fence=fence(7, "1b", server_changed=True)))
    assert judgement.verdict is ONE
    assert any("TN004" in finding for finding in judgement.findings)


def test_terms_are_compared_when_the_nodes_disagree():
    judgement = judge(Evidence(nodes=(node("1a", "follower", 5), HEALTHY[1]), fence=fence(7, "1b")))
    assert "the nodes do not agree on the term: payment-1a 5, payment-1b 6" in judgement.findings


def test_names_from_old_rows_are_kept_out_of_the_table_when_they_are_long_quiet():
    old = tuple(
        WriteSpan(node=f"payment-old-{n}", token=1, rows=1, first_at=at(-99), last_at=at(-90)) for n in range(50)
    )
    judgement = judge(Evidence(nodes=HEALTHY, writes=(*old, span("1b", 7, 0, 9)), fence=fence(7, "1b")))
    assert len(judgement.nodes) == 3
    assert any("payment-old-49" in finding for finding in judgement.findings)


NODES = st.lists(
    st.builds(
        NodeView,
        name=st.sampled_from(["a", "b", "c"]),
        state=st.sampled_from([None, "leader", "follower", "candidate"]),
        term=st.none() | st.integers(0, 3),
        fencing_token=st.none() | st.integers(1, 3),
        votes_for_me=st.none() | st.integers(0, 2),
        votes_needed=st.none() | st.just(2),
        refused=st.booleans(),
    ),
    max_size=3,
    unique_by=lambda view: view.name,
)
MOMENTS = st.integers(0, 9).map(at)
EVIDENCE = st.builds(
    Evidence,
    nodes=NODES.map(tuple),
    writes=st.lists(
        st.builds(
            WriteSpan,
            node=st.sampled_from(["a", "b", "d"]),
            token=st.none() | st.integers(1, 3),
            rows=st.integers(1, 9),
            first_at=MOMENTS,
            last_at=MOMENTS,
        ),
        max_size=4,
    ).map(tuple),
    fence=st.none()
    | st.builds(FenceFacts, resource=st.just("r"), token=st.integers(1, 3), holder=st.none() | st.sampled_from("abd")),
)


@given(EVIDENCE)
def test_verdict_keeps_its_promises_when_the_evidence_is_anything(evidence: Evidence):
    judgement = judge(evidence)
    true = judgement.named(TRUE)
    claimants = {view.name for view in evidence.nodes if view.state == "leader"}
    assert [judged.view.name for judged in true] == ([judgement.true_leader] if judgement.true_leader else [])
    assert {judged.view.name for judged in judgement.nodes} >= {view.name for view in evidence.nodes}
    assert claimants <= {judged.view.name for judged in judgement.nodes if judged.verdict in (TRUE, STALE)}
    assert all(judged.reasons for judged in judgement.nodes)
    assert (judgement.verdict is ONE) == (bool(true) and not judgement.named(STALE))
    if true and evidence.fence is not None:
        assert true[0].view.name == evidence.fence.holder
        assert true[0].view.fencing_token in (evidence.fence.token, None)
