"""Which node is the true leader: the verdict over what a survey saw. Pure: no clock, disk or socket.

The order of belief is the order of what cannot lie. The fence comes first: the database refuses every write
but those of the token that it holds (G3), so the node that the fence names, that says leader and that shows
this very token is the true leader, and every other that says leader is stale. Where no fence was seen, the
verdict leans on weaker evidence, and says so: the votes that a node has of those it needs, its token, the rows
that it wrote, its term. A leader with fewer votes than it needs convicts itself.

It must never name a true leader where the evidence names none or two: nobody is then the answer, and the
reasons tell what each node has for itself.
"""

from __future__ import annotations

import enum
from datetime import UTC, datetime

import msgspec

_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class NodeVerdict(enum.StrEnum):
    """What one node is. Stable words: scripts read them."""

    TRUE_LEADER = "true_leader"
    FOLLOWER = "follower"
    STALE_LEADER = "stale_leader"
    SILENT = "silent"
    UNREACHABLE = "unreachable"


class ClusterVerdict(enum.StrEnum):
    """What the cluster is: ``split_brain`` as soon as one node acts as leader that is not the true one."""

    ONE_LEADER = "one_leader"
    NO_LEADER = "no_leader"
    SPLIT_BRAIN = "split_brain"


class Basis(enum.StrEnum):
    """What the choice of the true leader rests on, strongest first; ``none`` where nobody is."""

    FENCE = "fence"
    VOTES = "votes"
    TOKEN = "token"  # noqa: S105 - a word of the verdict, no secret
    ROWS = "rows"
    TERM = "term"
    ONLY_CLAIM = "only_claim"
    NONE = "none"


class NodeView(msgspec.Struct, frozen=True, kw_only=True):
    """What one node says of itself; ``state`` is None where it did not answer, ``problem`` then says why."""

    name: str
    url: str | None = None
    pid: int | None = None
    cluster_id: str | None = None
    state: str | None = None
    term: int | None = None
    fencing_token: int | None = None
    lease_remaining_ms: int | None = None
    votes_for_me: int | None = None
    votes_needed: int | None = None
    leader_name: str | None = None
    problem: str | None = None
    refused: bool = False


class WriteSpan(msgspec.Struct, frozen=True, kw_only=True):
    """The rows of one node under one token (None: the table has no tokens), by the database's clock."""

    node: str
    token: int | None
    rows: int
    first_at: datetime
    last_at: datetime


class LogWrite(msgspec.Struct, frozen=True, kw_only=True):
    """The last write that a node's own log tells of; times are those of the node's clock."""

    node: str
    path: str
    at: str | None = None
    token: int | None = None


class FenceFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The fence row. ``server_changed``: the server is not the one that the row was raised on (R23)."""

    resource: str
    token: int
    holder: str | None
    server_changed: bool = False


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """All that a survey saw. An empty or absent part was not seen; it proves nothing."""

    nodes: tuple[NodeView, ...] = ()
    writes: tuple[WriteSpan, ...] = ()
    logs: tuple[LogWrite, ...] = ()
    fence: FenceFacts | None = None


class JudgedNode(msgspec.Struct, frozen=True):
    """One node with its verdict and the reasons for it, strongest first."""

    view: NodeView
    verdict: NodeVerdict
    reasons: tuple[str, ...]


class Judgement(msgspec.Struct, frozen=True):
    """The answer: the cluster's verdict, the true leader's name if there is one, what that rests on."""

    verdict: ClusterVerdict
    true_leader: str | None
    basis: Basis
    nodes: tuple[JudgedNode, ...]
    findings: tuple[str, ...]

    def named(self, verdict: NodeVerdict) -> tuple[JudgedNode, ...]:
        """The nodes of this verdict, in the order of their names."""
        return tuple(node for node in self.nodes if node.verdict is verdict)


def judge(evidence: Evidence) -> Judgement:
    """Decide for each node, and for the cluster. Deterministic; any evidence gives an answer."""
    case = _Case(evidence)
    leader, basis = case.true_leader()
    nodes = tuple(case.judged(view, leader, basis) for view in case.nodes)
    if any(node.verdict is NodeVerdict.STALE_LEADER for node in nodes):
        verdict = ClusterVerdict.SPLIT_BRAIN
    else:
        verdict = ClusterVerdict.NO_LEADER if leader is None else ClusterVerdict.ONE_LEADER
    return Judgement(
        verdict=verdict,
        true_leader=leader.name if leader else None,
        basis=basis,
        nodes=nodes,
        findings=case.findings(basis),
    )


def instant(moment: datetime) -> str:
    """A moment as the sentences tell it: UTC, to the millisecond."""
    return moment.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds").replace("+00:00", "Z")


class _Case:
    """The evidence with the sums over it that several questions share."""

    def __init__(self, evidence: Evidence) -> None:
        self.fence = evidence.fence
        self.writes = evidence.writes
        self.logs = {write.node: write for write in evidence.logs}
        self.last_write: dict[str, WriteSpan] = {}
        for span in sorted(self.writes, key=lambda span: span.last_at):
            self.last_write[span.node] = span
        self.nodes, self.strangers = self._known_nodes(evidence)
        self.claimants = [view for view in self.nodes if view.state == "leader"]

    def _known_nodes(self, evidence: Evidence) -> tuple[list[NodeView], list[str]]:
        """Those that were asked, and those known only by what they wrote, as far as they may still matter."""
        asked = {view.name for view in evidence.nodes}
        tokens = [span.token for span in self.writes if span.token is not None]
        newest_began = min(
            (span.first_at for span in self.writes if tokens and span.token == max(tokens)), default=_LONG_AGO
        )
        nodes, strangers = list(evidence.nodes), []
        for name in sorted((self.last_write.keys() | self.logs.keys() | self._holder()) - asked):
            recent = name in self.last_write and self.last_write[name].last_at >= newest_began
            if not asked or recent or name in self._holder():
                nodes.append(NodeView(name=name, problem="no endpoint is known for it, so it was not asked"))
            else:
                strangers.append(name)
        return sorted(nodes, key=lambda view: view.name), strangers

    def _holder(self) -> set[str]:
        return {self.fence.holder} if self.fence and self.fence.holder else set()

    # -- the true leader ------------------------------------------------------------------------------------

    def true_leader(self) -> tuple[NodeView | None, Basis]:
        """The one true leader and what that rests on; (None, none) where nobody can be named."""
        if self.fence is not None:
            for view in self.claimants:
                if view.name == self.fence.holder and view.fencing_token in (self.fence.token, None):
                    return view, Basis.FENCE
            return None, Basis.NONE
        able = [view for view in self.claimants if not _convicts_itself(view)]
        elected = [view for view in able if _has_its_votes(view)]
        if len(elected) == 1:
            return elected[0], Basis.VOTES
        # The term of a real election tells more than rows do; a term that nobody is known to have voted for
        # tells less.
        last = (Basis.TERM, Basis.ROWS) if elected else (Basis.ROWS, Basis.TERM)
        for basis in (Basis.TOKEN, *last):
            weights = [(self._weight(view, basis), view) for view in elected or able]
            best = max((weight for weight, _ in weights), default=None)
            heaviest = [view for weight, view in weights if weight == best]
            if len(heaviest) == 1:
                return heaviest[0], Basis.ONLY_CLAIM if len(self.claimants) == 1 else basis
        return None, Basis.NONE

    def _weight(self, view: NodeView, basis: Basis) -> float:
        span = self.last_write.get(view.name)
        if basis is Basis.TOKEN:
            return view.fencing_token or (span.token if span and span.token else 0)
        if basis is Basis.ROWS:
            return span.last_at.timestamp() if span else 0
        return view.term or 0

    # -- one node -------------------------------------------------------------------------------------------

    def judged(self, view: NodeView, leader: NodeView | None, basis: Basis) -> JudgedNode:
        """The verdict on one node with its reasons."""
        reasons = [self._said(view)]
        reasons += self._against_the_fence(view)
        if view.state == "leader":
            reasons += _votes(view)
            verdict = NodeVerdict.TRUE_LEADER if view is leader else NodeVerdict.STALE_LEADER
            if verdict is NodeVerdict.TRUE_LEADER and basis is not Basis.FENCE:
                reasons.append(_weaker(basis))
        elif view.state is not None:
            verdict = NodeVerdict.FOLLOWER
        elif view.refused:
            verdict = NodeVerdict.UNREACHABLE
        else:
            verdict = NodeVerdict.STALE_LEADER if self._late_rows(view.name) else NodeVerdict.SILENT
        reasons += self._wrote(view)
        return JudgedNode(view, verdict, tuple(reasons))

    def _said(self, view: NodeView) -> str:
        if view.state is None:
            return view.problem or "it did not answer"
        text = f"says {view.state}" + ("" if view.term is None else f" in term {view.term}")
        if view.state != "leader" and view.leader_name:
            text += f" and follows {view.leader_name}"
        return text

    def _against_the_fence(self, view: NodeView) -> list[str]:
        """What the fence has to say about a node that leads, that it names, or that cannot be asked."""
        fence = self.fence
        if view.state not in ("leader", None):
            named = fence is not None and view.name == fence.holder
            return (
                ["the fence names it as its holder, but it does not lead: it waits, or it stepped down"]
                if named
                else []
            )
        if fence is None:
            return [] if view.state else ["no fence was seen that would refuse its writes, if it still runs"]
        holder = f"raised by {fence.holder}" if fence.holder else "and nobody holds it"
        holds = f"the fence holds token {fence.token}, {holder}"
        mine = view.name == fence.holder
        if view.state is None and mine:
            text = f"{holds}: nobody can write until it answers or another node raises the fence"
        elif view.state is None:
            text = f"if it still runs, its writes are refused: {holds}"
        elif mine and view.fencing_token is None:
            text = f"{holds}; it shows no token of its own to compare"
        else:
            shown = "no token" if view.fencing_token is None else f"token {view.fencing_token}"
            joint = "and" if mine and view.fencing_token == fence.token else "but"
            text = f"shows {shown}, {joint} {holds}"
        return [text]

    def _wrote(self, view: NodeView) -> list[str]:
        """What its rows and its log tell."""
        reasons = []
        span = self.last_write.get(view.name)
        if span is not None:
            rows = sum(other.rows for other in self.writes if other.node == view.name)
            token = "without a token" if span.token is None else f"with token {span.token}"
            text = f"last wrote {token} at {instant(span.last_at)} ({rows} rows in all)"
            if self.fence and span.token is not None and span.token < self.fence.token:
                text += f", the fence holds {self.fence.token}"
            reasons.append(text)
        elif self.writes:
            reasons.append("has written no row")
        reasons += self._late_rows(view.name)
        log = self.logs.get(view.name)
        if log is not None:
            token = "no token" if log.token is None else f"token {log.token}"
            reasons.append(f"its log's last write has {token}" + (f" at {log.at}" if log.at else ""))
        return reasons

    def _late_rows(self, name: str) -> list[str]:
        """Rows under an old token, younger than the first row under the newest: a stale write landed."""
        spans = [span for span in self.writes if span.token is not None]
        if not spans:
            return []
        newest = max(span.token or 0 for span in spans)
        first = min((span for span in spans if span.token == newest), key=lambda span: span.first_at)
        return [
            f"wrote with token {span.token} until {instant(span.last_at)}, while {first.node} had written "
            f"with token {newest} since {instant(first.first_at)}: a stale write landed"
            for span in spans
            if span.node == name and span.token != newest and span.last_at > first.first_at
        ]

    # -- the whole ------------------------------------------------------------------------------------------

    def findings(self, basis: Basis) -> tuple[str, ...]:
        """What is true of no single node."""
        found = []
        if self.fence is None:
            found.append("no fence was seen: the verdict rests on weaker evidence")
        elif self.fence.server_changed:
            found.append(
                "the database was restarted, promoted or restored under the fence: "
                "every write is refused (TN004) until the leader raises it again"
            )
        if self.fence and not self.fence.holder:
            found.append(f"the fence of {self.fence.resource} has no holder (closed, rebased or never raised)")
        if self.claimants and basis is Basis.NONE:
            names = ", ".join(view.name for view in self.claimants)
            found.append(f"{names} say leader, and the evidence names none of them")
        if len({view.term for view in self.nodes if view.term is not None}) > 1:
            terms = ", ".join(f"{view.name} {view.term}" for view in self.nodes if view.term is not None)
            found.append(f"the nodes do not agree on the term: {terms}")
        writers: dict[int, set[str]] = {}
        for span in self.writes:
            if span.token is not None:
                writers.setdefault(span.token, set()).add(span.node)
        found += [
            f"token {token} was written by {' and '.join(sorted(names))}: two writers under one token"
            for token, names in sorted(writers.items())
            if len(names) > 1
        ]
        if self.fence and any(self._late_rows(name) for name in self.last_write):
            found.append("rows came past the fence: its triggers are missing or were missing")
        if self.strangers:
            found.append(f"rows or logs also name {', '.join(self.strangers)}, long quiet and not asked")
        return tuple(found)


def _convicts_itself(view: NodeView) -> bool:
    return view.votes_for_me is not None and view.votes_needed is not None and view.votes_for_me < view.votes_needed


def _has_its_votes(view: NodeView) -> bool:
    return view.votes_for_me is not None and view.votes_needed is not None and view.votes_for_me >= view.votes_needed


def _votes(view: NodeView) -> list[str]:
    if view.votes_for_me is None or view.votes_needed is None:
        return []
    votes = "1 vote" if view.votes_for_me == 1 else f"{view.votes_for_me} votes"
    ending = ": it convicts itself" if _convicts_itself(view) else ""
    return [f"has {votes} of {view.votes_needed} needed{ending}"]


def _weaker(basis: Basis) -> str:
    grounds = {
        Basis.VOTES: "it alone shows the votes that a leader needs",
        Basis.TOKEN: "among those that say leader its token is the highest",
        Basis.ROWS: "among those that say leader its rows are the newest",
        Basis.TERM: "among those that say leader its term is the highest",
        Basis.ONLY_CLAIM: "nobody else that answers says leader",
    }
    return f"weaker evidence than a fence: {grounds[basis]}"
