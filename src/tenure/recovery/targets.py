"""What a survey looks at: the endpoints, the database and the logs, from flags, the environment or a demo.

Precedence: flag > environment (``TENURE_ENDPOINTS``, ``TENURE_DATABASE__DSN``) > a running demo. A demo found
by itself is used only where neither endpoints nor a database were named, so that two clusters never mix.
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

DEFAULT_LOGS = ("/var/log/payment-service/*.log",)


class Endpoint(msgspec.Struct, frozen=True):
    """The base URL of one node; ``name`` and ``pid`` are known where it is a local process of a demo."""

    url: str
    name: str | None = None
    pid: int | None = None


class Targets(msgspec.Struct, frozen=True):
    """All that a survey looks at. ``dsn`` is a secret: it is never shown."""

    endpoints: tuple[Endpoint, ...]
    dsn: str | None
    logs: tuple[str, ...]
    demo: Path | None = None


def find_targets(
    *,
    endpoints: Sequence[str],
    dsn: str | None,
    logs: Sequence[str],
    demo: Path | None,
    environ: Mapping[str, str],
) -> Targets:
    """Settle what to look at.

    Raises:
        ConfigError: an endpoint is no URL, ``demo`` names no demo, or nothing at all was named or found.
    """
    urls = [*endpoints] or re.split(r"[\s,]+", environ.get("TENURE_ENDPOINTS", "").strip(" ,"))
    named = tuple(Endpoint(_base_url(url)) for url in dict.fromkeys(urls) if url)
    if demo is None:
        dsn = dsn or environ.get("TENURE_DATABASE__DSN") or None
        if named or dsn or logs:
            return Targets(named, dsn, tuple(logs) or DEFAULT_LOGS)
        demo = pointer.find()
        if demo is None:
            raise ConfigError(
                "--endpoint",
                "nothing to look at: name each node's URL (--endpoint http://payment-1b:8080 or TENURE_ENDPOINTS), "
                "the database (--dsn or TENURE_DATABASE__DSN) or the logs (--log), or start `tenure demo`",
            )
    found = _read_demo(demo)
    return Targets(named or found.endpoints, dsn or found.dsn, tuple(logs) or found.logs, found.demo)


def _base_url(text: str) -> str:
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            # User and password are dropped: the URL is shown.
            return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path.rstrip('/')}"
    except ValueError:  # a port or an IPv6 address that is none
        pass
    raise ConfigError("--endpoint", f"{text!r} is no URL of a node; write it as http://payment-1b:8080")


def _read_demo(path: Path) -> Targets:
    file = path / "demo.json" if path.is_dir() else path
    try:
        record: dict[str, Any] = msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
        nodes = record["nodes"]
        endpoints = tuple(Endpoint(_base_url(node["url"]), node["name"], node.get("pid")) for node in nodes)
        dsn = record["database"]["dsn"]
        logs = tuple(node["log"] for node in nodes)
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
    return Targets(endpoints, dsn, logs, file)


def _is_running(pid: object) -> bool:
    """Whether the demo's own process is there. It is this user's, so that one which may not be asked is another's."""
    if not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
