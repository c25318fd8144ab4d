"""What the compiled module promises. Numbers are terms, indexes, ids and ticks; nothing here is a time."""

from collections.abc import Sequence
from typing import Literal, final

__all__ = [
    "Advanced",
    "Engine",
    "EngineError",
    "ProposalDropped",
    "Ready",
    "decode_batch",
    "decode_conf_change",
    "encode_batch",
    "encode_conf_change",
    "encode_message",
    "message_kinds",
    "snapshot_in",
]

_Role = Literal["leader", "follower", "candidate", "pre_candidate"]
_EntryKind = Literal["command", "empty", "conf_change"]
_ChangeKind = Literal["add_voter", "add_learner", "remove"]

class EngineError(Exception):
    """The engine broke an invariant of its own and is unusable, or it was called out of order.

    ``Engine.poisoned`` tells the two apart: a call out of order leaves the engine as it was.
    """

class ProposalDropped(EngineError):
    """The proposal was surely not taken; the engine is well. Send it again, perhaps elsewhere."""

@final
class Engine:
    """One Raft node. Every call is immediate; none blocks, does I/O or reads a clock.

    The order of calls is ``ready``, make it durable, ``advance``, apply, ``applied_to``. Between ``ready`` and
    ``advance`` only the properties and ``progress`` may be used: anything else raises :class:`EngineError` and
    changes nothing (R2). A panic inside raises :class:`EngineError` then and on every later call.

    ``check_quorum`` and ``pre_vote`` are on, reads are Safe, the priority is 0 (R4).
    """

    def __new__(
        cls,
        *,
        raft_id: int,
        election_tick: int,
        heartbeat_tick: int,
        voters: Sequence[int],
        learners: Sequence[int],
        term: int,
        vote: int,
        commit: int,
        batches: Sequence[bytes],
        applied: int = 0,
        snapshot: tuple[int, int, bytes] | None = None,
        max_size_per_message: int = ...,
        max_inflight_messages: int = ...,
        max_uncommitted_size: int = ...,
        tell_commits: bool = True,
    ) -> Engine:
        """A node that stands where its durable state stands.

        Args:
            raft_id: This node; above 0.
            election_tick: Ticks of the shortest election timeout; the longest is twice as many less one.
            heartbeat_tick: Ticks between two heartbeats of a leader.
            voters: Who votes where the log starts: at ``snapshot``, else at its founding.
            learners: Who only receives the log there.
            term: The last durable term.
            vote: Whom this node voted for in it; 0 for nobody.
            commit: The last durable commit index.
            batches: Every ``Ready.entries`` since, in the order in which they were saved. Each replaces everything
                from its first index on.
            applied: The last index that the caller has applied; ``voters`` and ``learners`` are then those there.
                With 0, committed entries are handed out again from the start of the log.
            snapshot: Index, term and data that stand for everything up to that index.
            max_size_per_message: Bytes of entries in one message, at most 1 MiB.
            max_inflight_messages: Messages on their way to one peer.
            max_uncommitted_size: Bytes of commands that may wait for a quorum, at least ``max_size_per_message``;
                beyond it proposals are dropped.
            tell_commits: Tell every commit in a message of its own. Without it a commit travels with the next entries
                or heartbeat (see ``ping``), unless a configuration change waits for it.

        Raises:
            ValueError: an argument or a stored batch is malformed, or they contradict one another.
            EngineError: raft-rs found another contradiction.
        """

    def tick(self, count: int = 1) -> None:
        """Count ``count`` ticks. Those owed come before what waits to be received (R5)."""

    def set_randomized_election_timeout(self, ticks: int) -> None:
        """Replace what raft-rs drew at the last change of role: ``election_tick <= ticks < 2 * election_tick``."""

    def receive(
        self, sender: int, payload: bytes, *, refuse_votes: bool, refuse_campaign: bool = False
    ) -> tuple[int, int]:
        """Step the messages that ``sender`` sent; how many were stepped and how many dropped.

        Dropped without touching anything (R3): messages of another sender or for another node, of term 0, of a
        sender that is neither a member nor vouched for, of a type that does not travel between nodes, a snapshot
        that does not travel alone, and a commit index or an acknowledgement beyond the end of the own log (P10: one
        of the two disks has forgotten something). With ``refuse_votes`` also requests for a vote and the order to
        campaign at once (R6), with ``refuse_campaign`` that order alone (R10).

        A snapshot that was stepped is in the next :class:`Ready` only if this node needs it: one of an index that
        the own log holds with the same term commits up to there and leaves the log as it is.

        Raises:
            ValueError: the payload is malformed; nothing of it was stepped.
        """

    def vouch_for(self, ids: Sequence[int]) -> None:
        """Let in the frames of ``ids``, and of nobody else, although the applied configuration does not name them.

        Each call replaces the set. It is for members that the own log has not reached yet: whoever brings a new
        member up to date, and the new member itself. The caller has made sure that they belong to this cluster.
        A response of theirs is dropped nevertheless as long as the applied configuration does not name them, so
        none of them votes for or acknowledges anything here.

        Raises:
            ValueError: an id is 0 or out of range.
        """

    def propose(self, commands: Sequence[bytes]) -> int:
        """Append ``commands`` (1 byte to 1 MiB each) as one proposal; the index of the first.

        Raises:
            ProposalDropped: this node does not lead, hands leadership over, or too much is uncommitted.
            ValueError: no command, or one of a wrong size.
        """

    def propose_conf_change(self, changes: Sequence[tuple[str, int]], context: bytes = b"") -> int:
        """Propose a change of the members; the index of its entry.

        Several at once pass through a joint configuration, and leave it by themselves once that is applied here or
        at a later leader. ``add_voter`` promotes a learner, ``add_learner`` demotes a voter, the leader included.
        Of several members at once only learners that have caught up can become voters: others could be beyond the
        help of any snapshot, and the joint configuration is left with their votes alone.

        Raises:
            ProposalDropped: as for :meth:`propose`, or another change is under way, or a member that is to vote has
                not caught up.
            ValueError: the change cannot be applied to the current members.
        """

    def apply_conf_change(self, data: bytes) -> tuple[list[int], list[int]]:
        """Apply the next configuration change that ``advance`` handed out; the voters and learners since (R12).

        ``data`` is as handed out; order is checked. The voters are those of both halves of a joint configuration.
        A leader or candidate that is no voter any more becomes a follower.
        """

    def read_index(self, context: bytes) -> None:
        """Ask a quorum whether this node still leads; the answer is a read state with ``context`` (1 to 1,024 bytes).

        No answer ever comes if this node does not lead, has committed nothing in its term yet, or loses leadership.
        A read state can be handed out after stepping down: put the term into the context and compare (R8).
        """

    def transfer_leader(self, target: int) -> None:
        """Hand leadership to the voter ``target``; ignored unless this node leads."""

    def become_follower(self, leader: int = 0) -> None:
        """Step down, or forget the leader, at the current term. ``leader`` names another member to follow."""

    def campaign(self) -> None:
        """Ask for votes now, by pre-vote; ignored by a leader, by no voter, and while a change is unapplied."""

    def ping(self) -> None:
        """Send a heartbeat now: it tells the others what is committed, which otherwise goes with the next entries.

        Ignored unless this node leads.
        """

    def report_unreachable(self, peer: int) -> None:
        """Tell that the last messages to ``peer`` are lost; a snapshot on its way is reported on its own."""

    def report_snapshot(self, peer: int, *, received: bool) -> None:
        """Tell what became of the snapshot that was sent to ``peer``; ignored if none is on its way.

        Until then, or until ``peer`` acknowledges an index at or above the snapshot's, nothing is sent to it but
        heartbeats. A lost one is sent again after the next heartbeat.
        """

    def has_ready(self) -> bool:
        """Whether :meth:`ready` would hand out anything."""

    def ready(self) -> Ready:
        """What is to be made durable and sent. It must be advanced before anything else is called."""

    def advance(self, ready: Ready) -> Advanced:
        """Tell that ``ready`` is durable. Applies nothing but the index of a snapshot that ``ready`` held.

        Raises:
            EngineError: ``ready`` is not the outstanding one; nothing changed.
        """

    def applied_to(self, index: int) -> None:
        """Tell that the committed entries up to ``index`` are applied, configuration changes included."""

    def compact(self, index: int, data: bytes, *, keep: int = 0) -> None:
        """Let ``data`` (at most 3 MiB) stand for everything up to the applied ``index``, and drop those entries.

        The last ``keep`` of them stay in memory for members that lag a little; entries that an earlier call dropped
        do not come back. A snapshot that is handed out from now on is that of ``index``. Costs what is dropped.

        Raises:
            ValueError: ``index`` is not applied or already compacted, or the configuration there is joint.
        """

    def progress(self) -> list[tuple[int, int, int, bool]]:
        """What a leader knows of each member: id, matched index, next index, recently active. Empty elsewhere."""

    @property
    def raft_id(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def vote(self) -> int: ...
    @property
    def commit(self) -> int: ...
    @property
    def applied(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def last_term(self) -> int: ...
    @property
    def leader_id(self) -> int:
        """The leader of this term as far as it is known, else 0."""

    @property
    def role(self) -> _Role: ...
    @property
    def voters(self) -> list[int]:
        """Who votes by the applied configuration, both halves of a joint one; by a received snapshot at once."""

    @property
    def learners(self) -> list[int]: ...
    @property
    def joint(self) -> bool:
        """Whether the applied configuration is joint: no snapshot can be taken there, and no change proposed."""

    @property
    def snapshot_wanted(self) -> bool:
        """Whether this leader has a member that only a newer snapshot can serve.

        Such a member needs entries that are compacted, and joined after the snapshot, which it would throw away for
        not naming it. :meth:`compact` at an index at or after its joining ends that.
        """

    @property
    def granted_votes(self) -> int:
        """Votes of this term for this node, its own included; 0 unless it is a candidate or leads."""

    @property
    def poisoned(self) -> bool:
        """Whether a panic ended this engine. The one property that never raises, with ``raft_id``."""

@final
class Ready:
    """What to make durable, and what may leave before that. Frozen."""

    @property
    def number(self) -> int: ...
    @property
    def must_sync(self) -> bool:
        """False if nothing but the commit index changed."""

    @property
    def hard_state(self) -> tuple[int, int, int] | None:
        """Term, vote and commit index, to be stored in the same step as ``entries``; ``None`` if none of them changed.

        The commit index alone is repeated beside the first entries after a change of the members (R1): a node that
        kept them and forgot the change would campaign among the members before it.
        """

    @property
    def term_or_vote_changed(self) -> bool:
        """Whether term or vote differ from what was last advanced: then nothing leaves before it is durable (R1)."""

    @property
    def role(self) -> _Role | None:
        """The role, if role or leader changed."""

    @property
    def leader_id(self) -> int | None:
        """The leader or 0, if role or leader changed."""

    @property
    def entries_first(self) -> int: ...
    @property
    def entries_count(self) -> int: ...
    @property
    def entries(self) -> bytes:
        """The entries to store as one blob, ``b""`` if there are none. They replace all from ``entries_first`` on."""

    @property
    def snapshot(self) -> tuple[int, int, bytes] | None:
        """Index, term and data that replace the whole stored log; the members are then those of the engine.

        ``entries`` of the same Ready follow it.
        """

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """A leader's messages, by peer: they may leave before the fsync where R1 allows it."""

    @property
    def read_states(self) -> list[tuple[int, bytes]]:
        """Answered reads: index and context."""

@final
class Advanced:
    """What became valid once a Ready was durable. Frozen."""

    @property
    def messages(self) -> list[tuple[int, bytes]]:
        """Messages that had to wait for the fsync, by peer."""

    @property
    def committed(self) -> list[tuple[int, int, _EntryKind, bytes]]:
        """Entries to apply, in order: index, term, kind, data."""

    @property
    def commit(self) -> int | None:
        """The commit index, if it rose.

        It need not be durable: a node that restarts with an older one learns it again from its leader. Where that
        would be wrong, a later ``hard_state`` repeats it.
        """

def decode_batch(blob: bytes) -> list[tuple[int, int, _EntryKind, bytes]]:
    """The entries of a stored blob: index, term, kind, data. ``ValueError`` if it is malformed."""

def encode_batch(entries: Sequence[tuple[int, int, str, bytes]]) -> bytes:
    """A blob that :func:`decode_batch` reads back; ``b""`` for no entries.

    Raises:
        ValueError: the indexes do not follow one another from 1 or above, a term falls, or data does not fit its kind.
    """

def decode_conf_change(data: bytes) -> tuple[list[tuple[_ChangeKind, int]], bytes]:
    """What a ``conf_change`` entry holds: the changes and the context. No change at all leaves a joint configuration.

    Raises:
        ValueError: it is malformed.
    """

def encode_conf_change(changes: Sequence[tuple[str, int]], context: bytes = b"") -> bytes:
    """The data of an entry that :func:`decode_conf_change` reads back.

    Raises:
        ValueError: an unknown change, an id out of range, or a context that is too long.
    """

def snapshot_in(payload: bytes) -> tuple[int, int, bytes] | None:
    """Index, term and data of the snapshot that ``payload`` carries; ``None`` for any other payload, at no cost.

    Raises:
        ValueError: the payload starts with a snapshot and is malformed, or holds anything else.
    """

def message_kinds(payload: bytes) -> list[tuple[str, int, int, int]]:
    """The messages of a payload: kind, sender, receiver, term. ``ValueError`` if it is malformed."""

def encode_message(
    kind: str,
    *,
    sender: int,
    to: int,
    term: int,
    context: bytes = b"",
    index: int = 0,
    log_term: int = 0,
    commit: int = 0,
) -> bytes:
    """One message as a payload, true or forged: for tests of what is let in."""
