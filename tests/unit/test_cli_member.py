"""The commands for a running cluster against nodes that are played: finding the leader, refusing, going on, secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.played_nodes import Operator, Played, operator, played, surroundings
from tenure.cli import cluster as cluster_module
from tenure.cli import main
from tenure.cli.cluster import Connection, printable
from tenure.cli.output import ExitCode
from tenure.errors import ConfigError

TOKEN = "the-operators-token"


__all__ = ["operator", "played", "surroundings"]


# -- list -------------------------------------------------------------------------------------------------------------


def test_list_is_the_leaders_when_a_follower_is_asked(operator: Operator):
    operator.played.applicants.append("payment-1d")
    assert operator.run("member", "list") == ExitCode.OK
    assert "leader payment-1a" in operator.out
    assert "payment-1b\tvoter\t\t2\tpayment-1b:9080" in operator.out
    assert "waits to be added: payment-1d (tenure member add payment-1d)" in operator.out
    listed = operator.json("member", "list")
    assert (listed["schema"], listed["node"], len(listed["members"])) == (1, "payment-1a", 3)


def test_list_is_what_one_node_knows_when_nobody_leads(operator: Operator):
    operator.played.leader = None
    assert operator.run("member", "list") == ExitCode.OK
    assert "this is what payment-1b knows: no leader within" in operator.err


def test_commands_end_with_6_when_nobody_answers(operator: Operator, capsys):
    assert main(["member", "list", "--endpoint", "http://127.0.0.1:1"]) == ExitCode.UNREACHABLE
    assert main(["member", "demote", "payment-1c", "--endpoint", "http://127.0.0.1:1"]) == ExitCode.UNREACHABLE
    assert "no connection" in capsys.readouterr().err


def test_commands_end_with_3_when_nobody_leads(operator: Operator):
    operator.played.leader = None
    assert operator.run("member", "promote", "payment-1c") == ExitCode.NO_LEADER
    assert "payment-1b follows" in operator.err


def test_commands_need_a_cluster_to_be_named_when_there_is_no_demo(capsys):
    assert main(["member", "list"]) == ExitCode.USAGE
    assert "TENURE_ENDPOINTS" in capsys.readouterr().err


@pytest.mark.parametrize(("status", "code"), [(401, ExitCode.NOT_ALLOWED), (403, ExitCode.NOT_ALLOWED)])
def test_commands_end_with_7_when_the_token_is_wrong(operator: Operator, status: int, code: ExitCode):
    operator.played.before = lambda node, method, path: (
        None if method == "GET" else (status, {"code": "x", "detail": "the operator token"})
    )
    assert operator.run("member", "promote", "payment-1c") == code
    assert "token" in operator.err


def test_what_a_node_says_cannot_reach_the_terminal_as_it_is(operator: Operator):
    operator.played.before = lambda node, method, path: (
        None if method == "GET" else (409, {"code": "membership_refused", "detail": "no\x1b[2J"})
    )
    assert operator.run("member", "promote", "payment-1c") == ExitCode.REFUSED
    assert "\x1b" not in operator.err
    assert printable(7) == ""


def test_outcome_is_unknown_and_nothing_is_repeated_when_the_answer_does_not_come(operator: Operator):
    operator.played.before = lambda node, method, path: None if method == "GET" else (0, {})
    operator.played.leader = "payment-1b"
    assert operator.run("member", "promote", "payment-1c") == ExitCode.OUTCOME_UNKNOWN
    assert operator.changes() == [("POST", "/v1/members/payment-1c/promote")]


# -- add --------------------------------------------------------------------------------------------------------------


def test_add_says_what_to_start_waits_and_promotes_when_nobody_has_called(operator: Operator):
    looks = 0

    def call_later(node: str, method: str, path: str) -> None:
        nonlocal looks
        looks += path == "/v1/members" and method == "GET"
        if looks == 5:
            operator.played.applicants = ["payment-1d"]

    operator.played.before, operator.played.behind = call_later, 2000
    added = operator.json("member", "add", "payment-1d")
    assert added["member"]["role"] == "voter"
    assert 'payment-1a = { raft = "payment-1a:9080"' in operator.err
    assert "payment-service run --config payment-1d.toml" in operator.err
    assert "catching up: payment-1d is 2000 entries behind" in operator.err
    assert "catching up: payment-1d is 1000 entries behind" in operator.err
    assert operator.changes()[0] == ("POST", "/v1/members")


def test_add_goes_on_where_it_stands_when_it_is_run_again(operator: Operator):
    operator.played.add("payment-1d", "learner")
    assert operator.run("member", "add", "payment-1d", "--learner") == ExitCode.OK
    assert operator.changes() == []
    assert operator.run("member", "add", "payment-1d") == ExitCode.OK
    assert operator.changes() == [("POST", "/v1/members/payment-1d/promote")]
    assert operator.run("member", "add", "payment-1d") == ExitCode.OK
    assert "votes already" in operator.err
    assert operator.run("member", "add", "payment-1d", "--learner") == ExitCode.REFUSED


def test_add_ends_with_124_when_the_time_is_over(operator: Operator):
    assert operator.run("member", "add", "payment-1d", "--wait", "0") == ExitCode.TIMED_OUT
    assert "goes on where it stands" in operator.err
    operator.played.add("payment-1d", "learner")
    operator.played.behind = 10**9
    assert operator.run("member", "add", "payment-1d", "--wait", "0.1") == ExitCode.TIMED_OUT
    assert "it stays a learner" in operator.err
    assert operator.run("member", "add", "payment-1d", "--wait", "-1") == ExitCode.USAGE


def test_add_asks_whether_a_learner_runs_only_when_it_has_been_silent_for_a_while(operator: Operator):
    """Every one that was just added has answered nothing yet."""
    operator.played.add("payment-1d", "learner")
    asked, silent_for = 0, 2

    def silent(node: str, method: str, path: str) -> tuple[int, dict[str, Any]] | None:
        nonlocal asked
        if not path.endswith("/promote") or node != "payment-1a":
            return None
        asked += 1
        problem = {
            "code": "not_caught_up",
            "detail": "payment-1d has not answered lately: is it running",
            "behind": None,
        }
        return (409, problem) if asked <= silent_for else None

    operator.played.before = silent
    assert operator.run("member", "add", "payment-1d") == ExitCode.OK
    assert "catching up" not in operator.err
    operator.played.find("payment-1d")["role"] = "learner"
    silent_for = 10**9
    assert operator.run("member", "add", "payment-1d", "--wait", "0.6") == ExitCode.TIMED_OUT
    assert operator.err.count("catching up: payment-1d has not answered lately") == 1


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_transfer_hands_over_to_whom_it_names_or_to_anybody(operator: Operator):
    assert operator.run("member", "transfer") == ExitCode.OK
    assert operator.out == "payment-1c leads, term 7\n"
    done = operator.json("member", "transfer", "--to", "payment-1a")
    assert (done["leader"], done["before"], done["term"]) == ("payment-1a", "payment-1c", 7)
    assert done["leader_url"] == operator.played.urls["payment-1a"]
    transfers = [who for who, _, path in operator.played.requests if path == "/v1/leadership/transfer"]
    assert set(transfers) >= {"payment-1a", "payment-1c"}


def test_transfer_is_done_already_when_that_one_leads(operator: Operator):
    done = operator.json("member", "transfer", "--to", "payment-1a")
    assert (done["leader"], done["before"], done["term"]) == ("payment-1a", "payment-1a", 6)
    assert "payment-1a leads already" in operator.err
    assert operator.changes() == []


def test_transfer_is_refused_when_nobody_could_take_over(operator: Operator):
    operator.played.find("payment-1c")["active"] = False
    operator.played.add("payment-1d", "learner")
    for name, why in (
        ("nobody", "is no member; the members are"),
        ("payment-1d", "is a learner and cannot lead"),
        ("payment-1c", "does not answer the leader"),
    ):
        assert operator.run("member", "transfer", "--to", name) == ExitCode.REFUSED
        assert f"{name} {why}" in operator.err
    operator.played.find("payment-1b")["active"] = False
    assert operator.run("member", "transfer") == ExitCode.REFUSED
    assert "nobody could take over" in operator.err
    assert operator.run("member", "transfer", "payment-1b") == ExitCode.USAGE
    assert operator.changes() == []


def test_transfer_says_who_leads_when_it_is_another_one(operator: Operator):
    handed = {"leader": "payment-1c", "leader_url": None, "term": 9}
    operator.played.before = lambda node, method, path: (200, handed) if method == "POST" else None
    assert operator.run("member", "transfer", "--to", "payment-1b") == ExitCode.FAILED
    assert operator.out == "payment-1c leads, term 9\n"
    assert "payment-1c was elected and not payment-1b" in operator.err


def test_transfer_names_the_command_that_tells_when_the_outcome_is_unknown(operator: Operator):
    unknown = {"code": "outcome_unknown", "detail": "it has stepped down, and no other leader is known yet"}
    operator.played.before = lambda node, method, path: (504, unknown) if method == "POST" else None
    assert operator.run("member", "transfer") == ExitCode.OUTCOME_UNKNOWN
    assert "next: tenure member list" in operator.err


# -- remove, demote ---------------------------------------------------------------------------------------------------


def test_remove_needs_a_word_and_warns_when_the_rest_can_lose_nobody(operator: Operator):
    assert operator.run("member", "remove", "payment-1c") == ExitCode.USAGE
    assert "--yes" in operator.err
    assert operator.changes() == []
    assert operator.run("member", "remove", "payment-1c", "--yes") == ExitCode.OK
    assert "of the 2 voters that stay 2 are needed" in operator.err
    assert operator.out == "payment-1c is no member any more\n"


def test_remove_is_refused_when_no_quorum_would_answer(operator: Operator):
    operator.played.find("payment-1c")["active"] = False
    for command in (["remove", "payment-1b", "--yes"], ["demote", "payment-1b"]):
        assert operator.run("member", *command) == ExitCode.REFUSED
        assert "payment-1c does not answer: the cluster would stop" in operator.err
    # The one that does not answer may go: the two that stay are enough.
    assert operator.run("member", "remove", "payment-1c", "--yes") == ExitCode.OK
    assert operator.changes() == [("DELETE", "/v1/members/payment-1c")]


def test_remove_is_refused_when_it_is_the_last_voter_or_no_member(operator: Operator):
    assert operator.run("member", "remove", "nobody", "--yes") == ExitCode.REFUSED
    assert "the members are payment-1a, payment-1b, payment-1c" in operator.err
    operator.played.members = operator.played.members[:1]
    operator.played.add("payment-1e", "learner")
    assert operator.run("member", "remove", "payment-1a", "--yes") == ExitCode.REFUSED
    assert "the last voter" in operator.err
    assert operator.changes() == []


def test_remove_is_done_when_the_leader_goes_before_its_answer_comes(operator: Operator):
    def go(node: str, method: str, path: str) -> tuple[int, dict[str, Any]] | None:
        if method != "DELETE" or node != "payment-1a":
            return None
        operator.played.members = operator.played.members[1:]
        operator.played.leader = "payment-1c"
        return 0, {}

    operator.played.before = go
    assert operator.run("member", "remove", "payment-1a", "--yes") == ExitCode.OK
    assert operator.out == "payment-1a is no member any more\n"


# -- replace ----------------------------------------------------------------------------------------------------------


def test_replace_removes_the_old_one_and_brings_the_new_one_in_when_it_does_not_answer(operator: Operator):
    operator.played.find("payment-1c")["active"] = False
    operator.played.before = lambda node, method, path: (
        operator.played.applicants.append("payment-1c") if method == "DELETE" and node == "payment-1a" else None
    )
    assert operator.run("member", "replace", "payment-1c") == ExitCode.USAGE
    assert operator.run("member", "replace", "payment-1c", "--yes") == ExitCode.OK
    assert operator.changes() == [
        ("DELETE", "/v1/members/payment-1c"),
        ("POST", "/v1/members"),
        ("POST", "/v1/members/payment-1c/promote"),
    ]
    assert "removing payment-1c with its old data directory" in operator.err


def test_replace_goes_on_where_it_stands_when_it_is_run_again(operator: Operator):
    operator.played.members.pop()
    operator.played.applicants = ["payment-1c"]
    assert operator.run("member", "replace", "payment-1c") == ExitCode.OK
    assert "going on with its new data directory" in operator.err
    operator.played.find("payment-1c")["role"] = "learner"
    assert operator.run("member", "replace", "payment-1c") == ExitCode.OK
    assert "is a learner and answers" in operator.err
    assert ("DELETE", "/v1/members/payment-1c") not in operator.changes()


def test_replace_is_refused_when_the_member_answers(operator: Operator):
    assert operator.run("member", "replace", "payment-1c", "--yes") == ExitCode.REFUSED
    assert "it is not lost, or it was replaced already" in operator.err
    assert operator.changes() == []


# -- settings, log, snapshots -----------------------------------------------------------------------------------------


def test_settings_are_changed_on_the_leader_and_what_that_means_is_said(operator: Operator):
    assert operator.run("settings", "change", "--lease-duration-ms", "2000") == ExitCode.OK
    assert "lease_duration_ms\t2000" in operator.out
    assert "from the next leadership on" in operator.err
    assert operator.run("settings", "change", "--wait-out", "fenced-only") == ExitCode.OK
    assert operator.changes() == [("PATCH", "/v1/settings")] * 2
    assert operator.run("settings", "change", "--wait-out", "never") == ExitCode.USAGE
    assert operator.run("settings", "change") == ExitCode.USAGE
    operator.played.leader = "payment-1b"
    assert operator.json("settings", "show")["lease_duration_ms"] == 2000


def test_log_and_snapshots_are_told_by_the_node_itself_when_an_endpoint_is_named(operator: Operator):
    report = {"node": "payment-1b", "valid": True, "records": 9, "snapshots": [], "problem": None}
    state = {
        "node": "payment-1b", "term": 6, "commit_index": 9, "applied_index": 9, "snapshot_index": 4, "last_index": 9,
    }  # fmt: skip
    stored = {"id": "4-6", "index": 4, "term": 6, "members": ["payment-1b"], "size": 3, "sha256": "ab"}
    snapshots = {"node": "payment-1b", "log_starts_with": {"index": 4}, "snapshots": [{**stored, "verified": True}]}
    answers: dict[tuple[str, str], tuple[int, dict[str, Any]]] = {
        ("POST", "/v1/log/verify"): (200, report),
        ("GET", "/v1/log"): (200, state),
        ("GET", "/v1/snapshots"): (200, snapshots),
        ("POST", "/v1/snapshots"): (201, {"node": "payment-1b", "index": 9, "taken": True}),
    }
    operator.played.before = lambda node, method, path: answers.get((method, path))
    assert operator.run("log", "verify") == ExitCode.OK
    assert operator.out == "valid: 9 records, 0 snapshots of payment-1b\n"
    assert operator.run("log", "inspect") == ExitCode.OK
    assert "payment-1b\t6\t9\t9\t4\t9" in operator.out
    assert operator.run("snapshot", "inspect") == ExitCode.OK
    assert "its log starts behind the snapshot of index 4" in operator.out
    assert "4-6\t4\t6\tpayment-1b\t3\tab\tyes" in operator.out
    assert operator.run("snapshot", "take") == ExitCode.OK
    assert operator.out == "payment-1b: taken, up to log entry 9\n"
    assert {who for who, _, _ in operator.played.requests} == {"payment-1b"}

    report |= {"valid": False, "problem": "the batch 3 fails its checksum"}
    assert operator.run("log", "verify") == ExitCode.VERIFICATION_FAILED
    assert "payment-1b: the batch 3 fails" in operator.err
    snapshots["snapshots"] = [{**stored, "verified": False, "problem": "it fails its checksum"}]
    assert operator.run("snapshot", "inspect") == ExitCode.VERIFICATION_FAILED
    answers["POST", "/v1/snapshots"] = (409, {"code": "snapshot_refused", "detail": "the disk is full"})
    assert operator.run("snapshot", "take") == ExitCode.REFUSED


def test_snapshot_is_said_to_stand_when_there_is_nothing_new_to_take(operator: Operator):
    answer = {"node": "payment-1b", "index": 9, "taken": False}
    operator.played.before = lambda node, method, path: (200, answer)
    assert operator.run("snapshot", "take") == ExitCode.OK
    assert operator.out == "payment-1b: nothing was applied since the last one, which stands, up to log entry 9\n"
    assert operator.json("snapshot", "take")["nodes"] == [answer]


# -- the token --------------------------------------------------------------------------------------------------------


def demo(tmp_path: Path, *urls: str) -> None:
    """A running demo of this user: its process is this very one."""
    import os

    from tenure.demo import pointer

    nodes = [{"name": f"n{number}", "url": url, "pid": 1, "log": "x.log"} for number, url in enumerate(urls)]
    record = {"pid": os.getpid(), "nodes": nodes, "database": {"dsn": "x"}, "operator_token": TOKEN}
    (tmp_path / "demo.json").write_text(json.dumps(record))
    pointer.publish(tmp_path / "demo.json")


def test_demo_and_its_token_are_found_when_nothing_is_named(played: Played, tmp_path: Path, capsys):
    demo(tmp_path, *played.urls.values())
    assert main(["member", "demote", "payment-1c"]) == ExitCode.OK
    assert played.tokens == {f"Bearer {TOKEN}"}


def test_token_of_a_demo_goes_to_nobody_else_when_another_cluster_is_named(tmp_path: Path):
    demo(tmp_path, "http://127.0.0.1:8080", "http://127.0.0.1:8081")
    assert Connection(endpoint=["http://127.0.0.1:8081"]).resolve({}) == (["http://127.0.0.1:8081"], TOKEN)
    for named in (["http://payment-1a:8080"], ["http://127.0.0.1:8081", "http://payment-1a:8080"]):
        assert Connection(endpoint=named).resolve({})[1] == ""
    assert Connection().resolve({"TENURE_ENDPOINTS": "http://payment-1a:8080"})[1] == ""


def test_token_is_taken_from_the_flag_before_the_file_before_the_environment(tmp_path: Path):
    (tmp_path / "token").write_text("of-the-file\n")
    environ = {"TENURE_ENDPOINTS": "payment-1a:8080 payment-1b:8080", "TENURE_OPERATOR_TOKEN": "of-the-environment"}
    urls = ["http://payment-1a:8080", "http://payment-1b:8080"]
    assert Connection().resolve(environ) == (urls, "of-the-environment")
    assert Connection(operator_token_file=tmp_path / "token").resolve(environ) == (urls, "of-the-file")
    both = Connection(operator_token="of-the-flag", operator_token_file=tmp_path / "token")
    assert both.resolve(environ) == (urls, "of-the-flag")
    with pytest.raises(ConfigError, match="operator-token-file"):
        Connection(operator_token_file=tmp_path / "none").resolve(environ)


def test_token_never_leaves_https_when_the_leader_is_named_by_plain_http():
    named = cluster_module.Answer("https://a:1", 503, {"code": "not_leader"}, "http://b:1")
    with cluster_module.Cluster(["https://a:1"], TOKEN) as found:
        assert found._followed(named) is None
        found.learn({"members": [{"url": "http://b:1"}, {"url": "https://c:1"}]})
        assert found._candidates() == ["https://a:1", "https://c:1"]
