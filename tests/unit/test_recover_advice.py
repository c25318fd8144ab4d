"""The printed steps: the commands of the source document, in the safe order, safe to paste into a shell."""

from __future__ import annotations

import shlex

from tenure.core.verdict import Evidence, FenceFacts, NodeView, judge
from tenure.recovery.advice import Step, advise

LEADER = NodeView(name="payment-1b", url="http://payment-1b:8080", state="leader", term=6, fencing_token=7)
FOLLOWER = NodeView(name="payment-1a", url="http://payment-1a:8080", state="follower", term=6)
STALE = NodeView(name="payment-1c", url="http://payment-1c:8080", state="leader", term=5, fencing_token=6)
FENCE = FenceFacts(resource="payments", token=7, holder="payment-1b")


def steps(*nodes: NodeView, fence: FenceFacts | None = FENCE, namespace: str = "payment") -> list[Step]:
    return advise(judge(Evidence(nodes=nodes, fence=fence)), namespace=namespace)


def runs(step: Step) -> list[str]:
    return [command.run for command in step.commands]


def test_stale_pod_is_deleted_and_the_rest_verified_when_there_is_a_split_brain():
    stop, verify = steps(FOLLOWER, LEADER, STALE)
    assert runs(stop) == ["kubectl delete pod payment-1c -n payment"]
    assert "payment-1b holds the fence" in stop.why
    assert [(command.run, command.expect) for command in verify.commands] == [
        ("curl http://payment-1b:8080/v1/state", '{"state": "leader", "term": 6}'),
        ("curl http://payment-1a:8080/v1/state", '{"state": "follower", "term": 6}'),
        ("curl http://payment-1c:8080/v1/state", '{"state": "follower", "term": 6}'),
    ]


def test_only_the_check_is_left_when_there_is_one_leader():
    assert [step.title for step in steps(FOLLOWER, LEADER)] == ["Verify that there is one leader"]


def test_process_is_killed_by_its_id_when_it_is_a_local_one():
    stop, _ = steps(LEADER, NodeView(name="payment-1c", pid=4711, state="leader", term=5, fencing_token=6))
    assert runs(stop) == ["kill -9 4711"]


def test_weaker_evidence_is_warned_of_when_there_is_no_fence():
    stop, _ = steps(LEADER, STALE, fence=None)
    assert "weaker evidence" in stop.why


def test_everyone_is_stopped_when_nobody_can_be_named():
    both = (NodeView(name="payment-1b", state="leader", term=5), NodeView(name="payment-1c", state="leader", term=5))
    stop, wait, verify = steps(*both, fence=None)
    assert len(stop.commands) == 2
    assert "election" in wait.title
    assert {command.expect for command in verify.commands} == {
        '{"state": "leader or follower", "term": N, above 5}',
    }
    assert runs(verify)[0] == "curl http://payment-1b:8080/v1/state"


def test_reason_of_a_candidate_is_a_step_when_nobody_leads():
    said = "the fence of payments refuses this cluster; run: tenure fence rebase payments --reason TEXT"
    hindered = NodeView(name="payment-1c", state="candidate", term=2, problem=said)
    remove, wait, _ = steps(FOLLOWER, hindered, fence=None)
    assert (remove.why, remove.commands) == (f"payment-1c says: {said}.", ())
    assert "election" in wait.title
    assert [step.title for step in steps(LEADER, hindered)] == ["Verify that there is one leader"]


def test_silent_holder_of_the_fence_is_not_called_harmless_when_nobody_leads():
    back, *_ = steps(FOLLOWER, NodeView(name="payment-1b", problem="did not answer within 2 s"))
    assert "may still write, unless it is told above" in back.why


def test_silent_node_is_looked_at_before_a_restart_when_it_does_not_answer():
    back, _ = steps(LEADER, NodeView(name="payment-1c", problem="did not answer within 2 s"))
    assert back.why.startswith("Look first")
    assert runs(back) == ["kubectl delete pod payment-1c -n payment"]


def test_command_cannot_run_anything_else_when_a_node_calls_itself_a_shell_command():
    evil = NodeView(name="x; rm -rf ~", url="http://h/$(reboot)", state="leader", term=9)
    stop, verify = steps(LEADER, evil, namespace="payment; reboot")
    assert shlex.split(runs(stop)[0]) == ["kubectl", "delete", "pod", "x; rm -rf ~", "-n", "payment; reboot"]
    assert shlex.split(runs(verify)[1]) == ["curl", "http://h/$(reboot)/v1/state"]


def test_command_deletes_one_pod_when_a_node_calls_itself_an_option():
    stop, _ = steps(LEADER, NodeView(name="--all", state="leader", term=9))
    assert runs(stop) == ["kubectl delete pod -n payment -- --all"]
