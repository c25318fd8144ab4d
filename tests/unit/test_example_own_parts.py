"""The parts of the example keep the promises of their protocols, by the suites that a user would run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import test_conformance_transport

from tenure.storage import LogStore
from tenure.testing import Endpoint, LogStoreConformance
from tenure.transport import Transport

sys.path.append(str(Path(__file__).parents[2] / "examples"))
from own_parts import CountingLogStore, PlainTransport


class TestPlainTransport(test_conformance_transport.TestTcpTransport):
    """At the same addresses, by the same detour."""

    async def open_transport(self, endpoint: Endpoint, *, listen: str, peers: Mapping[str, str]) -> Transport:
        for address in (listen, "127.0.0.1:0"):
            transport = PlainTransport(address, endpoint.hooks)
            transport.set_peers(peers)
            try:
                await transport.start()
            except OSError:
                continue
            return transport
        raise AssertionError("no address to listen on")


class TestCountingLogStore(LogStoreConformance):
    def open_store(self, folder: Path) -> LogStore:
        return CountingLogStore(folder)

    def fail_next_sync(self, store: LogStore) -> None:
        with Path(os.devnull).open("rb") as no_disk:
            os.dup2(no_disk.fileno(), store._store._descriptor)
