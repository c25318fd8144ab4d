"""Who may raise, as pure functions (R15, R16, R17, R20, R22, R23): a table of cases, and a property over histories."""

from __future__ import annotations

import pickle

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenure.errors import RaiseRefused
from tenure.fence import Expected, FenceRow, FenceView, LiveServer, RaiseRequest, Refusal, judge_floor, judge_raise
from tenure.types import Credential, ElectorIdentity

ME = ElectorIdentity(elector_id="raft:me", generation=1, lineage="mine")
G1 = 1 << 32
LIVE = LiveServer(timeline="00000001", server_start="2026-01-01T00:00:00.000000Z")
ROW = FenceRow(
    resource="payments",
    elector_id="raft:me",
    generation=1,
    lineage="mine",
    token=G1 + 5,
    nonce="secret-nonce",
    version=7,
    timeline=LIVE.timeline,
    server_start=LIVE.server_start,
    holder="node-1",
)
ASK = RaiseRequest(
    identity=ME,
    credential=Credential(token=G1 + 6, nonce="new"),
    holder="node-2",
    expected=Expected(7, LIVE.timeline, LIVE.server_start),
)


def row(**changes: object) -> FenceRow:
    return msgspec.structs.replace(ROW, **changes)


def ask(**changes: object) -> RaiseRequest:
    return msgspec.structs.replace(ASK, **changes)


def me(**changes: object) -> ElectorIdentity:
    return msgspec.structs.replace(ME, **changes)


def view(of: FenceRow = ROW) -> FenceView:
    fields = msgspec.structs.asdict(of) | {"live_timeline": LIVE.timeline, "live_server_start": LIVE.server_start}
    return msgspec.convert(fields, FenceView)


GRANTED = {
    "same elector, next token": (ROW, LIVE, ASK),
    "unclaimed row, any elector": (
        row(elector_id=None, lineage=None),
        LIVE,
        ask(identity=me(elector_id="raft:new", lineage="other")),
    ),
    "higher generation of another lineage": (
        ROW,
        LIVE,
        ask(identity=me(generation=2, lineage="recovered"), credential=Credential(2 * G1 + 6, "new")),
    ),
    "server restarted, read after it": (row(server_start="before"), LIVE, ASK),
    "promoted, read after it": (row(timeline="00000000"), LIVE, ASK),
}

REFUSED = {
    "no row": (Refusal.MISSING, None, LIVE, ASK),
    "fsync off": (Refusal.FSYNC_OFF, ROW, msgspec.structs.replace(LIVE, fsync=False), ASK),
    "another elector": (Refusal.OTHER_ELECTOR, ROW, LIVE, ask(identity=me(elector_id="raft:other"))),
    "another elector of a higher generation": (
        Refusal.OTHER_ELECTOR,
        ROW,
        LIVE,
        ask(identity=me(elector_id="raft:other", generation=9)),
    ),
    "another lineage": (Refusal.OTHER_LINEAGE, ROW, LIVE, ask(identity=me(lineage="copy"))),
    "lower generation": (Refusal.LOWER_GENERATION, ROW, LIVE, ask(identity=me(generation=0))),
    "lower generation on an unclaimed row": (
        Refusal.LOWER_GENERATION,
        row(elector_id=None, lineage=None),
        LIVE,
        ask(identity=me(generation=0)),
    ),
    "same token, another nonce": (Refusal.TOKEN_NOT_GREATER, ROW, LIVE, ask(credential=Credential(G1 + 5, "other"))),
    "lower token": (Refusal.TOKEN_NOT_GREATER, ROW, LIVE, ask(credential=Credential(G1 + 4, "new"))),
    "own raise, but the server restarted since": (
        Refusal.TOKEN_NOT_GREATER,
        row(server_start="before"),
        LIVE,
        ask(credential=Credential(G1 + 5, "secret-nonce")),
    ),
    "own raise, but the server was promoted since": (
        Refusal.TOKEN_NOT_GREATER,
        row(timeline="00000000"),
        LIVE,
        ask(credential=Credential(G1 + 5, "secret-nonce")),
    ),
    "version moved": (Refusal.MOVED, row(version=8), LIVE, ASK),
    "server restarted after the reading": (Refusal.MOVED, ROW, LiveServer(LIVE.timeline, "later"), ASK),
    "promoted after the reading": (Refusal.MOVED, ROW, LiveServer("00000002", LIVE.server_start), ASK),
}


@pytest.mark.parametrize("case", GRANTED)
def test_R20_raise_is_granted_when_everything_agrees(case: str) -> None:
    before, live, request = GRANTED[case]
    after = judge_raise(before, live, request)
    assert isinstance(after, FenceRow)
    assert (after.token, after.nonce) == (request.credential.token, request.credential.nonce)
    assert (after.timeline, after.server_start) == (live.timeline, live.server_start)
    assert (after.elector_id, after.generation, after.lineage) == (
        request.identity.elector_id,
        request.identity.generation,
        request.identity.lineage,
    )
    assert (after.version, after.holder, after.resource) == (before.version + 1, "node-2", "payments")


@pytest.mark.parametrize("case", REFUSED)
def test_R20_raise_is_refused_when_one_thing_differs(case: str) -> None:
    reason, before, live, request = REFUSED[case]
    assert judge_raise(before, live, request) is reason


def test_R20_own_raise_is_found_done_whatever_was_expected() -> None:
    again = ask(credential=Credential(G1 + 5, "secret-nonce"), expected=Expected(6, "long", "ago"))
    assert judge_raise(ROW, LIVE, again) is ROW


@pytest.mark.parametrize(
    ("case", "verdict"),
    [
        ((ROW, ME, 5), G1 + 5),
        ((ROW, ME, 9), G1 + 5),
        ((row(elector_id=None, lineage=None), me(elector_id="raft:new"), 0), G1 + 5),
        ((ROW, me(generation=2, lineage="recovered"), 0), G1 + 5),
        ((ROW, ME, 4), Refusal.COPY),
        ((ROW, me(elector_id="raft:other"), 9), Refusal.OTHER_ELECTOR),
        ((ROW, me(lineage="copy"), 9), Refusal.OTHER_LINEAGE),
        ((ROW, me(generation=0), 9), Refusal.LOWER_GENERATION),
    ],
)
def test_R15_R16_floor_is_the_fences_token_or_the_reason_not_to_campaign(
    case: tuple[FenceRow, ElectorIdentity, int], verdict: int | Refusal
) -> None:
    before, identity, last_count = case
    assert judge_floor(view(before), identity, last_count) == verdict


_identities = st.builds(
    ElectorIdentity,
    elector_id=st.sampled_from(["raft:a", "raft:b"]),
    generation=st.integers(0, 2),
    lineage=st.sampled_from(["x", "y"]),
)
_servers = st.builds(
    LiveServer,
    timeline=st.sampled_from(["1", "2"]),
    server_start=st.sampled_from(["s1", "s2"]),
    fsync=st.booleans(),
)
_requests = st.builds(
    RaiseRequest,
    identity=_identities,
    credential=st.builds(Credential, token=st.integers(0, 6), nonce=st.sampled_from(["n1", "n2"])),
    holder=st.sampled_from(["h1", "h2"]),
    expected=st.builds(
        Expected,
        version=st.integers(0, 5),
        timeline=st.sampled_from(["1", "2"]),
        server_start=st.sampled_from(["s1", "s2"]),
    ),
)


@given(st.lists(st.tuples(_servers, _requests), max_size=30))
def test_R17_R20_no_history_of_raises_takes_a_token_back_or_changes_the_elector(
    history: list[tuple[LiveServer, RaiseRequest]],
) -> None:
    held = FenceRow("r", None, 0, None, 0, "installed", 0, "1", "s1", None)
    for live, request in history:
        after = judge_raise(held, live, request)
        if isinstance(after, Refusal) or after is held:
            continue
        assert after.token > held.token
        assert after.version == held.version + 1
        assert after.generation >= held.generation
        assert held.elector_id in {None, after.elector_id}
        assert held.elector_id is None or after.lineage == held.lineage or after.generation > held.generation
        assert request.expected == Expected(held.version, live.timeline, live.server_start)
        assert live.fsync
        held = after


def test_secrets_stay_out_of_texts() -> None:
    for text in (repr(ROW), str(ROW), repr(ASK), str(ASK), f"{ASK.credential}"):
        assert "secret" not in text.replace("<secret>", "")
        assert "new" not in text
    assert not hasattr(view(), "nonce")


def test_every_refusal_says_what_to_do_next() -> None:
    for refusal in Refusal:
        assert len(refusal.advice) > 20


def test_raise_refused_survives_pickling_with_its_facts() -> None:
    error = pickle.loads(pickle.dumps(RaiseRefused("no", resource="payments", reason=Refusal.MOVED, held=2, seen=1)))
    assert (error.resource, error.reason, error.held, error.seen) == ("payments", "moved", 2, 1)


def test_expected_names_the_row_and_the_live_server() -> None:
    moved = msgspec.structs.replace(view(), live_timeline="00000002", live_server_start="later")
    assert moved.expected == Expected(7, "00000002", "later")
