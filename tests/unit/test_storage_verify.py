"""A log store that is checked while it is used: in bounded steps, beside saves and compactions; nothing is missed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenure import LogCorrupt
from tenure.storage import SegmentLogStore, SqliteLogStore, StoredSnapshot, Verifiable

Store = SegmentLogStore | SqliteLogStore
STORES: dict[str, Callable[[Path], Store]] = {
    "segments": lambda folder: SegmentLogStore(folder / "log", segment_bytes=65_536),
    "sqlite": lambda folder: SqliteLogStore(folder / "raft.sqlite3"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    opened = STORES[request.param](tmp_path)
    yield opened
    opened.close()


def save(store: Store, *indexes: int, size: int = 1000) -> None:
    for index in indexes:
        store.save(first=index, last=index, entries=bytes([index % 251]) * size, hard_state=(1, 1, index))


def test_every_record_is_counted_once_when_nothing_else_happens(store: Store):
    assert isinstance(store, Verifiable)
    empty = sum(store.verify())
    save(store, *range(1, 401))
    segments = sum(store.verify()) - empty - 400
    # Beside the batches, each further segment has a head and the one before it a seal.
    assert segments % 2 == 0
    assert segments == 0 or isinstance(store, SegmentLogStore)


def test_steps_stay_small_when_the_log_is_large(store: Store):
    save(store, *range(1, 601))
    assert max(store.verify()) <= 256
    save(store, *range(601, 612), size=400_000)
    assert len(list(store.verify())) >= 5


def test_saves_and_compactions_are_borne_when_they_come_between_two_steps(store: Store):
    save(store, *range(1, 401))
    index, steps = 400, 0
    for _ in store.verify():
        steps += 1
        save(store, *range(index + 1, index + 51))
        index += 50
        if steps % 2:
            store.compact(StoredSnapshot(index=index - 400, term=1, data=b"manifest"))
    assert steps > 1
    store.save(
        first=0, last=0, entries=b"", hard_state=(2, 0, 900), snapshot=StoredSnapshot(index=900, term=2, data=b"theirs")
    )
    assert sum(store.verify()) > 0


def test_damage_is_named_wherever_it_is_in_the_segments(tmp_path: Path):
    store = SegmentLogStore(tmp_path, segment_bytes=4096)
    save(store, *range(1, 13))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) > 3
    for name in names:
        path = tmp_path / name
        whole = path.read_bytes()
        used = len(whole.rstrip(b"\0"))
        for place in range(0, used, 97):
            damaged = bytearray(whole)
            damaged[place] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(LogCorrupt) as caught:
                list(store.verify())
            assert caught.value.path == str(path)
        path.write_bytes(whole)
    assert sum(store.verify()) > 12
    store.close()


def test_record_that_is_missing_is_named_in_the_segments(tmp_path: Path):
    store = SegmentLogStore(tmp_path, segment_bytes=4096)
    save(store, *range(1, 13))
    second, third = sorted(tmp_path.iterdir())[1:3]
    # An older state of a segment, cut before its last records, is whole in itself.
    content = second.read_bytes()
    second.write_bytes(content[:1500] + bytes(len(content) - 1500))
    with pytest.raises(LogCorrupt, match=second.name):
        list(store.verify())
    second.write_bytes(content)
    third.unlink()
    with pytest.raises(LogCorrupt, match=third.name):
        list(store.verify())
    store.close()


def test_verify_names_a_segment_of_another_owner_that_was_put_in_place_of_one(tmp_path: Path):
    """Whole in itself, but the store would not open with it again."""
    stores = {owner: SegmentLogStore(tmp_path / owner, owner=owner) for owner in ("ours", "theirs")}
    for store in stores.values():
        store.save(first=1, last=1, entries=b"one", hard_state=(1, 1, 0))
    (path,) = (tmp_path / "ours").iterdir()
    path.write_bytes((tmp_path / "theirs" / path.name).read_bytes())
    with pytest.raises(LogCorrupt, match="belongs to the data directory 'theirs'") as caught:
        list(stores["ours"].verify())
    assert caught.value.path == str(path)
    for store in stores.values():
        store.close()
