"""One node of PySyncObj with tight times; it runs in the peers' virtual environment.

    python -m bench.failover.pysyncobj_node INDEX VOTERS DIRECTORY

It leads while the library says so and it hears a quorum: ``_isLeader`` alone stays true for 30 s in a cut.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

from bench.failover.speech import listen, report
from pysyncobj import SyncObj, SyncObjConf

TICK_SECONDS = 0.002


def main() -> None:
    """Until the input ends."""
    index, voters, directory = int(sys.argv[1]), sys.argv[2].split(","), sys.argv[3]
    conf = SyncObjConf(
        autoTick=False,
        autoTickPeriod=TICK_SECONDS,
        raftMinTimeout=0.15,
        raftMaxTimeout=0.30,
        appendEntriesPeriod=0.03,
        leaderFallbackTimeout=0.14,
        # The default of 5 s would leave a restarted node alone until long after the next fault.
        connectionRetryTime=0.1,
        journalFile=os.path.join(directory, "journal"),  # noqa: PTH118 - the library wants text.
    )
    node = SyncObj(voters[index], [voter for voter in voters if voter != voters[index]], conf)
    ended = threading.Event()

    def on_request(request: dict[str, Any] | None) -> None:
        if request is None:
            ended.set()

    listen(on_request)
    report("ready")
    led = False
    while not ended.is_set():
        node.doTick(TICK_SECONDS)
        leads = node._isLeader() and node.hasQuorum and node.isReady()  # noqa: SLF001 - there is no public call.
        if leads != led:
            led = leads
            report("lease" if leads else "lost")


if __name__ == "__main__":
    main()
