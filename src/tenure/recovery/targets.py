"""What a survey looks at: the endpoints, the database and the logs, from flags, the environment or a demo.

Precedence: flag > environment (``TENURE_ENDPOINTS``, ``TENURE_DATABASE__DSN``) > a running demo. A demo found
by itself is used only where neither endpoints nor a database were named, so that two clusters never mix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from tenure.endpoints import Endpoint, find_demo, named_endpoints, read_demo
from tenure.errors import ConfigError

DEFAULT_LOGS = ("/var/log/payment-service/*.log",)


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
    named = named_endpoints(endpoints, environ)
    if demo is None:
        dsn = dsn or environ.get("TENURE_DATABASE__DSN") or None
        if named or dsn or logs:
            return Targets(named, dsn, tuple(logs) or DEFAULT_LOGS)
    found = find_demo() if demo is None else read_demo(demo)
    if found is None:
        raise ConfigError(
            "--endpoint",
            "nothing to look at: name each node's URL (--endpoint http://payment-1b:8080 or TENURE_ENDPOINTS), "
            "the database (--dsn or TENURE_DATABASE__DSN) or the logs (--log), or start `tenure demo`",
        )
    return Targets(named or found.endpoints, dsn or found.dsn, tuple(logs) or found.logs, found.file)
