"""``POST /v1/payments``: the hot route, a plain ASGI callable.

The way of one payment: headers and body are judged, the writer takes it with the present leadership, and the answer
is made from the row. Nothing is written for a request that is refused here. A client that goes away does not stop
its payment: the key finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog

from payment_service.headers import check_content_type, header_values, idempotency_key
from payment_service.identifiers import new_request_id
from payment_service.models import Payment, decode_payment_request
from payment_service.ports import Member
from payment_service.problems import INTERNAL_ERROR, MEDIA_TYPE, Problem, not_leader, problem_from_error
from payment_service.writer import GroupCommitWriter, Recorded
from tenure import TenureError

#: Until API keys come, every client is this one, and keys are shared by all.
CLIENT_ID: Final = "anonymous"

_encoder: Final = msgspec.json.Encoder()


class ClientGone(Exception):
    """The client closed the connection before its body was complete: there is nobody to answer."""


class CreatePayment:
    """The ASGI application behind ``POST /v1/payments``."""

    def __init__(
        self,
        member: Member,
        writer: GroupCommitWriter,
        logger: structlog.typing.FilteringBoundLogger,
        *,
        max_body_bytes: int,
        require_key: bool,
    ) -> None:
        self._member = member
        self._writer = writer
        self._logger = logger
        self._max_body_bytes = max_body_bytes
        self._require_key = require_key

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        request_id = new_request_id()
        try:
            recorded = await self._record(scope, receive)
        except ClientGone:
            return
        except Problem as problem:
            answer = problem
        except TenureError as error:
            answer = problem_from_error(error, leader_url=other_leader_url(self._member))
            self._logger.warning("payment_refused", code=answer.code, reason=str(error), request_id=request_id)
        except Exception:
            self._logger.exception("request_failed", request_id=request_id)
            answer = Problem("internal_error", INTERNAL_ERROR)
        else:
            await _send_payment(send, recorded, request_id)
            return
        await send_problem(send, answer, instance=scope["path"], request_id=request_id)

    async def _record(self, scope: Any, receive: Any) -> Recorded:
        leadership = self._member.leadership
        if leadership is None:
            status = self._member.status()
            raise not_leader(
                f"payments are written by the leader alone; {status.name} is {status.state.value}",
                leader_url=other_leader_url(self._member),
            )
        headers = scope["headers"]
        check_content_type(headers)
        key = idempotency_key(headers, required=self._require_key)
        request = decode_payment_request(await self._read_body(headers, receive))
        return await self._writer.submit(request, client_id=CLIENT_ID, key=key, leadership=leadership)

    async def _read_body(self, headers: Any, receive: Any) -> bytes:
        declared = header_values(headers, b"content-length")
        if declared and declared[0].isdigit() and int(declared[0]) > self._max_body_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > self._max_body_bytes:
                raise self._too_large()
            parts.append(part)
            if not message.get("more_body", False):
                return b"".join(parts)

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"the body may have at most {self._max_body_bytes} bytes", param="body")


def other_leader_url(member: Member) -> str | None:
    """The base URL of the leader, unless it is this very member: nobody is sent back to where he was refused."""
    status = member.status()
    return status.leader_url if status.leader_name != status.name else None


async def send_problem(send: Any, problem: Problem, *, instance: str, request_id: str) -> None:
    """Send ``problem`` as the whole answer."""
    body = problem.render(instance=instance, request_id=request_id)
    await _send(send, problem.kind.status, body, MEDIA_TYPE, {"Request-Id": request_id, **problem.headers})


async def _send_payment(send: Any, recorded: Recorded, request_id: str) -> None:
    headers = {"Request-Id": request_id, "Location": f"/v1/payments/{recorded.payment.id}"}
    if recorded.replayed:
        headers["Idempotent-Replayed"] = "true"
    await _send(send, 201, encode_payment(recorded.payment), "application/json", headers)


def encode_payment(payment: Payment) -> bytes:
    """The JSON of one payment: the same bytes for the first answer and for every replay."""
    return _encoder.encode(payment)


async def _send(send: Any, status: int, body: bytes, media_type: str, headers: Mapping[str, str]) -> None:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    raw += [(b"content-type", media_type.encode()), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
