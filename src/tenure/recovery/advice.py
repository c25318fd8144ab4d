"""What to do about a verdict: the commands, in the safe order, with what each should answer. Pure.

Names and URLs come from nodes that may be broken, so every one of them is quoted for the shell. A command that
stops something names only a node that the verdict convicts, or one that gives no answer. It must never name a pod
where nothing tells that the node is one: then it names the process, or the machine.
"""

from __future__ import annotations

import ipaddress
import re
import shlex
from collections.abc import Mapping, Sequence
from urllib.parse import SplitResult, urlsplit

import msgspec

from tenure.core.verdict import Basis, JudgedNode, Judgement, NodeVerdict, NodeView

#: Where the pods of the source document's incident are.
NAMESPACE = "payment"
#: The name of a pod of a set, which is also its host's: neither an address nor an option is one.
_POD_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,251}[a-z0-9])?")


class Command(msgspec.Struct, frozen=True):
    """One command line, and what it should return (None where its answer does not matter)."""

    run: str
    expect: str | None = None


class Step(msgspec.Struct, frozen=True):
    """One thing to do: its title, why and with what caution, and the commands."""

    title: str
    why: str
    commands: tuple[Command, ...]


def advise(judgement: Judgement, *, namespace: str | None = None) -> list[Step]:
    """The steps from this verdict to one leader.

    ``namespace`` is where the pods are, for ``kubectl``. Without it the nodes are taken for pods of the namespace
    ``payment`` where one of them is called by a name that only a cluster or a hosts file knows (``payment-1b``).
    """
    pods = _namespaces(judgement, namespace)
    steps = []
    stale = judgement.named(NodeVerdict.STALE_LEADER)
    if stale:
        steps.append(
            Step(
                "Stop the wrong leaders",
                _why_stop(judgement),
                tuple(_stop(node.view, pods.get(node.view.name)) for node in stale),
            )
        )
    away = (*judgement.named(NodeVerdict.SILENT), *judgement.named(NodeVerdict.UNREACHABLE))
    if away:
        steps.append(_bring_back(away, judgement, pods))
    if judgement.true_leader is None:
        steps.append(_wait(judgement, pods))
    steps.append(
        Step(
            "Verify that there is one leader",
            "Every member that answers should tell the same term.",
            tuple(_verify(judgement)),
        )
    )
    return steps


def _namespaces(judgement: Judgement, given: str | None) -> dict[str, str]:
    """The namespace of each node that is a pod, by its name; all are where one was given."""
    views = [node.view for node in judgement.nodes if node.view.pid is None]
    if given is not None:
        return {view.name: given for view in views}
    if not any(_is_called_like_a_pod(view) for view in views):
        return {}
    return {view.name: NAMESPACE for view in views if view.url is None or _is_called_like_a_pod(view)}


def _wait(judgement: Judgement, pods: Mapping[str, str]) -> Step:
    hindered = [node.view for node in judgement.nodes if node.view.state is not None and node.view.problem]
    return Step(
        "Wait for an election",
        "".join(f"{view.name} says: {view.problem}. " for view in hindered)
        + "A leader needs a majority of the members that reach one another, and it waits the old lease out. "
        "If none comes within half a minute, look at why the members do not answer or do not reach each other. "
        "Only where more than half of the voters lost their disks for good: tenure recover quorum "
        "(docs/operating/lost-quorum.md).",
        tuple(Command(_list_pods(namespace)) for namespace in sorted(set(pods.values()))),
    )


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


def _bring_back(away: Sequence[JudgedNode], judgement: Judgement, pods: Mapping[str, str]) -> Step:
    return Step(
        "Bring back those that do not answer",
        "Look first: a node that is only slow, or cut off from here alone, needs no restart. "
        + (
            "None of them can be proved idle; the fence is what holds them off."
            if judgement.basis is Basis.FENCE
            else "One of them that still runs may still write, unless it is told above that its writes are refused."
        ),
        tuple(_stop(node.view, pods.get(node.view.name), again=True) for node in away),
    )


def _stop(view: NodeView, namespace: str | None, *, again: bool = False) -> Command:
    """How this node is stopped; ``again``: and started, where that takes another command."""
    if view.pid is not None:
        return Command(f"kill -9 {view.pid}")
    if namespace is not None:
        if _POD_NAME.fullmatch(view.name) and not _is_here(view.name):
            return Command(f"kubectl delete pod {view.name} -n {shlex.quote(namespace)}")
        # It did not tell its name, or one that no pod can have.
        return Command(_list_pods(namespace), f"the pod of {_one_line(view.url or view.name)}: delete that one")
    url = _split(view)
    if url is None or url.hostname is None:
        # A comment ends with its line, so that nothing of the name may end it.
        return Command(f"# {'restart' if again else 'stop'} the process of {_one_line(view.name)}, on its machine")
    if not _is_here(url.hostname):
        # A host that looks like an option must stay a host.
        return Command(f"ssh -- {shlex.quote(url.hostname)} systemctl {'restart' if again else 'stop'} payment-service")
    return Command(
        f"ss -ltnp 'sport = :{_port(url)}'", "nothing: start it again" if view.refused else "its process: stop that one"
    )


def _list_pods(namespace: str) -> str:
    return f"kubectl get pods -n {shlex.quote(namespace)} -o wide"


def _one_line(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text)


def _is_called_like_a_pod(view: NodeView) -> bool:
    """Whether its host is one bare name, as in the URLs of pods, or one of a cluster's own domain."""
    url = _split(view)
    host = url.hostname if url is not None else None
    if host is None or view.pid is not None or _is_here(host):
        return False
    return bool(_POD_NAME.fullmatch(host)) or ".svc" in host


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(url: SplitResult) -> int:
    try:
        return url.port or (443 if url.scheme == "https" else 80)
    except ValueError:  # another node's word, and no port: nothing listens there
        return 0


def _split(view: NodeView) -> SplitResult | None:
    return None if view.url is None else urlsplit(view.url)


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
