"""Who is let in: how the two sides of a new stream judge each other's hello, the same for every transport (R3, R7).

::

    dialler                          acceptor
      hello  ------------------------> answer_hello: Answer(hello, sender) | NotAdmitted(why, hello)
      judge_answer: raft id <--------  hello
      payloads ----------------------> on_payload(sender, payload)

What it decides it is told by the hooks of the member. It touches no socket and believes only what the transport has
verified before: over TLS, that the certificate names whoever says the hello.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, NoReturn

import msgspec

if TYPE_CHECKING:
    from tenure.core.founding import Hello
    from tenure.transport.protocol import TransportHooks


class NotAdmitted(Exception):
    """One of the two sides does not take the other for a member; the reason.

    ``hello`` is what the refused one is told with it, if it belongs to this cluster: it may have been removed without
    knowing it, or know none of the present members.
    """

    def __init__(self, reason: str, hello: Hello | None = None) -> None:
        super().__init__(reason)
        self.hello = hello


class Answer(NamedTuple):
    """What the acceptor answers, and the raft id under which it takes payloads; None if it takes none."""

    hello: Hello
    sender: int | None


def answer_hello(hooks: TransportHooks, hello: Hello) -> Answer:
    """The acceptor's part. While one of the two belongs to no cluster yet, it answers and takes no payloads.

    Raises:
        NotAdmitted: the dialler is refused, and is to be told why.
    """
    if not hello.cluster_id:
        hooks.on_applicant(hello)
    own, welcome = hooks.identity().hello, hooks.welcome_for(hello)
    answer = own if welcome is None else msgspec.structs.replace(own, welcome=welcome)
    problem = hooks.admit(hello, None)
    sender = hooks.raft_id_of(hello.name)
    if problem is None and sender is not None:
        return Answer(answer, sender)
    if not hello.cluster_id or not own.cluster_id:
        return Answer(answer, None)
    problem = problem or f"{hello.name} is not a member of this cluster"
    raise NotAdmitted(problem, answer if welcome is not None else None)


def judge_answer(hooks: TransportHooks, name: str, hello: Hello) -> int:
    """The dialler's part, when the address of ``name`` answered: the raft id that it may now send to.

    Raises:
        NotAdmitted: no payload may be sent there.
    """
    if hello.name == name:
        # Only the configured address speaks for a member; what dials in may call itself anything.
        hooks.on_hello(hello)
    problem = hooks.admit(hello, name)
    raft_id = hooks.raft_id_of(name)
    if problem is not None or raft_id is None:
        raise NotAdmitted(problem or f"{name} is not a member of this cluster")
    return raft_id


def hear_refusal(hooks: TransportHooks, name: str, why: str, hello: Hello | None) -> NoReturn:
    """The dialler's part, when the address of ``name`` refused it: ``hello`` came with it, if anything did.

    Raises:
        NotAdmitted: always.
    """
    hooks.on_refused(name, why)
    if hello is not None and hello.name == name:
        hooks.on_hello(hello)
    raise NotAdmitted(f"{name} refuses this node: {why}")


class Lives:
    """The members that this one was connected to, and when the life of one of them is over."""

    def __init__(self, hooks: TransportHooks) -> None:
        self._hooks = hooks
        self._incarnations: dict[str, int] = {}

    def met(self, name: str, incarnation: int) -> None:
        """``name`` is connected now; if that is another life than the last one, the last one is over."""
        if self._incarnations.get(name, incarnation) != incarnation:
            self.ended(name)
        self._incarnations[name] = incarnation

    def ended(self, name: str) -> None:
        """Nobody is there where ``name`` was. Told once for each life, and only of one that was met."""
        raft_id = self._hooks.raft_id_of(name)
        if self._incarnations.pop(name, None) is not None and raft_id is not None:
            self._hooks.on_gone(raft_id)

    def forget(self, name: str) -> None:
        """``name`` is no longer a peer: what becomes of it is not told."""
        self._incarnations.pop(name, None)
