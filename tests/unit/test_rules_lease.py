"""The rules of the lease and the token as the core keeps them: R8, R9, R10 (in part), R11, R15, R16 and R20."""

from __future__ import annotations

import time

import msgspec
import pytest
import tenure_raft

from support.virtual_cluster import SETTINGS, VirtualCluster
from tenure.core import commands
from tenure.core.commands import Acquire, Release, Settled
from tenure.core.effects import Grant
from tenure.core.fsm import ClusterRecord, ClusterState, apply_entry, initial_state, mint
from tenure.core.holding import FenceRefused, RaiseMoved
from tenure.core.roles import Phase
from tenure.instants import LeaseSpan, Reading, elapsed_for_holder, elapsed_for_waiter, wait_out_ns
from tenure.node.clocks import read_clocks
from tenure.types import LossReason, State

MS = 1_000_000
LEASE_MS = SETTINGS.lease_duration_ms


def force_handover(cluster: VirtualCluster, old: int) -> int:
    """Make another member win at once, while ``old`` still holds its lease and hears of nothing."""
    cluster.advance(1100)
    new = next(i for i in cluster.nodes if i != old)
    third = next(i for i in cluster.nodes if i not in (old, new))
    cluster.isolate(old)
    term = cluster.core(new).view().term
    order = tenure_raft.encode_message("timeout_now", sender=old, to=new, term=term)
    cluster.hand_over(old, new, order)
    assert cluster.advance(500, until=lambda: cluster.core(new).view().raft_role == "leader"), third
    return new


def in_phase(cluster: VirtualCluster, phase: Phase) -> int | None:
    """The member that is in ``phase``, if one is."""
    return next((i for i in cluster.nodes if cluster.core(i).holding.phase is phase), None)


# -- R4 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_R4_rolling_change_of_the_lease_under_load_never_gives_two_leases(seed: int):
    """From 10 s to 1 s, back and again, each time the holder is cut off with its long lease alive.

    The cluster itself checks at every step of 5 ms that no two leases are valid at one instant (G2).
    """
    cluster = VirtualCluster(seed=seed, settings=msgspec.structs.replace(SETTINGS, lease_duration_ms=10_000))
    for lease_ms in (1000, 10_000, 1000):
        leader = cluster.elect(40_000)
        node, core = cluster.nodes[leader], cluster.core(leader)
        changed = msgspec.structs.replace(core.state.settings, lease_duration_ms=lease_ms)
        cluster.run(node, core.change_settings(changed, cluster.reading(node)))
        for number in range(20):
            cluster.run(node, core.propose([(b"\x02%d" % number, number)], cluster.reading(node)))
            cluster.advance(10)
        assert core.state.settings == changed
        new = force_handover(cluster, leader)
        assert cluster.lease_holders() == [leader]
        assert cluster.advance(25_000, until=lambda new=new: cluster.leaders() == [new])
        granted = cluster.nodes[new].granted
        assert granted is not None
        assert granted.span.duration_ns == lease_ms * MS
        cluster.heal()
        assert cluster.advance(2000, until=lambda node=node: node.granted is None)
        cluster.return_body(leader)
        cluster.advance(1000)


# -- R8 -----------------------------------------------------------------------------------------------------------


def test_R8_lease_runs_from_before_the_request_when_acknowledgements_are_late():
    """Answers delayed by d shorten the lease by d: it never runs from their receipt."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    followers = [i for i in cluster.nodes if i != leader]
    for follower in followers:
        cluster.delay_ms[follower, leader] = 300
    cluster.advance(1500)
    span = cluster.nodes[leader].span
    assert span is not None
    spans = set()
    for _ in range(200):
        cluster.advance(5)
        renewed = cluster.nodes[leader].span
        assert renewed is not None
        if renewed not in spans and renewed != span:
            spans.add(renewed)
            assert renewed.remaining_ns(cluster.reading(cluster.nodes[leader])) <= (LEASE_MS - 300) * MS
    assert len(spans) > 3


def test_R8_answer_of_another_term_or_incarnation_does_not_renew():
    """P8b: a read state that was earned before stepping down is worth nothing afterwards."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    machine = cluster.core(leader).holding
    now = cluster.reading(cluster.nodes[leader])
    machine.tick(cluster.core(leader).state, Reading(now.raw_ns + 200 * MS, now.boottime_ns + 200 * MS))
    context = machine.reads[-1]
    before = machine.span
    for forged in (context[:8] + bytes(8) + context[16:], bytes(8) + context[8:], b"short"):
        machine.read_state(forged, now)
        assert machine.span == before
    machine.deposed(now)
    machine.read_state(context, now)
    assert machine.span is None


def test_R8_no_lease_before_the_own_acquire_is_committed():
    """A leader that cannot commit its ACQUIRE holds nothing, however often a quorum answers its heartbeats."""
    cluster = VirtualCluster()
    cluster.fence_delay_ms = 100
    assert cluster.advance(8000, until=lambda: in_phase(cluster, Phase.READING) is not None)
    leader = in_phase(cluster, Phase.READING)
    assert leader is not None
    cluster.filter = lambda sender, _, payload: (
        sender != leader or all(kind != "append" for kind, *_ in tenure_raft.message_kinds(payload))
    )
    assert cluster.advance(300, until=lambda: cluster.core(leader).holding.phase is not Phase.READING)
    cluster.advance(900)
    machine = cluster.core(leader).holding
    assert machine.span is not None
    assert machine.phase is Phase.ACQUIRING
    assert cluster.nodes[leader].grants == []
    assert cluster.fence.raises == []


def test_R8_running_holding_keeps_its_own_duration_when_the_setting_changes():
    """The lease changed twice under a holder: it renews with the length in its own ACQUIRE."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    for duration in (10_000, 400):
        changed = msgspec.structs.replace(SETTINGS, lease_duration_ms=duration)
        cluster.run(node, core.change_settings(changed, cluster.reading(node)))
        cluster.advance(500)
        assert core.state.settings.lease_duration_ms == duration
        assert node.span is not None
        assert node.span.duration_ns == LEASE_MS * MS


# -- R9 -----------------------------------------------------------------------------------------------------------


def test_R9_new_leader_waits_the_old_lease_out_when_the_election_was_forced():
    """The old leader is alone but alive: its successor, elected at once, does not hold a lease beside it."""
    cluster = VirtualCluster()
    old = cluster.elect()
    new = force_handover(cluster, old)
    elected_at = cluster.now_ns
    assert cluster.lease_holders() == [old]
    assert cluster.advance(4000, until=lambda: bool(cluster.nodes[new].grants))
    waited = cluster.now_ns - elected_at
    assert waited >= wait_out_ns(LEASE_MS * MS, SETTINGS.clock_rate_error_ppm, 0) - 10 * MS
    assert cluster.nodes[old].revoked == [LossReason.LEASE_EXPIRED]


def test_R9_slow_clock_of_the_old_and_fast_clock_of_the_new_leader_stay_within_the_wait():
    """Clocks that are wrong by the whole bound in the worst direction, the old leader asleep: never two leases."""
    cluster = VirtualCluster(settings=msgspec.structs.replace(SETTINGS, clock_rate_error_ppm=100_000))
    old = cluster.elect()
    for raft_id, node in cluster.nodes.items():
        start, rate = cluster.now_ns, 0.9 if raft_id == old else 1.1
        node.clock = lambda ns, s=start, r=rate: Reading(s + int((ns - s) * r), s + int((ns - s) * r))
    new = force_handover(cluster, old)
    cluster.pause(old)
    assert cluster.advance(4000, until=lambda: bool(cluster.nodes[new].grants))
    assert cluster.lease_holders() == [new]


def test_R9_wait_covers_a_longer_lease_that_a_smaller_acquire_hides():
    """L1, L2, L3: an early ACQUIRE with a smaller lease must carry the cover of the older, longer one."""
    settings = msgspec.structs.replace(SETTINGS, lease_duration_ms=4000, election_timeout_ms=5000)
    cluster = VirtualCluster(settings=settings)
    first = cluster.elect(within_ms=60_000)
    node, core = cluster.nodes[first], cluster.core(first)
    small = msgspec.structs.replace(settings, lease_duration_ms=400)
    cluster.run(node, core.change_settings(small, cluster.reading(node)))
    cluster.advance(500)
    second = force_handover(cluster, first)
    assert cluster.advance(1000, until=lambda: cluster.core(second).holding.phase is Phase.PREPARING)
    holding = cluster.core(second).state.holding
    assert holding is not None
    assert (holding.duration_ns, holding.cover_ns) == (400 * MS, 4000 * MS)
    third = next(i for i in cluster.nodes if i not in (first, second))
    cluster.advance(200)
    order = tenure_raft.encode_message("timeout_now", sender=second, to=third, term=cluster.core(third).view().term)
    cluster.hand_over(second, third, order)
    assert cluster.advance(9000, until=lambda: bool(cluster.nodes[third].grants or cluster.nodes[second].grants))
    assert cluster.nodes[first].revoked == [LossReason.LEASE_EXPIRED]


def test_R9_release_lets_the_successor_skip_the_wait():
    """A leader that stopped for good says so in the log; only its very last entry counts."""
    state = initial_state(_record())
    acquired = apply_entry(state, _acquire(term=3), index=1)
    released = apply_entry(acquired, commands.encode(Release(1, 3, 9)), index=2)
    assert released.released
    assert not apply_entry(released, b"", index=3).released
    assert not apply_entry(acquired, commands.encode(Release(2, 3, 9)), index=2).released


def test_R9_release_is_proposed_only_after_the_body_returned():
    """A body that has not returned may still write: no RELEASE, the successor waits."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node, core = cluster.nodes[leader], cluster.core(leader)
    cluster.run(node, core.step_down(LossReason.STEPPED_DOWN, cluster.reading(node)))
    assert node.revoked == [LossReason.STEPPED_DOWN]
    cluster.advance(300)
    assert not core.state.released
    cluster.return_body(leader)
    assert cluster.advance(300, until=lambda: core.state.released or cluster.core(leader).view().raft_role != "leader")


def test_R9_leader_that_still_waits_never_releases():
    """YugabyteDB's L1-L2-L3: RELEASE by a leader in its own wait would hide the first lease."""
    cluster = VirtualCluster()
    old = cluster.elect()
    new = force_handover(cluster, old)
    assert cluster.advance(400, until=lambda: cluster.core(new).holding.phase is Phase.PREPARING)
    node = cluster.nodes[new]
    cluster.run(node, cluster.core(new).step_down(LossReason.STEPPED_DOWN, cluster.reading(node)))
    for _ in range(60):
        cluster.advance(10)
        assert not any(n.core.state.released for n in cluster.nodes.values())


def test_R9_settled_lowers_the_cover_to_the_own_lease():
    """Once the own wait is over, nothing older can run."""
    state = apply_entry(initial_state(_record()), _acquire(term=3, cover_ms=9000), index=1)
    settled = apply_entry(state, commands.encode(Settled(1, 3, 9)), index=2)
    assert settled.holding is not None
    assert settled.holding.cover_ns == LEASE_MS * MS
    assert apply_entry(state, commands.encode(Settled(2, 3, 9)), index=2).holding == state.holding


@pytest.mark.parametrize(("cover", "ppm", "expected"), [(1000, 0, 1000), (1000, 10_000, 1021), (1000, 100_000, 1223)])
def test_R9_wait_is_the_cover_times_both_rate_errors(cover: int, ppm: int, expected: int):
    """C(1+rho)/(1-rho), rounded up."""
    assert wait_out_ns(cover, ppm, 0) == expected


# -- R10 ----------------------------------------------------------------------------------------------------------


def test_R10_body_that_never_returns_costs_the_office_within_one_election_timeout():
    """The member gives up Raft leadership without RELEASE, so that another one can lead."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    node = cluster.nodes[leader]
    cluster.run(node, cluster.core(leader).step_down(LossReason.STEPPED_DOWN, cluster.reading(node)))
    assert cluster.advance(1200, until=lambda: cluster.core(leader).view().raft_role != "leader")
    second = cluster.elect(within_ms=12_000)
    assert second != leader
    assert node.grants[0].credential.token < cluster.nodes[second].grants[0].credential.token


def test_R10_ended_holding_is_over_for_its_term():
    """No second Grant under one term."""
    cluster = VirtualCluster()
    for _ in range(4):
        leader = cluster.elect()
        cluster.return_body(leader)
        cluster.advance(200)
    grants = [effect for _, _, effect in cluster.trace if isinstance(effect, Grant)]
    terms = [grant.term for grant in grants]
    assert len(terms) >= 4
    assert len(terms) == len(set(terms))


# -- R11 ----------------------------------------------------------------------------------------------------------


def test_R11_clocks_are_those_that_nobody_sets():
    """The wall clock is set by people and daemons, and the monotonic one is slewed: neither is ever read."""
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    reading = read_clocks()
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert before[0] <= reading.raw_ns <= after[0]
    assert before[1] <= reading.boottime_ns <= after[1]


def test_R11_holder_counts_the_larger_and_waiter_the_smaller_elapsed_time():
    """A suspend shows on one clock only; a clock that goes back is no clock."""
    start = Reading(1000, 1000)
    assert elapsed_for_holder(start, Reading(1100, 9000)) == 8000
    assert elapsed_for_waiter(start, Reading(1100, 9000)) == 100
    assert elapsed_for_holder(start, Reading(900, 2000)) is None
    assert elapsed_for_waiter(start, Reading(900, 2000)) == 0
    assert LeaseSpan(start, 5000).remaining_ns(Reading(1100, 9000)) == 0
    assert LeaseSpan(start, 5000).remaining_ns(Reading(900, 2000)) == 0


# -- R15, R20 -----------------------------------------------------------------------------------------------------


def test_R15_token_lies_above_the_own_count_and_the_floor():
    """New data directories on an old database mint above everything that the fence has seen."""
    state = initial_state(_record())
    assert mint(state, floor=0) == (1, 0, 1)
    assert mint(state, floor=41) == (42, 0, 42)
    assert mint(msgspec.structs.replace(state, last_count=50), floor=41) == (51, 0, 51)
    assert mint(state, floor=(3 << 32) + 7) == ((3 << 32) + 8, 3, 8)


def test_R15_token_is_never_minted_again_while_holding():
    """A raise that finds the fence moved raises again with the same token, after a fresh proof."""
    cluster = VirtualCluster()
    cluster.fence_delay_ms = 20
    assert cluster.advance(
        8000, until=lambda: any(n.core.holding.phase is Phase.PREPARING for n in cluster.nodes.values())
    )
    cluster.fence.version += 1
    leader = cluster.elect()
    assert cluster.fence.raises == [1]
    assert cluster.core(leader).state.last_count == 1


def test_R20_raise_names_what_was_read_before_the_last_proof():
    """After a refusal because the fence moved, the next raise waits for a proof that began after the new reading."""
    cluster = VirtualCluster()
    leader = cluster.elect()
    machine = cluster.core(leader).holding
    machine.phase, machine._raised, machine._raising = Phase.PREPARING, False, True
    now = cluster.reading(cluster.nodes[leader])
    machine.effects = []
    machine.fence_raised(machine._request, RaiseMoved("moved"), now)
    from tenure.core.holding import FloorRead

    machine.fence_read(machine._request, FloorRead(token=0, expected=77), cluster.core(leader).state, now)
    machine.tick(cluster.core(leader).state, now)
    assert not any(type(effect).__name__ == "RaiseFence" for effect in machine.effects)


def test_R15_stale_winner_that_raises_late_steps_down():
    """Two winners between win and raise, in the bad order: the later winner keeps the fence."""
    cluster = VirtualCluster()
    cluster.fence_delay_ms = 0
    first = cluster.elect()
    cluster.pause(first)
    second = next(i for i in cluster.nodes if i != first)
    assert cluster.advance(8000, until=lambda: len(cluster.fence.raises) == 2)
    second = next(
        i for i, node in cluster.nodes.items() if (i != first and node.grants) or cluster.core(i).holding.token == 2
    )
    cluster.resume(first)
    cluster.advance(500)
    assert cluster.fence.raises == [1, 2]
    assert cluster.leaders() in ([], [second])


def test_R16_count_above_the_own_is_a_copy_of_this_cluster():
    """The fence holds a token of our own elector that our log never minted: refuse to lead, say why."""
    cluster = VirtualCluster()
    cluster.fence_delay_ms = 50
    assert cluster.advance(
        8000, until=lambda: any(n.core.holding.phase is Phase.READING for n in cluster.nodes.values())
    )
    leader = next(i for i, n in cluster.nodes.items() if n.core.holding.phase is Phase.READING)
    node, machine = cluster.nodes[leader], cluster.core(leader).holding
    refusal = FenceRefused(reason="copy", message="minted by a copy of this cluster", suspected_count=9)
    cluster._timers.clear()
    cluster.run(node, cluster.core(leader).fence_read(machine._request, refusal, cluster.reading(node)))
    cluster.advance(150)
    assert machine.reason == "minted by a copy of this cluster"
    assert cluster.leaders() == []


def test_unfenced_member_leads_by_its_lease_alone():
    """Without a fence the floor is 0 and nothing is raised."""
    cluster = VirtualCluster(fenced=False)
    leader = cluster.elect()
    assert cluster.fence.raises == []
    assert cluster.core(leader).view().shown_state(cluster.reading(cluster.nodes[leader])) is State.LEADER


def _record() -> ClusterRecord:
    return VirtualCluster(size=1).record


def _acquire(*, term: int, cover_ms: int = LEASE_MS) -> bytes:
    return commands.encode(
        Acquire(
            holder=1,
            term=term,
            incarnation=9,
            floor=0,
            duration_ns=LEASE_MS * MS,
            rate_error_ppm=10_000,
            cover_ns=cover_ms * MS,
            cover_rate_error_ppm=10_000,
        )
    )


def test_state_machine_is_the_same_on_every_member():
    """Same entries, same state: nothing of a member's own goes into it."""
    cluster = VirtualCluster()
    cluster.elect()
    cluster.advance(500)
    states: set[ClusterState] = {node.core.state for node in cluster.nodes.values()}
    assert len(states) == 1
