"""The certificate of a running payment service: looked at on SIGHUP, and refused at the start when it is no good."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from support.certificate_files import Authority
from support.services import SERVICE, free_ports, wait_for
from tenure.demo import child

pytestmark = pytest.mark.processes


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki", "payments")


def command(folder: Path, authority: Authority, dsn: str) -> list[object]:
    """The command of a cluster of one, whose files are those of ``payment-1a``."""
    raft, http = free_ports(2)
    pki = authority.folder
    config = folder / "payment-1a.toml"
    config.write_text(
        f'[node]\nname = "payment-1a"\ndata_dir = "{folder}/data"\nlog_dir = "{folder}"\n'
        f'[raft]\nlisten = "127.0.0.1:{raft}"\n'
        f'peers = {{payment-1a = {{raft = "127.0.0.1:{raft}", url = "http://127.0.0.1:{http}"}}}}\n'
        f'tls = {{cert = "{pki}/payment-1a.pem", key = "{pki}/payment-1a.key", ca = "{authority.path}"}}\n'
        f'[http]\nlisten = "127.0.0.1:{http}"\n[database]\ndsn = "{dsn}"\n'
    )
    return [SERVICE, "run", "--config", config]


def test_service_takes_a_new_certificate_on_sighup_and_goes_on(tmp_path: Path, authority: Authority, database: str):
    authority.files("payment-1a")
    log = tmp_path / "payment-1a.log"
    with (tmp_path / "output").open("wb") as output:
        process = child.start(
            command(tmp_path, authority, database), stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        wait_for("a leader", lambda: log.exists() and '"leader"' in log.read_text())
        before = log.read_text()
        authority.files("payment-1a")
        process.send_signal(signal.SIGHUP)
        wait_for("the new certificate", lambda: "new connections use the new" in log.read_text(), seconds=2)
        assert "role_changed" not in log.read_text()[len(before) :]
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait(10)


def test_service_does_not_start_when_its_certificate_has_expired(tmp_path: Path, authority: Authority, database: str):
    authority.files("payment-1a", age_days=2)
    done = subprocess.run(
        command(tmp_path, authority, database), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("payment-service: ")]
    assert "raft.tls.cert" in line
    assert "has expired" in line
