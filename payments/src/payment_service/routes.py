"""Every route but the hot one and the operator's: reads of payments, the member's own view, probes, metrics.

State is computed at the request, never cached (R8): ``GET /v1/state`` says ``leader`` only while the lease is valid
and the fence is raised.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any, Final

import httpx2
import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from payment_service import __version__
from payment_service.administration import Administration
from payment_service.hot import encode_payment, other_leader_url
from payment_service.identifiers import PAYMENT_PREFIX, parse_payment_id
from payment_service.ports import Member
from payment_service.problems import INTERNAL_ERROR, MEDIA_TYPE, Problem, problem_from_error
from payment_service.reader import PaymentReader
from tenure import DatabaseUnavailable, PeerInfo, State, TenureError
from tenure.telemetry import render_metrics

PAGE_LIMIT_DEFAULT: Final = 20
PAGE_LIMIT_MAX: Final = 100


@dataclass(frozen=True)
class Routes:
    """The endpoints over their parts. ``client`` asks the other members."""

    member: Member
    reader: PaymentReader
    client: httpx2.AsyncClient
    cluster_name: str
    administration: Administration

    def build(self) -> Starlette:
        """The Starlette application of these endpoints, with problem+json for every error."""
        app = Starlette(
            routes=[
                Route("/v1/payments", self.list_payments),
                Route("/v1/payments/{payment_id}", self.get_payment),
                Route("/v1/state", self.state),
                Route("/v1/node", self.node),
                Route("/v1/cluster", self.cluster),
                *self.administration.routes(),
                Route("/leader", self.leader, methods=["GET", "OPTIONS"]),
                Route("/replica", self.replica, methods=["GET", "OPTIONS"]),
                Route("/livez", self.livez),
                Route("/readyz", self.readyz),
                Route("/metrics", self.metrics),
            ],
            exception_handlers={
                Problem: self._on_problem,
                TenureError: self._on_tenure_error,
                HTTPException: self._on_http_exception,
                Exception: self._on_exception,
            },
        )
        app.router.redirect_slashes = False
        return app

    async def list_payments(self, request: Request) -> Response:
        """``GET /v1/payments?limit&starting_after``: newest first, readable on any node."""
        query = request.query_params
        unknown = sorted(set(query) - {"limit", "starting_after"})
        if unknown:
            raise Problem(
                "invalid_field",
                f"there is no parameter {unknown[0][:64]!r}; the parameters are limit, starting_after",
                param=unknown[0][:64],
            )
        limit = _parse_limit(query.get("limit"))
        after = query.get("starting_after")
        cursor = parse_payment_id(after) if after is not None else None
        if after is not None and cursor is None:
            raise Problem("invalid_field", "starting_after must be the id of a payment", param="starting_after")
        page = await self.reader.page(limit=limit, starting_after=cursor)
        if page is None:
            raise Problem("invalid_field", f"there is no payment {after}", param="starting_after")
        return _json(msgspec.json.encode(page))

    async def get_payment(self, request: Request) -> Response:
        """``GET /v1/payments/{id}``, readable on any node."""
        text = request.path_params["payment_id"]
        payment_id = parse_payment_id(text)
        payment = await self.reader.get(payment_id) if payment_id is not None else None
        if payment is None:
            known = f"there is no payment {text[:64]}"
            form = "" if payment_id else f"; an id is {PAYMENT_PREFIX} and a UUID, as it was answered"
            raise Problem("not_found", known + form, param="id")
        return _json(encode_payment(payment))

    async def state(self, _: Request) -> Response:
        """``GET /v1/state``: these two keys alone, in this spelling."""
        return _json(self._state())

    async def node(self, _: Request) -> Response:
        """``GET /v1/node``: this member's whole view of itself."""
        return _json(msgspec.json.encode(self._node()))

    async def cluster(self, _: Request) -> Response:
        """``GET /v1/cluster``: the members, and what each of them says of itself when asked now."""
        peers = sorted(self.member.cluster(), key=lambda peer: peer.name)
        nodes = await asyncio.gather(*(self._ask(peer) for peer in peers))
        status = self.member.status()
        answer = {
            "cluster": self.cluster_name,
            "cluster_id": status.cluster_id,
            "members": [{"name": peer.name, "url": peer.url, "raft_address": peer.raft_address} for peer in peers],
            "leader": status.leader_name,
            "nodes": nodes,
        }
        return _json(msgspec.json.encode(answer))

    async def leader(self, _: Request) -> Response:
        """``/leader``: 200 on the leader, 503 elsewhere, as load balancers expect it."""
        return _json(self._state(), 200 if self.member.status().state is State.LEADER else 503)

    async def replica(self, _: Request) -> Response:
        """``/replica``: 200 on a follower, 503 elsewhere."""
        return _json(self._state(), 200 if self.member.status().state is State.FOLLOWER else 503)

    async def livez(self, _: Request) -> Response:
        """``/livez``: answers while the event loop turns."""
        return _json(b'{"status": "ok"}')

    async def readyz(self, _: Request) -> Response:
        """``/readyz``: 200 if this node can serve reads. It depends on no leadership, or a rollout would hang.

        For the same reason a node that waits to be founded or added is ready; what it waits for stands beside it.
        """
        answer, code = {"status": "ok", "database": "ok"}, 200
        try:
            await self.reader.ping()
        except DatabaseUnavailable:
            answer, code = {"status": "not ready", "database": "does not answer"}, 503
        status = self.member.status()
        if status.cluster_id is None and status.reason:
            answer["cluster"] = status.reason
        return _json(msgspec.json.encode(answer), code)

    async def metrics(self, request: Request) -> Response:
        """``/metrics``, for Prometheus."""
        body, content_type = render_metrics(self.member.status(), accept=request.headers.get("accept"))
        return Response(body, headers={"Content-Type": content_type})

    def _state(self) -> bytes:
        status = self.member.status()
        return f'{{"state": "{status.state.value}", "term": {status.term}}}'.encode()

    def _node(self) -> dict[str, Any]:
        status = msgspec.structs.asdict(self.member.status())
        return {**status, "pid": os.getpid(), "version": __version__, "incarnation": self.member.incarnation}

    async def _ask(self, peer: PeerInfo) -> dict[str, Any]:
        if peer.name == self.member.name:
            return self._node()
        try:
            answer = await self.client.get(f"{peer.url.rstrip('/')}/v1/node")
            answer.raise_for_status()
            node = answer.json()
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
            return {"name": peer.name, "error": f"{type(error).__name__}: {error}"}
        return node if isinstance(node, dict) else {"name": peer.name, "error": "the answer is not a JSON object"}

    async def _on_problem(self, request: Request, error: Exception) -> Response:
        problem = error if isinstance(error, Problem) else Problem("internal_error", INTERNAL_ERROR)
        return _problem(request, problem)

    async def _on_tenure_error(self, request: Request, error: Exception) -> Response:
        known = error if isinstance(error, TenureError) else TenureError(str(error))
        return _problem(request, problem_from_error(known, leader_url=other_leader_url(self.member)))

    async def _on_http_exception(self, request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 404
        if status != 405:
            return _problem(request, Problem("not_found", f"there is no {request.url.path[:128]}"))
        headers = dict((error.headers if isinstance(error, HTTPException) else None) or {})
        if request.url.path == "/v1/payments":
            headers["Allow"] = "GET, HEAD, POST"
        allowed = headers.get("Allow", "other methods")
        detail = f"{request.method} is not allowed here; allowed: {allowed}"
        return _problem(request, Problem("method_not_allowed", detail, headers=headers))

    async def _on_exception(self, request: Request, _: Exception) -> Response:
        # Starlette raises the exception again after this answer, and the server logs it.
        return _problem(request, Problem("internal_error", INTERNAL_ERROR))


def _parse_limit(text: str | None) -> int:
    if text is None:
        return PAGE_LIMIT_DEFAULT
    if not (text.isascii() and text.isdigit()) or len(text) > 4 or not 1 <= int(text) <= PAGE_LIMIT_MAX:
        raise Problem("invalid_field", f"limit must be an integer from 1 to {PAGE_LIMIT_MAX}", param="limit")
    return int(text)


def _json(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


def _problem(request: Request, problem: Problem) -> Response:
    body = problem.render(instance=request.url.path, request_id=request.state.request_id)
    return Response(body, problem.kind.status, headers=problem.headers, media_type=MEDIA_TYPE)
