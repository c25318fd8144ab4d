"""Certificates in files, as a node has them: one CA for each test, and whatever else a test wants to go wrong with."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from tenure.certificates import Issued, issue, make_authority
from tenure.config import TlsFiles


class Authority:
    """A CA and the files that it issues into a folder."""

    def __init__(self, folder: Path, cluster: str = "test") -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.made = make_authority(cluster, days=30)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.made.certificate)

    def issue(self, node: str, *, hosts: tuple[str, ...] = (), days: int = 1, age_days: float = 0) -> Issued:
        now = datetime.now(UTC) - timedelta(days=age_days)
        return issue(self.made.certificate, self.made.key, node, hosts=hosts, days=days, now=now)

    def files(self, name: str, *, node: str | None = None, age_days: float = 0, days: int = 1) -> TlsFiles:
        """New files called ``name``, for the member ``node`` (the same, if not given); they replace older ones."""
        issued = self.issue(node or name, days=days, age_days=age_days)
        files = TlsFiles(cert=str(self.folder / f"{name}.pem"), key=str(self.folder / f"{name}.key"), ca=str(self.path))
        Path(files.key).write_bytes(issued.key)
        Path(files.cert).write_bytes(issued.certificate)
        return files
