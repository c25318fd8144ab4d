"""The operator's routes: who the members are, and what may be done with members, leadership, snapshots and times.

``GET /v1/members`` is for everybody. All the rest needs the operator's token, and a node without one takes no command.
What only the leader can do is answered elsewhere with 503 ``not_leader`` and ``Tenure-Leader``. An answer never
guesses: done, surely not done, or 504 ``outcome_unknown``; the list of members then tells which.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from payment_service.bodies import refuse_duplicate_fields
from payment_service.headers import check_content_type
from payment_service.hot import other_leader_url
from payment_service.ports import Member
from payment_service.problems import INTERNAL_ERROR, Problem, not_leader
from tenure import (
    MembershipRefused,
    NodeClosed,
    NotCaughtUp,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    SnapshotRefused,
    StorageError,
    TenureError,
)
from tenure.raft import MemberState

#: How long the addition of a member waits for its node to call.
CALL_WAIT_MS: Final = 3000
#: How long the addition of a voter waits until it has caught up; then it goes on, and the answer is 202.
JOIN_WAIT_SECONDS: Final = 5.0
BODY_BYTES_MAX: Final = 16_384

Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=msgspec.Struct)
_Name = Annotated[str, msgspec.Meta(min_length=1, max_length=63)]


class AddMember(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/members``."""

    name: _Name
    role: Literal["voter", "learner"] = "voter"


class Transfer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/leadership/transfer``, which may be left out."""

    to: _Name | None = None


class ChangedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of ``PATCH /v1/settings``: any of the cluster's times."""

    heartbeat_interval_ms: int | None = None
    election_timeout_ms: int | None = None
    lease_duration_ms: int | None = None
    clock_rate_error_ppm: int | None = None
    wait_out: str | None = None


class Administration:
    """The operator's endpoints over one member. ``operator_token`` empty: this node takes no commands."""

    def __init__(
        self, member: Member, *, operator_token: str, cluster_name: str, logger: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._member = member
        self._operator_token = operator_token
        self._cluster_name = cluster_name
        self._logger = logger
        #: Voters that are on their way in; a second request for one of them waits for the same.
        self._joining: dict[str, asyncio.Task[None]] = {}

    def routes(self) -> list[Route]:
        """The routes, to be mounted beside the others."""
        return [
            _route("/v1/members", GET=_told(self.list_members), POST=self._command(self.add)),
            _route("/v1/members/{name}", GET=_told(self.get_member), DELETE=self._command(self.remove)),
            _route("/v1/members/{name}/promote", POST=self._command(self.promote)),
            _route("/v1/members/{name}/demote", POST=self._command(self.demote)),
            _route("/v1/leadership/step-down", POST=self._command(self.step_down)),
            _route("/v1/leadership/transfer", POST=self._command(self.transfer)),
            _route("/v1/snapshots", GET=self._read(self.list_snapshots), POST=self._command(self.take_snapshot)),
            _route("/v1/log", GET=self._read(self.log)),
            _route("/v1/log/verify", POST=self._read(self.verify_log)),
            _route("/v1/settings", GET=self._read(self.settings), PATCH=self._command(self.change_settings)),
        ]

    # -- members ----------------------------------------------------------------------------------------------------

    async def list_members(self, _: Request) -> Response:
        """``GET /v1/members``: the members as this node sees them; the leader also knows who has acknowledged what."""
        listed, status = await self._member.members(), self._member.status()
        return _json(
            {
                "cluster": self._cluster_name,
                "cluster_id": listed.cluster_id,
                "node": status.name,
                "leader": next((member.name for member in listed.members if member.leads), None),
                "term": status.term,
                "index": listed.index,
                "commit_index": status.commit_index,
                "members": listed.members,
                "applicants": listed.applicants,
                "warning": listed.warning,
            }
        )

    async def get_member(self, request: Request) -> Response:
        """``GET /v1/members/{name}``: one of them."""
        return _json(await self._find(request.path_params["name"]))

    async def add(self, request: Request) -> Response:
        """``POST /v1/members``: add the new node of that name, which is running and asks to be added.

        201 with the member once it is what was asked for; 202 while a voter still catches up: it is a learner then, and
        becomes a voter as soon as it can, for as long as this node leads. The same request again waits for the same.
        """
        asked = await _body(request, AddMember)
        self._require_leader()
        name = asked.name
        if asked.role == "voter":
            if name not in self._joining:
                if not await self._is_learner(name):
                    await self._member.add_learner(name, timeout_ms=CALL_WAIT_MS)
                self._joining[name] = task = asyncio.create_task(self._member.add_voter(name), name=f"join {name}")
                task.add_done_callback(lambda done: self._joined(name, done))
            task = self._joining[name]
            if not (await asyncio.wait({task}, timeout=JOIN_WAIT_SECONDS))[0]:
                return self._at(name, await self._find(name), 202, {"Retry-After": "1"})
            task.result()
        else:
            await self._member.add_learner(name, timeout_ms=CALL_WAIT_MS)
        return self._at(name, await self._find(name), 201)

    async def promote(self, request: Request) -> Response:
        """``POST /v1/members/{name}/promote``: let a learner vote that has caught up, else 409 ``not_caught_up``."""
        self._require_leader()
        await self._member.promote(request.path_params["name"])
        return await self.get_member(request)

    async def demote(self, request: Request) -> Response:
        """``POST /v1/members/{name}/demote``: make a voter a learner."""
        self._require_leader()
        await self._member.demote(request.path_params["name"])
        return await self.get_member(request)

    async def remove(self, request: Request) -> Response:
        """``DELETE /v1/members/{name}``: it leaves for good, its node ends by itself. The leader may remove itself."""
        self._require_leader()
        await self._member.remove(request.path_params["name"])
        return Response(status_code=204)

    # -- leadership, snapshots, log, times ----------------------------------------------------------------------------

    async def step_down(self, _: Request) -> Response:
        """``POST /v1/leadership/step-down``: give up leadership; another member takes it."""
        if not await self._member.step_down():
            raise not_leader("only the leader can step down", leader_url=other_leader_url(self._member))
        status = self._member.status()
        return _json({"state": status.state.value, "term": status.term})

    async def transfer(self, request: Request) -> Response:
        """``POST /v1/leadership/transfer``: hand leadership over, to the voter ``to`` or whoever is furthest."""
        asked = await _body(request, Transfer, optional=True)
        self._require_leader()
        leader = await self._member.transfer_leadership(asked.to)
        url = next((peer.url for peer in self._member.cluster() if peer.name == leader), None)
        return _json({"leader": leader, "leader_url": url, "term": self._member.status().term})

    async def list_snapshots(self, _: Request) -> Response:
        """``GET /v1/snapshots``: where the log of this node starts, and the contents it keeps, each read to its end."""
        state, stored = await self._member.log_state(), await self._member.stored_snapshots()
        listed = await self._member.members()
        names = {member.raft_id: member.name for member in listed.members}
        return _json(
            {
                "node": self._member.name,
                "log_starts_with": {"index": state.snapshot_index} if state.snapshot_index else None,
                "snapshots": [
                    {
                        "id": snapshot.id,
                        "index": snapshot.index,
                        "term": snapshot.term,
                        "members": [names.get(voter, str(voter)) for voter in snapshot.voters]
                        + [f"{names.get(learner, learner)} (learner)" for learner in snapshot.learners],
                        "size": snapshot.size,
                        "sha256": snapshot.sha256,
                        "verified": snapshot.problem is None,
                        "problem": snapshot.problem,
                    }
                    for snapshot in stored
                ],
            }
        )

    async def take_snapshot(self, _: Request) -> Response:
        """``POST /v1/snapshots``: take one of this node now and compact its log.

        201 with the entry up to which it stands; 200 with ``"taken": false`` where the last one has everything.
        """
        try:
            index = await self._member.snapshot()
        except SnapshotRefused:
            with contextlib.suppress(NodeClosed):
                log = await self._member.log_state()
                if 0 < log.applied_index <= log.snapshot_index:
                    return _json({"node": self._member.name, "index": log.snapshot_index, "taken": False})
            raise
        return _json({"node": self._member.name, "index": index, "taken": True}, 201)

    async def log(self, _: Request) -> Response:
        """``GET /v1/log``: where the log of this node stands."""
        return _json({"node": self._member.name, **msgspec.structs.asdict(await self._member.log_state())})

    async def verify_log(self, _: Request) -> Response:
        """``POST /v1/log/verify``: check every record and every snapshot of this node again, while it runs."""
        return _json({"node": self._member.name, **msgspec.structs.asdict(await self._member.verify_storage())})

    async def settings(self, _: Request) -> Response:
        """``GET /v1/settings``: the times of the cluster as its log has them on this node."""
        return _json(await self._member.settings())

    async def change_settings(self, request: Request) -> Response:
        """``PATCH /v1/settings``: change times of the cluster through its log (R4); those left out stay."""
        changed = msgspec.to_builtins(await _body(request, ChangedSettings))
        if not changed:
            names = ", ".join(ChangedSettings.__struct_fields__)
            raise Problem("invalid_field", f"name a time to change: {names}", param="body")
        self._require_leader()
        return _json(await self._member.change_settings(**changed))

    # -- inside -----------------------------------------------------------------------------------------------------

    def _command(self, handler: Handler) -> Handler:
        """A handler that changes something: for the operator alone, and written to the log with its outcome."""

        async def guarded(request: Request) -> Response:
            self._require_operator(request)
            facts = {"method": request.method, "path": request.url.path, "request_id": request.state.request_id}
            try:
                response = await handler(request)
            except (Problem, TenureError) as error:
                problem = error if isinstance(error, Problem) else command_problem(error)
                reason = error.detail if isinstance(error, Problem) else str(error)
                self._logger.warning("operator_command", outcome=problem.code, reason=reason, **facts)
                raise problem from None
            self._logger.info("operator_command", outcome="done" if response.status_code != 202 else "begun", **facts)
            return response

        return guarded

    def _read(self, handler: Handler) -> Handler:
        """A handler that only tells something, to the operator alone."""

        async def guarded(request: Request) -> Response:
            self._require_operator(request)
            return await _told(handler)(request)

        return guarded

    def _require_operator(self, request: Request) -> None:
        if not self._operator_token:
            raise Problem("forbidden", "no http.operator_token is set: this node takes no commands over HTTP")
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode(), self._operator_token.encode())
        if scheme.lower() != "bearer" or not right:
            raise Problem(
                "unauthorized",
                "send Authorization: Bearer with the operator token",
                param="Authorization",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _require_leader(self) -> None:
        """Said at once by a node that does not lead, one that belongs to no cluster yet among them."""
        status = self._member.status()
        if status.raft_role != "leader":
            reason = f"; {status.reason}" if status.reason else ""
            raise not_leader(
                f"only the leader can do this; {status.name} follows{reason}", leader_url=other_leader_url(self._member)
            )

    async def _find(self, name: str) -> MemberState:
        listed = await self._member.members()
        found = next((member for member in listed.members if member.name == name), None)
        if found is None:
            raise Problem("not_found", f"there is no member {name[:64]}", param="name")
        return found

    async def _is_learner(self, name: str) -> bool:
        listed = await self._member.members()
        return any(member.name == name and member.role.value == "learner" for member in listed.members)

    def _at(self, name: str, member: MemberState, status: int, headers: Mapping[str, str] | None = None) -> Response:
        return _json(member, status, {"Location": f"/v1/members/{name}", **(headers or {})})

    def _joined(self, name: str, task: asyncio.Task[None]) -> None:
        """A voter is in, or did not come in while nobody waited for it any more."""
        del self._joining[name]
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self._logger.warning("member_not_added", member=name, reason=str(error))
        else:
            self._logger.info("member_added", member=name, role="voter")


def command_problem(error: TenureError) -> Problem:
    """The answer for an error that ended a command."""
    if isinstance(error, NotLeader):
        why = "only the leader can do this" if error.reason is None else error.reason
        return not_leader(f"{why}: nothing was done", leader_url=error.leader_url)
    if isinstance(error, NotCaughtUp):
        return Problem("not_caught_up", str(error), behind=error.behind)
    if isinstance(error, MembershipRefused):
        return Problem("membership_refused", str(error))
    if isinstance(error, SnapshotRefused):
        return Problem("snapshot_refused", str(error))
    if isinstance(error, ProposalDropped):
        return Problem("proposal_dropped", f"surely not done: {error}")
    if isinstance(error, OutcomeUnknown | NodeClosed):
        # A node that closes ends what it was doing, and others may still take it over.
        return Problem("outcome_unknown", f"{error}: it may or may not be done; look before you repeat it")
    return Problem("internal_error", INTERNAL_ERROR)


def _told(handler: Handler) -> Handler:
    """A handler that only reads: what stands in the way is no command's outcome."""

    async def reading(request: Request) -> Response:
        try:
            return await handler(request)
        except NodeClosed as error:
            raise Problem("not_ready", f"this node belongs to no cluster yet, or it stops: {error}") from None
        except StorageError as error:
            raise Problem("storage_error", str(error)) from None

    return reading


def _route(path: str, **handlers: Handler) -> Route:
    """One route with a handler for each method, so that a wrong method is told all of them."""

    async def dispatch(request: Request) -> Response:
        method = "GET" if request.method == "HEAD" else request.method
        if method not in handlers:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(handlers))})
        return await handlers[method](request)

    return Route(path, dispatch, methods=list(handlers))


async def _body(request: Request, kind: type[Body], *, optional: bool = False) -> Body:
    """The body as ``kind``; ``Problem`` naming the field at fault."""
    data = b""
    async for part in request.stream():
        data += part
        if len(data) > BODY_BYTES_MAX:
            raise Problem("body_too_large", f"the body may have at most {BODY_BYTES_MAX} bytes", param="body")
    if optional and not data:
        return kind()
    check_content_type(request.headers.raw)
    try:
        body = msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        problem, _, place = str(error).partition(" - at ")
        param = place.strip("`").removeprefix("$.") if place.startswith("`$.") else "body"
        raise Problem("invalid_field", f"{param}: {problem[0].lower()}{problem[1:]}", param=param) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem("malformed_json", f"the body is not valid JSON in UTF-8: {error}") from None
    refuse_duplicate_fields(data)
    return body


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers=dict(headers or {}), media_type="application/json")
