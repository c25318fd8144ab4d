"""What an operator does with a running member: its members, snapshots and times; the same for every kind of node.

Every call runs on the application's loop and is answered by the node's thread. A change of the members is judged by
the leader, so it is asked of the leader; a snapshot is taken by any member.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import msgspec

from tenure.config import Config
from tenure.core.commands import MemberRecord, Settings
from tenure.core.effects import Effect
from tenure.core.founding import Hello
from tenure.core.member import MemberCore
from tenure.core.membership import Add, Change, Demote, MemberRole, MemberState, Promote, Remove, even_warning
from tenure.core.view import View
from tenure.errors import MembershipRefused, NodeClosed, NotCaughtUp, NotLeader, OutcomeUnknown, SnapshotRefused
from tenure.node.clocks import read_clocks
from tenure.node.driver import Driver
from tenure.node.inspection import Inspection
from tenure.node.listener import Listener
from tenure.node.observing import Observers, RaftEvent
from tenure.node.reloading import changes
from tenure.node.requests import Requests
from tenure.types import LossReason

CHANGE_TIMEOUT_MS = 10_000
#: Joining and catching up: a large log takes its time.
JOIN_TIMEOUT_MS = 600_000
SNAPSHOT_TIMEOUT_MS = 600_000
_LOOK_AGAIN_SECONDS = 0.1


class MemberList(msgspec.Struct, frozen=True):
    """The members as this one knows them, and the new directories that ask to be added."""

    cluster_id: str | None
    index: int
    members: tuple[MemberState, ...]
    applicants: tuple[str, ...]
    #: What to say of an even number of voters, or None.
    warning: str | None


class Administration(Listener, Inspection):
    """The operations. A node derives from it and gives it its driver and its requests."""

    _config: Config
    _driver: Driver
    _requests: Requests
    _observers: Observers

    def observe(self) -> AsyncIterator[RaftEvent]:
        """The present role, term and leader, then every change of them in order; ends when the node does.

        Any number of observers; none loses an event, and none holds the node up: what a slow one has not taken yet
        waits for it in memory. A new leader shows that the members elected it, not that it leads now (R14).
        """
        return self._observers.observe()

    def published(self, view: View) -> None:
        """See :class:`Listener`."""
        self._observers.note(view)

    # -- members ----------------------------------------------------------------------------------------------------

    async def members(self) -> MemberList:
        """Every member as this one sees it now. On the leader it also tells who has acknowledged what.

        Raises:
            NodeClosed: the node is closed or failed.
        """
        self._require_open()
        states, membership, applicants = await asyncio.wrap_future(self._driver.ask_members())
        voters = [state for state in states if state.role is MemberRole.VOTER]
        enrolment = self._driver.roster.enrolment
        return MemberList(
            cluster_id=enrolment.record.cluster_id if enrolment else None,
            index=membership.index if membership else 0,
            members=tuple(states),
            applicants=tuple(sorted(applicants)),
            warning=even_warning(len(voters)),
        )

    async def add_learner(self, name: str, *, timeout_ms: int = CHANGE_TIMEOUT_MS) -> None:
        """Add the new directory of that name, which is running and asks to be added, as a learner.

        Returns once the change is applied here. Waits up to ``timeout_ms`` for the node to call, and as long again for
        the change. Cancelling the call takes nothing back.

        Raises:
            NotLeader, ProposalDropped, MembershipRefused: surely not done.
            OutcomeUnknown: the change was proposed and is not known to be applied: ask ``members``.
        """
        applicant = await self._applicant(name, timeout_ms)
        await self.change_members([Add(_record_of(applicant))], timeout_ms=timeout_ms)

    async def add_voter(self, name: str, *, timeout_ms: int = JOIN_TIMEOUT_MS) -> None:
        """Add the node of that name as a learner unless it is one, wait until it has caught up, and let it vote.

        Raises as :meth:`add_learner`; :class:`NotCaughtUp` if it lags after ``timeout_ms``: it stays a learner then.
        """
        deadline = time.monotonic() + timeout_ms / 1000
        listed = await self.members()
        if not any(state.name == name and state.role is MemberRole.LEARNER for state in listed.members):
            await self.add_learner(name, timeout_ms=min(timeout_ms, CHANGE_TIMEOUT_MS))
        while True:
            try:
                await self.promote(name)
            except NotCaughtUp:
                if time.monotonic() >= deadline:
                    raise
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
            else:
                return

    async def promote(self, name: str, *, timeout_ms: int = CHANGE_TIMEOUT_MS) -> None:
        """Let the learner vote; raises as :meth:`add_learner`, and :class:`NotCaughtUp`."""
        await self.change_members([Promote(name)], timeout_ms=timeout_ms)

    async def demote(self, name: str, *, timeout_ms: int = CHANGE_TIMEOUT_MS) -> None:
        """Take the voter's vote: it goes on as a learner; raises as :meth:`add_learner`."""
        await self.change_members([Demote(name)], timeout_ms=timeout_ms)

    async def remove(self, name: str, *, timeout_ms: int = CHANGE_TIMEOUT_MS) -> None:
        """Remove the member for good; its node ends by itself once most voters know. Raises as :meth:`add_learner`.

        A leader may remove itself: its lease ends when the change is applied (R12), and the others elect.
        """
        await self.change_members([Remove(name)], timeout_ms=timeout_ms)

    async def change_members(self, changes: Sequence[Change], *, timeout_ms: int = CHANGE_TIMEOUT_MS) -> None:
        """Make all ``changes`` as one, by joint consensus where there is more than one; raises as :meth:`add_learner`.

        Returns once the cluster has left the joint configuration again.
        """
        self._require_founded()
        pending = self._requests.track(timeout_ms)
        self._driver.post(lambda core: core.change_members(changes, pending, read_clocks()))
        await pending.future

    # -- leadership, snapshots, times -------------------------------------------------------------------------------

    async def transfer_leadership(self, to: str | None = None, *, timeout_ms: int = CHANGE_TIMEOUT_MS) -> str:
        """Hand leadership over, to ``to`` or the most advanced voter; the name of the member that leads then.

        Work stops, the lease is released, then the other one is asked to take over (R10). If it does not within one
        election timeout, this member steps down all the same and whoever is elected leads.

        Raises:
            NotLeader: this member does not lead; nothing was done.
            MembershipRefused: ``to`` is no voter, or this member itself.
            OutcomeUnknown: no other leader is known after ``timeout_ms``; this one has stepped down.
        """
        self._require_open()
        if self._driver.published.raft_role != "leader":
            raise self._not_leader()
        target: int | None = None
        if to is not None:
            listed = await self.members()
            target = next(
                (s.raft_id for s in listed.members if s.name == to and s.role is MemberRole.VOTER and not s.leads), None
            )
            if target is None:
                names = sorted(s.name for s in listed.members if s.role is MemberRole.VOTER and not s.leads)
                raise MembershipRefused(f"{to} cannot take over; the other voters are {', '.join(names) or 'none'}")
        term, deadline = self._driver.published.term, time.monotonic() + timeout_ms / 1000
        self._end_work()
        self._driver.post(lambda core: core.step_down(LossReason.STEPPED_DOWN, read_clocks(), to=target))
        while time.monotonic() < deadline:
            self._require_open()
            view = self._driver.published
            leader = self._leader_name(view)
            if view.term > term and leader is not None:
                return leader
            await asyncio.sleep(_LOOK_AGAIN_SECONDS / 10)
        raise OutcomeUnknown("this member has stepped down, and no other leader is known yet")

    async def snapshot(self, *, timeout_ms: int = SNAPSHOT_TIMEOUT_MS) -> int:
        """Take a snapshot of this member now and compact its log; the index up to which it stands.

        Raises:
            SnapshotRefused: nothing was applied since the last one, it failed, or this member belongs to no cluster.
            OutcomeUnknown: it is not durable after ``timeout_ms``; it goes on.
        """
        self._require_open()
        unfounded = self._unfounded()
        if unfounded is not None:
            raise SnapshotRefused(unfounded)
        pending = self._requests.track(timeout_ms)
        self._driver.post(lambda core: core.ask_snapshot(pending, read_clocks()))
        await pending.future
        return self._driver.published.snapshot_index

    async def change_settings(
        self,
        *,
        heartbeat_interval_ms: int | None = None,
        election_timeout_ms: int | None = None,
        lease_duration_ms: int | None = None,
        clock_rate_error_ppm: int | None = None,
        wait_out: str | None = None,
        timeout_ms: int = CHANGE_TIMEOUT_MS,
    ) -> Settings:
        """Change times of the cluster through its log (R4) and return all of them.

        The lease, the rate error and ``wait_out`` count from the next leadership on (R8), heartbeat and election
        timeout from each member's next start. Raises as :meth:`add_learner`; :class:`MembershipRefused` names the time
        that cannot be.
        """
        self._require_founded()
        wanted = {
            "heartbeat_interval_ms": heartbeat_interval_ms,
            "election_timeout_ms": election_timeout_ms,
            "lease_duration_ms": lease_duration_ms,
            "clock_rate_error_ppm": clock_rate_error_ppm,
            "wait_out": wait_out,
        }
        changed: dict[str, object] = {name: value for name, value in wanted.items() if value is not None}
        pending = self._requests.track(timeout_ms)

        def change(core: MemberCore) -> list[Effect]:
            settings = msgspec.structs.replace(core.state.settings, **changed)
            return core.change_settings(settings, read_clocks(), pending)

        self._driver.post(change)
        await pending.future
        return await self.settings()

    async def reload_config(self, config: Config) -> tuple[str, ...]:
        """Take over what may change while the node runs, and return the names of what did; on any member.

        These are the addresses and URLs of ``raft.peers``, ``raft.snapshot_entries``, ``raft.snapshot_bytes`` and
        ``raft.keep_entries``. The files of ``raft.tls`` are looked at, too. Who is a member is not read from
        ``raft.peers`` any more once the cluster is founded.

        Raises:
            ConfigError: something else differs; it names the field and who changes it. Nothing was changed.
            NodeClosed: the node is closed or failed.
        """
        self._require_open()
        founded = self._driver.roster.enrolment is not None
        names = changes(self._config, config, settings=await self.settings() if founded else None)
        await asyncio.wrap_future(self._driver.ask_thread(lambda: self._driver.reload(config)))
        self._config = config
        return names

    async def settings(self) -> Settings:
        """The cluster's times as the log has them here; :class:`NodeClosed` while this member belongs to no cluster."""
        self._require_open()
        unfounded = self._unfounded()
        if unfounded is not None:
            raise NodeClosed(unfounded)
        return await asyncio.wrap_future(self._driver.ask(lambda core: core.state.settings))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _end_work(self) -> None:
        """The office is about to be handed over: end at once what leans on it here."""

    async def _applicant(self, name: str, timeout_ms: int) -> Hello:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            self._require_open()
            if self._driver.published.raft_role != "leader":
                raise self._not_leader()
            states, _, applicants = await asyncio.wrap_future(self._driver.ask_members())
            if any(state.name == name for state in states):
                raise MembershipRefused(
                    f"{name} is a member already; 'tenure member replace {name}' gives it a new disk"
                )
            if name in applicants:
                return applicants[name]
            if time.monotonic() >= deadline:
                waiting = ", ".join(sorted(applicants)) or "none"
                raise MembershipRefused(
                    f"no new node named {name} has called (calling: {waiting}): start it with an empty data directory "
                    "and with these members in its raft.peers, then add it again"
                )
            await asyncio.sleep(_LOOK_AGAIN_SECONDS)

    def _not_leader(self) -> NotLeader:
        name = self._leader_name(self._driver.published)
        url = self._driver.url_of(name) if name else None
        return NotLeader(leader_name=name, leader_url=url, reason=self._unfounded())

    def _require_founded(self) -> None:
        """Refuse at once what nobody could answer before there is a cluster: it would wait until its timeout."""
        self._require_open()
        if self._unfounded() is not None:
            raise self._not_leader()

    def _unfounded(self) -> str | None:
        """Why this member belongs to no cluster yet, and who is missing; None once it does."""
        if self._driver.roster.enrolment is not None:
            return None
        return f"it belongs to no cluster yet, {self._driver.published.reason or 'and has just been started'}"

    def _leader_name(self, view: View) -> str | None:
        return self._driver.roster.name_of(view.leader_id) if view.leader_id else None


def _record_of(hello: Hello) -> MemberRecord:
    return MemberRecord(
        raft_id=0, name=hello.name, directory_id=hello.directory_id, address=hello.address, url=hello.url
    )
