"""What of a configuration may change while its node runs, and who changes the rest. It decides; it changes nothing."""

from __future__ import annotations

from collections.abc import Iterator

from tenure.config import Config
from tenure.core.commands import Settings
from tenure.errors import ConfigError
from tenure.node.founding import settings_of

#: What is taken at once; the files of ``raft.tls`` are looked at as well, under the names that they have.
RELOADABLE = frozenset({"raft.peers", "raft.snapshot_entries", "raft.snapshot_bytes", "raft.keep_entries"})
_TIMES = {
    "raft.heartbeat_interval_ms": "heartbeat_interval_ms",
    "raft.election_timeout_ms": "election_timeout_ms",
    "lease.duration_ms": "lease_duration_ms",
    "lease.clock_rate_error": "clock_rate_error_ppm",
    "lease.wait_out": "wait_out",
}
_IDENTITY = frozenset({"cluster.name", "node.name"})


def changes(old: Config, new: Config, *, settings: Settings | None) -> tuple[str, ...]:
    """The names of what changes from ``old`` to ``new``, by name: ``raft.keep_entries``, ``raft.peers.b.url``.

    ``settings`` are the cluster's times as its log has them; None while the directory is new. A file that has come to
    say the same as the log changes nothing.

    Raises:
        ConfigError: something else differs; it names the field and who changes it.
    """
    names: list[str] = []
    for field in _differing(old, new):
        if field == "raft.peers":
            names += _peers(old, new, founded=settings is not None)
        elif field in RELOADABLE:
            names.append(field)
        elif field not in _TIMES or not _same(_TIMES[field], new, settings):
            raise ConfigError(field, _why(field))
    return tuple(sorted(names))


def _differing(old: Config, new: Config) -> Iterator[str]:
    for section in old.__struct_fields__:
        before, after = getattr(old, section), getattr(new, section)
        for key in before.__struct_fields__:
            if getattr(before, key) != getattr(after, key):
                yield f"{section}.{key}"


def _peers(old: Config, new: Config, *, founded: bool) -> Iterator[str]:
    before, after = old.raft.peers, new.raft.peers
    if not founded and set(before) != set(after):
        raise ConfigError(
            "raft.peers",
            "the members that found a cluster cannot change while they wait for each other: stop this node and start "
            "it again, and the others with the same list",
        )
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"raft.peers.{name}"
            continue
        for key in ("raft", "url"):
            if getattr(before[name], key) != getattr(after[name], key):
                yield f"raft.peers.{name}.{key}"


def _same(time: str, new: Config, settings: Settings | None) -> bool:
    return settings is not None and bool(getattr(settings_of(new), time) == getattr(settings, time))


def _why(field: str) -> str:
    if field in _TIMES:
        return (
            "the times belong to the cluster and are kept in its log: change them by change_settings, or by "
            "'tenure settings change'"
        )
    if field in _IDENTITY:
        return "a data directory belongs to one node of one cluster for good: a new name needs a new data directory"
    if field == "raft.tls":
        return "only what is in its files can change while the node runs: restart this node to read others"
    return "it is read when the node starts: stop this node and start it again"
