"""Stand-ins for payment nodes: real HTTP servers on real sockets that say what a test tells them to."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: A path's answer: a JSON value, or (status, raw body).
Answers = dict[str, Any]


class StubNode:
    """One node on 127.0.0.1. ``answers`` may be changed while it serves; ``asked`` lists the paths in order."""

    def __init__(self) -> None:
        self.answers: Answers = {}
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def says(self, name: str, state: str, term: int, **fields: Any) -> StubNode:
        """Answer as a payment node of Tenure does."""
        self.answers = {
            "/v1/state": {"state": state, "term": term},
            "/v1/node": {"state": state, "term": term, "name": name, **fields},
        }
        return self

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        node = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                node.asked.append(self.path)
                answer = node.answers.get(self.path, (404, b"not found"))
                status, body = answer if isinstance(answer, tuple) else (200, json.dumps(answer).encode())
                self.send_response(status)
                if 300 <= status < 400:
                    self.send_header("Location", "/v1/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        return Handler


@contextmanager
def stub_nodes(count: int) -> Iterator[list[StubNode]]:
    """As many stub nodes as told, closed at the end."""
    nodes = [StubNode() for _ in range(count)]
    try:
        yield nodes
    finally:
        for node in nodes:
            node.close()
