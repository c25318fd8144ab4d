"""Asking nodes over real sockets: what each kind of node, well or ill, is taken for."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
from recovery_stubs import StubNode, stub_nodes

from tenure.core.verdict import NodeView
from tenure.endpoints import Endpoint
from tenure.recovery.nodes import BODY_BYTES_MAX, ask_nodes

TIMEOUT_S = 0.4


@pytest.fixture
def stub() -> Iterator[StubNode]:
    with stub_nodes(1) as (node,):
        yield node


def ask(*urls: str) -> list[NodeView]:
    return asyncio.run(ask_nodes([Endpoint(url) for url in urls], timeout_s=TIMEOUT_S))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_view_carries_the_nodes_own_word_when_it_answers(stub: StubNode):
    stub.says("payment-1b", "leader", 6, fencing_token=7, votes_for_me=2, votes_needed=2, lease_remaining_ms=900)
    (view,) = ask(stub.url)
    assert view == NodeView(
        name="payment-1b",
        url=stub.url,
        state="leader",
        term=6,
        fencing_token=7,
        lease_remaining_ms=900,
        votes_for_me=2,
        votes_needed=2,
    )


def test_view_carries_the_whole_reason_when_a_node_says_why_it_does_not_lead(stub: StubNode):
    reason = "the fence refuses this cluster" + " and more" * 30 + "; run: tenure fence rebase payments --reason TEXT"
    stub.says("payment-1c", "candidate", 2, reason=reason)
    (view,) = ask(stub.url)
    assert (view.state, view.problem) == ("candidate", reason)


def test_two_keys_of_state_are_enough_when_there_is_nothing_else(stub: StubNode):
    stub.answers = {"/v1/state": {"state": "follower", "term": 5}}
    (view,) = ask(stub.url)
    assert (view.state, view.term, view.name) == ("follower", 5, stub.url.removeprefix("http://"))


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({}, "HTTP 404"),
        ({"/v1/state": (500, b"")}, "HTTP 500"),
        ({"/v1/state": (302, b"")}, "HTTP 302"),
        ({"/v1/state": (200, b"<html>")}, "not with a JSON object"),
        ({"/v1/state": [1]}, "not with a JSON object"),
        ({"/v1/state": {"state": "prima donna", "term": 5}}, "names no state"),
        ({"/v1/state": {"state": 5}}, "names no state"),
        ({"/v1/state": {"state": "leader", "filler": "x" * BODY_BYTES_MAX}}, "more than"),
    ],
)
def test_node_is_silent_when_its_answer_is_of_no_use(stub: StubNode, answers: dict, problem: str):
    stub.answers = answers
    (view,) = ask(stub.url)
    assert view.state is None
    assert not view.refused
    assert problem in (view.problem or "")


def test_odd_values_are_unknown_when_they_are_no_counts(stub: StubNode):
    stub.says("payment-1b", "leader", 6, fencing_token="seven", votes_for_me=True, votes_needed=-1, leader_name=8)
    (view,) = ask(stub.url)
    assert (view.fencing_token, view.votes_for_me, view.votes_needed, view.leader_name) == (None, None, None, None)


def test_names_cannot_write_to_the_terminal_when_a_node_sends_control_codes(stub: StubNode):
    stub.says("payment\x1b[2J\n", "follower", 6)
    (view,) = ask(stub.url)
    assert view.name == "payment?[2J?"


def test_node_is_refused_when_nobody_listens():
    (view,) = ask(f"http://127.0.0.1:{free_port()}")
    assert view.state is None
    assert view.refused


def test_node_is_silent_but_there_when_it_takes_the_connection_and_says_nothing():
    with socket.create_server(("127.0.0.1", 0)) as paused:
        (view,) = ask(f"http://127.0.0.1:{paused.getsockname()[1]}")
    assert view.state is None
    assert not view.refused
    assert "did not answer within 0.4 s" in (view.problem or "")


def test_nodes_are_asked_at_once_when_several_are_silent():
    async def timed(urls: list[str]) -> float:
        loop = asyncio.get_running_loop()
        start = loop.time()
        await ask_nodes([Endpoint(url) for url in urls], timeout_s=TIMEOUT_S)
        return loop.time() - start

    with socket.create_server(("127.0.0.1", 0), backlog=64) as paused:
        seconds = asyncio.run(timed([f"http://127.0.0.1:{paused.getsockname()[1]}/{n}" for n in range(5)]))
    assert seconds < 3 * TIMEOUT_S


def test_further_members_are_asked_too_when_one_node_names_them():
    with stub_nodes(2) as (first, second):
        gone = f"http://127.0.0.1:{free_port()}"
        first.says("payment-1a", "follower", 6)
        second.says("payment-1b", "leader", 6)
        first.answers["/v1/cluster"] = {
            "members": [
                {"name": "payment-1a", "url": first.url},
                {"name": "payment-1b", "url": second.url + "/"},
                {"name": "payment-1c", "url": gone},
                {"name": "odd", "url": "file:///etc/passwd"},
                "odd",
            ]
        }
        views = ask(first.url, gone)
    assert [(view.name, view.state) for view in views] == [
        ("payment-1a", "follower"),
        ("payment-1c", None),
        ("payment-1b", "leader"),
    ]


def test_one_node_is_listed_once_when_it_is_asked_by_two_addresses(stub: StubNode):
    stub.says("payment-1b", "leader", 6)
    assert len(ask(stub.url, stub.url.replace("127.0.0.1", "localhost"))) == 1


def test_two_nodes_are_both_listed_when_they_go_by_one_name():
    with stub_nodes(2) as (first, second):
        first.says("payment-1b", "leader", 6, fencing_token=7)
        second.says("payment-1b", "leader", 5, fencing_token=6)
        views = ask(first.url, second.url)
    assert [view.name for view in views] == ["payment-1b", f"payment-1b at {second.url}"]


def test_nothing_but_reading_paths_is_asked_when_a_node_is_surveyed(stub: StubNode):
    stub.says("payment-1b", "leader", 6)
    ask(stub.url)
    assert set(stub.asked) == {"/v1/state", "/v1/node", "/v1/cluster"}
