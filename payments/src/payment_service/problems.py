"""Every error answer of the service, as RFC 9457 ``application/problem+json``.

One table ties each stable ``code`` to its status, title and whether a retry of the same request can succeed.
A problem is never stored under an idempotency key (R31): the retry must be able to pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import msgspec

from tenure import (
    DatabaseUnavailable,
    FenceError,
    LeadershipLost,
    LossReason,
    NodeClosed,
    OutcomeUnknown,
    TenureError,
)

MEDIA_TYPE: Final = "application/problem+json"
#: Seconds after which a refused client should try again: about as long as a failover takes.
RETRY_AFTER: Final = "1"
INTERNAL_ERROR: Final = "the service failed; the log has the reason under this request_id"


class _Kind(NamedTuple):
    status: int
    title: str
    retryable: bool


KINDS: Final[Mapping[str, _Kind]] = {
    "malformed_json": _Kind(400, "The body is not valid JSON", retryable=False),
    "invalid_field": _Kind(400, "A field of the request is not valid", retryable=False),
    "idempotency_key_missing": _Kind(400, "The Idempotency-Key header is missing", retryable=False),
    "idempotency_key_invalid": _Kind(400, "The Idempotency-Key header is not valid", retryable=False),
    "unauthorized": _Kind(401, "The operator token is missing or wrong", retryable=False),
    "forbidden": _Kind(403, "This node takes no operator commands", retryable=False),
    "not_found": _Kind(404, "There is nothing here", retryable=False),
    "method_not_allowed": _Kind(405, "The method is not allowed here", retryable=False),
    "idempotency_conflict": _Kind(409, "A request with this key is still running", retryable=True),
    "membership_refused": _Kind(409, "This change cannot be made", retryable=False),
    "not_caught_up": _Kind(409, "The learner has not caught up", retryable=True),
    "snapshot_refused": _Kind(409, "No snapshot was taken", retryable=False),
    "body_too_large": _Kind(413, "The body is too large", retryable=False),
    "unsupported_media_type": _Kind(415, "The body must be application/json", retryable=False),
    "idempotency_key_reused": _Kind(422, "The key was used for another payment", retryable=False),
    "internal_error": _Kind(500, "The service failed", retryable=True),
    "storage_error": _Kind(500, "The disk of this node cannot be read", retryable=False),
    "not_leader": _Kind(503, "This node does not lead", retryable=True),
    "not_ready": _Kind(503, "This node belongs to no cluster yet, or it stops", retryable=True),
    "proposal_dropped": _Kind(503, "The change was surely not made", retryable=True),
    "overloaded": _Kind(503, "The queue of payments is full", retryable=True),
    "database_unavailable": _Kind(503, "The database does not answer", retryable=True),
    "outcome_unknown": _Kind(504, "The outcome is not known", retryable=True),
}


class Problem(Exception):
    """An error answer. ``code`` is stable; ``detail`` is for people; ``param`` names the field or header at fault."""

    def __init__(
        self,
        code: str,
        detail: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        **extensions: Any,
    ) -> None:
        super().__init__(code, detail)
        self.code = code
        self.detail = detail
        self.param = param
        self.kind = KINDS[code]
        self.headers = dict(headers or {})
        self.extensions = extensions
        if self.kind.status == 503:
            self.headers.setdefault("Retry-After", RETRY_AFTER)

    def render(self, *, instance: str, request_id: str) -> bytes:
        """The body. ``instance`` is the path that was asked, ``request_id`` what the ``Request-Id`` header says."""
        return msgspec.json.encode(
            {
                "type": f"urn:tenure:problem:{self.code}",
                "title": self.kind.title,
                "status": self.kind.status,
                "detail": self.detail,
                "instance": instance,
                "code": self.code,
                "param": self.param,
                "retryable": self.kind.retryable,
                "request_id": request_id,
                **self.extensions,
            }
        )


def not_leader(detail: str, *, leader_url: str | None, reason: str | None = None) -> Problem:
    """503 ``not_leader``, with the leader's base URL in ``Tenure-Leader`` where it is known."""
    headers = {"Tenure-Leader": leader_url} if leader_url else {}
    extensions = {"reason": reason} if reason else {}
    return Problem("not_leader", detail, headers=headers, leader=leader_url, **extensions)


def problem_from_error(error: TenureError, *, leader_url: str | None) -> Problem:
    """The answer for an error of Tenure that ended a request.

    Details of the database and of the fence stay in the log, except for the two tokens, which are no secret.
    """
    if isinstance(error, FenceError):
        problem = not_leader(
            "the database refused this node's fencing token: nothing was written; another node leads",
            leader_url=leader_url,
            reason=LossReason.REFUSED.value,
        )
        problem.extensions |= {"token_sent": error.held, "token_current": error.seen}
        return problem
    if isinstance(error, LeadershipLost | NodeClosed):
        return not_leader(
            "this node stopped leading before the payment was sent: nothing was written",
            leader_url=leader_url,
            reason=error.reason if isinstance(error, LeadershipLost) else LossReason.CLOSED.value,
        )
    if isinstance(error, OutcomeUnknown):
        return Problem(
            "outcome_unknown",
            "the database gave no clear answer: the payment may or may not be written. Send the same request with "
            "the same Idempotency-Key to learn which",
        )
    if isinstance(error, DatabaseUnavailable):
        return Problem("database_unavailable", "the database does not answer: nothing was written")
    return Problem("internal_error", INTERNAL_ERROR)
