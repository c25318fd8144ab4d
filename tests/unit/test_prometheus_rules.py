"""The alert rules: word for word as they were given, and proved by promtool to fire and not to fire."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy" / "prometheus" / "raft.rules.yml"
RULE_TESTS = ROOT / "tests" / "prometheus" / "raft_rules_test.yml"

#: The rules as the source document gives them, byte for byte.
GIVEN = """\
# Prometheus alerts
groups:
  - name: raft
    rules:
      - alert: MultipleLeaders
        expr: count(raft_state{state="leader"}) > 1
        for: 10s
        annotations:
          summary: "Split brain detected - multiple leaders!"

      - alert: HighElectionRate
        expr: rate(raft_election_count[5m]) > 0.1
        for: 5m
        annotations:
          summary: "Frequent elections may indicate network issues"

      - alert: LeaderFencingFailed
        expr: rate(fencing_token_failures[1m]) > 0
        for: 1m
        annotations:
          summary: "Leadership fencing failures - possible split brain"
"""


def run_promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run promtool, or skip with the command that brings it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing; apt-get install prometheus brings it")
    return subprocess.run([promtool, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_rules_are_those_of_the_source_document_when_compared_word_for_word():
    assert RULES.read_text(encoding="utf-8") == GIVEN


def test_rules_are_accepted_when_promtool_checks_them():
    result = run_promtool("check", "rules", str(RULES))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "3 rules found" in result.stdout


def test_rules_fire_and_stay_quiet_as_told_when_promtool_runs_their_tests():
    result = run_promtool("test", "rules", str(RULE_TESTS))
    assert result.returncode == 0, result.stdout + result.stderr


def test_every_alert_is_seen_firing_and_not_firing_when_its_tests_are_listed():
    given = {rule["alert"] for group in yaml.safe_load(GIVEN)["groups"] for rule in group["rules"]}
    seen: dict[str, set[bool]] = {alert: set() for alert in given}
    for test in yaml.safe_load(RULE_TESTS.read_text(encoding="utf-8"))["tests"]:
        for case in test["alert_rule_test"]:
            seen[case["alertname"]].add(bool(case["exp_alerts"]))
    assert seen == {alert: {True, False} for alert in given}


def test_every_alert_has_a_runbook_page_when_the_folder_is_listed():
    alerts = {rule["alert"] for group in yaml.safe_load(GIVEN)["groups"] for rule in group["rules"]}
    assert {page.stem for page in (ROOT / "docs" / "runbooks").glob("*.md")} == alerts
