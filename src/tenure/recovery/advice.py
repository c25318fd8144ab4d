"""What to do about a verdict: the commands, in the safe order, with what each should answer. Pure.

Names and URLs come from nodes that may be broken, so every one of them is quoted for the shell. A command that
stops something names only a node that the verdict convicts, or one that gives no answer.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec

from tenure.core.verdict import Basis, JudgedNode, Judgement, NodeVerdict, NodeView


class Command(msgspec.Struct, frozen=True):
    """One command line, and what it should return (None where its answer does not matter)."""

    run: str
    expect: str | None = None


class Step(msgspec.Struct, frozen=True):
    """One thing to do: its title, why and with what caution, and the commands."""

    title: str
    why: str
    commands: tuple[Command, ...]


def advise(judgement: Judgement, *, namespace: str) -> list[Step]:
    """The steps from this verdict to one leader. ``namespace`` is where the pods are, for ``kubectl``."""
    steps = []
    stale = judgement.named(NodeVerdict.STALE_LEADER)
    if stale:
        steps.append(
            Step(
                "Stop the wrong leaders",
                _why_stop(judgement),
                tuple(Command(_stop(node.view, namespace)) for node in stale),
            )
        )
    away = (*judgement.named(NodeVerdict.SILENT), *judgement.named(NodeVerdict.UNREACHABLE))
    if away:
        steps.append(_bring_back(away, judgement, namespace))
    if judgement.true_leader is None:
        hindered = [node.view for node in judgement.nodes if node.view.state is not None and node.view.problem]
        if hindered:
            said = " ".join(f"{view.name} says: {view.problem}." for view in hindered)
            steps.append(Step("Remove what keeps the members from leading", said, ()))
        steps.append(
            Step(
                "Wait for an election",
                "A leader needs a majority of the members that reach one another, and it waits the old lease out. "
                "If none comes within half a minute, look at why the members do not answer or do not reach each other. "
                "Only where more than half of the voters lost their disks for good: tenure recover quorum "
                "(docs/operating/lost-quorum.md).",
                (Command(f"kubectl get pods -n {shlex.quote(namespace)} -o wide"),),
            )
        )
    steps.append(
        Step(
            "Verify that there is one leader",
            "Every member that answers should tell the same term.",
            tuple(_verify(judgement)),
        )
    )
    return steps


def _why_stop(judgement: Judgement) -> str:
    if judgement.basis is Basis.FENCE:
        return (
            f"{judgement.true_leader} holds the fence, so the database refuses what they write; "
            "their clients still get errors until they are stopped."
        )
    if judgement.true_leader is not None:
        return (
            f"{judgement.true_leader} is the best guess, on weaker evidence than a fence: read its reasons "
            "before you act. Until the others are stopped, nothing that was seen here stops their writes."
        )
    return "The evidence names no true leader among those that say leader. Stop them all and let the members elect one."


def _bring_back(away: Sequence[JudgedNode], judgement: Judgement, namespace: str) -> Step:
    return Step(
        "Bring back those that do not answer",
        "Look first: a node that is only slow, or cut off from here alone, needs no restart. "
        + (
            "None of them can be proved idle; the fence is what holds them off."
            if judgement.basis is Basis.FENCE
            else "One of them that still runs may still write, unless it is told above that its writes are refused."
        ),
        tuple(Command(_stop(node.view, namespace)) for node in away),
    )


def _stop(view: NodeView, namespace: str) -> str:
    if view.pid is not None:
        return f"kill -9 {view.pid}"
    name, where = shlex.quote(view.name), f"-n {shlex.quote(namespace)}"
    # A name that looks like an option (`--all`) must stay a name.
    return f"kubectl delete pod {where} -- {name}" if name.startswith("-") else f"kubectl delete pod {name} {where}"


def _verify(judgement: Judgement) -> list[Command]:
    leader = next((node.view for node in judgement.named(NodeVerdict.TRUE_LEADER)), None)
    terms = [node.view.term for node in judgement.nodes if node.view.term is not None]
    if leader is not None and leader.term is not None:
        term = str(leader.term)
    else:
        term = f"N, above {max(terms)}" if terms else "N"
    commands = []
    for view in sorted((node.view for node in judgement.nodes), key=lambda view: view is not leader):
        state = "leader or follower" if leader is None else "leader" if view is leader else "follower"
        url = view.url or f"http://{view.name}:8080"
        commands.append(Command(f"curl {shlex.quote(f'{url}/v1/state')}", f'{{"state": "{state}", "term": {term}}}'))
    return commands
