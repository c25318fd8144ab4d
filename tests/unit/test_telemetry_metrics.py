"""The ``/metrics`` answer: the three exact names, present from the start, valid in both formats."""

from __future__ import annotations

import shutil
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tenure.telemetry import render_metrics
from tenure.types import State, Status

OPENMETRICS = "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"

FRESH = Status(
    state=State.FOLLOWER,
    term=0,
    name="payment-1a",
    cluster="payments",
    cluster_id=None,
    raft_role="follower",
    leader_name=None,
    leader_url=None,
    fencing_token=None,
    lease_remaining_ms=0,
    votes_for_me=0,
    votes_needed=2,
    voters=3,
    commit_index=0,
    applied_index=0,
    elections_observed=0,
    stale_token_refusals=0,
    reason=None,
)


def status(**fields: object) -> Status:
    return Status(**{name: getattr(FRESH, name) for name in FRESH.__struct_fields__} | fields)


def lines(body: bytes) -> list[str]:
    return body.decode().splitlines()


def samples(body: bytes, parse=parse_text) -> dict[str, float]:
    """Samples by name and labels. The text parser gives counters the ``_total`` that they do not have."""
    families = list(parse(body.decode()))
    return {
        sample.name.removesuffix("_total")
        + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.mark.parametrize("state", list(State))
def test_raft_state_has_one_series_when_in_any_state(state: State):
    body, _ = render_metrics(status(state=state))
    series = [line for line in lines(body) if line.startswith("raft_state{")]
    assert series == [f'raft_state{{state="{state.value}"}} 1.0']


def test_counters_are_there_at_zero_when_nothing_happened_yet():
    body, _ = render_metrics(FRESH)
    assert "raft_election_count 0.0" in lines(body)
    assert "fencing_token_failures 0.0" in lines(body)


def test_counters_carry_what_the_status_observed_when_it_changed():
    body, _ = render_metrics(status(elections_observed=7, stale_token_refusals=3))
    assert "raft_election_count 7.0" in lines(body)
    assert "fencing_token_failures 3.0" in lines(body)


@pytest.mark.parametrize("accept", [None, "", "*/*", "text/plain;version=0.0.4", "application/json"])
def test_counters_are_typed_counter_when_the_text_format_is_asked_for(accept: str | None):
    body, content_type = render_metrics(FRESH, accept=accept)
    assert content_type.startswith("text/plain; version=0.0.4")
    assert "# TYPE raft_election_count counter" in lines(body)
    assert "# TYPE fencing_token_failures counter" in lines(body)
    assert {family.type for family in parse_text(body.decode())} == {"counter", "gauge"}


def test_counters_are_typed_unknown_when_openmetrics_is_asked_for():
    body, content_type = render_metrics(FRESH, accept=OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text; version=1.0.0")
    assert "# TYPE raft_election_count unknown" in lines(body)
    assert "# TYPE fencing_token_failures unknown" in lines(body)
    assert lines(body)[-1] == "# EOF"


def test_both_formats_tell_the_same_when_parsed_by_their_own_parsers():
    leading = status(state=State.LEADER, term=6, fencing_token=2**53 - 1, lease_remaining_ms=873, elections_observed=2)
    text = samples(render_metrics(leading)[0])
    openmetrics = samples(render_metrics(leading, accept=OPENMETRICS)[0], parse_openmetrics)
    assert text == openmetrics
    assert text["raft_state{state=leader}"] == 1
    assert text["tenure_is_leader"] == 1
    assert text["tenure_term"] == 6
    assert text["tenure_lease_remaining_seconds"] == 0.873
    assert text["tenure_fencing_token"] == 2**53 - 1


def test_fencing_token_is_absent_when_nothing_is_held():
    assert "tenure_fencing_token" not in render_metrics(FRESH)[0].decode()


def test_work_that_has_not_returned_shows_as_one_when_there_is_some():
    assert "tenure_work_overdue 0.0" in render_metrics(FRESH)[0].decode()
    assert "tenure_work_overdue 1.0" in render_metrics(status(work_overdue="main in write (a.py:7)"))[0].decode()


@given(
    state=st.sampled_from(State),
    term=st.integers(0, 2**62),
    elections_observed=st.integers(0, 2**53),
    stale_token_refusals=st.integers(0, 2**53),
    lease_remaining_ms=st.integers(0, 3_600_000),
    fencing_token=st.none() | st.integers(1, 2**53 - 1),
    accept=st.sampled_from([None, OPENMETRICS]) | st.text(max_size=40),
)
def test_any_status_is_parsed_when_rendered(accept: str | None, **fields: object):
    body, content_type = render_metrics(status(**fields), accept=accept)
    parse = parse_openmetrics if content_type.startswith("application/openmetrics-text") else parse_text
    values = samples(body, parse)
    assert values["raft_election_count"] == fields["elections_observed"]
    assert sum(name.startswith("raft_state{") for name in values) == 1


def test_only_the_three_given_names_are_blamed_when_promtool_checks_the_metrics():
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is missing; apt-get install prometheus brings it")
    leading = status(state=State.LEADER, term=6, fencing_token=4, lease_remaining_ms=873)
    result = subprocess.run(
        [promtool, "check", "metrics"],
        input=render_metrics(leading)[0],
        capture_output=True,
        timeout=60,
        check=False,
    )
    blamed = {line.split()[0] for line in (result.stdout + result.stderr).decode().splitlines() if line.strip()}
    assert blamed == {"raft_election_count", "fencing_token_failures"}
