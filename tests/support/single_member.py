"""A cluster of one: the shortest way to a leadership with a real node, for tests of what is done with it."""

from __future__ import annotations

from pathlib import Path

import tenure
from support.services import free_ports
from tenure.config import from_mapping

BOUND_SECONDS = 20.0


def config_of(folder: Path, **sections: dict[str, object]) -> tenure.Config:
    """Quick times: it leads after half a second."""
    (port,) = free_ports(1)
    values: dict[str, dict[str, object]] = {
        "node": {"name": "a", "data_dir": str(folder / "data")},
        "raft": {
            "listen": f"127.0.0.1:{port}",
            "peers": {"a": {"raft": f"127.0.0.1:{port}", "url": "http://a.test"}},
            "heartbeat_interval_ms": 40,
            "election_timeout_ms": 200,
        },
        "lease": {"duration_ms": 200},
    }
    for section, extra in sections.items():
        values.setdefault(section, {}).update(extra)
    return from_mapping(values)
