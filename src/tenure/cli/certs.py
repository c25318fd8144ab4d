"""``tenure certs init|issue|show``: a CA, a certificate for each member, and what a certificate says.

Keys are written with mode 0600. Nothing that exists is overwritten without ``--force``: one file in the way, and none
is written. It ends with 2 for wrong use, 4 where a file is in the way, 1 where one cannot be read or written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text

if TYPE_CHECKING:
    from tenure.certificates import Description

app = App(
    name="certs", help="Makes and shows the certificates that members know each other by.", result_action="return_value"
)

CA_CERTIFICATE = "ca.pem"
CA_KEY = "ca.key"
_PRIVATE, _PUBLIC = 0o600, 0o644

Out = Annotated[Path, Parameter(help="The folder to write into; it is made if need be.")]
Force = Annotated[bool, Parameter(negative="", help="Overwrite what is there.")]


@app.command
def init(
    *,
    out: Out,
    cluster: Annotated[str, Parameter(help="The cluster's name (cluster.name): members of another are refused.")],
    days: Annotated[int, Parameter(help="How long the CA is good.")] = 3650,
    force: Force = False,
    output: Output = "table",
) -> None:
    """Make the CA of a cluster: ca.pem for every node, ca.key (mode 0600) for you alone, best kept off the nodes."""
    with _library() as library:
        made = library.make_authority(cluster, days=days)
    out = out.absolute()
    certificate, key = out / CA_CERTIFICATE, out / CA_KEY
    _write({key: (made.key, _PRIVATE), certificate: (made.certificate, _PUBLIC)}, force=force)
    if output == "json":
        facts = {"certificate": str(certificate), "key": str(key), "not_after": made.not_after.isoformat()}
        emit_json({"cluster": cluster, **facts})
        return
    emit_text(
        f"made the CA of cluster {cluster}: {certificate} and its key {key}, good until {made.not_after:%Y-%m-%d}"
    )
    emit_text(f"next, for each node: tenure certs issue NODE --ca {shlex.quote(str(out))} --out FOLDER")


@app.command
def issue(
    node: Annotated[str, Parameter(help="The member's name (node.name).")],
    *,
    ca: Annotated[Path, Parameter(help="The folder that tenure certs init wrote.")],
    out: Out,
    host: Annotated[
        list[str] | None,
        Parameter(
            name="--host",
            negative_iterable="",
            help="A DNS name or IP address to name as well, for other programs; members do not look at it. Repeat it.",
        ),
    ] = None,
    days: Annotated[int, Parameter(help="How long the certificate is good.")] = 365,
    force: Force = False,
    output: Output = "table",
) -> None:
    """Make the key (mode 0600) and the certificate of one member, and put the CA's certificate beside them."""
    authority = _read(ca / CA_CERTIFICATE)
    with _library() as library:
        made = library.issue(authority, _read(ca / CA_KEY), node, hosts=host or (), days=days)
    # A node is seldom started where its certificate was made: what is printed holds from anywhere.
    out = out.absolute()
    certificate, key, copy = out / f"{node}.pem", out / f"{node}.key", out / CA_CERTIFICATE
    files = {key: (made.key, _PRIVATE), certificate: (made.certificate, _PUBLIC)}
    if not copy.exists() or copy.read_bytes() != authority:
        files[copy] = (authority, _PUBLIC)
    _write(files, force=force)
    paths = {"cert": str(certificate), "key": str(key), "ca": str(copy)}
    if output == "json":
        emit_json({"node": node, **paths, "not_after": made.not_after.isoformat()})
        return
    emit_text(f"made the certificate of {node}, good until {made.not_after:%Y-%m-%d}; its settings:")
    entries = ", ".join(f"{name} = {json.dumps(path)}" for name, path in paths.items())
    emit_text(f"[raft]\ntls = {{ {entries} }}")


@app.command
def show(file: Path, *, output: Output = "table") -> None:
    """Print the subject, the names and the validity of each certificate in a PEM file."""
    with _library() as library:
        found = library.describe(_read(file))
    if output == "json":
        emit_json({"certificates": [dict(_facts(description)) for description in found]})
        return
    for description in found:
        facts = _facts(description)
        rows = [(name, "\n".join(value) if isinstance(value, list) else str(value)) for name, value in facts]
        emit_table(("certificate", "value"), rows)


@contextlib.contextmanager
def _library() -> Iterator[ModuleType]:
    """The module that makes certificates; what it refuses is wrong use."""
    try:
        from tenure import certificates
    except ModuleNotFoundError as error:
        raise CommandError(
            f"this command needs a package that is not installed ({error.name})",
            next_step="pip install 'tenure[certs]'",
        ) from None
    try:
        yield certificates
    except certificates.CertificateError as error:
        raise CommandError(str(error), code=ExitCode.USAGE) from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path} cannot be read: {error.strerror}") from None


def _write(files: Mapping[Path, tuple[bytes, int]], *, force: bool) -> None:
    """Write contents under modes. A file appears whole or not at all: a running node may look at it meanwhile."""
    in_the_way = [str(path) for path in files if path.exists()]
    if in_the_way and not force:
        raise CommandError(
            f"{', '.join(in_the_way)}: there already",
            next_step="name another folder with --out, or overwrite with --force",
            code=ExitCode.REFUSED,
        )
    for path, (content, mode) in files.items():
        new = path.with_name(f".{path.name}.new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:  # noqa: PTH123
                file.write(content)
            new.replace(path)
        except OSError as error:
            raise CommandError(f"{path} cannot be written: {error.strerror}") from None


def _facts(description: Description) -> list[tuple[str, str | bool | list[str]]]:
    return [
        ("subject", description.subject),
        ("issuer", description.issuer),
        ("names", list(description.names)),
        ("authority", description.authority),
        ("not_before", description.not_before.isoformat()),
        ("not_after", description.not_after.isoformat()),
        ("sha256", description.fingerprint),
    ]
