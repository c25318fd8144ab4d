"""Settings: precedence, origins, and a clear refusal for every wrong value before anything is started."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tenure import ConfigError
from tenure.config import check_folder, from_mapping, load

GOOD: dict[str, Any] = {
    "node": {"name": "payment-1a"},
    "raft": {
        "listen": "127.0.0.1:9080",
        "peers": {
            "payment-1a": {"raft": "127.0.0.1:9080", "url": "http://127.0.0.1:8080"},
            "payment-1b": {"raft": "127.0.0.1:9081", "url": "http://127.0.0.1:8081"},
        },
    },
}


def changed(field: str, value: Any) -> dict[str, Any]:
    """The good settings with one value replaced; the field is written as ``section.key``."""
    values = copy.deepcopy(GOOD)
    section, key = field.split(".", 1)
    values.setdefault(section, {})[key] = value
    return values


@pytest.mark.parametrize(
    ("field", "value", "named", "says"),
    [
        ("node.name", "", "node.name", "name this node"),
        ("node.name", "payment/1a", "node.name", "letters"),
        ("node.data_dir", "", "node.data_dir", "name a folder"),
        ("node.log_dir", " ", "node.log_dir", "name a folder"),
        ("node.name", 7, "node.name", "expected `str`"),
        ("cluster.name", "a b", "cluster.name", "letters"),
        ("raft.listen", "9080", "raft.listen", "HOST:PORT"),
        ("raft.listen", "127.0.0.1:99999", "raft.listen", "65535"),
        ("raft.listen", "0.0.0.0:9080", "raft.listen", "not loopback"),
        ("raft.heartbeat_interval_ms", "100", "raft.heartbeat_interval_ms", "expected `int`"),
        ("raft.heartbeat_interval_ms", 1, "raft.heartbeat_interval_ms", "outside"),
        ("raft.heartbeat_interval_ms", 300, "raft.heartbeat_interval_ms", "a fifth of raft.election_timeout_ms"),
        ("raft.election_timeout_ms", -1, "raft.election_timeout_ms", "outside"),
        ("raft.peers", {}, "raft.peers", "this node (payment-1a) included"),
        ("lease.duration_ms", 200, "lease.duration_ms", "three heartbeats"),
        ("lease.duration_ms", 1.5, "lease.duration_ms", "expected `int`"),
        ("lease.clock_rate_error", 0.5, "lease.clock_rate_error", "outside 0 to 0.2"),
        ("lease.margin_ms", 5000, "lease.margin_ms", "between 0 and lease.duration_ms"),
        ("http.listen", "somewhere", "http.listen", "HOST:PORT"),
        ("http.max_body_bytes", 1, "http.max_body_bytes", "outside"),
        ("fence.resource", "Payments; DROP", "fence.resource", "a-z"),
        ("elector.engine", "zookeeper", "elector.engine", "this version has 'raft'"),
        ("lease.durration_ms", 1000, "lease.durration_ms", "no such setting"),
        ("leese.duration_ms", 1000, "leese", "no such setting"),
    ],
)
def test_wrong_value_is_refused_with_its_name_and_the_fix(field: str, value: Any, named: str, says: str):
    """The error names the field; nothing is started before it passes."""
    with pytest.raises(ConfigError) as caught:
        from_mapping(changed(field, value))
    assert caught.value.field == named
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("peer", "named", "says"),
    [
        ({"raft": "127.0.0.1:9081"}, "raft.peers.payment-1b", "missing required field `url`"),
        ({"raft": 9081, "url": "http://127.0.0.1:8081"}, "raft.peers.payment-1b.raft", "expected `str`"),
        ({"raft": "h:1", "url": "http://h", "urls": "x"}, "raft.peers.payment-1b.urls", "no such setting"),
        ("127.0.0.1:9081", "raft.peers.payment-1b", "expected `object`"),
    ],
)
def test_peer_is_named_when_its_entry_is_wrong(peer: object, named: str, says: str):
    with pytest.raises(ConfigError) as refused:
        from_mapping(changed("raft.peers", {**GOOD["raft"]["peers"], "payment-1b": peer}))
    assert refused.value.field == named
    assert says in str(refused.value)


def test_peers_that_share_an_address_are_refused():
    """Two names on one port would be one member."""
    values = copy.deepcopy(GOOD)
    values["raft"]["peers"]["payment-1b"]["raft"] = "127.0.0.1:9080"
    with pytest.raises(ConfigError, match=r"raft\.peers\.payment-1b\.raft.*also the address of payment-1a"):
        from_mapping(values)


def test_environment_wins_over_the_file_and_each_origin_is_kept(tmp_path: Path):
    """flag > environment > file > default; ``config show`` tells which."""
    path = tmp_path / "node.toml"
    path.write_text('[node]\nname = "payment-1a"\n[lease]\nduration_ms = 2000\n[raft.peers]\n'
                    'payment-1a = {raft = "127.0.0.1:9080", url = "http://127.0.0.1:8080"}\n')  # fmt: skip
    loaded = load(path, environ={"TENURE_LEASE__DURATION_MS": "3000", "TENURE_LEASE__CLOCK_RATE_ERROR": "0"})
    assert loaded.config.lease.duration_ms == 3000
    assert loaded.config.lease.clock_rate_error == 0.0
    assert loaded.origins["lease.duration_ms"] == "environment TENURE_LEASE__DURATION_MS"
    assert loaded.origins["node.name"] == f"file {path}"
    assert loaded.origins["lease.margin_ms"] == "default"


def test_whole_configuration_comes_from_the_environment_without_a_file():
    """Every setting also by environment, the members too."""
    loaded = load(
        None,
        environ={
            "TENURE_NODE__NAME": "payment-1a",
            "TENURE_RAFT__PEERS": '{payment-1a = {raft = "127.0.0.1:9080", url = "http://127.0.0.1:8080"}}',
            "TENURE_DATABASE__AUTO_MIGRATE": "false",
        },
    )
    assert list(loaded.config.raft.peers) == ["payment-1a"]
    assert loaded.config.database.auto_migrate is False


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [
        ("TENURE_LEESE__DURATION_MS", "1", "names no section"),
        ("TENURE_LEASE__DURATION", "1", "names no setting"),
        ("TENURE_LEASE__DURATION_MS", "one second", "not a TOML value"),
    ],
)
def test_wrong_environment_variable_is_named(variable: str, value: str, says: str):
    """A typo in a variable is an error, not a default."""
    with pytest.raises(ConfigError, match=says):
        load(None, environ={variable: value})


def test_secret_is_read_from_its_file(tmp_path: Path):
    """``dsn_file`` stands for ``dsn``; a missing file is named."""
    secret = tmp_path / "dsn"
    secret.write_text("postgresql://somewhere/payments\n")
    environ = {
        "TENURE_NODE__NAME": "payment-1a",
        "TENURE_RAFT__PEERS": '{payment-1a = {raft = "127.0.0.1:9080", url = "http://127.0.0.1:8080"}}',
    }
    loaded = load(None, environ={**environ, "TENURE_DATABASE__DSN_FILE": str(secret)})
    assert loaded.config.database.dsn == "postgresql://somewhere/payments"
    with pytest.raises(ConfigError, match=r"database\.dsn_file.*cannot be read"):
        load(None, environ={**environ, "TENURE_DATABASE__DSN_FILE": str(tmp_path / "absent")})


@pytest.mark.parametrize(("text", "says"), [("[node", "not valid TOML"), ("\xff", "cannot be read")])
def test_unreadable_file_is_named(tmp_path: Path, text: str, says: str):
    """Malformed TOML and bytes that are no text."""
    path = tmp_path / "node.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=says):
        load(path, environ={})


def test_missing_file_is_named(tmp_path: Path):
    """With the flag that names one."""
    with pytest.raises(ConfigError, match="--config"):
        load(tmp_path / "absent.toml", environ={})


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Without the power of root to write everywhere, whoever runs the tests."""
    own = os.geteuid()
    if own == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(own)


def test_folder_is_refused_with_the_user_named_when_it_may_not_be_written(tmp_path: Path):
    folder = tmp_path / "readable"
    folder.mkdir(mode=0o555)
    check_folder("node.data_dir", tmp_path / "new" / "node")
    with nobody():
        with pytest.raises(
            ConfigError, match=rf"node.data_dir: .* may not be written by this user \(uid {os.geteuid()}\)"
        ):
            check_folder("node.data_dir", folder / "node")
        check_folder("node.data_dir", folder / "node", to_write=False)


def test_folder_is_refused_when_it_is_a_link_to_nothing(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match="is there and is no folder"):
        check_folder("node.log_dir", tmp_path / "link")
