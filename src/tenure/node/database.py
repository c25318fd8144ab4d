"""Watches whether the database answers this member, and has a leader that alone has lost it hand over.

Every member reads its fence now and then, on the connection that a raise would use, so that one that comes to lead
finds it open. Followers tell their leader what they found. The core decides (:mod:`tenure.core.database`); a leader
that has no answer while it is on its way into office is judged in the same way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from tenure.config import Config
from tenure.core.database import DatabaseSights
from tenure.core.effects import Effect
from tenure.core.member import MemberCore
from tenure.core.roles import LEAVING, Phase
from tenure.instants import NS_PER_SECOND
from tenure.node.clocks import read_clocks
from tenure.node.envelopes import DatabaseSeen
from tenure.node.fencing import FenceAdapter
from tenure.node.links import Links
from tenure.types import LossReason

logger = logging.getLogger("tenure.node")

#: So often within ``lease.database_timeout_ms`` the fence is read, but not more often than this.
LOOKS_IN_TIMEOUT = 4
INTERVAL_MIN_SECONDS = 0.25

Feed = Callable[[Callable[[MemberCore], list[Effect]]], None]


async def watch_database(fence: FenceAdapter, links: Links, feed: Feed, config: Config) -> None:
    """Look, tell, and hand over, until cancelled. On the node's loop."""
    interval = max(INTERVAL_MIN_SECONDS, config.lease.database_lost_ms / 1000 / LOOKS_IN_TIMEOUT)
    timeout_ns = round(LOOKS_IN_TIMEOUT * interval * NS_PER_SECOND)
    sights = DatabaseSights(timeout_ns=timeout_ns, started=read_clocks())
    links.on_database = lambda peer, silent_ns: sights.heard(peer, silent_ns=silent_ns, now=read_clocks())
    looking: asyncio.Task[None] | None = None

    def judge(core: MemberCore) -> list[Effect]:
        phase, now = core.holding.phase, read_clocks()
        told_ns = sights.told_ns(now)
        if phase is Phase.FOLLOWING and told_ns is not None and (leader_id := core.view().leader_id):
            links.tell(leader_id, DatabaseSeen(silent_ns=told_ns))
        if phase is Phase.FOLLOWING or phase in LEAVING:
            return []
        heir = sights.heir(core.membership().voters, now)
        if heir is None:
            return []
        logger.error("the database does not answer this leader, and answers member %d: handing over", heir)
        return core.step_down(LossReason.DATABASE_LOST, now, to=heir)

    try:
        while True:
            if looking is None or looking.done():
                looking = asyncio.ensure_future(fence.look())
            await asyncio.wait({looking}, timeout=interval)
            if fence.answered_at is not None:
                sights.answered(fence.answered_at)
            sights.unanswered(fence.unanswered_since)
            feed(judge)
            if looking.done():
                looking.result()
                await asyncio.sleep(interval)
    finally:
        if looking is not None:
            looking.cancel()
