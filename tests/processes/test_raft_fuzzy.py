"""hashicorp/raft's fuzzy scenarios against real processes, each from a seed that replays its plan of faults.

Each scenario draws its whole plan from ``random.Random(seed)`` before anything starts: what happens, to whom, and after
how many acknowledged commands; never by the wall clock. Who leads at that moment the plan cannot know, so it says
"the leader" and "the second follower by name". ``check_end`` then judges states, logs, votes, terms and outcomes.

``FUZZY_SEED=7 pytest ...`` replays one plan, ``FUZZY_SEEDS=20`` (``make fuzzy SEEDS=20``) runs so many; the failure of
a run names its seed and the command. See docs/internals/testing.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from support.raft_processes import Clients, Process, ProcessEnded, Processes, check_end, running, until

pytestmark = [pytest.mark.processes, pytest.mark.timeout(170)]

SEEDS_IN_CI = 2
LEAVES = 0.4


def seeds() -> list[int]:
    """The seeds of this run."""
    if "FUZZY_SEED" in os.environ:
        return [int(os.environ["FUZZY_SEED"])]
    return list(range(1, 1 + int(os.environ.get("FUZZY_SEEDS", SEEDS_IN_CI))))


class Step(msgspec.Struct, frozen=True):
    """Once ``at`` commands are acknowledged, do this to these: 0 is the leader, 1 the first follower by name."""

    at: int
    do: str
    ranks: tuple[int, ...] = ()
    detail: str = ""


@contextlib.asynccontextmanager
async def replayable(scenario: str, seed: int, plan: list[Step]) -> AsyncIterator[None]:
    """A failure within names the seed, the plan and the command that replays it."""
    try:
        yield
    except BaseException as error:
        steps = "\n".join(f"  at {step.at}: {step.do} {step.ranks} {step.detail}" for step in plan)
        error.add_note(
            f"seed {seed}; replay it by: FUZZY_SEED={seed} .venv/bin/pytest "
            f"tests/processes/test_raft_fuzzy.py -k {scenario}\nits plan:\n{steps}"
        )
        raise


def fuzzy(function: Any) -> Any:
    return pytest.mark.asyncio(pytest.mark.parametrize("seed", seeds())(function))


async def by_rank(processes: Processes) -> list[Process]:
    """The leader, then those who follow, by name."""
    leader = await processes.leader()
    return [leader, *(process for name, process in sorted(processes.alive.items()) if name != leader.name)]


async def cut(processes: Processes, names: set[str], direction: str = "both") -> None:
    """Part ``names`` from all others; ``in``: they hear nothing from them, ``out``: they are not heard."""
    others = set(processes.running) - names
    deaf = direction in ("both", "in")
    mute = direction in ("both", "out")
    await asyncio.gather(
        *(
            processes.running[name].do(
                "cut", deaf_to=sorted(others) if deaf else [], mute_to=sorted(others) if mute else []
            )
            for name in names
        )
    )


async def heal(processes: Processes) -> None:
    """Everybody hears everybody again."""
    await asyncio.gather(*(process.do("cut") for process in processes.alive.values()))


# -- partitions -------------------------------------------------------------------------------------------------------


def plan_of_partitions(seed: int, rounds: int) -> list[Step]:
    """The leader is cut off, alone or with one other, in one direction or both; healed before the next round."""
    randomness, at, plan = random.Random(seed), 0, []
    for _ in range(rounds):
        at += randomness.randint(20, 150)
        ranks = (0,) if randomness.random() < 0.5 else (0, randomness.randint(1, 4))
        plan.append(Step(at, "cut", ranks, randomness.choice(["both", "both", "in", "out"])))
        at += randomness.randint(20, 150)
        plan.append(Step(at, "heal"))
    return plan


@fuzzy
async def test_fuzzy_leader_partitions(tmp_path: Path, seed: int):
    """Five members; each round the leader is on the side of the minority."""
    plan = plan_of_partitions(seed, rounds=5)
    async with replayable("leader_partitions", seed, plan), running(tmp_path, "abcde") as processes:
        clients = Clients(processes, seed=seed, timeout_ms=1500)
        clients.start()
        for step in plan:
            await clients.reach(step.at)
            if step.do == "cut":
                ranks = await by_rank(processes)
                await cut(processes, {ranks[rank].name for rank in step.ranks}, step.detail)
            else:
                await heal(processes)
        await heal(processes)
        await clients.more(50)
        await check_end(processes, clients)


def plan_of_leaving(seed: int, rounds: int) -> list[Step]:
    """Each round each member leaves with 40 %, at most two at a time are away, and with 40 % all come back."""
    randomness, at, plan = random.Random(seed), 0, []
    away: set[int] = set()
    for _ in range(rounds):
        at += randomness.randint(10, 100)
        if away and randomness.random() < LEAVES:
            away.clear()
            plan.append(Step(at, "heal"))
            continue
        for place in randomness.sample(range(5), 5):
            if len(away) < 2 and randomness.random() < LEAVES:
                away.add(place)
        plan.append(Step(at, "cut", tuple(sorted(away))))
    return plan


@fuzzy
async def test_fuzzy_members_leave_and_heal(tmp_path: Path, seed: int):
    """Here the numbers are members by name: each away alone, none hears the other."""
    plan = plan_of_leaving(seed, rounds=8)
    async with replayable("leave_and_heal", seed, plan), running(tmp_path, "abcde") as processes:
        clients = Clients(processes, seed=seed, timeout_ms=1500)
        clients.start()
        for step in plan:
            await clients.reach(step.at)
            await heal(processes)
            for place in step.ranks:
                await cut(processes, {"abcde"[place]})
        await heal(processes)
        await clients.more(50)
        await check_end(processes, clients)


# -- slow votes -------------------------------------------------------------------------------------------------------


def plan_of_slow_votes(seed: int, rounds: int) -> list[Step]:
    """One member is slow and leaders are cut off, or two are and leaders are told to hand over: a fast quorum stays."""
    randomness, at = random.Random(seed), 10
    slow = sorted(randomness.sample("abcde", 1 + seed % 2))
    plan = [Step(at, "slow", detail="".join(slow))]
    for _ in range(rounds):
        at += randomness.randint(20, 150)
        if len(slow) == 1:
            plan.append(Step(at, "cut", (0,)))
            at += randomness.randint(20, 150)
            plan.append(Step(at, "heal"))
        else:
            plan.append(Step(at, "transfer", (randomness.randint(1, 4),)))
    return plan


@fuzzy
async def test_fuzzy_slow_votes(tmp_path: Path, seed: int):
    """What a slow member says of votes takes 1 to 2 s, twice an election timeout and more: it comes in later terms."""
    plan = plan_of_slow_votes(seed, rounds=4)
    async with replayable("slow_votes", seed, plan), running(tmp_path, "abcde") as processes:
        clients = Clients(processes, seed=seed, timeout_ms=1500)
        clients.start()
        for step in plan:
            await clients.reach(step.at)
            if step.do == "slow":
                for name in step.detail:
                    await processes.running[name].do("slow_votes", seconds=[1.0, 2.0], seed=seed)
            elif step.do == "heal":
                await heal(processes)
            else:
                ranks = await by_rank(processes)
                if step.do == "cut":
                    await cut(processes, {ranks[0].name})
                else:
                    await ranks[0].ask("transfer", to=ranks[step.ranks[0]].name)
        await heal(processes)
        await clients.more(50)
        await check_end(processes, clients)


# -- membership -------------------------------------------------------------------------------------------------------


def plan_of_members(seed: int, changes: int) -> list[Step]:
    randomness, at, plan = random.Random(seed), 0, []
    for _ in range(changes):
        at += randomness.randint(30, 200)
        what = randomness.choice(["add", "add", "demote", "promote", "remove", "remove the leader", "swap"])
        plan.append(Step(at, what, (randomness.randrange(8),)))
    return plan


class Membership:
    """Carries out a plan of changes on whatever members there are: a step that cannot be is left out."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._directories = 0

    async def known(self) -> dict[str, str]:
        async def ask() -> dict[str, str] | None:
            with contextlib.suppress(ProcessEnded):
                answer = await (await self._processes.leader()).ask("members")
                if "error" not in answer:
                    return dict(answer["members"])
            return None

        return dict(await until("the members", ask))

    async def run(self, step: Step) -> None:
        members = await self.known()
        leader = await self._processes.leader()
        voters = sorted(name for name, role in members.items() if role == "voter" and name != leader.name)
        learners = sorted(name for name, role in members.items() if role == "learner")
        rank = step.ranks[0]
        if step.do == "add":
            await self._add(sorted(set(self._processes.ports) - members.keys()), rank)
        elif step.do == "promote" and learners:
            await self._ask("change", promote=[learners[rank % len(learners)]])
        elif step.do == "demote" and len(voters) >= 2:
            await self._ask("change", demote=[voters[rank % len(voters)]])
        elif step.do == "swap" and learners and voters:
            name = voters[rank % len(voters)]
            await self._ask("change", promote=[learners[rank % len(learners)]], demote=[name])
        elif step.do.startswith("remove") and len(voters) >= 2:
            await self._remove(leader.name if step.do == "remove the leader" else voters[rank % len(voters)])

    async def _ask(self, do: str, **arguments: Any) -> None:
        """Whatever becomes of it: the next step looks at the members there are."""
        with contextlib.suppress(ProcessEnded):
            await (await self._processes.leader()).ask(do, **arguments)

    async def _add(self, free: list[str], rank: int) -> None:
        if not free:
            return
        name = free[rank % len(free)]
        self._directories += 1
        self._processes.start(name, directory=f"{name}{self._directories}")

        async def add() -> bool:
            await self._ask("add", name=name, timeout_ms=5000)
            return (await self.known()).get(name) == "voter"

        await until(f"{name} votes", add)

    async def _remove(self, name: str) -> None:
        async def remove() -> bool:
            await self._ask("remove", name=name)
            return name not in await self.known()

        await until(f"{name} is removed", remove)
        # It ends by itself where it hears of it; one that lags behind is refused by the others and told so.
        process = self._processes.running[name]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await process.ended.wait()
        await process.end(kill=True)


@fuzzy
async def test_fuzzy_members_change_while_commands_are_applied(tmp_path: Path, seed: int):
    """Members are added, promoted, demoted, swapped and removed, the leader too; snapshots are taken meanwhile."""
    plan = plan_of_members(seed, changes=8)
    small = {"snapshot_entries": 200, "keep_entries": 50}
    async with replayable("members_change", seed, plan), running(tmp_path, "abc", spare="de", **small) as processes:
        clients = Clients(processes, seed=seed)
        clients.start()
        membership = Membership(processes)
        for step in plan:
            await clients.reach(step.at)
            await membership.run(step)
        await clients.more(50)
        await check_end(processes, clients)


# -- transfers --------------------------------------------------------------------------------------------------------


def plan_of_transfers(seed: int, transfers: int) -> list[Step]:
    randomness, at, plan = random.Random(seed), 0, []
    for _ in range(transfers):
        at += randomness.randint(20, 400)
        # With one in four the target is cut off at that very moment, and the transfer fails.
        detail = "to one that is cut off" if randomness.random() < 0.25 else ""
        plan.append(Step(at, "transfer", (randomness.randint(1, 4),), detail))
    return plan


@fuzzy
async def test_fuzzy_leadership_is_transferred_under_load(tmp_path: Path, seed: int):
    """To a member of the plan's choice, again and again, while 64 commands are on their way."""
    plan = plan_of_transfers(seed, transfers=10)
    async with replayable("transferred", seed, plan), running(tmp_path, "abcde") as processes:
        clients = Clients(processes, seed=seed, in_flight=64)
        clients.start()
        for step in plan:
            await clients.reach(step.at)
            ranks = await by_rank(processes)
            target = ranks[step.ranks[0]]
            if step.detail:
                await cut(processes, {target.name})
            await ranks[0].ask("transfer", to=target.name)
            await heal(processes)
        await clients.more(100)
        await check_end(processes, clients)


@fuzzy
async def test_fuzzy_ten_thousand_commands_through_transfers_and_cuts(tmp_path: Path, seed: int):
    """The long one: a cut of the leader, a transfer and a death for each two thousand."""
    randomness = random.Random(seed)
    plan = [
        Step(at + randomness.randint(0, 1000), what)
        for at in range(0, 9000, 3000)
        for what in sorted(["cut", "transfer", "kill"], key=lambda _: randomness.random())
    ]
    plan.sort(key=lambda step: step.at)
    async with replayable("ten_thousand", seed, plan), running(tmp_path, "abc", snapshot_entries=2000) as processes:
        clients = Clients(processes, seed=seed, in_flight=128, timeout_ms=1500)
        clients.start()
        for step in plan:
            await clients.reach(step.at)
            leader = await processes.leader()
            if step.do == "cut":
                await cut(processes, {leader.name})
                await clients.more(50)
                await heal(processes)
            elif step.do == "transfer":
                await leader.ask("transfer")
            else:
                await leader.end(kill=True)
                await clients.more(50)
                processes.start(leader.name)
        await clients.reach(10_000, seconds=60)
        await check_end(processes, clients)
