"""The files of ``raft.tls``: what ``tenure certs`` makes, what a node takes, and whom a certificate speaks for."""

from __future__ import annotations

import json
import logging
import os
import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization

from support.certificate_files import Authority
from tenure import ConfigError
from tenure.certificates import CertificateError, describe, issue, make_authority
from tenure.cli import main
from tenure.cli.output import ExitCode
from tenure.config import TlsFiles, from_mapping
from tenure.transport.tls import Certificates


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def certificates(files: TlsFiles, node: str = "a") -> Certificates:
    return Certificates(files, cluster="test", node=node)


# -- settings ---------------------------------------------------------------------------------------------------------


def settings(**raft: Any) -> dict[str, Any]:
    peers = {"a": {"raft": "127.0.0.1:9080", "url": "http://127.0.0.1:8080"}}
    return {"node": {"name": "a"}, "raft": {"peers": peers, **raft}}


@pytest.mark.parametrize("missing", ["cert", "key", "ca"])
def test_config_names_the_missing_file_when_tls_is_set_in_part(missing: str):
    tls = {"cert": "c", "key": "k", "ca": "a"}
    with pytest.raises(ConfigError, match="belong together") as caught:
        from_mapping(settings(tls={**tls, missing: ""}))
    assert caught.value.field == f"raft.tls.{missing}"
    del tls[missing]
    with pytest.raises(ConfigError) as caught:
        from_mapping(settings(tls=tls))
    assert caught.value.field == f"raft.tls.{missing}"


def test_config_takes_an_address_outside_loopback_only_with_tls_or_by_an_explicit_word():
    with pytest.raises(ConfigError, match=r"raft\.listen.*set raft\.tls"):
        from_mapping(settings(listen="0.0.0.0:9080"))
    assert from_mapping(settings(listen="0.0.0.0:9080", tls={"cert": "c", "key": "k", "ca": "a"})).raft.tls.configured
    assert not from_mapping(settings(listen="0.0.0.0:9080", allow_plaintext=True)).raft.tls.configured


# -- what a node takes ------------------------------------------------------------------------------------------------


def test_node_takes_its_own_certificate_and_speaks_tls_1_3_alone(authority: Authority):
    contexts = certificates(authority.files("a")).contexts
    for context in contexts[:2]:
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.verify_mode == ssl.CERT_REQUIRED
    assert contexts.server.num_tickets == 0


def broken(authority: Authority, how: str) -> TlsFiles:
    """Files of the node ``a`` with one thing wrong."""
    files = authority.files("a")
    stranger = Authority(authority.folder / "other")
    match how:
        case "missing":
            Path(files.key).unlink()
        case "folder":
            return msgspec.structs.replace(files, ca=str(authority.folder))
        case "no certificate":
            Path(files.cert).write_text("certainly not")
        case "no CA":
            Path(files.ca).write_text("")
        case "no key":
            Path(files.key).write_text("certainly not")
        case "another key":
            Path(files.key).write_bytes(authority.issue("a").key)
        case "encrypted key":
            key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
            secret = serialization.BestAvailableEncryption(b"secret")
            form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, secret)
            Path(files.key).write_bytes(key.private_bytes(*form))
        case "another CA":
            Path(files.ca).write_bytes(stranger.made.certificate)
        case "expired":
            return authority.files("a", age_days=2)
        case "not yet":
            return authority.files("a", age_days=-1)
        case "another node":
            return authority.files("a", node="b")
    return files


@pytest.mark.parametrize(
    ("how", "field", "says"),
    [
        ("missing", "key", "cannot be read"),
        ("folder", "ca", "cannot be read"),
        ("no certificate", "cert", "no certificate in PEM form"),
        ("no CA", "ca", "no certificate in PEM form"),
        ("no key", "key", "no private key in PEM form"),
        ("another key", "key", "is not the key of"),
        ("encrypted key", "key", "is encrypted"),
        ("another CA", "cert", "the peers would refuse"),
        ("expired", "cert", "certificate has expired"),
        ("not yet", "cert", "not yet valid"),
        ("another node", "cert", "names tenure://test/b, not a of cluster test"),
    ],
)
def test_R3_node_names_the_field_and_the_reason_when_a_file_is_no_good(
    authority: Authority, how: str, field: str, says: str
):
    with pytest.raises(ConfigError) as caught:
        certificates(broken(authority, how))
    assert caught.value.field == f"raft.tls.{field}"
    assert says in caught.value.problem


@pytest.mark.parametrize(
    ("names", "speaks"),
    [
        ([("URI", "tenure://test/a")], True),
        ([("DNS", "a")], True),
        ([("DNS", "b"), ("DNS", "a")], True),
        ([("URI", "spiffe://test/a"), ("DNS", "a")], True),
        ([("URI", "tenure://other/a")], False),
        ([("URI", "tenure://test/b"), ("DNS", "a")], False),
        ([("DNS", "A")], False),
        ([("DNS", "*")], False),
        ([("IP Address", "a")], False),
        ([], False),
    ],
)
def test_R3_certificate_speaks_only_for_the_member_that_it_names(
    authority: Authority, names: list[tuple[str, str]], speaks: bool
):
    problem = certificates(authority.files("a")).problem_of({"subjectAltName": tuple(names)}, "a")
    assert (problem is None) is speaks


def test_R3_certificate_that_is_not_there_speaks_for_nobody(authority: Authority):
    assert certificates(authority.files("a")).problem_of(None, "a") is not None


def test_reload_takes_good_files_and_keeps_the_old_ones_when_the_new_are_bad(
    authority: Authority, caplog: pytest.LogCaptureFixture
):
    files = authority.files("a", days=20)
    held = certificates(files)
    first = held.contexts
    assert not held.refresh()
    Path(files.cert).write_bytes(authority.issue("a", days=20).certificate)
    with caplog.at_level(logging.INFO, "tenure.transport"):
        assert not held.refresh()
        assert not held.refresh()
    assert held.contexts is first
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "the certificate in use stays: raft.tls.key" in caplog.text
    Path(files.key).unlink()
    assert not held.refresh()
    authority.files("a")
    assert held.refresh()
    assert held.contexts is not first


def test_certificate_that_ends_soon_is_warned_about_once(authority: Authority, caplog: pytest.LogCaptureFixture):
    held = certificates(authority.files("a", days=3))
    held.refresh()
    assert caplog.text.count("after that no new connection is made") == 1


# -- tenure certs -----------------------------------------------------------------------------------------------------


def test_certs_make_files_that_a_node_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ca, out = tmp_path / "ca", tmp_path / "a"
    assert main(["certs", "init", "--out", str(ca), "--cluster", "test"]) == 0
    command = ["certs", "issue", "a", "--ca", str(ca), "--out", str(out), "--host", "db.example", "--host", "::1"]
    assert main(command) == 0
    assert f'tls = {{ cert = "{out}/a.pem", key = "{out}/a.key", ca = "{out}/ca.pem" }}' in capsys.readouterr().out
    certificates(TlsFiles(cert=str(out / "a.pem"), key=str(out / "a.key"), ca=str(out / "ca.pem")))
    assert {path.name for path in (*ca.iterdir(), *out.iterdir())} == {"ca.pem", "ca.key", "a.pem", "a.key"}
    for key in (ca / "ca.key", out / "a.key"):
        assert key.stat().st_mode & 0o777 == 0o600
    (said,) = describe((out / "a.pem").read_bytes())
    assert said.names == ("URI:tenure://test/a", "DNS:a", "DNS:db.example", "IP:::1")
    assert not said.authority


def test_certs_print_paths_that_hold_from_anywhere_when_the_folders_are_relative(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(["certs", "init", "--out", "ca", "--cluster", "test"]) == 0
    assert f"--ca {tmp_path}/ca --out" in capsys.readouterr().out
    assert main(["certs", "issue", "a", "--ca", "ca", "--out", "a", "-o", "json"]) == 0
    issued = json.loads(capsys.readouterr().out)
    assert [issued[name] for name in ("cert", "key", "ca")] == [
        str(tmp_path / "a" / name) for name in ("a.pem", "a.key", "ca.pem")
    ]


def test_certs_show_says_the_names_and_the_validity(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
):
    files = authority.files("a", days=5)
    chain = tmp_path / "chain.pem"
    chain.write_bytes(Path(files.cert).read_bytes() + authority.made.certificate)
    assert main(["certs", "show", str(chain), "-o", "json"]) == 0
    own, ca = json.loads(capsys.readouterr().out)["certificates"]
    assert own["names"] == ["URI:tenure://test/a", "DNS:a"]
    assert datetime.fromisoformat(own["not_after"]) - datetime.now(UTC) > timedelta(days=4.9)
    assert (own["authority"], ca["authority"]) == (False, True)
    assert main(["certs", "show", files.cert]) == 0
    assert "tenure://test/a" in capsys.readouterr().out


def test_certs_overwrite_nothing_without_force(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    init = ["certs", "init", "--out", str(tmp_path), "--cluster", "test"]
    issue_a = ["certs", "issue", "a", "--ca", str(tmp_path), "--out", str(tmp_path)]
    assert main(init) == 0
    assert main(issue_a) == 0
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    (tmp_path / "a.pem").unlink()
    assert main(init) == ExitCode.REFUSED
    assert main(issue_a) == ExitCode.REFUSED
    assert "--force" in capsys.readouterr().err
    assert not (tmp_path / "a.pem").exists()
    assert all(path.read_bytes() == before[path] for path in tmp_path.iterdir())
    assert main([*issue_a, "--force"]) == 0
    assert main([*init, "--force"]) == 0
    assert all(path.read_bytes() != content for path, content in before.items())


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (["init", "--out", "{folder}", "--cluster", "a b"], ExitCode.USAGE, "cluster's name"),
        (["init", "--out", "{folder}", "--cluster", "test", "--days", "0"], ExitCode.USAGE, "outside 1 to 36500"),
        (["init", "--out", "{folder}/ca/ca.pem/x", "--cluster", "test"], ExitCode.FAILED, "cannot be written"),
        (["issue", "a/b", "--ca", "{folder}/ca", "--out", "{folder}"], ExitCode.USAGE, "node's name"),
        (["issue", "a", "--ca", "{folder}", "--out", "{folder}"], ExitCode.FAILED, "cannot be read"),
        (["issue", "a", "--ca", "{folder}/ca", "--out", "{folder}", "--days", "9999"], ExitCode.USAGE, "the CA ends"),
        (["issue", "a", "--ca", "{folder}/ca", "--out", "{folder}", "--host", "a b"], ExitCode.USAGE, "'a b'"),
        (["show", "{folder}/ca/ca.key"], ExitCode.USAGE, "no certificate"),
        (["show", "{folder}/absent"], ExitCode.FAILED, "cannot be read"),
    ],
)
def test_certs_end_with_one_line_when_misused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], code: ExitCode, says: str
):
    assert main(["certs", "init", "--out", str(tmp_path / "ca"), "--cluster", "test"]) == 0
    before = set(tmp_path.iterdir())
    assert main(["certs", *(word.format(folder=tmp_path) for word in argv)]) == code
    assert says in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_issue_refuses_a_ca_that_is_not_its_own_or_not_its_key(authority: Authority):
    leaf = authority.issue("a")
    with pytest.raises(CertificateError, match="was not made by tenure certs init"):
        issue(leaf.certificate, leaf.key, "b", hosts=(), days=1)
    with pytest.raises(CertificateError, match="not that of its certificate"):
        issue(authority.made.certificate, make_authority("test", days=1).key, "b", hosts=(), days=1)


@pytest.mark.skipif(not Path("/usr/bin/openssl").exists(), reason="no openssl command: apt-get install openssl")
def test_certificates_pass_the_strict_checks_of_openssl(authority: Authority):
    files = authority.files("a")
    for purpose in ("sslserver", "sslclient"):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", files.ca, files.cert]
        done = subprocess.run(command, capture_output=True, text=True, env={"PATH": os.environ["PATH"]}, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
