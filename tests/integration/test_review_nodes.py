"""What a review of step 2 tried to break on real nodes: outcomes across snapshots, members that were away for long."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

import tenure
from support.replicas import running

SMALL = {"snapshot_entries": 50, "keep_entries": 10}


@pytest.mark.asyncio
async def test_command_is_never_called_dropped_when_a_snapshot_took_the_place_of_its_entry(tmp_path: Path):
    """A leader that hears nobody has sent its entry; the next one commits it, and compacts its log behind it."""
    async with running(tmp_path, **SMALL) as replicas:
        await replicas.apply(b"before")
        old = await replicas.leader()
        links = old._driver._links
        assert links is not None
        route, links.route = links.route, lambda sender, payload: None  # type: ignore[method-assign]
        hooks = links.transport._hooks  # type: ignore[union-attr]
        object.__setattr__(hooks, "on_payload", lambda sender, payload: links.route(sender, payload))
        call = asyncio.create_task(old.apply(b"once", timeout_ms=60_000))
        others = [name for name in replicas.nodes if name != old.name]
        await replicas.until(lambda: not old.is_leader_hint())
        await replicas.until(lambda: any(replicas.nodes[name].is_leader_hint() for name in others))
        new = next(replicas.nodes[name] for name in others if replicas.nodes[name].is_leader_hint())
        for number in range(200):
            await new.apply(b"%d" % number)
        await replicas.until(lambda: all(replicas.nodes[name].stats().snapshot_index > 100 for name in others))
        links.route = route  # type: ignore[method-assign]
        with pytest.raises(tenure.OutcomeUnknown):
            await call
        await replicas.agree()
        assert replicas.machines[old.name].seen.count(b"once") == 1
        assert replicas.machines[old.name].restored == 1
