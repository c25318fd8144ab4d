"""The swarm of one seed: which faults there are, how often, under which times and on which machines.

Every seed leaves some kinds out and makes others frequent, since faults hide one another: a cluster that is always cut
off is never late. Rates are in the cluster's own time, its election timeout, so that a slow cluster sees as much in a
run as a quick one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from tenure.core.commands import ALWAYS, FENCED_ONLY, Settings
from tenure.core.snapshots import SnapshotLimits
from tenure.instants import NS_PER_MS
from tenure.testing.simulation.network import CALM, Weather

#: Every kind of fault, by its stable name.
KINDS = (
    "cut_off",
    "cut_in_two",
    "cut_one_way",
    "cut_in_a_ring",
    "flapping",
    "slow_one_way",
    "bad_weather",
    "pause",
    "suspend",
    "application_hang",
    "kill",
    "power_loss",
    "slow_disk",
    "hanging_disk",
    "full_disk",
    "failing_disk",
    "clock_rate",
    "wall_clock_step",
    "hand_over",
    "forced_election",
    "change_of_members",
    "new_member",
    "wiped_disk",
    "change_of_times",
    "database_cut",
    "database_restart",
    "database_failover",
    "database_restore",
    "fence_rebase",
    "hypervisor_stop",
)
#: Only where members may change.
OF_MEMBERS = ("change_of_members", "new_member", "wiped_disk")
#: Beyond what the clocks' bound allows: then two leases may overlap, and only the fence protects (G3).
BEYOND_THE_BOUND = ("hypervisor_stop",)


@dataclass(frozen=True)
class Swarm:
    """Every parameter of one seed. ``of`` draws one; a directed case sets what it needs."""

    members: int = 3
    settings: Settings = field(
        default_factory=lambda: Settings(
            heartbeat_interval_ms=500,
            election_timeout_ms=3000,
            lease_duration_ms=3000,
            clock_rate_error_ppm=10_000,
        )
    )
    #: What may become of the times while the cluster runs.
    other_leases_ms: tuple[int, ...] = ()
    #: Whether members come and go. The rosters of all others are fixed, and cost nothing.
    members_change: bool = False
    margin_ms: int = 50
    #: A member whose application has hung for so long gives its leadership up (R13).
    application_timeout_ms: int = 15_000
    rates_ppm: tuple[int, ...] = (0, 0, 0)
    #: Whether the clocks keep the bound of the settings; if not, G2 is not promised.
    clocks_keep_the_bound: bool = True
    weather: Weather = CALM
    worse_weather: Weather = CALM
    snapshot_limits: SnapshotLimits = field(default_factory=SnapshotLimits)
    #: How often each kind happens, in election timeouts between two of them.
    faults: dict[str, float] = field(default_factory=dict)
    #: How long a fault lasts at most, in election timeouts.
    lasts: float = 3.0
    #: The share of bodies that return late, and of those that never do while their process lives.
    late_bodies: float = 0.0
    hung_bodies: float = 0.0

    @property
    def election_ns(self) -> int:
        """The election timeout."""
        return self.settings.election_timeout_ms * NS_PER_MS

    @classmethod
    def of(cls, seed: int) -> Swarm:
        """The parameters of ``seed``. Nearly a third of them attack the lease and leave most other faults out."""
        chance = random.Random(f"{seed}/swarm")  # noqa: S311 - replayable on purpose.
        attack = chance.random() < 0.3
        heartbeat = chance.choice(
            (200, 500, 500, 500) if attack else (200, 500, 1000, 1000, 1000, 2000, 2000, 2000, 2000)
        )
        lease = heartbeat * chance.choice((6, 10) if attack else (3, 4, 6, 10))
        bound = chance.choice((0, 10_000, 10_000, 100_000) if not attack else (10_000, 100_000))
        beyond = not attack and chance.random() < 0.1
        members = chance.choice((3, 3, 5) if attack else (3, 3, 3, 3, 3, 5, 2, 1))
        drift = bound if not beyond else max(bound, 20_000) * 2
        weather = _weather(chance, heartbeat)
        members_change = not attack and members > 2 and chance.random() < 0.3
        return cls(
            members=members,
            settings=Settings(
                heartbeat_interval_ms=heartbeat,
                election_timeout_ms=heartbeat * chance.choice((5, 6, 8, 10)),
                lease_duration_ms=lease,
                clock_rate_error_ppm=bound,
                wait_out=chance.choice((ALWAYS, ALWAYS, FENCED_ONLY)),
            ),
            other_leases_ms=tuple(heartbeat * times for times in (3, 6, 12, 20)),
            members_change=members_change,
            application_timeout_ms=lease * chance.choice((1, 5)),
            margin_ms=chance.choice((20, 50, heartbeat // 4)),
            rates_ppm=tuple(clock_rate(chance, drift) for _ in range(members)),
            clocks_keep_the_bound=not beyond,
            weather=CALM if attack else weather,
            worse_weather=_weather(chance, heartbeat, worse=True),
            snapshot_limits=SnapshotLimits(
                entries=chance.choice((8, 20, 100)), size_bytes=1 << 20, keep_entries=chance.choice((0, 2, 10))
            ),
            faults=_attack(chance) if attack else _rates(chance, beyond=beyond, members_change=members_change),
            lasts=chance.choice((1.0, 3.0, 6.0)),
            late_bodies=chance.choice((0.0, 0.2, 0.6)),
            hung_bodies=chance.choice((0.0, 0.0, 0.1)),
        )


def clock_rate(chance: random.Random, bound_ppm: int) -> int:
    """Most often an end of the range: what lies between is easier."""
    return chance.choice((-bound_ppm, bound_ppm, chance.randint(-bound_ppm, bound_ppm)))


def _weather(chance: random.Random, heartbeat_ms: int, *, worse: bool = False) -> Weather:
    heartbeat_ns = heartbeat_ms * NS_PER_MS
    longest = chance.choice((2 * NS_PER_MS, heartbeat_ns // 20, heartbeat_ns // 4))
    often = 0.05 if worse else 0.005
    return Weather(
        delay_ns=(NS_PER_MS // 5, longest),
        slow=chance.choice((0.0, often)),
        slow_ns=heartbeat_ns * chance.choice((2, 8)),
        loss=chance.choice((0.0, often, 4 * often)) if worse else chance.choice((0.0, 0.0, often)),
        duplicate=chance.choice((0.0, often)),
        late=chance.choice((0.0, often / 2)),
        late_ns=heartbeat_ns * 30,
        reorder=chance.random() < 0.3,
    )


def _rates(chance: random.Random, *, beyond: bool, members_change: bool) -> dict[str, float]:
    """Each kind is left out, rare or frequent."""
    left_out = (() if beyond else BEYOND_THE_BOUND) + (() if members_change else OF_MEMBERS)
    kinds = [kind for kind in KINDS if kind not in left_out]
    rates = {kind: chance.choice((0.0, 0.0, 60.0, 25.0, 12.0)) for kind in kinds}
    if members_change:
        rates |= {kind: chance.choice((30.0, 12.0, 6.0)) for kind in OF_MEMBERS}
    # By itself an election never comes while a lease has long to run; this is where the rules of the wait are tried.
    rates["forced_election"] = chance.choice((0.0, 10.0, 5.0))
    return {kind: rate for kind, rate in rates.items() if rate}


def _attack(chance: random.Random) -> dict[str, float]:
    """One election after another while leases have long to run, and what makes that worse."""
    rates = {
        "forced_election": chance.choice((3.0, 5.0)),
        "change_of_times": chance.choice((0.0, 8.0)),
        "slow_one_way": chance.choice((0.0, 3.0)),
        "suspend": chance.choice((0.0, 5.0)),
        "hand_over": chance.choice((0.0, 5.0)),
        "database_failover": chance.choice((0.0, 4.0)),
        "fence_rebase": chance.choice((0.0, 8.0)),
    }
    return {kind: rate for kind, rate in rates.items() if rate}
