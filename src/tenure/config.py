"""Settings: one TOML file, an environment overlay, defaults; every relation between fields is checked here.

Precedence: flag > environment (``TENURE_<SECTION>__<KEY>``) > file > default. A key ``x`` that is a secret may also
be given as ``x_file``. Every value remembers its origin, so that ``tenure config show`` can tell where it came from.
Loading raises :class:`tenure.ConfigError` with the field, its origin and the fix; nothing is started before it passes.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from tenure.errors import ConfigError

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
RESOURCE_PATTERN = re.compile(r"[a-z][a-z0-9_]{0,39}")
#: Keys whose value is a secret: shown as ``********``, and accepted as ``<key>_file``.
SECRETS = frozenset({"dsn", "operator_token"})
LOOPBACK_HOSTS = frozenset({"127.0.0.1", "::1", "localhost"})


class ClusterSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[cluster]``: the name is refused on a mismatch, in the handshake and in the data directory."""

    name: str = "payments"


class NodeSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[node]``: this node's name, its private directory and where its log file goes."""

    name: str = ""
    data_dir: str = "/var/lib/tenure"
    log_dir: str = "/var/log/payment-service"


class PeerEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One member of the cluster: the address of its Raft port and the base URL of its HTTP port."""

    raft: str
    url: str


class TlsFiles(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``raft.tls``: PEM files of this node. All three are set, or none: then the members speak plain TCP."""

    cert: str = ""
    key: str = ""
    ca: str = ""

    @property
    def configured(self) -> bool:
        """Whether the members of this cluster speak mutual TLS."""
        return bool(self.cert)


class RaftSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[raft]``. The times are settings of the cluster: the file founds them, then the log keeps them (R4)."""

    listen: str = "127.0.0.1:9080"
    heartbeat_interval_ms: int = 100
    election_timeout_ms: int = 1000
    peers: dict[str, PeerEntry] = {}
    tls: TlsFiles = TlsFiles()
    allow_plaintext: bool = False
    #: A snapshot is taken after so many entries or bytes, and so many entries stay for members that lag a little.
    snapshot_entries: int = 50_000
    snapshot_bytes: int = 67_108_864
    keep_entries: int = 10_000


class LeaseSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[lease]``: how long a leader may believe without an answer, and what it needs beside the answers to lead.

    Length, rate error and ``wait_out`` are settings of the cluster, as the times of ``[raft]`` are (R4).
    """

    duration_ms: int = 1000
    clock_rate_error: float = 0.01
    wait_out: str = "always"
    margin_ms: int = 20
    #: 0 stands for five leases, and for three.
    application_heartbeat_timeout_ms: int = 0
    database_timeout_ms: int = 0

    @property
    def application_timeout_ms(self) -> int:
        """How long the application may be silent before its member gives leadership up (R13)."""
        return self.application_heartbeat_timeout_ms or 5 * self.duration_ms

    @property
    def database_lost_ms(self) -> int:
        """How long a leader may be without its database while another member reaches it."""
        return self.database_timeout_ms or 3 * self.duration_ms


class HttpSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[http]``: the service's own port and the operator's token."""

    listen: str = "127.0.0.1:8080"
    operator_token: str = ""
    max_body_bytes: int = 16_384


class DatabaseSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[database]``: where the fence and the application's tables live."""

    dsn: str = ""
    start_timeout_ms: int = 10_000
    auto_migrate: bool = True


class FenceSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[fence]``: the resource that the leader's token guards."""

    resource: str = "payments"


class PaymentsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[payments]``: manners of the reference application."""

    require_idempotency_key: bool = True
    idempotency_wait_ms: int = 5000
    batch_rows_max: int = 1000
    queue_rows_max: int = 10_000


class ElectorSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[elector]``: which engine elects. This version has ``raft``."""

    engine: str = "raft"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of one node. Immutable; made by :func:`load` or :func:`from_mapping`."""

    cluster: ClusterSection = ClusterSection()
    node: NodeSection = NodeSection()
    raft: RaftSection = RaftSection()
    lease: LeaseSection = LeaseSection()
    http: HttpSection = HttpSection()
    database: DatabaseSection = DatabaseSection()
    fence: FenceSection = FenceSection()
    payments: PaymentsSection = PaymentsSection()
    elector: ElectorSection = ElectorSection()


class LoadedConfig(msgspec.Struct, frozen=True):
    """A valid configuration with the origin of each value (``"default"``, ``"file PATH"``, ``"environment NAME"``)."""

    config: Config
    origins: dict[str, str]


def load(path: str | Path | None, *, environ: Mapping[str, str] | None = None) -> LoadedConfig:
    """Read ``path`` (or only the environment, if None), overlay the environment, validate every relation.

    Raises:
        ConfigError: the file is missing, malformed, or a value is wrong; it names the field and the fix.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        values = _read_file(Path(path))
        for section, table in values.items():
            for key in table if isinstance(table, dict) else ():
                origins[f"{section}.{key}"] = f"file {path}"
    _overlay_environment(values, origins, environ)
    _read_secret_files(values, origins)
    config = from_mapping(values, origins=origins)
    for section in config.__struct_fields__:
        for key in getattr(config, section).__struct_fields__:
            origins.setdefault(f"{section}.{key}", "default")
    return LoadedConfig(config=config, origins=origins)


def from_mapping(values: Mapping[str, Any], *, origins: Mapping[str, str] | None = None) -> Config:
    """Build and validate a configuration from nested mappings, as the TOML file would give them."""
    try:
        config = msgspec.convert(dict(values), Config, strict=True)
    except msgspec.ValidationError as error:
        field, problem = _explain(str(error), values)
        raise ConfigError(field, problem, origin=(origins or {}).get(field)) from None
    _validate(config, origins or {})
    return config


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("config", f"there is no file {path}; name one with --config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("config", f"{path} cannot be read: {error}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError("config", f"{path} is not valid TOML: {error}") from None


def _overlay_environment(values: dict[str, Any], origins: dict[str, str], environ: Mapping[str, str]) -> None:
    sections = {name: field.type for name, field in _fields(Config).items()}
    for variable in sorted(environ):
        match = re.fullmatch(r"TENURE_([A-Z]+)__([A-Z0-9_]+)", variable)
        if match is None:
            continue
        section, key = match[1].lower(), match[2].lower()
        if section not in sections:
            raise ConfigError(section, f"{variable} names no section; known: {', '.join(sections)}")
        fields = _fields(sections[section])
        target = key.removesuffix("_file") if key.removesuffix("_file") in SECRETS else key
        if target not in fields:
            raise ConfigError(f"{section}.{key}", f"{variable} names no setting; known: {', '.join(fields)}")
        kind = str if target != key else fields[key].type
        values.setdefault(section, {})
        values[section][key] = _from_text(environ[variable], kind, f"{section}.{key}", variable)
        origins[f"{section}.{key}"] = f"environment {variable}"


def _from_text(text: str, kind: Any, field: str, variable: str) -> Any:
    if kind is str:
        return text
    try:
        parsed = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        raise ConfigError(field, f"{text!r} is not a TOML value", origin=f"environment {variable}") from None
    return float(parsed) if kind is float and isinstance(parsed, int) else parsed


def _read_secret_files(values: dict[str, Any], origins: dict[str, str]) -> None:
    for section, table in values.items():
        if not isinstance(table, dict):
            continue
        for key in [k for k in table if k.endswith("_file") and k.removesuffix("_file") in SECRETS]:
            secret, field = key.removesuffix("_file"), f"{section}.{key}"
            path = table.pop(key)
            try:
                table[secret] = Path(path).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError, TypeError) as error:
                raise ConfigError(field, f"{path!r} cannot be read: {error}", origin=origins.get(field)) from None
            origins[f"{section}.{secret}"] = f"{origins.pop(field, 'default')} via {path}"


def _fields(struct: Any) -> dict[str, Any]:
    return {field.name: field for field in msgspec.structs.fields(struct)}


def _explain(text: str, values: Mapping[str, Any]) -> tuple[str, str]:
    """Turn msgspec's sentence into (field, problem): ``Expected `int`, got `str` - at `$.raft.x```."""
    problem, _, place = text.partition(" - at ")
    field = place.strip("`").removeprefix("$.") or "config"
    if field.startswith("raft.peers[...]"):
        # msgspec does not tell which entry of a mapping it means: the first one that is refused by itself.
        field = field.replace("[...]", f".{_refused_peer(values)}", 1)
    unknown = re.search(r"unknown field `([^`]+)`", problem)
    if unknown:
        field = f"{field}.{unknown[1]}" if place else unknown[1]
        return field, "there is no such setting; check the spelling against docs/configuration.md"
    return field, problem[0].lower() + problem[1:]


def _refused_peer(values: Mapping[str, Any]) -> str:
    for name, peer in values["raft"]["peers"].items():
        try:
            msgspec.convert(peer, PeerEntry, strict=True)
        except msgspec.ValidationError:
            return str(name)
    return "[...]"


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` (or ``[v6]:port``); :class:`ValueError` if it is neither."""
    host, colon, port = text.rpartition(":")
    host = host.strip("[]")
    if not colon or not host or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(f"{text!r} is not HOST:PORT with a port from 0 to 65535")
    return host, int(port)


def check_folder(field: str, folder: str | Path, *, to_write: bool = True) -> None:
    """Judge a folder that a setting names before anything is started; it may be absent where it can be made.

    ``to_write`` also asks whether this very user may write there: False where the settings of another machine are read.

    Raises:
        ConfigError: it, or what it would be made in, is a file, or may not be written.
    """
    path = Path(folder).absolute()
    there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    if not there.is_dir():
        raise ConfigError(field, f"{there} is there and is no folder; name another folder, or move it away")
    if to_write and not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(
            field, f"{there} may not be written by this user (uid {os.geteuid()}); chown it, or name another folder"
        )


def member_uri(cluster: str, node: str) -> str:
    """The URI by which a certificate names a member of a cluster."""
    return f"tenure://{cluster}/{node}"


def _validate(config: Config, origins: Mapping[str, str]) -> None:
    """Every rule that ties one value to a bound or to another value (R4, design 13)."""

    def refuse(field: str, problem: str) -> None:
        raise ConfigError(field, problem, origin=origins.get(field))

    def between(field: str, value: float, low: float, high: float) -> None:
        if not low <= value <= high:
            refuse(field, f"{value} is outside {low} to {high}")

    if not NAME_PATTERN.fullmatch(config.cluster.name):
        refuse("cluster.name", "use 1 to 63 letters, digits, '.', '_' or '-', starting with a letter or digit")
    if not NAME_PATTERN.fullmatch(config.node.name):
        refuse(
            "node.name",
            "name this node, in the file or by TENURE_NODE__NAME: 1 to 63 letters, digits, '.', '_' or '-'",
        )
    for field, path in (("node.data_dir", config.node.data_dir), ("node.log_dir", config.node.log_dir)):
        if not path.strip():
            refuse(field, "it is empty; name a folder")
    if not RESOURCE_PATTERN.fullmatch(config.fence.resource):
        refuse("fence.resource", "use 1 to 40 of a-z, 0-9 and '_', starting with a letter")
    if config.elector.engine != "raft":
        refuse("elector.engine", f"{config.elector.engine!r} is not available; this version has 'raft'")
    _validate_times(config, refuse, between)
    _validate_addresses(config, refuse)
    between("raft.snapshot_entries", config.raft.snapshot_entries, 1, 100_000_000)
    between("raft.snapshot_bytes", config.raft.snapshot_bytes, 1024, 1 << 40)
    between("raft.keep_entries", config.raft.keep_entries, 0, 10_000_000)
    between("http.max_body_bytes", config.http.max_body_bytes, 256, 16_777_216)
    between("database.start_timeout_ms", config.database.start_timeout_ms, 0, 600_000)
    between("payments.idempotency_wait_ms", config.payments.idempotency_wait_ms, 0, 60_000)
    between("payments.batch_rows_max", config.payments.batch_rows_max, 1, 10_000)
    between("payments.queue_rows_max", config.payments.queue_rows_max, 1, 1_000_000)


def _validate_times(config: Config, refuse: Any, between: Any) -> None:
    raft, lease = config.raft, config.lease
    between("raft.heartbeat_interval_ms", raft.heartbeat_interval_ms, 20, 60_000)
    between("raft.election_timeout_ms", raft.election_timeout_ms, 100, 600_000)
    between("lease.duration_ms", lease.duration_ms, 60, 3_600_000)
    if raft.heartbeat_interval_ms * 5 > raft.election_timeout_ms:
        refuse(
            "raft.heartbeat_interval_ms",
            f"{raft.heartbeat_interval_ms} must be at most a fifth of raft.election_timeout_ms "
            f"({raft.election_timeout_ms}), or a few late heartbeats cost an election",
        )
    if lease.duration_ms < 3 * raft.heartbeat_interval_ms:
        refuse(
            "lease.duration_ms",
            f"{lease.duration_ms} must be at least three heartbeats "
            f"(raft.heartbeat_interval_ms = {raft.heartbeat_interval_ms}), or one late answer ends the lease",
        )
    if not 0 <= lease.clock_rate_error < 0.2:
        refuse("lease.clock_rate_error", f"{lease.clock_rate_error} is outside 0 to 0.2 (0.01 is one percent)")
    if lease.wait_out not in {"always", "fenced-only"}:
        refuse("lease.wait_out", f"{lease.wait_out!r} is neither 'always' nor 'fenced-only'")
    for field in ("application_heartbeat_timeout_ms", "database_timeout_ms"):
        if (value := getattr(lease, field)) != 0 and not 100 <= value <= 3_600_000:
            refuse(f"lease.{field}", f"{value} is neither 0 nor within 100 to 3600000")
    if not 0 < lease.margin_ms < lease.duration_ms:
        refuse(
            "lease.margin_ms",
            f"{lease.margin_ms} must lie between 0 and lease.duration_ms ({lease.duration_ms})",
        )


def _validate_addresses(config: Config, refuse: Any) -> None:
    try:
        host, _ = parse_address(config.raft.listen)
    except ValueError as error:
        refuse("raft.listen", str(error))
        return
    tls = config.raft.tls
    for field in tls.__struct_fields__:
        if any((tls.cert, tls.key, tls.ca)) and not getattr(tls, field):
            refuse(f"raft.tls.{field}", "name the file: cert, key and ca belong together (tenure certs makes them)")
    if host not in LOOPBACK_HOSTS and not tls.configured and not config.raft.allow_plaintext:
        refuse(
            "raft.listen",
            f"{host} is not loopback and without raft.tls the members speak plain TCP: set raft.tls (tenure certs "
            "makes its files), or raft.allow_plaintext = true if every host of that network is trusted",
        )
    try:
        parse_address(config.http.listen)
    except ValueError as error:
        refuse("http.listen", str(error))
    if config.node.name not in config.raft.peers:
        refuse("raft.peers", f"list every member, this node ({config.node.name}) included")
    seen: dict[str, str] = {}
    for name, peer in config.raft.peers.items():
        if not NAME_PATTERN.fullmatch(name):
            refuse("raft.peers", f"{name!r} is not a node name: 1 to 63 letters, digits, '.', '_' or '-'")
        try:
            parse_address(peer.raft)
        except ValueError as error:
            refuse(f"raft.peers.{name}.raft", str(error))
        if not re.match(r"https?://[^\s/]+", peer.url):
            refuse(f"raft.peers.{name}.url", f"{peer.url!r} is not an http:// or https:// URL")
        if peer.raft in seen:
            refuse(f"raft.peers.{name}.raft", f"{peer.raft} is also the address of {seen[peer.raft]}")
        seen[peer.raft] = name
