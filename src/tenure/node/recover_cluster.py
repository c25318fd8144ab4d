"""Gives a lost majority up for good: one stopped survivor goes on alone, under a higher generation (R16). Blocking.

::

    the log as it is | leave a joint configuration | Recover(generation + 1, new lineage) | vote, if a learner | remove
                     `--------------- one durable save, of the next term, committed to its end ---------------------'

It must never be done while members that are given up still live: nothing here can know that, so it wants the
operator's word. If they live all the same, the fence refuses their lower generation for ever, and the two sides refuse
each other's frames by their lineage. The holding in the state stays, so that the survivor waits the old lease out (R9).
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from tenure.config import Config
from tenure.core.commands import MembersChange, Recover, encode, encode_members, is_of_user
from tenure.core.fsm import Enrolment, Membership, apply_entry, apply_members, initial_state
from tenure.errors import InvariantViolated, LogCorrupt, MembershipRefused
from tenure.node.engine import batch_of, build_engine, conf_change_in, conf_change_of, entries_of, restored_at
from tenure.node.opening import Stores
from tenure.node.ports import Ports
from tenure.storage import DataDirectory, StoredLog

#: Random bits of a lineage, as the founding's: two recoveries must never draw the same one.
_LINEAGE_BYTES = 8

_NewEntry = tuple[Literal["command", "empty", "conf_change"], bytes]


class Survivor(msgspec.Struct, frozen=True):
    """Where a stopped member's directory stands, everything in its log taken for committed."""

    name: str
    cluster_name: str
    cluster_id: str
    #: The last entry of its log: of several survivors the one with the highest (term, index) has the most.
    last_term: int
    last_index: int
    #: The last entry that this member knew to be committed.
    commit_index: int
    generation: int
    lineage: str
    voters: tuple[str, ...]
    learners: tuple[str, ...]
    #: Base URLs of the members by name, as far as they gave one.
    urls: dict[str, str]

    @property
    def others(self) -> tuple[str, ...]:
        """The members that a recovery gives up."""
        return tuple(name for name in (*self.voters, *self.learners) if name != self.name)


class Recovered(msgspec.Struct, frozen=True):
    """What was done: as it stood before, and the generation and lineage that the cluster has now."""

    before: Survivor
    generation: int
    lineage: str
    last_index: int


def recover_cluster(config: Config, *, all_others_are_dead: str, ports: Ports | None = None) -> Recovered:
    """Make the stopped node of ``config`` the only member of its cluster; its log must reach furthest of all survivors.

    Entries of its log that were not known to be committed count as committed from now on; what the others had
    acknowledged and this log lacks is lost. Once started, the node waits the old lease out and leads alone, under a
    higher generation; the others come back as new members with new data directories. Run it on one survivor only.

    Args:
        config: That of the node itself.
        all_others_are_dead: The operator's word that no other member of the cluster runs or ever will with the
            directory that it had: the cluster's id.
        ports: The user's own stores, as for the node itself.

    Raises:
        MembershipRefused: the word is not the id, the directory is new, or there is nothing to recover; nothing was
            changed.
        DirectoryInUse: a node runs on it.
        LogCorrupt: what it keeps is damaged.
        StorageError: it is no data directory, or cannot be written; whatever was written, the node does not lead, and
            the recovery can be run again.
    """
    _require_member(Path(config.node.data_dir))
    with contextlib.closing(Stores.open(config, Ports() if ports is None else ports, secrets.randbits(63))) as stores:
        return recover_stores(stores, all_others_are_dead)


def recover_data_dir(folder: Path, *, all_others_are_dead: str) -> Recovered:
    """As :func:`recover_cluster`, for a directory with our own stores and without its configuration."""
    node_name, cluster_name = _require_member(folder)
    directory = DataDirectory.open(folder, node_name=node_name, cluster_name=cluster_name)
    with contextlib.closing(Stores(directory, directory.log, directory.snapshots)) as stores:
        return recover_stores(stores, all_others_are_dead)


def survivor_in(folder: Path) -> Survivor:
    """Where the directory of a stopped node stands, the content of its snapshot checked. It changes nothing.

    Raises:
        MembershipRefused: it belongs to no cluster, or not any more.
        DirectoryInUse, LogCorrupt, StorageError: as for :func:`recover_cluster`.
    """
    with DataDirectory.inspect(folder) as directory:
        return _Replayed.of(Stores(directory, directory.log, directory.snapshots)).survivor()


def _require_member(folder: Path) -> tuple[str, str]:
    """The names that a directory was made for: opening another folder than a member's would make one of it."""
    with DataDirectory.inspect(folder) as directory:
        _enrolment_of(directory)
        return directory.node_name, directory.cluster_name


def recover_stores(stores: Stores, word: str) -> Recovered:
    """As :func:`recover_cluster`, on stores that are open."""
    found = _Replayed.of(stores)
    before = found.survivor()
    if word != before.cluster_id:
        raise MembershipRefused(
            "nothing was done: the word that all other members are dead is the id of their cluster, "
            f"{before.cluster_id}, and not {word!r}"
        )
    if before.voters == (before.name,):
        raise MembershipRefused(f"{before.name} is the only voter of its cluster already: start it, and it leads")
    entries: list[_NewEntry] = [("conf_change", conf_change_of([], b""))] if found.engine.joint else []
    left = found.followed_by(entries) if entries else found
    entries += _alone(left, Recover(found.state.generation + 1, secrets.token_hex(_LINEAGE_BYTES)))
    after = found.followed_by(entries)
    engine, members = after.engine, [record.name for record in after.state.members]
    standing = (list(engine.voters), list(engine.learners), engine.joint, members)
    if standing != ([found.raft_id], [], False, [before.name]):
        raise InvariantViolated(f"R16: the recovered log leaves other members than {before.name} alone: {standing}")
    # The directory first: if the log does not follow, the node starts under a lineage that nobody shares, leads nothing
    # and disturbs nobody, and the recovery is run again. The other way round it could meet the members of the old one.
    stores.directory.enrol(msgspec.structs.replace(found.enrolment, membership=after.membership()))
    stored = after.stored
    stores.log.save(
        first=before.last_index + 1,
        last=after.last_index,
        entries=stored.batches[-1],
        hard_state=(stored.term, stored.vote, stored.commit),
    )
    return Recovered(before, after.state.generation, after.state.lineage, after.last_index)


def _alone(found: _Replayed, recover: Recover) -> list[_NewEntry]:
    """The entries that leave the survivor as the only member, one change in each: none of them is a joint one."""
    entries: list[_NewEntry] = [("command", encode(recover))]
    if found.raft_id not in found.engine.voters:
        entries.append(("conf_change", conf_change_of([("add_voter", found.raft_id)], encode_members(MembersChange()))))
    for raft_id in sorted({*found.engine.voters, *found.engine.learners} - {found.raft_id}):
        context = encode_members(MembersChange(removed=(raft_id,)))
        entries.append(("conf_change", conf_change_of([("remove", raft_id)], context)))
    return entries


class _Replayed:
    """A stored log, applied to its very end by an engine that never starts."""

    def __init__(self, directory: DataDirectory, enrolment: Enrolment, stored: StoredLog) -> None:
        self._directory = directory
        self.enrolment = enrolment
        self.raft_id = enrolment.raft_id
        self.stored = stored
        self.last_index, self.last_term = _end_of(stored)
        settings = directory.settings or enrolment.record.settings
        everything = msgspec.structs.replace(stored, commit=max(stored.commit, self.last_index))
        self.engine = build_engine(enrolment.record, self.raft_id, everything, settings)
        restored = restored_at(stored)
        self.state = initial_state(enrolment.record) if restored is None else restored.state
        while self.engine.has_ready():
            committed = self.engine.advance(self.engine.ready()).committed
            for index, _, kind, data in committed:
                self._apply(index, kind, data)
            if committed:
                self.engine.applied_to(committed[-1][0])

    @classmethod
    def of(cls, stores: Stores) -> _Replayed:
        """What the stores keep; errors as for :func:`survivor_in`."""
        stored = stores.log.load()
        _check_content(stores, stored)
        replayed = cls(stores.directory, _enrolment_of(stores.directory), stored)
        if all(record.raft_id != replayed.raft_id for record in replayed.state.members):
            raise MembershipRefused(
                f"{stores.directory.node_name} is no member by its own log, which ends at {replayed.last_index}: it "
                "was removed, or has not learned yet that it was added; recover on another survivor"
            )
        return replayed

    def followed_by(self, entries: Sequence[_NewEntry]) -> _Replayed:
        """The same log with these entries of the next term at its end, all of it committed."""
        term, first = self.stored.term + 1, self.last_index + 1
        batch = batch_of([(index, term, kind, data) for index, (kind, data) in enumerate(entries, start=first)])
        stored = msgspec.structs.replace(
            self.stored,
            term=term,
            vote=self.raft_id,
            commit=self.last_index + len(entries),
            batches=(*self.stored.batches, batch),
        )
        return _Replayed(self._directory, self.enrolment, stored)

    def membership(self) -> Membership:
        """Who belongs to the cluster at the end of the log."""
        return Membership(
            index=self.last_index,
            members=self.state.members,
            voters=tuple(self.engine.voters),
            learners=tuple(self.engine.learners),
            generation=self.state.generation,
            lineage=self.state.lineage,
        )

    def survivor(self) -> Survivor:
        """What an operator has to know of it."""
        names = {record.raft_id: record.name for record in self.state.members}
        return Survivor(
            name=self._directory.node_name,
            cluster_name=self._directory.cluster_name,
            cluster_id=self.enrolment.record.cluster_id,
            last_term=self.last_term,
            last_index=self.last_index,
            commit_index=self.stored.commit,
            generation=self.state.generation,
            lineage=self.state.lineage,
            voters=tuple(names.get(raft_id, f"member {raft_id}") for raft_id in sorted(self.engine.voters)),
            learners=tuple(names.get(raft_id, f"member {raft_id}") for raft_id in sorted(self.engine.learners)),
            urls={record.name: record.url for record in self.state.members if record.url},
        )

    def _apply(self, index: int, kind: str, data: bytes) -> None:
        if kind == "conf_change":
            self.engine.apply_conf_change(data)
            steps, context = conf_change_in(data)
            self.state = apply_members(self.state, context, joint=len(steps) > 1, index=index)
        elif not is_of_user(data):
            self.state = apply_entry(self.state, data, index=index)


def _enrolment_of(directory: DataDirectory) -> Enrolment:
    enrolment = directory.enrolment
    if enrolment is None:
        raise MembershipRefused(f"the data directory {directory.path} is new: it belongs to no cluster")
    if enrolment.removed:
        raise MembershipRefused(f"{directory.node_name} was removed from its cluster: recover on a member of it")
    return enrolment


def _end_of(stored: StoredLog) -> tuple[int, int]:
    """Index and term of the last entry."""
    end = (0, 0) if stored.snapshot is None else (stored.snapshot.index, stored.snapshot.term)
    if not stored.batches:
        return end
    try:
        index, term, *_ = entries_of(stored.batches[-1])[-1]
    except ValueError as error:
        raise LogCorrupt(f"the last batch of log entries is malformed ({error})", path="log") from None
    return max(end, (index, term))


def _check_content(stores: Stores, stored: StoredLog) -> None:
    """A snapshot whose content is torn would keep the survivor from starting, after the others were given up."""
    restored = restored_at(stored)
    if restored is None or restored.content is None:
        return
    with stores.snapshots.open(restored.content.id) as reader:
        if (reader.info.size, reader.info.sha256) != (restored.content.size, restored.content.sha256):
            raise LogCorrupt(
                f"snapshot {restored.content.id} is not the one that the log names", path=restored.content.id
            )
