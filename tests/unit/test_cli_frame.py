"""The command line's manners: exit codes, one-line errors, JSON with a schema, no traceback."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tenure.cli import main
from tenure.cli.output import ExitCode, exit_code
from tenure.errors import (
    ConfigError,
    DatabaseUnavailable,
    FoundingRefused,
    LeadershipLost,
    NotLeader,
    OutcomeUnknown,
    ProposalDropped,
    StaleToken,
)

SETTINGS = """
[node]
name = "payment-1a"
[raft]
peers = { payment-1a = { raft = "127.0.0.1:9080", url = "http://127.0.0.1:8080" } }
[http]
operator_token = "operator-secret"
[database]
dsn = "postgresql://app:database-secret@127.0.0.1/payments"
"""


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "payment-1a.toml"
    path.write_text(SETTINGS)
    return path


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in os.environ:
        if name.startswith("TENURE_"):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("lease.duration_ms", "too short"), ExitCode.USAGE),
        (NotLeader(), ExitCode.NO_LEADER),
        (LeadershipLost(term=3, reason="deposed"), ExitCode.LEADERSHIP_LOST),
        (StaleToken("stale", resource="payments"), ExitCode.REFUSED),
        (FoundingRefused("no"), ExitCode.REFUSED),
        (DatabaseUnavailable("no answer"), ExitCode.UNREACHABLE),
        (OutcomeUnknown("maybe"), ExitCode.OUTCOME_UNKNOWN),
        (ProposalDropped("again"), ExitCode.FAILED),
    ],
)
def test_exit_code_is_that_of_the_table_when_an_error_ends_a_command(error, code) -> None:
    assert exit_code(error) is code


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["confg"], "Unknown command"),
        (["config", "validate", "--nope"], "--nope"),
        (["demo", "--nodes", "many"], "--nodes"),
        (["demo", "--nodes", "10"], "--nodes"),
        (["demo", "--fault", "explode"], "--fault"),
        (["demo", "--for", "-1"], "--for"),
        (["demo", "--port", "70000"], "--port"),
    ],
)
def test_command_line_ends_with_2_and_names_the_mistake_when_misused(argv, words, capsys) -> None:
    assert main(argv) == ExitCode.USAGE
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert "Traceback" not in err
    assert "next: tenure" in err


def test_command_line_names_the_option_and_its_variable_when_one_is_missing(capsys) -> None:
    assert main(["fence", "show", "payments"]) == ExitCode.USAGE
    assert "tenure: --dsn is missing, and TENURE_DATABASE__DSN is not set\n" in capsys.readouterr().err
    assert main(["fence", "rebase", "payments", "--dsn", "postgresql://127.0.0.1:1/none"]) == ExitCode.USAGE
    assert "tenure: --reason is missing\n" in capsys.readouterr().err
    assert main(["demo", "--port"]) == ExitCode.USAGE
    assert "--port" in capsys.readouterr().err


def test_version_is_one_json_object_with_a_schema_when_asked_for_json(capsys) -> None:
    assert main(["version", "-o", "json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["schema"] == 1
    assert re.fullmatch(r"\d+\.\d+\.\d+", facts["tenure"])


def test_config_show_tells_value_and_origin_of_every_setting_when_given_a_file(settings, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TENURE_LEASE__DURATION_MS", "2000")
    assert main(["config", "show", "--config", str(settings), "-o", "json"]) == 0
    shown = json.loads(capsys.readouterr().out)["settings"]
    assert shown["lease.duration_ms"] == {
        "value": 2000,
        "origin": "environment TENURE_LEASE__DURATION_MS",
    }
    assert shown["node.name"] == {"value": "payment-1a", "origin": f"file {settings}"}
    assert shown["raft.heartbeat_interval_ms"]["origin"] == "default"


@pytest.mark.parametrize("form", ["table", "json"])
def test_config_show_hides_secrets_when_they_are_set(settings, capsys, form) -> None:
    assert main(["config", "show", "--config", str(settings), "-o", form]) == 0
    out, err = capsys.readouterr()
    assert "-secret" not in out + err
    assert "********" in out


def test_config_validate_names_field_and_origin_when_a_relation_is_violated(settings, capsys, monkeypatch) -> None:
    monkeypatch.setenv("TENURE_LEASE__DURATION_MS", "150")
    assert main(["config", "validate", "--config", str(settings)]) == ExitCode.USAGE
    _, err = capsys.readouterr()
    assert "lease.duration_ms (from environment TENURE_LEASE__DURATION_MS)" in err


def test_config_validate_says_valid_when_the_file_is_right(settings, capsys) -> None:
    assert main(["config", "validate", "--config", str(settings)]) == 0
    assert capsys.readouterr().out == "valid: node payment-1a of cluster payments\n"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("TENURE_DATABASE__DSN", "", "database.dsn: name the database"),
        (
            "TENURE_NODE__DATA_DIR",
            "/etc/hostname",
            "node.data_dir: /etc/hostname is there and is no folder; name another",
        ),
        ("TENURE_NODE__DATA_DIR", "/etc/hostname/node", "node.data_dir: /etc/hostname is there and is no folder"),
        ("TENURE_NODE__LOG_DIR", "/etc/hostname", "node.log_dir: /etc/hostname is there and is no folder"),
    ],
)
def test_config_validate_refuses_what_no_node_can_start_with(settings, capsys, monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    assert main(["config", "validate", "--config", str(settings)]) == ExitCode.USAGE
    assert words in capsys.readouterr().err


def test_command_line_writes_no_colour_when_it_is_not_a_terminal(settings) -> None:
    """A pipe gets plain lines, so that grep and cut work on them."""
    shown = subprocess.run(
        [Path(sys.executable).with_name("tenure"), "config", "show", "--config", settings],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in shown.stdout + shown.stderr
    assert 'node.name\t"payment-1a"' in shown.stdout


def test_command_line_ends_without_a_traceback_when_its_reader_goes_away(settings) -> None:
    """`tenure config show | head -0` must not end in a BrokenPipeError."""
    command = f"set -o pipefail; {Path(sys.executable).with_name('tenure')} config show --config {settings} | true"
    shown = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert shown.stderr == ""


@pytest.mark.parametrize(
    ("command", "has_default"),
    [("log verify", False), ("log inspect", False), ("snapshot inspect", False), ("snapshot take", True)],
)
def test_help_names_a_default_of_endpoint_only_when_the_command_has_one(command, has_default, capsys) -> None:
    assert main([*command.split(), "--help"]) == 0
    assert ("TENURE_ENDPOINTS" in capsys.readouterr().out) is has_default
