"""Mutual TLS 1.3 between members: this node's certificate, and whom a peer's certificate lets it speak for (R3).

::

    files --load--> contexts --one per connection--> handshake --peer's certificate--> names --against its hello

Both sides present a certificate of the configured CA. Being of that CA is not enough: a certificate speaks only for
the member that it names. New connections use the newest files that were good; what is open stays as it is. It must
never ask a terminal for a passphrase, and never take a file into use that the node's own peers would refuse.

The calls here read files and compute, so the transport makes them on a thread: a hung disk stops the reload alone.
"""

from __future__ import annotations

import logging
import ssl
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tenure.config import Config, TlsFiles, member_uri
from tenure.errors import ConfigError
from tenure.transport.greeting import NotAdmitted

logger = logging.getLogger("tenure.transport")

_URI_SCHEME = member_uri("", "").removesuffix("/")
_ISSUE = "make one with: tenure certs issue"
_PROTOCOLS = (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
#: How long before its end a certificate that nobody replaces is warned about.
WARNING_SECONDS = 7 * 24 * 3600.0


class Contexts(NamedTuple):
    """What new connections are made with: one context for each direction, and when their certificate ends."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    not_after: str


class Certificates:
    """The certificate, key and CA of one node, made anew when their files change."""

    def __init__(self, files: TlsFiles, *, cluster: str, node: str) -> None:
        """Read the files.

        Raises:
            ConfigError: a file is missing or unreadable, or a peer would refuse the certificate: the reason.
        """
        self._files = files
        self._cluster = cluster
        self._node = node
        self._problem = ""
        self._warned_of: str | None = None
        self._stamp = self._read_stamp()
        self.contexts = self._load()
        self._warn_of_the_end()

    def refresh(self) -> bool:
        """Take changed files into use; True if that was done. Blocks on the disk; never raises for what it finds.

        Files that are no good are named in a warning, once for each reason, and looked at again at the next call:
        a certificate and its key are rarely replaced in the same instant.
        """
        self._warn_of_the_end()
        stamp = self._read_stamp()
        if stamp == self._stamp and not self._problem:
            return False
        # The stamp is from before the reading: files that change while they are read are read again.
        self._stamp = stamp
        try:
            self.contexts = self._load()
        except (ConfigError, OSError) as error:
            if str(error) != self._problem:
                logger.warning("the certificate in use stays: %s", error)
            self._problem = str(error)
            return False
        self._problem = ""
        logger.info("new connections use the new %s, valid until %s", self._files.cert, self.contexts.not_after)
        return True

    def problem_of(self, certificate: Mapping[str, Any] | None, name: str) -> str | None:
        """Why a peer with this verified certificate may not speak for the member ``name``, or None."""
        named = names_in(certificate or {})
        # Where a certificate names members by URI, a DNS name in it is a host's name, and lends nobody's identity.
        uris = [uri for uri in named["URI"] if uri.startswith(_URI_SCHEME)]
        if member_uri(self._cluster, name) in uris or (not uris and name in named["DNS"]):
            return None
        listed = ", ".join(uris or named["DNS"]) or "no member"
        return f"the certificate names {listed}, not {name} of cluster {self._cluster}"

    def check(self, certificate: Mapping[str, Any] | None, name: str) -> None:
        """:class:`NotAdmitted` if a peer with this verified certificate may not speak for the member ``name``."""
        problem = self.problem_of(certificate, name)
        if problem is not None:
            raise NotAdmitted(problem)

    def _warn_of_the_end(self) -> None:
        end = self.contexts.not_after
        if end != self._warned_of and ssl.cert_time_to_seconds(end) - time.time() < WARNING_SECONDS:
            logger.warning("%s ends at %s: after that no new connection is made", self._files.cert, end)
            self._warned_of = end

    def _read_stamp(self) -> tuple[tuple[int, int, int] | None, ...]:
        return tuple(_stamp_of(Path(getattr(self._files, field))) for field in self._files.__struct_fields__)

    def _load(self) -> Contexts:
        files = self._files
        for field in files.__struct_fields__:
            _check_readable(f"raft.tls.{field}", getattr(files, field))
        for field in ("cert", "ca"):
            _check_pem(f"raft.tls.{field}", getattr(files, field))
        server, client = (_context(files, protocol) for protocol in _PROTOCOLS)
        try:
            certificate = _shake_hands_with_itself(server, client)
        except ssl.SSLError as error:
            reason = getattr(error, "verify_message", None) or str(error)
            raise ConfigError(
                "raft.tls.cert", f"the peers would refuse {files.cert} under the CA of {files.ca}: {reason}; {_ISSUE}"
            ) from None
        problem = self.problem_of(certificate, self._node)
        if problem is not None:
            raise ConfigError("raft.tls.cert", f"{files.cert}: {problem}; {_ISSUE} {self._node}")
        return Contexts(server, client, certificate["notAfter"])


def load_certificates(config: Config) -> Certificates | None:
    """The certificates that the settings name, or None without ``raft.tls``; blocks on the disk.

    Raises:
        ConfigError: see :class:`Certificates`.
    """
    if not config.raft.tls.configured:
        return None
    return Certificates(config.raft.tls, cluster=config.cluster.name, node=config.node.name)


def names_in(certificate: Mapping[str, Any]) -> dict[str, list[str]]:
    """The DNS and URI names of a certificate, as :meth:`ssl.SSLSocket.getpeercert` gives it."""
    alternatives = certificate.get("subjectAltName", ())
    return {kind: [value for key, value in alternatives if key == kind] for kind in ("DNS", "URI")}


def _context(files: TlsFiles, protocol: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # The name is compared with the hello, which the protocol of TLS knows nothing of.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    if protocol is ssl.PROTOCOL_TLS_SERVER:
        # A resumed session would carry a certificate past its end, or past the end of its CA.
        context.num_tickets = 0
    context.load_verify_locations(cafile=files.ca)

    def refuse_passphrase() -> str:
        raise ConfigError("raft.tls.key", f"{files.key} is encrypted: name a file with the key in the clear, mode 0600")

    try:
        context.load_cert_chain(files.cert, files.key, password=refuse_passphrase)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError("raft.tls.key", f"{files.key} is not the key of {files.cert}") from None
        raise ConfigError("raft.tls.key", f"{files.key} holds no private key in PEM form") from None
    return context


def _check_readable(field: str, path: str) -> None:
    try:
        Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ConfigError(field, f"{path} cannot be read ({error}); {_ISSUE}") from None


def _check_pem(field: str, path: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=path)
    except ssl.SSLError:
        raise ConfigError(field, f"{path} holds no certificate in PEM form") from None


def _shake_hands_with_itself(accepting: ssl.SSLContext, dialling: ssl.SSLContext) -> dict[str, Any]:
    """Do in memory what a peer will do, in both directions; the certificate as the peer sees it.

    It judges chain, validity, purpose and key by the very code that the peers judge with.
    """
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = dialling.wrap_bio(to_client, to_server, server_side=False)
    server = accepting.wrap_bio(to_server, to_client, server_side=True)
    for side in (client, server, client):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    server.do_handshake()
    return dict(server.getpeercert() or {})


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except (OSError, ValueError):
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
