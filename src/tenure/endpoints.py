"""Where the nodes of a cluster are found: what was named, else ``TENURE_ENDPOINTS``, else a running demo.

The demo's record also holds the operator's token and the database's DSN: both are secrets, and neither may be shown or
sent to anybody but that demo's own nodes. A demo that has ended is never taken for a running one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from tenure.demo import pointer
from tenure.errors import ConfigError


class Endpoint(msgspec.Struct, frozen=True):
    """The base URL of one node; ``name`` and ``pid`` are known where it is a local process of a demo."""

    url: str
    name: str | None = None
    pid: int | None = None


class DemoRecord(msgspec.Struct, frozen=True):
    """What ``demo.json`` tells of a running demo."""

    file: Path
    endpoints: tuple[Endpoint, ...]
    logs: tuple[str, ...]
    dsn: str
    operator_token: str

    def __repr__(self) -> str:
        return f"DemoRecord({self.file})"


def named_endpoints(urls: Sequence[str], environ: Mapping[str, str]) -> tuple[Endpoint, ...]:
    """``urls``, else those of ``TENURE_ENDPOINTS``; :class:`tenure.ConfigError` if one is no URL."""
    named = [*urls] or re.split(r"[\s,]+", environ.get("TENURE_ENDPOINTS", "").strip(" ,"))
    return tuple(Endpoint(_base_url(url)) for url in dict.fromkeys(named) if url)


def find_demo() -> DemoRecord | None:
    """The newest demo of this user, or None; the same errors as :func:`read_demo`."""
    found = pointer.find()
    return None if found is None else read_demo(found)


def read_demo(path: Path) -> DemoRecord:
    """Read a demo's folder or its ``demo.json``; :class:`tenure.ConfigError` if it is none, or the demo has ended."""
    file = path / "demo.json" if path.is_dir() else path
    try:
        record: dict[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        nodes = record["nodes"]
        found = DemoRecord(
            file=file,
            endpoints=tuple(Endpoint(_base_url(node["url"]), node["name"], node.get("pid")) for node in nodes),
            logs=tuple(node["log"] for node in nodes),
            dsn=record["database"]["dsn"],
            operator_token=record.get("operator_token", ""),
        )
    except OSError as error:
        raise ConfigError("--demo", f"{file} cannot be read ({error.strerror}); name a demo's --data-dir") from None
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        raise ConfigError("--demo", f"{file} is not the demo.json of a demo") from None
    if not _is_running(record.get("pid")):
        raise ConfigError(
            "--demo",
            f"the demo of {file} has ended, and its process ids may be those of other programs by now; start one with "
            "`tenure demo`, or name what to look at (--endpoint, --dsn, --log)",
        )
    return found


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            # User and password are dropped: the URL is shown.
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    except ValueError:  # a port or an IPv6 address that is none
        pass
    raise ConfigError("--endpoint", f"{text!r} is no URL of a node; write it as http://payment-1b:8080")


def _is_running(pid: object) -> bool:
    """Whether the demo's own process is there. It is this user's, so that one which may not be asked is another's."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
