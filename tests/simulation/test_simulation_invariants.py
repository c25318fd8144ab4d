"""Each invariant of the simulator goes red when what it guards is broken: in the real code where that is possible."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tenure.core import commands
from tenure.core.commands import Settings
from tenure.core.effects import Persist
from tenure.core.holding import HoldingMachine
from tenure.core.member import MemberCore
from tenure.invariants import invariant
from tenure.testing import Simulation, SimulationFailed
from tenure.testing.simulation import invariants
from tenure.testing.simulation.clocks import Power
from tenure.testing.simulation.disk import Disk
from tenure.testing.simulation.faults import Schedule
from tenure.testing.simulation.fence import Database
from tenure.testing.simulation.invariants import Broken, Invariants
from tenure.testing.simulation.ledger import Ledger, Payment
from tenure.testing.simulation.node import Node
from tenure.testing.simulation.swarm import Swarm

#: An election takes half of a lease, so that a forced one finds a lease that has long to run.
LONG_LEASE = Settings(
    heartbeat_interval_ms=200, election_timeout_ms=1000, lease_duration_ms=2000, clock_rate_error_ppm=10_000
)


def served(swarm: Swarm | None = None) -> tuple[Simulation, Node]:
    """A cluster of three that serves, and its leader."""
    simulation = Simulation(1, swarm=Swarm(settings=LONG_LEASE) if swarm is None else swarm)
    simulation.start()
    assert simulation.run_until(lambda: simulation.serving() is not None, within_seconds=30)
    leader = simulation.serving()
    assert leader is not None
    return simulation, leader


def isolate(simulation: Simulation, node: Node) -> None:
    others = [other for other in simulation.nodes if other != node.raft_id]
    simulation.network.cut(*[(node.raft_id, other) for other in others], *[(other, node.raft_id) for other in others])


def overthrow(simulation: Simulation, leader: Node) -> None:
    """The leader is cut off just after a renewal, and another member is made to campaign at once."""
    isolate(simulation, leader)
    simulation.schedule.force_election(leader, next(node for node in simulation.nodes.values() if node is not leader))


def breaks(invariant: str) -> Any:
    """The simulation must fail by this very invariant."""

    class Watch:
        def __enter__(self) -> None:
            pass

        def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
            assert isinstance(error, SimulationFailed | Broken), f"{invariant} was not seen to break"
            assert error.invariant == invariant, str(error)
            return True

    return Watch()


def test_one_valid_lease_breaks_when_no_leader_waits(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HoldingMachine, "wait_is_over", lambda _machine, _now: True)
    simulation, leader = served()
    overthrow(simulation, leader)
    with breaks(invariants.ONE_VALID_LEASE):
        simulation.advance(2)


def test_one_valid_lease_holds_when_an_election_is_forced():
    simulation, leader = served()
    overthrow(simulation, leader)
    assert simulation.run_until(lambda: simulation.serving() not in (None, leader), within_seconds=10)


def test_one_valid_lease_breaks_when_a_holder_does_not_count_its_sleep(monkeypatch: pytest.MonkeyPatch):
    for user in ("tenure.instants", "tenure.core.holding"):
        monkeypatch.setattr(f"{user}.elapsed_for_holder", lambda start, now: now.raw_ns - start.raw_ns)
    simulation, leader = served()
    leader.power_down(Power.SUSPENDED)
    with breaks(invariants.ONE_VALID_LEASE):
        simulation.advance(20)


def test_one_leader_per_term_breaks_when_two_members_lead_one():
    simulation, leader = served()
    life = leader.life
    assert life is not None
    simulation.invariants.leaders[0, life.engine.term] = 99
    with breaks(invariants.ONE_LEADER_PER_TERM):
        simulation.advance(1)


def test_tokens_rise_breaks_when_a_raise_brings_an_older_token():
    judge = Invariants(leases_bounded=True)
    judge.raised(7, "n1")
    with breaks(invariants.TOKENS_RISE):
        judge.raised(7, "n2")


def test_tokens_rise_breaks_when_a_holding_mints_twice(monkeypatch: pytest.MonkeyPatch):
    real = HoldingMachine.acquired

    def acquired(machine: HoldingMachine, state: Any, now: Any) -> None:
        if state.holding.token == 1:
            command = commands.Acquire(
                holder=state.holding.holder,
                term=state.holding.term,
                incarnation=state.holding.incarnation,
                floor=0,
                duration_ns=state.holding.duration_ns,
                rate_error_ppm=0,
                cover_ns=state.holding.cover_ns,
                cover_rate_error_ppm=0,
            )
            machine.proposals.append(commands.encode(command))
        real(machine, state, now)

    monkeypatch.setattr(HoldingMachine, "acquired", acquired)
    with breaks(invariants.TOKENS_RISE):
        served()


def test_durable_before_reply_breaks_when_a_disk_forgets_votes(monkeypatch: pytest.MonkeyPatch):
    real = Disk.begin

    def begin(disk: Disk, effect: Persist) -> int:
        if effect.hard_state is not None:
            term, _, commit = effect.hard_state
            effect = msgspec.structs.replace(effect, hard_state=(term, 0, commit))
        return real(disk, effect)

    monkeypatch.setattr(Disk, "begin", begin)
    with breaks(invariants.DURABLE_BEFORE_REPLY):
        served()


def test_durable_before_reply_breaks_when_a_message_speaks_of_a_term_that_is_not_durable():
    simulation, leader = served()
    leader.disk.term = 0
    with breaks(invariants.DURABLE_BEFORE_REPLY):
        simulation.advance(2)


def test_converges_breaks_when_nothing_is_healed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Schedule, "heal", lambda _schedule: None)
    simulation, leader = served()
    leader.crash()
    next(node for node in simulation.nodes.values() if node.running).crash()
    with breaks(invariants.CONVERGES):
        simulation.heal()


def test_same_history_breaks_when_two_members_apply_different_entries():
    simulation, leader = served()
    life = leader.life
    assert life is not None
    for index in range(100):
        simulation.invariants.history[index] = life.core.state
    leader.crash()
    with breaks(invariants.SAME_HISTORY):
        simulation.advance(30)


def test_office_before_lease_breaks_when_the_loss_of_the_office_is_not_seen(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(MemberCore, "_watch_loss", lambda _core, _now: None)
    simulation, leader = served()
    isolate(simulation, leader)
    with breaks(invariants.OFFICE_BEFORE_LEASE):
        simulation.advance(20)


def test_lease_ends_in_time_breaks_when_a_lapsed_lease_goes_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HoldingMachine, "_lasts", lambda _machine, _now: True)
    monkeypatch.setattr("tenure.testing.simulation.client.Application._watch", lambda *_: None)
    simulation, leader = served(
        Swarm(
            settings=Settings(
                heartbeat_interval_ms=200, election_timeout_ms=4000, lease_duration_ms=800, clock_rate_error_ppm=0
            )
        )
    )
    isolate(simulation, leader)
    with breaks(invariants.LEASE_ENDS_IN_TIME):
        simulation.advance(5)


def test_fence_before_lease_breaks_when_nothing_is_raised(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(HoldingMachine, "_raise_fence", lambda machine: setattr(machine, "_raised", True))
    with breaks(invariants.FENCE_BEFORE_LEASE):
        served()


def test_stopped_before_release_breaks_when_a_leader_releases_and_goes_on(monkeypatch: pytest.MonkeyPatch):
    simulation, leader = served()
    life = leader.life
    assert life is not None
    holding = life.core.holding
    holding.proposals.append(
        commands.encode(commands.Release(leader.raft_id, holding.term, life.incarnation)),
    )
    with breaks(invariants.STOPPED_BEFORE_RELEASE):
        simulation.advance(2)


def test_stopped_before_release_breaks_when_the_office_is_handed_over_with_the_lease(monkeypatch: pytest.MonkeyPatch):
    simulation, leader = served()
    life = leader.life
    assert life is not None
    life.core.holding.leave = True
    with breaks(invariants.STOPPED_BEFORE_RELEASE):
        simulation.advance(2)


def test_one_body_breaks_when_a_member_leads_while_its_earlier_work_goes_on(monkeypatch: pytest.MonkeyPatch):
    real = HoldingMachine.elected

    def elected(machine: HoldingMachine, *arguments: Any) -> None:
        machine.body_outstanding = False
        real(machine, *arguments)

    monkeypatch.setattr(HoldingMachine, "elected", elected)
    monkeypatch.setattr(MemberCore, "_collect", _standing_always(MemberCore._collect))
    simulation, leader = served(Swarm(members=1, rates_ppm=(0,), settings=LONG_LEASE, hung_bodies=1.0))
    assert leader.life is not None
    leader.life.step_down()
    with breaks(invariants.ONE_BODY):
        simulation.advance(60)


def _standing_always(real: Any) -> Any:
    def collect(core: MemberCore, now: Any) -> Any:
        core.holding.body_outstanding = False
        return real(core, now)

    return collect


def test_no_panic_breaks_when_the_core_raises(monkeypatch: pytest.MonkeyPatch):
    simulation, _ = served()
    monkeypatch.setattr(MemberCore, "tick", lambda *_: invariant(False, "broken on purpose"))
    with breaks(invariants.NO_PANIC):
        simulation.advance(5)


def test_no_stale_write_breaks_when_the_database_compares_nothing(monkeypatch: pytest.MonkeyPatch):
    simulation, leader = served()
    old = leader.application
    credential = getattr(old, "_credential")  # noqa: B009
    overthrow(simulation, leader)
    assert simulation.run_until(lambda: simulation.serving() not in (None, leader), within_seconds=20)
    monkeypatch.setattr(Database, "_check", lambda *_: None)
    write = simulation.ledger.attempt(Payment(1, "stale"), credential.token, leader.name)
    with breaks(invariants.NO_STALE_WRITE):
        simulation.database.write(credential, write, lambda _: None)


def test_acknowledged_exactly_once_breaks_when_a_row_is_gone_that_no_failover_has_lost():
    ledger = Ledger()
    write = ledger.attempt(Payment(1, "key"), 1, "n1")
    ledger.committed(write, highest_raised=1)
    ledger.told_written(write.payment)
    ledger.rows.clear()
    with breaks(invariants.ACKNOWLEDGED_EXACTLY_ONCE):
        ledger.judge_end()


def test_acknowledged_exactly_once_breaks_when_one_payment_is_made_under_two_keys():
    ledger = Ledger()
    ledger.committed(ledger.attempt(Payment(1, "key"), 1, "n1"), highest_raised=1)
    with breaks(invariants.ACKNOWLEDGED_EXACTLY_ONCE):
        ledger.committed(ledger.attempt(Payment(1, "another key"), 1, "n1"), highest_raised=1)


def test_outcome_honest_breaks_when_what_was_called_surely_not_done_is_done_later():
    ledger = Ledger()
    write = ledger.attempt(Payment(1, "key"), 1, "n1")
    ledger.told_not_written(write)
    with breaks(invariants.OUTCOME_HONEST):
        ledger.committed(write, highest_raised=1)


def test_every_invariant_was_seen_to_break():
    """By name: the tests here are called after what they break."""
    tested = {name.removeprefix("test_").partition("_breaks")[0] for name in globals() if "_breaks_" in name}
    assert set(invariants.ALL) == tested
