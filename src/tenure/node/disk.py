"""The node's disk: a save runs on the node's own thread and is watched, all other work runs on a thread beside it.

::

    node's thread      save() ---- fsync ----> durable: the same call goes on, without a switch of threads
    watchdog           looks at the clock; a save that has not returned in time is reported from here
    disk thread        run(work): opening, founding, loading, closing; snapshots

Handing each save to another thread and taking its answer back cost more than the fsync itself. While a save runs the
engine may not be touched anyway (R2), and what arrives in the meantime waits in the sockets and goes into the next
save together. What a hanging loop cannot do, the watchdog does: it reports the stall, once, while the save still
hangs. A save that returns after that raises, so that nothing is sent on its account (R2). It must never let two
threads into the log store at once: while the node runs, ``run`` is for work that does not touch it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tenure.core.effects import Persist
from tenure.errors import SyncFailed
from tenure.storage import LogStore, StoredSnapshot

#: A write that is not durable after this long ends the node: its lease has lapsed long before (R2, R13).
DISK_STALL_SECONDS = 10.0
#: The watchdog looks this many times within the limit.
_LOOKS = 10

Answer = TypeVar("Answer")


class Disk:
    """One node's disk. ``save`` belongs to the node's thread, ``run`` to its loop; ``on_stall`` comes on another."""

    def __init__(self, folder: str, on_stall: Callable[[SyncFailed], None], *, stall_seconds: float) -> None:
        self._folder = folder
        self._on_stall = on_stall
        self._stall_seconds = stall_seconds
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="tenure-disk")
        self._lock = threading.Lock()
        self._saving_since: float | None = None
        self._stalled: SyncFailed | None = None
        self._closed = threading.Event()
        self._watchdog: threading.Thread | None = None

    @property
    def stalled(self) -> bool:
        """Whether a save was reported as hanging. It stays so: the node has to end, whether the save returns or not."""
        return self._stalled is not None

    def save(self, store: LogStore, effect: Persist) -> None:
        """Make ``effect`` durable before returning; on the node's thread.

        Raises:
            StorageFull, SyncFailed: as the store does; also when it returned only after it was reported as hanging.
        """
        snapshot = None if effect.snapshot is None else StoredSnapshot(*effect.snapshot)
        self.watched(
            lambda: store.save(
                first=effect.first,
                last=effect.last,
                entries=effect.entries,
                hard_state=effect.hard_state,
                snapshot=snapshot,
            )
        )

    def watched(self, work: Callable[[], Answer]) -> Answer:
        """Run ``work`` on the log store here and now, on the node's thread; the same errors as ``save``."""
        if self._watchdog is None:
            self._watchdog = threading.Thread(target=self._watch, name="tenure-disk-watchdog", daemon=True)
            self._watchdog.start()
        self._saving_since = time.monotonic()
        try:
            answer = work()
        finally:
            with self._lock:
                self._saving_since = None
        if self._stalled is not None:
            raise self._stalled
        return answer

    async def run(self, work: Callable[[], Answer]) -> Answer:
        """Run ``work`` on the disk thread, after what was handed to it before, and return its answer."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def close(self) -> None:
        """End both threads. It waits for neither where the disk hangs."""
        self._closed.set()
        self._executor.shutdown(wait=not self.stalled)

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_seconds / _LOOKS):
            with self._lock:
                since = self._saving_since
                if since is None or time.monotonic() - since <= self._stall_seconds:
                    continue
                self._stalled = error = SyncFailed(
                    f"the disk of {self._folder} has not finished a write for {self._stall_seconds:g} s: "
                    "this node must stop; look at the disk before it is started again"
                )
            self._on_stall(error)
            return
