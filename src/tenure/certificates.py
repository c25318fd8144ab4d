"""Certificates for a first cluster: a CA of its own, and one certificate for each member (R3).

It makes and reads values and touches no file. A member's certificate names it by URI, ``tenure://<cluster>/<node>``,
which is what the other members compare; the names of hosts in it are for other programs and lend no identity here.
Needs the package ``cryptography`` (the extra ``tenure[certs]``); running a member does not.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tenure.config import NAME_PATTERN, member_uri

_CA_NAME = "Tenure CA"
_HOST_PATTERN = re.compile(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]{0,250}[A-Za-z0-9])?")
#: Clocks of members may differ: a certificate is good from a little before it was made.
_BACKDATED = timedelta(hours=1)


class CertificateError(ValueError):
    """What was asked for cannot be made, or what was given cannot be used; the text says why."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and its unencrypted private key, both PEM."""

    certificate: bytes
    key: bytes
    not_after: datetime


@dataclass(frozen=True, slots=True)
class Description:
    """What a certificate says. ``names`` are written ``DNS:…``, ``URI:…`` or ``IP:…``."""

    subject: str
    issuer: str
    names: tuple[str, ...]
    authority: bool
    not_before: datetime
    not_after: datetime
    fingerprint: str


def make_authority(cluster: str, *, days: int, now: datetime | None = None) -> Issued:
    """A CA that signs members of ``cluster`` and nothing else is signed by; good for ``days``.

    Raises:
        CertificateError: the name or the number of days is impossible.
    """
    _check_name("cluster", cluster)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, cluster),
            x509.NameAttribute(NameOID.COMMON_NAME, _CA_NAME),
        ]
    )
    builder, not_after = _builder(name, name, key.public_key(), days=days, now=now)
    usage = _key_usage(signs_certificates=True)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return Issued(_pem(builder.sign(key, hashes.SHA256())), _key_pem(key), not_after)


def issue(
    authority: bytes, authority_key: bytes, node: str, *, hosts: Sequence[str], days: int, now: datetime | None = None
) -> Issued:
    """A certificate for the member ``node`` of the cluster that the CA was made for; for both sides of a connection.

    Raises:
        CertificateError: the CA is none of :func:`make_authority`, does not fit its key or ends before the
            certificate would; a name or the number of days is impossible.
    """
    _check_name("node", node)
    ca, key = _read_authority(authority, authority_key)
    cluster = str(ca.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value)
    own_key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, node)])
    builder, not_after = _builder(subject, ca.subject, own_key.public_key(), days=days, now=now)
    if not_after > ca.not_valid_after_utc:
        raise CertificateError(f"the CA ends at {ca.not_valid_after_utc.isoformat()}, before {days} days are over")
    names = [x509.UniformResourceIdentifier(member_uri(cluster, node)), x509.DNSName(node), *map(_host_name, hosts)]
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
    builder = builder.add_extension(x509.SubjectAlternativeName(dict.fromkeys(names)), critical=False)
    builder = builder.add_extension(issuer_id, critical=False)
    return Issued(_pem(builder.sign(key, hashes.SHA256())), _key_pem(own_key), not_after)


def describe(pem: bytes) -> list[Description]:
    """What the certificates of a PEM file say, in their order.

    Raises:
        CertificateError: there is no certificate in it.
    """
    try:
        found = x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(f"no certificate in PEM form: {error}") from None
    return [_describe(certificate) for certificate in found]


def _describe(certificate: x509.Certificate) -> Description:
    try:
        alternatives = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        alternatives = []
    try:
        authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        authority = False
    return Description(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        names=tuple(_name_text(name) for name in alternatives),
        authority=authority,
        not_before=certificate.not_valid_before_utc,
        not_after=certificate.not_valid_after_utc,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def _name_text(name: x509.GeneralName) -> str:
    kinds = {x509.DNSName: "DNS", x509.UniformResourceIdentifier: "URI", x509.IPAddress: "IP"}
    return f"{kinds.get(type(name), type(name).__name__)}:{name.value}"


def _read_authority(pem: bytes, key_pem: bytes) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        ca = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"the CA cannot be read: {error}") from None
    names = [attribute.value for attribute in ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [_CA_NAME] or not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError("the CA was not made by tenure certs init")
    if key.public_key() != ca.public_key():
        raise CertificateError("the CA's key is not that of its certificate")
    return ca, key


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, *, days: int, now: datetime | None
) -> tuple[x509.CertificateBuilder, datetime]:
    if not 1 <= days <= 36_500:
        raise CertificateError(f"{days} days are outside 1 to 36500")
    start = now or datetime.now(UTC)
    not_after = start + timedelta(days=days)
    builder = (
        x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start - _BACKDATED)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )
    return builder, not_after


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST_PATTERN.fullmatch(host):
            raise CertificateError(f"{host!r} is neither an IP address nor the DNS name of a host") from None
    return x509.DNSName(host)


def _check_name(what: str, name: str) -> None:
    if not NAME_PATTERN.fullmatch(name):
        raise CertificateError(f"{name!r} is not a {what}'s name: 1 to 63 letters, digits, '.', '_' or '-'")


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
