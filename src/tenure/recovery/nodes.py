"""Asks the nodes over HTTP what they say of themselves: ``/v1/state``, ``/v1/node`` and who else is a member.

Every answer is foreign: it is read leniently, bounded in size and time, and stripped of what a terminal could
execute. A node that accepts the connection and stays silent (paused, hung) is told apart from one that is not
there. It must never follow a redirect, use a proxy, or send anything but GET.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import httpx2
import msgspec

from tenure.core.verdict import NodeView
from tenure.endpoints import Endpoint

BODY_BYTES_MAX = 262_144
MEMBERS_MAX = 64
TEXT_CHARACTERS_MAX = 200
#: A node's reason for not leading names the command that helps, at its end.
REASON_CHARACTERS_MAX = 1000
STATES = frozenset({"leader", "follower", "candidate"})


class _Silence(Exception):
    """A node gave no usable answer; ``refused`` where nobody is there at all."""

    def __init__(self, problem: str, *, refused: bool = False) -> None:
        self.problem = problem
        self.refused = refused
        super().__init__(problem)


async def ask_nodes(endpoints: Sequence[Endpoint], *, timeout_s: float) -> list[NodeView]:
    """Ask every endpoint, and every further member that one of them names, all at once.

    Never raises for what a node does or fails to do. A silent node costs ``timeout_s`` seconds once, whatever
    the number of nodes; cancelling closes the connections.
    """
    async with httpx2.AsyncClient(timeout=timeout_s, trust_env=False, follow_redirects=False) as client:
        views = await asyncio.gather(*(_ask(client, endpoint, timeout_s) for endpoint in endpoints))
        members = await _members(client, views, timeout_s)
        known = {view.url for view in views}
        further = [endpoint for endpoint in members if endpoint.url not in known]
        views += await asyncio.gather(*(_ask(client, endpoint, timeout_s) for endpoint in further))
    names = {endpoint.url: endpoint.name for endpoint in members}
    return _distinct([_named(view, names.get(view.url or "")) for view in views])


async def _ask(client: httpx2.AsyncClient, endpoint: Endpoint, timeout_s: float) -> NodeView:
    """One node's own word: ``/v1/node`` where it has one, else the two keys of ``/v1/state``."""
    answers = await asyncio.gather(
        _get(client, f"{endpoint.url}/v1/state", timeout_s),
        _get(client, f"{endpoint.url}/v1/node", timeout_s),
        return_exceptions=True,
    )
    # /v1/node is one consistent view, so that its keys win over those of /v1/state.
    facts: dict[str, Any] = {}
    for answer in answers:
        if isinstance(answer, dict):
            facts |= answer
        elif not isinstance(answer, _Silence):
            raise answer
    name = _text(facts.get("name")) or endpoint.name or _name_of(endpoint.url)
    state = (_text(facts.get("state")) or "").lower()
    if state in STATES:
        return NodeView(
            name=name,
            url=endpoint.url,
            pid=endpoint.pid,
            cluster_id=_text(facts.get("cluster_id")),
            state=state,
            term=_count(facts.get("term")),
            fencing_token=_count(facts.get("fencing_token")),
            lease_remaining_ms=_count(facts.get("lease_remaining_ms")),
            votes_for_me=_count(facts.get("votes_for_me")),
            votes_needed=_count(facts.get("votes_needed")),
            leader_name=_text(facts.get("leader_name")) or _text(facts.get("leader_id")),
            problem=_text(facts.get("reason"), REASON_CHARACTERS_MAX),
        )
    silence = answers[0] if isinstance(answers[0], _Silence) else _Silence("answers, but /v1/state names no state")
    return NodeView(name=name, url=endpoint.url, pid=endpoint.pid, problem=silence.problem, refused=silence.refused)


async def _members(client: httpx2.AsyncClient, views: Sequence[NodeView], timeout_s: float) -> list[Endpoint]:
    """The members as the first node that tells them knows them; empty where none does."""
    for view in views:
        if view.state is None:
            continue
        try:
            # The node asks the others in turn before it answers, hence the longer patience.
            answer = await _get(client, f"{view.url}/v1/cluster", 2 * timeout_s)
        except _Silence:
            continue
        members = answer.get("members")
        if not isinstance(members, list):
            continue
        pairs = [
            (_text(member.get("url")), _text(member.get("name")))
            for member in members[:MEMBERS_MAX]
            if isinstance(member, dict)
        ]
        return [Endpoint(url.rstrip("/"), name) for url, name in pairs if url and _is_http(url)]
    return []


async def _get(client: httpx2.AsyncClient, url: str, timeout_s: float) -> dict[str, Any]:
    body = b""
    try:
        # The outer bound is for an answer that drips; it is longer, so that a connection that never came is told apart.
        async with asyncio.timeout(1.5 * timeout_s), client.stream("GET", url, timeout=timeout_s) as response:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > BODY_BYTES_MAX:
                    raise _Silence(f"answers {urlsplit(url).path} with more than {BODY_BYTES_MAX} bytes")
        if response.status_code != httpx2.codes.OK:
            raise _Silence(f"answers {urlsplit(url).path} with HTTP {response.status_code}")
        return msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.DecodeError:
        raise _Silence(f"answers {urlsplit(url).path}, but not with a JSON object") from None
    except httpx2.ConnectTimeout:
        raise _Silence(f"no connection within {timeout_s:g} s", refused=True) from None
    except (TimeoutError, httpx2.TimeoutException):
        raise _Silence(
            f"takes connections but did not answer within {timeout_s:g} s: paused, hung or overloaded"
        ) from None
    except httpx2.ConnectError as error:
        raise _Silence(f"no connection: {_text(str(error)) or 'refused'}", refused=True) from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise _Silence(f"broke off: {type(error).__name__} {_text(str(error)) or ''}".rstrip()) from None


def _named(view: NodeView, name: str | None) -> NodeView:
    """A node that did not tell its name has the one that its fellow members know it by."""
    if name is None or view.state is not None or view.name != _name_of(view.url or ""):
        return view
    return msgspec.structs.replace(view, name=name)


def _distinct(views: Sequence[NodeView]) -> list[NodeView]:
    """One view for each name: two addresses of one node are one; two nodes of one name keep their URL beside it."""
    distinct: dict[str, NodeView] = {}
    for view in views:
        same = distinct.get(view.name)
        if same is None or (same.state is None and view.state is not None):
            distinct[view.name] = view
        elif view.state is not None and (view.state, view.term, view.fencing_token) != (
            same.state,
            same.term,
            same.fencing_token,
        ):
            distinct[f"{view.name} at {view.url}"] = msgspec.structs.replace(view, name=f"{view.name} at {view.url}")
    return list(distinct.values())


def _name_of(url: str) -> str:
    """A name for a node that did not tell its own: the first label of its host, or host and port of an address."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return parts.netloc if host == "localhost" else host.partition(".")[0]
    return parts.netloc


def _is_http(url: str) -> bool:
    try:
        return urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:
        return False


def _text(value: object, characters_max: int = TEXT_CHARACTERS_MAX) -> str | None:
    """A short printable text, or None."""
    if not isinstance(value, str) or not value:
        return None
    return "".join(sign if sign.isprintable() else "?" for sign in value[:characters_max])


def _count(value: object) -> int | None:
    """A whole number that is not negative, or None (JSON's true is no number)."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
