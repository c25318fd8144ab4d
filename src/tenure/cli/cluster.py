"""How the commands for a running cluster find it and speak with it over HTTP, following ``Tenure-Leader``.

The operator's token is a secret: it goes to the nodes that were named, or of the demo that it belongs to, and to where
these say that the leader is, never over plain HTTP where the node was named with HTTPS, and never to a terminal. A
command whose answer did not come is reported as unknown (8), not repeated.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self

import msgspec
from cyclopts import Parameter

from tenure.cli.output import CommandError, ExitCode

if TYPE_CHECKING:
    import httpx2

TOKEN_VARIABLE = "TENURE_OPERATOR_TOKEN"  # noqa: S105 - the name of a variable, not a token.
#: How long a command looks for a leader: an election may be under way.
LEADER_SECONDS = 10.0
#: A change of the members may take this long on the leader (its own bound is 10 s).
ANSWER_SECONDS = 20.0
BODY_BYTES_MAX = 1 << 20
_LOOK_AGAIN_SECONDS = 0.3
#: Answers that say surely nothing was done, and that another node or a moment later may do it.
_ELSEWHERE = frozenset({"not_leader", "not_ready", "proposal_dropped"})


@Parameter(name="*")
@dataclass(frozen=True)
class Connection:
    """The options by which every command for a running cluster finds it."""

    endpoint: Annotated[
        list[str] | None,
        Parameter(
            name="--endpoint",
            negative_iterable="",
            help="Base URL of a node, http://payment-1b:8080; repeat it for each. Default: TENURE_ENDPOINTS, else a "
            "running demo.",
        ),
    ] = None
    operator_token: Annotated[
        str | None,
        Parameter(
            help=f"The operator's token; others on this machine can see it. Default: {TOKEN_VARIABLE}, or a running "
            "demo's."
        ),
    ] = None
    operator_token_file: Annotated[Path | None, Parameter(help="A file that holds the operator's token.")] = None

    def open(self) -> Cluster:
        """The cluster that the options name; :class:`tenure.ConfigError` if they name none."""
        urls, token = self.resolve(os.environ)
        return Cluster(urls, token)

    def resolve(self, environ: Mapping[str, str]) -> tuple[list[str], str]:
        """The URLs, and the token (empty for none)."""
        from tenure.endpoints import find_demo, named_endpoints
        from tenure.errors import ConfigError

        urls = [endpoint.url for endpoint in named_endpoints(self.endpoint or (), environ)]
        token = self._token(environ)
        if urls and token:
            return urls, token
        try:
            demo = find_demo()
        except ConfigError:
            # One that has ended; it is an error only where nothing else was named.
            if not urls:
                raise
            demo = None
        if demo is not None:
            of_demo = [endpoint.url for endpoint in demo.endpoints]
            if set(urls) <= set(of_demo):
                return urls or of_demo, token or demo.operator_token
        if not urls:
            raise ConfigError(
                "--endpoint",
                "no cluster was named: name its nodes (--endpoint http://payment-1b:8080 or TENURE_ENDPOINTS), or "
                "start `tenure demo`",
            )
        return urls, token

    def _token(self, environ: Mapping[str, str]) -> str:
        from tenure.errors import ConfigError

        if self.operator_token is not None:
            return self.operator_token
        if self.operator_token_file is None:
            return environ.get(TOKEN_VARIABLE, "")
        try:
            return self.operator_token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("--operator-token-file", f"{self.operator_token_file} cannot be read: {error}") from None


@Parameter(name="*")
@dataclass(frozen=True)
class NamedNodes(Connection):
    """The options of a command that reads a stopped node's directory unless running nodes are named."""

    endpoint: Annotated[
        list[str] | None,
        Parameter(
            name="--endpoint",
            negative_iterable="",
            help="Base URL of a running node to ask instead, http://payment-1b:8080; repeat it for each. No default: "
            "without it a stopped node's directory is read.",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a node answered: the JSON object, empty where there was none."""

    url: str
    status: int
    document: dict[str, Any]
    leader_url: str | None

    @property
    def code(self) -> str | None:
        """The stable code of a problem, or None."""
        code = self.document.get("code")
        return code if self.status >= 400 and isinstance(code, str) else None

    def require(self, *, when_unknown: str | None = None) -> dict[str, Any]:
        """The document of a success; :class:`CommandError` with the exit code that fits otherwise.

        ``when_unknown`` is the command that tells what became of it where the outcome is not known.
        """
        if self.status < 400:
            return self.document
        detail = printable(self.document.get("detail")) or f"HTTP {self.status}"
        kinds = {
            400: ExitCode.USAGE,
            401: ExitCode.NOT_ALLOWED,
            403: ExitCode.NOT_ALLOWED,
            409: ExitCode.REFUSED,
            503: ExitCode.NO_LEADER,
            504: ExitCode.OUTCOME_UNKNOWN,
        }
        next_step = when_unknown if self.status == 504 else None
        if self.status == 401:
            next_step = f"give the token: --operator-token-file FILE, or {TOKEN_VARIABLE}"
        elif self.status == 403:
            next_step = "set http.operator_token in the nodes' files"
        elif self.status == 404 and self.code is None:
            detail = "it does not know this request: is it a node of this version?"
        raise CommandError(f"{self.url}: {detail}", next_step=next_step, code=kinds.get(self.status, ExitCode.FAILED))


class _Silence(Exception):
    """No answer came. ``sent`` if the request may have been taken all the same."""

    def __init__(self, url: str, problem: str, *, sent: bool) -> None:
        self.url = url
        self.problem = problem
        self.sent = sent
        super().__init__(url, problem)


class Cluster:
    """The nodes of one cluster, asked one at a time. Use it as a context manager."""

    def __init__(self, urls: Sequence[str], token: str) -> None:
        import httpx2

        #: Those that were named; ``_others`` are those that the members' list told since.
        self.urls = list(urls)
        self._others: list[str] = []
        self._token = token
        self._client: httpx2.Client = httpx2.Client(trust_env=False, follow_redirects=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def at(
        self, url: str, method: str, path: str, body: object = None, *, seconds: float = ANSWER_SECONDS
    ) -> dict[str, Any]:
        """Ask this very node; :class:`CommandError` unless it answers with a success."""
        try:
            return self._send(url, method, path, body, seconds).require()
        except _Silence as silence:
            code = ExitCode.OUTCOME_UNKNOWN if silence.sent and method != "GET" else ExitCode.UNREACHABLE
            raise CommandError(f"{url}: {silence.problem}", code=code) from None

    def anywhere(self, path: str) -> dict[str, Any]:
        """Ask the nodes in turn until one answers; :class:`CommandError` if none does."""
        silences = []
        for url in self._candidates():
            try:
                answer = self._send(url, "GET", path, None, ANSWER_SECONDS)
            except _Silence as silence:
                silences.append(f"{url}: {silence.problem}")
                continue
            if answer.code in _ELSEWHERE:
                silences.append(f"{url}: {printable(answer.document.get('detail'))}")
                continue
            return answer.require()
        raise CommandError(
            f"no node answers: {'; '.join(silences)}",
            next_step="name nodes that run: --endpoint http://payment-1b:8080",
            code=ExitCode.UNREACHABLE,
        )

    def on_leader(self, method: str, path: str, body: object = None) -> Answer:
        """Have the leader do it, wherever it is; its answer, unless that says that another one leads.

        Raises:
            CommandError: no leader was found in time, none of the nodes answers, or the answer did not come.
        """
        return self._until(lambda url: self._send(url, method, path, body, ANSWER_SECONDS), changes=method != "GET")

    def members(self) -> dict[str, Any]:
        """The list of the members, as the leader sees it; :class:`CommandError` if nobody leads."""

        def ask(url: str) -> Answer:
            answer = self._send(url, "GET", "/v1/members", None, ANSWER_SECONDS)
            listed = answer.document
            if answer.status != 200 or listed.get("node") == listed.get("leader"):
                return answer
            problem = {"code": "not_leader", "detail": "no leader is known there"}
            return Answer(url, 503, problem, _url_of(listed, listed.get("leader")))

        return self.learn(self._until(ask, changes=False).require())

    def learn(self, listed: dict[str, Any]) -> dict[str, Any]:
        """Remember where the members of this list are: the nodes that were named may go."""
        self._others = [url for member in listed.get("members", ()) if (url := member.get("url"))]
        return listed

    def _candidates(self) -> list[str]:
        secure = all(url.startswith("https:") for url in self.urls)
        others = [url for url in self._others if not secure or url.startswith("https:")]
        return list(dict.fromkeys([*self.urls, *others]))

    def _until(self, ask: Callable[[str], Answer], *, changes: bool) -> Answer:
        deadline = time.monotonic() + LEADER_SECONDS
        while True:
            answered, problems = False, []
            for url in self._candidates():
                try:
                    answer = ask(url)
                    if (hint := self._followed(answer)) is not None:
                        answer = ask(hint)
                except _Silence as silence:
                    if silence.sent and changes:
                        raise CommandError(
                            f"{silence.url}: {silence.problem}; it may or may not be done",
                            next_step="tenure member list",
                            code=ExitCode.OUTCOME_UNKNOWN,
                        ) from None
                    problems.append(f"{silence.url}: {silence.problem}")
                    continue
                if answer.code not in _ELSEWHERE:
                    return answer
                answered = True
                problems.append(f"{answer.url}: {printable(answer.document.get('detail'))}")
            if time.monotonic() >= deadline:
                code = ExitCode.NO_LEADER if answered else ExitCode.UNREACHABLE
                raise CommandError(
                    f"no leader within {LEADER_SECONDS:g} s: {'; '.join(dict.fromkeys(problems))}",
                    next_step="tenure recover survey",
                    code=code,
                )
            time.sleep(_LOOK_AGAIN_SECONDS)

    def _followed(self, answer: Answer) -> str | None:
        """Where that answer says the leader is, if the token may go there."""
        url = answer.leader_url
        if url is None or url == answer.url or answer.code not in _ELSEWHERE:
            return None
        return url if url.startswith("https:") or not answer.url.startswith("https:") else None

    def _send(self, url: str, method: str, path: str, body: object, seconds: float) -> Answer:
        import httpx2

        headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        timeout = httpx2.Timeout(seconds, connect=3.0)
        content = b""
        try:
            with self._client.stream(method, f"{url}{path}", json=body, headers=headers, timeout=timeout) as response:
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > BODY_BYTES_MAX:
                        raise _Silence(url, f"answers with more than {BODY_BYTES_MAX} bytes", sent=True)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise _Silence(url, f"no connection: {printable(str(error)) or 'no answer'}", sent=False) from None
        except httpx2.InvalidURL as error:
            raise _Silence(url, f"is no URL: {printable(str(error))}", sent=False) from None
        except httpx2.HTTPError as error:
            raise _Silence(url, f"did not answer ({type(error).__name__})", sent=True) from None
        leader = response.headers.get("tenure-leader")
        return Answer(url, response.status_code, _object(content), leader.rstrip("/") if leader else None)


def printable(text: object, characters_max: int = 1000) -> str:
    """A text of a node without what a terminal could execute; empty if it is none."""
    if not isinstance(text, str):
        return ""
    return "".join(sign if sign.isprintable() else "?" for sign in text[:characters_max])


def _object(content: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(content, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}


def _url_of(listed: dict[str, Any], name: object) -> str | None:
    url = next((member.get("url") for member in listed.get("members", ()) if member.get("name") == name), None)
    return url.rstrip("/") if isinstance(url, str) and url else None
