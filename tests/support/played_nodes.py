"""Nodes that are played over real HTTP, as one state that all of them share, and an operator who commands them."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tenure.cli import cluster as cluster_module
from tenure.cli import main, member
from tenure.cli.output import ExitCode

TOKEN = "the-operators-token"


@dataclass
class Played:
    """What the nodes of a cluster answer, as one state that all of them share."""

    members: list[dict[str, Any]] = field(default_factory=list)
    applicants: list[str] = field(default_factory=list)
    leader: str | None = "payment-1a"
    urls: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    tokens: set[str] = field(default_factory=set)
    behind: int = 0
    #: Called before each answer; may change the state, or return an answer of its own.
    before: Callable[[str, str, str], tuple[int, dict[str, Any]] | None] = lambda node, method, path: None

    def add(self, name: str, role: str = "voter", *, active: bool = True) -> None:
        url = self.urls.get(name, f"http://{name}.test")
        self.members.append(
            {"name": name, "raft_id": len(self.members) + 1, "role": role, "address": f"{name}:9080", "url": url,
             "leads": name == self.leader, "acknowledged_index": 7, "active": active}
        )  # fmt: skip

    def find(self, name: str) -> dict[str, Any]:
        return next(member for member in self.members if member["name"] == name)

    def listed(self, node: str) -> dict[str, Any]:
        return {
            "cluster": "payments", "cluster_id": "c0ffee", "node": node, "leader": self.leader, "term": 6, "index": 3,
            "commit_index": 9, "members": self.members, "applicants": self.applicants, "warning": None,
        }  # fmt: skip

    def answer(self, node: str, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if (own := self.before(node, method, path)) is not None:
            return own
        if (method, path) == ("GET", "/v1/members"):
            return 200, self.listed(node)
        if node != self.leader:
            return 503, {"code": "not_leader", "detail": f"{node} follows"}
        if (method, path) == ("POST", "/v1/members"):
            self.applicants.remove(body["name"])
            self.add(body["name"], "learner")
            return 201, self.find(body["name"])
        name, _, verb = path.removeprefix("/v1/members/").partition("/")
        if verb == "promote":
            if self.behind > 0:
                self.behind -= 1000
                return 409, {"code": "not_caught_up", "detail": f"{name} is {self.behind + 1000} entries behind",
                             "behind": self.behind + 1000}  # fmt: skip
            self.find(name)["role"] = "voter"
            return 200, self.find(name)
        if verb == "demote":
            self.find(name)["role"] = "learner"
            return 200, self.find(name)
        if path == "/v1/leadership/transfer":
            self.leader = body.get("to") or "payment-1c"
            for member in self.members:
                member["leads"] = member["name"] == self.leader
            return 200, {"leader": self.leader, "leader_url": self.urls[self.leader], "term": 7}
        if method == "DELETE":
            self.members = [member for member in self.members if member["name"] != name]
            return 204, {}
        return 200, {"lease_duration_ms": 2000}


@contextmanager
def node(played: Played, name: str) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            played.requests.append((name, self.command, self.path))
            played.tokens.add(self.headers.get("Authorization", ""))
            status, document = played.answer(name, self.command, self.path, body)
            if status == 0:
                return
            data = b"" if status == 204 else json.dumps(document).encode()
            self.send_response(status)
            if status == 503 and played.leader in played.urls and played.leader != name:
                self.send_header("Tenure-Leader", played.urls[played.leader])
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815 - the names that the base class looks for.

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def played() -> Iterator[Played]:
    """Three voters, of which payment-1a leads; each answers at a port of its own."""
    state = Played()
    with ExitStack() as scope:
        for name in ("payment-1a", "payment-1b", "payment-1c"):
            state.urls[name] = scope.enter_context(node(state, name))
        for name in state.urls:
            state.add(name)
        yield state


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of this machine is found, and nobody waits long."""
    for variable in ("TENURE_ENDPOINTS", "TENURE_OPERATOR_TOKEN", "TENURE_NODE__DATA_DIR"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setattr(cluster_module, "LEADER_SECONDS", 0.3)
    monkeypatch.setattr(cluster_module, "_LOOK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(member, "_LOOK_AGAIN_SECONDS", 0.02)
    monkeypatch.setattr(member, "QUIET_SECONDS", 0.2)


class Operator:
    """Runs commands against the node payment-1b, which follows."""

    def __init__(self, played: Played, capsys: pytest.CaptureFixture[str]) -> None:
        self.played, self._capsys = played, capsys
        self.out = self.err = ""

    def run(self, *words: str) -> int:
        code = main([*words, "--endpoint", self.played.urls["payment-1b"], "--operator-token", TOKEN])
        self.out, self.err = self._capsys.readouterr()
        assert TOKEN not in self.out + self.err
        return code

    def json(self, *words: str) -> dict[str, Any]:
        assert self.run(*words, "-o", "json") == ExitCode.OK, self.err
        return json.loads(self.out)

    def changes(self) -> list[tuple[str, str]]:
        """What the leader was asked to change."""
        return [(m, p) for who, m, p in self.played.requests if who == self.played.leader and m != "GET"]


@pytest.fixture
def operator(played: Played, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(played, capsys)
