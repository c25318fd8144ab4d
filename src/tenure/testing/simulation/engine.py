"""The real engine with chance from the seed, and what a simulator needs to know of it: when a tick can matter.

raft-rs draws its election timeouts from the thread's own randomness. Each draw is replaced before it is used: by the
core's, where the core sets one, else by one of the seed. Nothing else differs from the engine that a member runs on.
Counting ticks costs nothing here, so a member is woken only when the next one can change something.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from operator import attrgetter
from typing import Any, cast

from tenure.core.commands import Settings
from tenure.core.consensus import Cadence
from tenure.core.engine import Engine, Ready
from tenure.node.engine import binding

_PASSED_ON = (
    "propose",
    "propose_conf_change",
    "apply_conf_change",
    "read_index",
    "campaign",
    "report_unreachable",
    "report_snapshot",
    "vouch_for",
    "compact",
    "has_ready",
    "advance",
    "applied_to",
    "progress",
)
_OF_A_LEADER = frozenset({"append", "heartbeat", "snapshot"})


def message_kinds(payload: bytes) -> list[tuple[str, int, int, int]]:
    """The messages of a payload: kind, sender, receiver, term."""
    return cast("list[tuple[str, int, int, int]]", cast("Any", binding()).message_kinds(payload))


def encode_message(kind: str, *, sender: int, to: int, term: int) -> bytes:
    """One message as a payload, true or forged."""
    return cast("bytes", cast("Any", binding()).encode_message(kind, sender=sender, to=to, term=term))


class SeededEngine:
    """See the module. ``on_transfer`` is told before the order to campaign is handed out."""

    def __init__(
        self, engine: Engine, settings: Settings, chance: random.Random, on_transfer: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._cadence = cadence = Cadence.of(settings.heartbeat_interval_ms, settings.election_timeout_ms)
        self._chance = chance
        self._on_transfer = on_transfer
        self._timeout = cadence.election_tick
        self._timeout_for: tuple[int, str, int] | None = None
        #: At least as many ticks as the engine has counted since it last heard its leader; and since a heartbeat.
        self._silent = self._beat = 0
        self._commit_told = 0
        #: Term and vote as they were when the Ready was made that is being made durable.
        self.promised = (engine.term, engine.vote)
        for name in _PASSED_ON:
            setattr(self, name, getattr(engine, name))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    term = property(attrgetter("_engine.term"))
    vote = property(attrgetter("_engine.vote"))
    role = property(attrgetter("_engine.role"))
    commit = property(attrgetter("_engine.commit"))
    last_index = property(attrgetter("_engine.last_index"))
    leader_id = property(attrgetter("_engine.leader_id"))
    voters = property(attrgetter("_engine.voters"))
    learners = property(attrgetter("_engine.learners"))
    joint = property(attrgetter("_engine.joint"))
    snapshot_wanted = property(attrgetter("_engine.snapshot_wanted"))

    @property
    def tick_ns(self) -> int:
        """The length of a tick."""
        return self._cadence.tick_ns

    def ticks_until_due(self) -> int:
        """How many ticks pass before one of them can matter; at least one."""
        engine = self._engine
        if engine.role == "leader":
            untold = engine.commit != self._commit_told and engine.last_index == engine.commit
            return 1 if untold else max(1, self._cadence.heartbeat_tick - self._beat)
        if (engine.term, engine.role, engine.leader_id) != self._timeout_for:
            # The core sets the timeout of this standing with the next tick.
            return 1
        return max(1, self._timeout - self._silent)

    def set_randomized_election_timeout(self, ticks: int) -> None:
        """What the core wants in place of the engine's own draw."""
        engine = self._engine
        self._timeout, self._timeout_for = ticks, (engine.term, engine.role, engine.leader_id)

    def tick(self, count: int = 1) -> None:
        """Count ticks, one after another, as each may draw anew."""
        engine = self._engine
        while count > 0:
            standing = (engine.term, engine.role, engine.leader_id)
            if standing != self._timeout_for:
                election = self._cadence.election_tick
                self._timeout, self._timeout_for = election + self._chance.randrange(election), standing
            engine.set_randomized_election_timeout(self._timeout)
            quiet = standing[1] != "leader" and self._silent + count < self._timeout
            step = count if quiet else 1
            engine.tick(step)
            count -= step
            self._silent += step
            self._beat = (self._beat + step) % self._cadence.heartbeat_tick
            if engine.role != standing[1] or engine.term != standing[0]:
                # The engine has just begun to campaign, to lead or to follow, and counts from here.
                self._silent = self._beat = 0

    def receive(
        self, sender: int, payload: bytes, *, refuse_votes: bool, refuse_campaign: bool = False
    ) -> tuple[int, int]:
        """See :class:`Engine`."""
        engine = self._engine
        term, role = engine.term, engine.role
        taken = engine.receive(sender, payload, refuse_votes=refuse_votes, refuse_campaign=refuse_campaign)
        now_role = engine.role
        if now_role != role or engine.term != term:
            self._beat = 0
            if now_role == "follower":
                self._silent = 0
        elif now_role == "follower" and engine.leader_id == sender:
            kind, _, _, of_term = message_kinds(payload)[0]
            if of_term == term and kind in _OF_A_LEADER:
                self._silent = 0
        return taken

    def become_follower(self, leader: int = 0) -> None:
        """See :class:`Engine`."""
        self._engine.become_follower(leader)
        self._silent = 0

    def ping(self) -> None:
        """See :class:`Engine`."""
        self._commit_told = self._engine.commit
        self._engine.ping()

    def transfer_leader(self, target: int) -> None:
        """See :class:`Engine`."""
        self._on_transfer()
        self._engine.transfer_leader(target)

    def ready(self) -> Ready:
        """See :class:`Engine`."""
        engine = self._engine
        self.promised = (engine.term, engine.vote)
        return engine.ready()
