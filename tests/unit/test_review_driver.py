"""Misuse and accidents around the driver: the scope, opening and closing, founding, sockets."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

import tenure
from support.virtual_cluster import SETTINGS
from tenure import LossReason, State
from tenure.config import from_mapping
from tenure.core.effects import Grant, Renewed
from tenure.core.founding import PROTOCOL_VERSION, Hello, Refuse, decide
from tenure.core.fsm import Enrolment
from tenure.core.holding import FenceUnavailable
from tenure.core.roster import Roster
from tenure.errors import RaiseRefused
from tenure.fence import Expected, Refusal
from tenure.instants import NS_PER_MS, LeaseSpan, Reading
from tenure.leadership import HeldLeadership
from tenure.node import thread
from tenure.node.clocks import boottime_ns, raw_ns, read_clocks
from tenure.node.fencing import FenceAdapter
from tenure.node.founding import Founding
from tenure.node.member import Member
from tenure.storage import DataDirectory
from tenure.transport import Identity, TcpTransport, TransportHooks, sockets, tcp
from tenure.types import Credential

BOUND_SECONDS = 10.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def config_of(folder: Path, *, name: str = "a", listen: int = 0, peers: dict[str, int] | None = None) -> tenure.Config:
    """A quick cluster without a fence; alone, unless ``peers`` says otherwise."""
    listen = listen or free_port()
    peers = peers or {name: listen}
    return from_mapping(
        {
            "node": {"name": name, "data_dir": str(folder)},
            "raft": {
                "listen": f"127.0.0.1:{listen}",
                "heartbeat_interval_ms": 20,
                "election_timeout_ms": 200,
                "peers": {
                    peer: {"raft": f"127.0.0.1:{port}", "url": f"http://{peer}.test"} for peer, port in peers.items()
                },
            },
            "lease": {"duration_ms": 300},
        }
    )


def node_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "tenure-node" and thread.is_alive()]


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(BOUND_SECONDS):
        while not holds():  # noqa: ASYNC110 - what is waited for leaves no event behind.
            await asyncio.sleep(0.01)


# -- the terms ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_leadership_is_given_up_when_the_loop_over_the_terms_is_left_before_the_scope_is_entered(tmp_path: Path):
    """Else this member would lead for ever with nobody serving."""
    async with tenure.open(config_of(tmp_path)) as member, asyncio.timeout(BOUND_SECONDS):
        async for leadership in member.terms():
            left = leadership
            break
        assert await asyncio.shield(left.lost) is LossReason.STEPPED_DOWN
        async for leadership in member.terms():
            assert leadership.token > left.token
            break


@pytest.mark.asyncio
async def test_terms_end_for_every_reader_when_the_member_is_closed(tmp_path: Path):
    """Not only for the one that happened to wait."""
    async with tenure.open(config_of(tmp_path)) as member:
        pass
    async with asyncio.timeout(BOUND_SECONDS):
        for _ in range(3):
            assert [leadership async for leadership in member.terms()] == []


# -- opening and closing --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_member_stops_when_it_is_closed_from_inside_the_scope(tmp_path: Path):
    """Closing ends the leadership, which cancels the very body that closes: the node must stop all the same."""
    entered = False
    async with asyncio.timeout(BOUND_SECONDS), tenure.open(config_of(tmp_path)) as member:
        async for leadership in member.terms():
            async with leadership:
                entered = True
                await member.close()
        assert node_threads() == []
    assert entered


@pytest.mark.asyncio
async def test_member_stops_when_closing_is_cancelled(tmp_path: Path):
    """A hurried exit (a second Ctrl-C, a timeout around it) leaves no thread, no port and no lock behind."""
    config = config_of(tmp_path)
    async with asyncio.timeout(BOUND_SECONDS):
        member = await tenure.open(config).__aenter__()
        await until(lambda: member.status().state is State.LEADER)
        closing = asyncio.create_task(member.close())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert node_threads() == []
        async with tenure.open(config):
            pass


@pytest.mark.asyncio
async def test_nothing_runs_when_opening_failed(tmp_path: Path):
    """The caller may correct and try again at once."""
    port = free_port()
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port))
        holder.listen()
        with pytest.raises(tenure.StorageError, match=r"raft\.listen"):
            await tenure.open(config_of(tmp_path, listen=port)).__aenter__()
        assert node_threads() == []
    async with tenure.open(config_of(tmp_path)):
        pass


@pytest.mark.asyncio
async def test_node_ends_when_its_directory_opens_too_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nobody owns it any more: it must not go on to found, to vote and to lead."""
    slow = threading.Event()
    opened = DataDirectory.open

    def open_slowly(*args: object, **kwargs: object) -> DataDirectory:
        slow.wait(BOUND_SECONDS)
        return opened(*args, **kwargs)

    monkeypatch.setattr(DataDirectory, "open", open_slowly)
    monkeypatch.setattr(thread, "CALL_TIMEOUT_SECONDS", 0.1)
    with pytest.raises(tenure.StorageError, match=r"node\.data_dir .* was not opened"):
        await tenure.open(config_of(tmp_path)).__aenter__()
    slow.set()
    await until(lambda: node_threads() == [])


@pytest.mark.asyncio
async def test_core_is_at_rest_before_its_tools_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Else it could open the fence again, after the fence was closed."""
    seen = []
    close = TcpTransport.close
    async with tenure.open(config_of(tmp_path)) as member:
        await until(lambda: member.status().state is State.LEADER)

        async def close_and_look(transport: TcpTransport) -> None:
            seen.append(member._driver._core)
            await close(transport)

        monkeypatch.setattr(TcpTransport, "close", close_and_look)
    assert seen == [None]
    assert member.status().state is State.FOLLOWER
    assert member.status().raft_role == "follower"
    assert member.status().leader_name is None


@pytest.mark.asyncio
async def test_damaged_directory_is_a_storage_error_and_not_locked_by_the_failed_try(tmp_path: Path):
    """Whatever SQLite says about a file of a wrong shape, the reader learns which file it is."""
    with contextlib.closing(sqlite3.connect(tmp_path / "raft.sqlite3")) as connection:
        connection.execute("CREATE TABLE meta (key TEXT)")
    for _ in range(2):
        with pytest.raises(tenure.StorageError, match=r"raft\.sqlite3 is damaged \(no such column"):
            DataDirectory.open(tmp_path, node_name="a", cluster_name="payments")
    (tmp_path / "raft.sqlite3").unlink()
    DataDirectory.open(tmp_path, node_name="a", cluster_name="payments").close()


# -- between the threads --------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_grant_that_waited_for_a_busy_loop_starts_with_the_newest_lease(tmp_path: Path):
    """The node's thread renewed the lease while the application's loop was busy: that must not cost the leadership."""
    member = Member(config_of(tmp_path), dsn="")
    member._loop = asyncio.get_running_loop()
    now, second = read_clocks(), 1000 * NS_PER_MS
    old = Reading(now.raw_ns - 2 * second, now.boottime_ns - 2 * second)
    member.granted(Grant(3, Credential(token=1, nonce="n"), LeaseSpan(old, second)))
    member.renewed(Renewed(LeaseSpan(now, 20 * second)))
    await asyncio.sleep(0)
    leadership = await member._offers.get()
    assert leadership is not None
    assert leadership.offered
    assert leadership.remaining() > 10
    leadership.abandon()


@pytest.mark.asyncio
async def test_revocation_is_no_error_when_the_applications_loop_closes_just_then():
    """The node's thread must not fail for an application that has gone."""

    class ClosingLoop:
        def is_closed(self) -> bool:
            return False

        def call_soon_threadsafe(self, *_: object) -> None:
            raise RuntimeError("Event loop is closed")

    leadership = HeldLeadership(
        term=1,
        credential=Credential(token=1, nonce="n"),
        span=LeaseSpan(read_clocks(), 1000 * NS_PER_MS),
        margin_ns=0,
        clocks=(raw_ns, boottime_ns),
        loop=asyncio.get_running_loop(),
        on_exit=lambda: None,
        on_loss=lambda _: None,
    )
    loop, leadership._loop = leadership._loop, ClosingLoop()
    leadership.revoke(LossReason.DEPOSED)
    assert leadership.remaining() == 0.0
    leadership._loop = loop
    leadership.abandon()


# -- the fence ------------------------------------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_raise_on_a_server_without_fsync_is_tried_again_under_the_same_token():
    """It refuses every member alike: stepping down for it elected and minted some twenty times a second."""

    class Store:
        async def raise_token(self, _: object) -> None:
            raise RaiseRefused("fsync is off", resource="r", reason=Refusal.FSYNC_OFF)

    adapter = FenceAdapter(Store(), cluster_id="00", resource="r", holder="a")
    answer = await adapter.raise_token(
        Credential(token=1, nonce="n"), Expected(1, "00000001", "s"), generation=0, lineage="l"
    )
    assert answer == FenceUnavailable("fsync is off")


# -- founding -------------------------------------------------------------------------------------------------------


def hello(name: str, *, cluster_name: str = "payments", protocol: int = PROTOCOL_VERSION) -> Hello:
    return Hello(
        protocol=protocol,
        cluster_name=cluster_name,
        cluster_id="",
        name=name,
        directory_id=f"d{name}",
        incarnation=1,
        member_names=("a", "b"),
        settings=SETTINGS,
    )


def test_R7_member_of_another_cluster_name_is_no_founder():
    """Each would found a cluster of its own, and one directory would be bound to the wrong one for good."""
    decision = decide(hello("a"), {"b": hello("b", cluster_name="payment")})
    assert decision == Refuse(("cluster.name: this file says 'payments', b says 'payment'",))
    assert isinstance(decide(hello("a"), {"b": hello("b", protocol=PROTOCOL_VERSION + 1)}), Refuse)


def test_R7_founded_member_tells_what_was_founded_not_what_its_file_says(tmp_path: Path):
    """A member that founds later compares its own file with it, and so cannot found other times (R4)."""
    config = config_of(tmp_path, peers={"a": 1, "b": 2})
    enrolment = decide(hello("a"), {"b": hello("b")})
    assert isinstance(enrolment, Enrolment)
    founded, new = (
        Founding(config, Roster(known), directory_id="da", incarnation=1, openings=((1, 1),), last_index=0)
        .identity()
        .hello
        for known in (enrolment, None)
    )
    assert founded.settings == SETTINGS != new.settings
    assert founded.member_names == ("a", "b")


@pytest.mark.asyncio
async def test_R7_only_the_configured_address_speaks_for_a_member(tmp_path: Path):
    """A second node of one name, elsewhere: counted by one founder of two, it would make two quorums."""
    peers = {name: free_port() for name in "abc"}
    async with contextlib.AsyncExitStack() as stack:
        stray = await stack.enter_async_context(
            tenure.open(config_of(tmp_path / "stray", name="a", listen=free_port(), peers=peers))
        )
        others = [
            await stack.enter_async_context(
                tenure.open(config_of(tmp_path / name, name=name, listen=peers[name], peers=peers))
            )
            for name in "bc"
        ]
        await until(lambda: all("waiting for a to found" in (member.status().reason or "") for member in others))
        await asyncio.sleep(1.0)
        assert [member.cluster_id for member in others] == [None, None]
        right = await stack.enter_async_context(
            tenure.open(config_of(tmp_path / "a", name="a", listen=peers["a"], peers=peers))
        )
        await until(lambda: right.cluster_id is not None and all(m.cluster_id == right.cluster_id for m in others))
        assert stray.cluster_id != right.cluster_id


# -- sockets --------------------------------------------------------------------------------------------------------


def transport_to(address: str) -> TcpTransport:
    identity = Identity(hello("b"), bytes(range(16)), 2)
    return TcpTransport(
        listen="127.0.0.1:0",
        peers={"a": address},
        hooks=TransportHooks(
            identity=lambda: identity,
            admit=lambda *_: None,
            raft_id_of={"a": 1, "b": 2}.get,
            on_payload=lambda *_: None,
        ),
    )


@contextlib.asynccontextmanager
async def deaf_peer() -> AsyncIterator[int]:
    """Greets like a member and then reads nothing more."""

    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await tcp._read_frame(reader, limit=tcp.HELLO_LIMIT)
        writer.transport.pause_reading()
        payload = tcp.frames.encode_hello(hello("a"))
        writer.write(
            tcp.frames.encode(tcp.Kind.HELLO, cluster=bytes(range(16)), sender=1, incarnation=1, payload=payload)
        )
        with contextlib.closing(writer):
            await asyncio.Event().wait()

    tasks: list[asyncio.Task[None]] = []
    server = await asyncio.start_server(
        lambda reader, writer: tasks.append(asyncio.create_task(greet(reader, writer))), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.asyncio
async def test_member_goes_on_dialling_when_a_name_cannot_be_encoded(monkeypatch: pytest.MonkeyPatch):
    """A dialler that ends is never started again: the peer would be lost until this node restarts."""
    dialled = []
    connect = asyncio.open_connection

    async def note_and_connect(*args: object, **kwargs: object) -> object:
        dialled.append(args)
        return await connect(*args, **kwargs)

    monkeypatch.setattr(asyncio, "open_connection", note_and_connect)
    transport = transport_to("a..b:1")
    await transport.start()
    try:
        await until(lambda: len(dialled) >= 3)
        assert "idna" in transport.problems["a"] or "UnicodeError" in transport.problems["a"]
    finally:
        await transport.close()


@pytest.mark.asyncio
async def test_peer_that_acknowledges_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch):
    """Left to TCP, a cut of a minute would cost up to another minute after its end."""
    monkeypatch.setattr(sockets, "SILENCE_SECONDS_MAX", 1)
    async with deaf_peer() as port:
        transport = transport_to(f"127.0.0.1:{port}")
        await transport.start()
        try:
            await until(lambda: 1 in transport.connected())
            stream = transport._outgoing[1]
            for _ in range(8):
                transport.send(1, bytes(1 << 20))
            await until(lambda: transport._outgoing.get(1) is not stream)
        finally:
            await transport.close()


@pytest.mark.asyncio
async def test_closing_leaves_no_socket_when_a_peer_does_not_read():
    """What is still to be sent is worth nothing once the node stops."""
    async with deaf_peer() as port:
        transport = transport_to(f"127.0.0.1:{port}")
        await transport.start()
        await until(lambda: 1 in transport.connected())
        writer = transport._outgoing[1].writer
        transport.send(1, bytes(8 << 20))
        await transport.close()
        await until(lambda: writer.get_extra_info("socket").fileno() == -1)
