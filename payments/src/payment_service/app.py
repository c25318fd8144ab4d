"""The ASGI application: the hot route in front, every other route behind it, ``Request-Id`` on every answer."""

from __future__ import annotations

from typing import Any

import httpx2
import structlog
from starlette.types import ASGIApp

from payment_service.administration import Administration
from payment_service.hot import CreatePayment
from payment_service.identifiers import new_request_id
from payment_service.ports import Member
from payment_service.reader import PaymentReader
from payment_service.routes import Routes
from payment_service.writer import GroupCommitWriter
from tenure.config import Config


class Application:
    """Sends ``POST /v1/payments`` straight to its route, past the router and its middleware, the rest to Starlette."""

    def __init__(self, create_payment: ASGIApp, others: ASGIApp) -> None:
        self._create_payment = create_payment
        self._others = others

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/v1/payments" and scope["method"] == "POST":
            await self._create_payment(scope, receive, send)
            return
        request_id = new_request_id()
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"request-id", request_id.encode())]
            await send(message)

        await self._others(scope, receive, send_with_id)


def build_application(
    config: Config,
    *,
    member: Member,
    writer: GroupCommitWriter,
    reader: PaymentReader,
    client: httpx2.AsyncClient,
    logger: structlog.typing.FilteringBoundLogger,
) -> Application:
    """The application of one node over its parts; it starts nothing by itself."""
    create_payment = CreatePayment(
        member,
        writer,
        logger,
        max_body_bytes=config.http.max_body_bytes,
        require_key=config.payments.require_idempotency_key,
    )
    routes = Routes(
        member=member,
        reader=reader,
        client=client,
        cluster_name=config.cluster.name,
        administration=Administration(
            member, operator_token=config.http.operator_token, cluster_name=config.cluster.name, logger=logger
        ),
    )
    return Application(create_payment, routes.build())
