"""Messages that nobody of the cluster sent just now: late, forged, from strangers; and suspicion."""

from __future__ import annotations

from tenure_raft import encode_message

from datadriven.verbs import Line, verb
from datadriven.world import World


@verb("forge request_vote to=a from=b term=+1 index=10000 context=CampaignTransfer")
def forge(world: World, line: Line) -> list[str]:
    """Deliver one message. A term with a sign counts from the receiver's own; ``from`` may be a stranger's number."""
    kind, to = line.word(), world.member(line.option("to", ""))
    origin = line.option("from", "")
    sender = int(origin) if origin.isdecimal() else world.member(origin)
    term_text = line.option("term", "+0")
    own = world.standing(to)[1]
    term = own + int(term_text) if term_text[0] in "+-" else int(term_text)
    payload = encode_message(
        kind,
        sender=sender,
        to=to,
        term=term,
        index=line.number("index", 0),
        log_term=line.number("log-term", own),
        context=line.option("context", "").encode(),
    )
    return _deliver(world, sender, to, payload)


@verb("deliver-timeout-now a from=old")
def deliver_timeout_now(world: World, line: Line) -> list[str]:
    """Order a member to campaign at once, as its leader would in a transfer; it need not have."""
    to, sender = world.member(line.word()), world.member(line.option("from", ""))
    payload = encode_message("timeout_now", sender=sender, to=to, term=world.standing(to)[1])
    return _deliver(world, sender, to, payload)


@verb("suspect a old")
def suspect(world: World, line: Line) -> None:
    """Tell a member that another one's process is gone: a refused reconnect."""
    node, peer = world.node(line.word()), world.member(line.word())
    world.cluster.run(node, world.cluster.core(node.raft_id).suspect(peer, world.cluster.reading(node)))


def _deliver(world: World, sender: int, to: int, payload: bytes) -> list[str]:
    consensus = world.cluster.core(to).consensus
    before = consensus.dropped_payloads
    world.cluster.hand_over(sender, to, payload)
    if world.cluster.nodes[to].paused:
        return [f"it waits for {world.label(to)}"]
    fate = "drops it" if consensus.dropped_payloads > before else "takes it"
    return [f"{world.label(to)} {fate}", *world.events()]
