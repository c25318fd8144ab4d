"""R9 under ``wait_out = "fenced-only"``: fenced transactions begin before the wait is over, the lease never does."""

from __future__ import annotations

import msgspec
import tenure_raft

from support.virtual_cluster import SETTINGS, VirtualCluster
from tenure.core.commands import FENCED_ONLY, problem_of
from tenure.core.effects import Grant, Renewed, Revoke
from tenure.core.roles import Phase
from tenure.types import LossReason, State
from unit.test_rules_lease import force_handover

EARLY = msgspec.structs.replace(SETTINGS, wait_out=FENCED_ONLY)
WAIT_MS = SETTINGS.lease_duration_ms


def holder_of_a_lease(cluster: VirtualCluster) -> int:
    """Advance until a member holds a lease, which is later than that it is shown as leader."""
    assert cluster.advance(60_000, until=lambda: len(cluster.lease_holders()) == 1)
    return cluster.lease_holders()[0]


def won_over_a_lease(**options: object) -> tuple[VirtualCluster, int, int]:
    """A cluster whose old leader is cut off with its lease alive, and the member that was elected in its place."""
    cluster = VirtualCluster(**{"settings": EARLY, **options})
    old = holder_of_a_lease(cluster)
    return cluster, old, force_handover(cluster, old)


def test_R9_fenced_transactions_begin_before_the_wait_and_the_lease_after_it():
    """The successor's scope opens while the old lease runs, with no lease of its own until that is surely over."""
    cluster, old, new = won_over_a_lease()
    node, core = cluster.nodes[new], cluster.core(new)
    elected_at = cluster.now_ns
    assert cluster.advance(300, until=lambda: bool(node.grants))
    assert node.grants[0].leased is False
    assert cluster.lease_holders() == [old]
    assert core.holding.phase is Phase.FENCED
    assert core.view().shown_state(cluster.reading(node)) is State.LEADER
    assert cluster.fence.token == node.grants[0].credential.token
    assert cluster.advance(2000, until=lambda: cluster.lease_holders() == [new])
    assert cluster.now_ns - elected_at >= WAIT_MS * 1_000_000
    assert core.holding.phase is Phase.LEADING
    assert len(node.grants) == 1
    assert cluster.core(new).state.holding.cover_ns == EARLY.lease_duration_ms * 1_000_000


def test_R9_leader_that_still_waits_never_releases_when_its_body_ran_already():
    """Its work was fenced, not leased: whoever comes next waits for the lease before it, too."""
    cluster, _, new = won_over_a_lease()
    node, core = cluster.nodes[new], cluster.core(new)
    assert cluster.advance(300, until=lambda: bool(node.grants))
    cluster.run(node, core.step_down(LossReason.STEPPED_DOWN, cluster.reading(node)))
    assert node.revoked == [LossReason.STEPPED_DOWN]
    cluster.return_body(new)
    for _ in range(60):
        cluster.advance(10)
        assert not any(n.core.state.released for n in cluster.nodes.values())


def test_R9_work_that_began_before_the_lease_ends_with_the_office():
    """Who is deposed while it waits has a body to stop; what it was told last is no lease."""
    cluster, old, new = won_over_a_lease()
    node = cluster.nodes[new]
    assert cluster.advance(300, until=lambda: bool(node.grants))
    cluster.isolate(new)
    assert cluster.advance(3000, until=lambda: bool(node.revoked))
    told = [effect for _, raft_id, effect in cluster.trace if raft_id == new]
    assert not any(isinstance(effect, Renewed) and effect.leased for effect in told)
    assert isinstance(told[-1], Revoke) or node.revoked
    assert old != new


def test_R12_refusal_ends_work_that_began_before_the_lease():
    """One refusal by the database ends the holding in this phase, too."""
    cluster, _, new = won_over_a_lease()
    node, core = cluster.nodes[new], cluster.core(new)
    assert cluster.advance(300, until=lambda: bool(node.grants))
    token = node.grants[0].credential.token
    cluster.run(node, core.refused(token, LossReason.REFUSED, cluster.reading(node)))
    assert node.revoked == [LossReason.REFUSED]
    assert core.holding.phase is Phase.YIELDING


def test_R9_everything_waits_when_there_is_no_fence():
    """Without a database nothing makes work before the lease harmless."""
    cluster, old, new = won_over_a_lease(fenced=False)
    assert cluster.advance(4000, until=lambda: bool(cluster.nodes[new].grants))
    assert cluster.nodes[new].grants[0].leased is True
    assert cluster.lease_holders() == [new]
    assert old != new


def test_R9_lease_starts_with_the_scope_when_the_log_ends_in_release():
    """There is nothing to wait for after a hand-over in good order."""
    cluster = VirtualCluster(settings=EARLY)
    first = holder_of_a_lease(cluster)
    cluster.run(
        cluster.nodes[first],
        cluster.core(first).step_down(LossReason.STEPPED_DOWN, cluster.reading(cluster.nodes[first])),
    )
    cluster.return_body(first)
    assert cluster.advance(3000, until=lambda: cluster.leaders() not in ([], [first]))
    (second,) = cluster.leaders()
    assert [grant.leased for grant in cluster.nodes[second].grants] == [True]


def test_R9_third_leader_waits_for_the_first_lease_when_the_second_only_had_fenced_work():
    """L1, L2, L3: the second's work ended before its lease began, and must not hide the first one's lease."""
    settings = msgspec.structs.replace(EARLY, lease_duration_ms=4000, election_timeout_ms=5000)
    cluster = VirtualCluster(settings=settings)
    first = holder_of_a_lease(cluster)
    second = force_handover(cluster, first)
    assert cluster.advance(1000, until=lambda: bool(cluster.nodes[second].grants))
    third = next(i for i in cluster.nodes if i not in (first, second))
    order = tenure_raft.encode_message("timeout_now", sender=second, to=third, term=cluster.core(third).view().term)
    cluster.hand_over(second, third, order)
    assert cluster.advance(1000, until=lambda: bool(cluster.nodes[third].grants))
    assert cluster.nodes[second].revoked == [LossReason.DEPOSED]
    assert cluster.lease_holders() == [first]
    assert cluster.advance(9000, until=lambda: cluster.lease_holders() == [third])
    tokens = [effect.credential.token for _, _, effect in cluster.trace if isinstance(effect, Grant)]
    assert tokens == [1, 2, 3]


def test_wait_out_is_refused_when_it_is_another_word():
    assert problem_of(EARLY) is None
    problem = problem_of(msgspec.structs.replace(EARLY, wait_out="never"))
    assert problem is not None
    assert "neither 'always' nor 'fenced-only'" in problem
