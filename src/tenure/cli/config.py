"""``tenure config show|validate``: what a node would run with, and where each value comes from.

A secret is never printed: what is set shows as ``********``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import msgspec
from cyclopts import App, Parameter

from tenure.cli.output import Output, emit_json, emit_table, emit_text
from tenure.config import SECRETS, LoadedConfig, check_folder, load
from tenure.errors import ConfigError

HIDDEN = "********"

app = App(name="config", help="Shows or checks the settings of a node.", result_action="return_value")

ConfigFile = Annotated[
    Path | None,
    Parameter(name=["--config", "-c"], help="The TOML file; without it only the environment is read."),
]


@app.command
def show(*, config: ConfigFile = None, output: Output = "table") -> None:
    """Print every setting with its value and its origin (flag, environment, file or default)."""
    rows = [(f"{section}.{key}", *fact) for section, key, *fact in _facts(load(config))]
    if output == "json":
        emit_json({"settings": {name: {"value": value, "origin": origin} for name, value, origin in rows}})
        return
    emit_table(("setting", "value", "origin"), [(name, _as_toml(value), origin) for name, value, origin in rows])


@app.command
def validate(*, config: ConfigFile = None, output: Output = "table") -> None:
    """Check the settings and every relation between them; end with 2 and the field's name if one is wrong.

    The database must be named, and a folder must not be a file here. Whether they can be used, the node itself finds.
    """
    loaded = load(config)
    if not loaded.config.database.dsn:
        raise ConfigError("database.dsn", "name the database, for example postgresql://user@host/payments")
    for key in ("data_dir", "log_dir"):
        check_folder(f"node.{key}", getattr(loaded.config.node, key), to_write=False)
    if output == "json":
        emit_json({"valid": True, "node": loaded.config.node.name, "cluster": loaded.config.cluster.name})
        return
    emit_text(f"valid: node {loaded.config.node.name} of cluster {loaded.config.cluster.name}")


def _facts(loaded: LoadedConfig) -> list[tuple[str, str, Any, str]]:
    facts: list[tuple[str, str, Any, str]] = []
    for section, values in msgspec.to_builtins(loaded.config).items():
        for key, value in values.items():
            shown = HIDDEN if key in SECRETS and value else value
            facts.append((section, key, shown, loaded.origins[f"{section}.{key}"]))
    return facts


def _as_toml(value: Any) -> str:
    if isinstance(value, dict):
        entries = ", ".join(f"{key} = {_as_toml(entry)}" for key, entry in value.items())
        return f"{{{entries}}}"
    return json.dumps(value)
