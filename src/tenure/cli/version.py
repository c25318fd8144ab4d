"""``tenure version``: what is installed here, so that a report can name it."""

from __future__ import annotations

import platform
from importlib import metadata

from tenure.cli.output import Output, emit_json, emit_text

_DISTRIBUTIONS = ("tenure", "tenure-raft", "tenure-payment-service")


def version(*, output: Output = "table") -> None:
    """Say which versions of Tenure's distributions and of Python are installed here."""
    found = {name.replace("-", "_"): _installed(name) for name in _DISTRIBUTIONS}
    facts = {**found, "python": platform.python_version(), "platform": platform.platform()}
    if output == "json":
        emit_json(facts)
        return
    for name, value in facts.items():
        emit_text(f"{name.replace('_', '-')} {value or 'not installed'}")


def text() -> str:
    """The version of the distribution ``tenure`` alone, as ``tenure --version`` prints it."""
    return _installed("tenure") or "unknown"


def _installed(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
