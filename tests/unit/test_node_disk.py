"""The node's disk: a save on the caller's thread, and a watchdog that tells what a hanging thread cannot."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from tenure.core.effects import Persist
from tenure.errors import SyncFailed
from tenure.node.disk import Disk
from tenure.storage import StoredLog, StoredSnapshot

BOUND_SECONDS = 10.0
STALL_SECONDS = 0.2
EFFECT = Persist(first=1, last=1, entries=b"entries", hard_state=(1, 1, 0), must_sync=True)


class Store:
    """Keeps what was saved; a save waits until it may go on."""

    def __init__(self) -> None:
        self.saved: list[bytes] = []
        self.threads: set[str] = set()
        self.may_save = threading.Event()
        self.may_save.set()
        self.failure: Exception | None = None

    def load(self) -> StoredLog:
        raise NotImplementedError

    def save(
        self,
        *,
        first: int,
        last: int,
        entries: bytes,
        hard_state: tuple[int, int, int] | None,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        self.threads.add(threading.current_thread().name)
        self.may_save.wait(BOUND_SECONDS)
        if self.failure is not None:
            raise self.failure
        self.saved.append(entries)

    def compact(self, snapshot: StoredSnapshot) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class Stalls:
    """What the watchdog reported, and on which thread."""

    def __init__(self) -> None:
        self.errors: list[SyncFailed] = []
        self.threads: list[str] = []
        self.reported = threading.Event()

    def __call__(self, error: SyncFailed) -> None:
        self.errors.append(error)
        self.threads.append(threading.current_thread().name)
        self.reported.set()


@pytest.fixture
def stalls() -> Stalls:
    return Stalls()


@pytest.fixture
def disk(stalls: Stalls) -> Iterator[Disk]:
    disk = Disk("/somewhere", stalls, stall_seconds=STALL_SECONDS)
    yield disk
    disk.close()


def save_on_a_thread(disk: Disk, store: Store) -> tuple[threading.Thread, list[BaseException | None]]:
    ends: list[BaseException | None] = []

    def work() -> None:
        try:
            disk.save(store, EFFECT)
        except BaseException as error:  # noqa: BLE001 - the test looks at whatever it was.
            ends.append(error)
        else:
            ends.append(None)

    thread = threading.Thread(target=work, name="saver")
    thread.start()
    return thread, ends


def test_save_is_durable_when_it_returns_and_needs_no_other_thread(disk: Disk, stalls: Stalls):
    store = Store()
    disk.save(store, EFFECT)
    assert store.saved == [b"entries"]
    assert store.threads == {threading.current_thread().name}
    assert stalls.errors == []


def test_R2_save_that_hangs_is_reported_once_by_another_thread(disk: Disk, stalls: Stalls):
    """The thread that hangs in it could tell nobody."""
    store = Store()
    store.may_save.clear()
    thread, ends = save_on_a_thread(disk, store)
    assert stalls.reported.wait(BOUND_SECONDS)
    assert ends == []
    assert disk.stalled
    assert "/somewhere has not finished a write for 0.2 s" in str(stalls.errors[0])
    store.may_save.set()
    thread.join(BOUND_SECONDS)
    assert len(stalls.errors) == 1
    assert stalls.threads == ["tenure-disk-watchdog"]


def test_R2_save_that_returns_after_it_was_reported_raises(disk: Disk, stalls: Stalls):
    """Leadership has been revoked and the owner told to exit: nothing may be sent on the account of this save."""
    store = Store()
    store.may_save.clear()
    thread, ends = save_on_a_thread(disk, store)
    assert stalls.reported.wait(BOUND_SECONDS)
    store.may_save.set()
    thread.join(BOUND_SECONDS)
    assert ends == [stalls.errors[0]]
    assert store.saved == [b"entries"]


def test_save_that_fails_raises_what_the_store_raised_and_is_not_hanging(disk: Disk, stalls: Stalls):
    store = Store()
    store.failure = SyncFailed("no")
    with pytest.raises(SyncFailed, match="no"):
        disk.save(store, EFFECT)
    assert not stalls.reported.wait(3 * STALL_SECONDS)
    assert not disk.stalled


def test_disk_closes_at_once_when_it_hangs(stalls: Stalls):
    """The process is to exit; nobody may have to wait for the disk before that."""
    disk = Disk("/somewhere", stalls, stall_seconds=STALL_SECONDS)
    store = Store()
    store.may_save.clear()
    thread, _ = save_on_a_thread(disk, store)
    assert stalls.reported.wait(BOUND_SECONDS)
    disk.close()
    assert thread.is_alive()
    store.may_save.set()
    thread.join(BOUND_SECONDS)


@pytest.mark.asyncio
async def test_other_work_runs_on_the_disk_thread_in_order(disk: Disk):
    names: list[str] = []

    def work(number: int) -> int:
        names.append(threading.current_thread().name)
        return number

    assert await asyncio.gather(*(disk.run(lambda number=number: work(number)) for number in range(3))) == [0, 1, 2]
    assert set(names) == {"tenure-disk_0"}
