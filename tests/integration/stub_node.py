"""A stand-in for a payment node: answers /v1/node, or ends at once as told. Not the real service, only a process."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Handler(BaseHTTPRequestHandler):
    answers = 0

    def do_GET(self) -> None:
        body = json.dumps({"state": sys.argv[2], "term": 1, "fencing_token": 1}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        # By the second question its first answer was taken: it served once.
        Handler.answers += 1
        if sys.argv[2] == "removed" and Handler.answers == 2:
            os._exit(4)

    def log_message(self, *_: object) -> None:
        return


if __name__ == "__main__":
    if sys.argv[2] == "broken":
        sys.exit("database.dsn: nobody answers there")
    HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
