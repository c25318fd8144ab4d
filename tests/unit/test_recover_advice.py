"""The printed steps: the commands of the source document, in the safe order, safe to paste into a shell."""

from __future__ import annotations

import shlex

import msgspec
import pytest

from tenure.core.verdict import Evidence, FenceFacts, NodeView, judge
from tenure.recovery.advice import Step, advise

LEADER = NodeView(name="payment-1b", url="http://payment-1b:8080", state="leader", term=6, fencing_token=7)
FOLLOWER = NodeView(name="payment-1a", url="http://payment-1a:8080", state="follower", term=6)
STALE = NodeView(name="payment-1c", url="http://payment-1c:8080", state="leader", term=5, fencing_token=6)
FENCE = FenceFacts(resource="payments", token=7, holder="payment-1b")


def steps(*nodes: NodeView, fence: FenceFacts | None = FENCE, namespace: str | None = None) -> list[Step]:
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


def test_reason_of_a_candidate_is_told_with_the_election_when_nobody_leads():
    """What a node says of itself is no step: there is nothing to do in it but what it says."""
    said = "the fence of payments refuses this cluster; run: tenure fence rebase payments --reason TEXT"
    hindered = NodeView(name="payment-1c", state="candidate", term=2, problem=said)
    wait, _ = steps(FOLLOWER, hindered, fence=None)
    assert wait.why.startswith(f"payment-1c says: {said}. A leader needs a majority")
    assert runs(wait) == ["kubectl get pods -n payment -o wide"]
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
    assert shlex.split(runs(stop)[0]) == ["kubectl", "get", "pods", "-n", "payment; reboot", "-o", "wide"]
    assert shlex.split(runs(verify)[1]) == ["curl", "http://h/$(reboot)/v1/state"]


def test_command_deletes_no_pod_when_a_node_calls_itself_an_option():
    stop, _ = steps(LEADER, NodeView(name="--all", state="leader", term=9), namespace="payment")
    assert runs(stop) == ["kubectl get pods -n payment -o wide"]
    assert stop.commands[0].expect == "the pod of --all: delete that one"


@pytest.mark.parametrize(
    ("url", "refused", "run", "expect"),
    [
        ("http://127.0.0.1:1", True, "ss -ltnp 'sport = :1'", "nothing: start it again"),
        ("http://localhost:8081", False, "ss -ltnp 'sport = :8081'", "its process: stop that one"),
        ("http://[::1]:8081", False, "ss -ltnp 'sport = :8081'", "its process: stop that one"),
        ("http://127.0.0.1:99999", True, "ss -ltnp 'sport = :0'", "nothing: start it again"),
        ("http://10.0.3.7:8080", True, "ssh -- 10.0.3.7 systemctl restart payment-service", None),
        ("https://n3.example.com", False, "ssh -- n3.example.com systemctl restart payment-service", None),
        ("http://-oproxycommand=x:1", False, "ssh -- -oproxycommand=x systemctl restart payment-service", None),
    ],
)
def test_no_pod_is_named_when_the_nodes_are_not_in_kubernetes(url: str, refused: bool, run: str, expect: str | None):
    silent = NodeView(name="n3", url=url, problem="no connection", refused=refused)
    leader = NodeView(name="n1", url="http://10.0.3.6:8080", state="leader", term=6, fencing_token=7)
    back, _ = steps(leader, silent, fence=None)
    assert [(command.run, command.expect) for command in back.commands] == [(run, expect)]
    assert "kubectl" not in str(steps(silent, fence=None))


def test_machine_is_asked_to_stop_a_stale_leader_when_it_is_no_pod():
    leader, stale = (
        msgspec.structs.replace(view, url=f"http://{view.name}.example.com:8080") for view in (LEADER, STALE)
    )
    stop, _ = steps(leader, stale)
    assert runs(stop) == ["ssh -- payment-1c.example.com systemctl stop payment-service"]
    stop, _ = steps(leader, msgspec.structs.replace(stale, url=None, name="c\nreboot"))
    assert runs(stop) == ["# stop the process of c?reboot, on its machine"]


def test_pod_is_named_when_its_address_is_told_with_the_namespace():
    addressed = msgspec.structs.replace(STALE, url="http://127.0.0.1:8082")
    stop, _ = steps(LEADER, addressed, namespace="pay")
    assert runs(stop) == ["kubectl delete pod payment-1c -n pay"]
    # One of them alone is called like a pod, and the other is none as far as anybody knows.
    stop, _ = steps(LEADER, addressed)
    assert runs(stop) == ["ss -ltnp 'sport = :8082'"]
