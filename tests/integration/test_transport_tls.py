"""Mutual TLS on real sockets, under both event loops: who is let in, who is not, and certificates that change (R3)."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import uvloop

import tenure
from support.certificate_files import Authority
from support.member_cluster import Cluster
from support.virtual_cluster import SETTINGS
from tenure.config import TlsFiles
from tenure.core.founding import PROTOCOL_VERSION, Hello
from tenure.transport import Certificates, Identity, TcpTransport, TransportHooks, accepting, frames, sockets, tcp
from tenure.transport.frames import Kind

CLUSTER = bytes(range(16))
IDS = {"a": 1, "b": 2}
BOUND_SECONDS = 10.0

Run = Callable[[Awaitable[None]], None]


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Run a scenario to its end, within a bound; what a failed handshake leaves open fails the test."""

    async def bounded(scenario: Awaitable[None]) -> None:
        async with asyncio.timeout(2 * BOUND_SECONDS):
            await scenario

    def run(scenario: Awaitable[None]) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(bounded(scenario))

    return run


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "pki")


def hello(name: str) -> Hello:
    return Hello(
        protocol=PROTOCOL_VERSION,
        cluster_name="test",
        cluster_id=CLUSTER.hex(),
        name=name,
        directory_id=name,
        incarnation=5,
        member_names=("a", "b"),
        settings=SETTINGS,
    )


class Peer:
    """One transport, what it received and whose hello it believed."""

    def __init__(self, name: str, files: TlsFiles | None, peers: dict[str, str] | None = None) -> None:
        self.received: list[tuple[int, bytes]] = []
        self.believed: list[str] = []
        self.applicants: list[str] = []
        certificates = Certificates(files, cluster="test", node=name) if files else None
        self.transport = TcpTransport(
            listen="127.0.0.1:0",
            peers=peers or {},
            hooks=TransportHooks(
                identity=lambda: Identity(hello(name), CLUSTER, IDS[name]),
                admit=lambda other, expected: None if expected in (None, other.name) and other.cluster_id else "no",
                raft_id_of=IDS.get,
                on_payload=lambda sender, payload: self.received.append((sender, payload)),
                on_hello=lambda other: self.believed.append(other.name),
                on_applicant=lambda other: self.applicants.append(other.name),
            ),
            certificates=certificates,
            reload_seconds=0.01,
        )

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(BOUND_SECONDS):
            while not holds():  # noqa: ASYNC110 - a handshake leaves no event behind.
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def listening(peer: Peer) -> AsyncIterator[int]:
    try:
        yield await peer.transport.start()
    finally:
        await peer.transport.close()


@contextlib.asynccontextmanager
async def pair(authority: Authority) -> AsyncIterator[tuple[Peer, Peer, int]]:
    """Two members over TLS: ``b`` has dialled ``a``."""
    a = Peer("a", authority.files("a"))
    async with listening(a) as port:
        b = Peer("b", authority.files("b"), {"a": f"127.0.0.1:{port}"})
        async with listening(b):
            await b.until(lambda: b.transport.connected() == {1})
            yield a, b, port


def test_R3_payloads_arrive_in_order_over_tls_1_3(run: Run, authority: Authority):
    async def scenario() -> None:
        async with pair(authority) as (a, b, _):
            payloads = [b"%d" % number * number * 20_000 for number in range(20)]
            for payload in payloads:
                b.transport.send(1, payload)
            await a.until(lambda: len(a.received) == len(payloads))
            assert a.received == [(2, payload) for payload in payloads]
            stream = b.transport._outgoing[1].writer.get_extra_info("ssl_object")
            assert stream.version() == "TLSv1.3"
            assert b.transport.problems == {}

    run(scenario())


def test_frames_to_a_peer_that_does_not_read_are_dropped_over_tls(
    run: Run, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tcp, "SEND_BUFFER_LIMIT", 1 << 20)

    async def scenario() -> None:
        async with pair(authority) as (a, b, _):
            a.transport._acceptor._streams[2].stream._transport.pause_reading()
            for _ in range(200):
                b.transport.send(1, bytes(100_000))
                await asyncio.sleep(0)
            assert b.transport.dropped_frames > 100
            assert b.transport._outgoing[1].writer.transport.get_write_buffer_size() < 2 << 20

    run(scenario())


# -- who is not let in ------------------------------------------------------------------------------------------------


def client(files: TlsFiles | None, authority: Authority) -> ssl.SSLContext:
    """A stranger's own idea of TLS: it believes everybody and presents what it has."""
    context = ssl.create_default_context(cafile=str(authority.path))
    context.check_hostname = False
    if files is not None:
        context.load_cert_chain(files.cert, files.key)
    return context


async def greet(port: int, context: ssl.SSLContext | None, said: Hello) -> None:
    """Say that hello, send a frame, and read until the other side closes."""
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        try:
            for kind, payload in ((Kind.HELLO, frames.encode_hello(said)), (Kind.MESSAGES, b"let me in")):
                writer.write(
                    frames.encode(kind, cluster=CLUSTER, sender=IDS[said.name], incarnation=5, payload=payload)
                )
            await reader.read()
        finally:
            writer.transport.abort()


def stranger(how: str, authority: Authority) -> ssl.SSLContext | None:
    other = Authority(authority.folder / "other")
    match how:
        case "plain bytes":
            return None
        case "no certificate":
            return client(None, authority)
        case "another CA":
            return client(other.files("b"), authority)
        case "expired":
            return client(authority.files("old", node="b", age_days=2), authority)
        case "TLS 1.2":
            context = client(authority.files("b"), authority)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            return context
        case _:
            return client(authority.files("c"), authority)


@pytest.mark.parametrize(
    "how", ["plain bytes", "no certificate", "another CA", "expired", "TLS 1.2", "certificate of another node"]
)
def test_R3_stranger_is_refused_and_counted_and_changes_nothing(run: Run, authority: Authority, how: str):
    """It says that it is ``b``; the real one stays connected, and nothing of the stranger arrives."""

    async def scenario() -> None:
        async with pair(authority) as (a, b, port):
            stream = b.transport._outgoing[1]
            await greet(port, stranger(how, authority), hello("b"))
            await a.until(lambda: a.transport.refused_connections == 1)
            b.transport.send(1, b"still here")
            await a.until(lambda: bool(a.received))
            assert a.received == [(2, b"still here")]
            assert b.transport._outgoing[1] is stream
            assert not a.transport._acceptor._ungreeted

    run(scenario())


def test_R3_applicant_is_told_of_only_when_its_certificate_names_it(run: Run, authority: Authority):
    """Who may join is decided by name: nobody applies under the name of another."""
    applicant = msgspec.structs.replace(hello("b"), cluster_id="")

    async def scenario() -> None:
        a = Peer("a", authority.files("a"))
        async with listening(a) as port:
            await greet(port, client(authority.files("c"), authority), applicant)
            assert a.applicants == []
            await greet(port, client(authority.files("b"), authority), applicant)
            assert a.applicants == ["b"]
            assert a.received == []

    run(scenario())


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("another CA", "unable to get local issuer certificate"),
        ("expired", "certificate has expired"),
        ("another node", "the certificate names tenure://test/c, not a"),
        ("plain TCP", ""),
    ],
)
def test_R3_dialler_believes_no_hello_of_a_server_with_a_wrong_certificate(
    run: Run, authority: Authority, how: str, says: str
):
    """One who is not ``a`` answers at its address: no hello counts, no stream opens, the reason is kept."""
    other = Authority(authority.folder / "other")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    files = {
        "another CA": other.files("a"),
        "expired": authority.files("a", age_days=2),
        "another node": authority.files("c"),
    }.get(how)
    if files is not None:
        context.load_cert_chain(files.cert, files.key)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readexactly(1)
            payload = frames.encode_hello(hello("a"))
            writer.write(frames.encode(Kind.HELLO, cluster=CLUSTER, sender=1, incarnation=5, payload=payload))
            await reader.read()
        writer.transport.abort()

    async def scenario() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context if files else None)
        port = server.sockets[0].getsockname()[1]
        b = Peer("b", authority.files("b"), {"a": f"127.0.0.1:{port}"})
        async with listening(b):
            await b.until(lambda: "a" in b.transport.problems)
            assert says in b.transport.problems["a"]
            assert b.transport.connected() == set()
            assert b.believed == []
        server.close()

    run(scenario())


def test_member_without_tls_is_told_to_look_at_the_setting(run: Run, authority: Authority):
    async def scenario() -> None:
        a = Peer("a", authority.files("a"))
        async with listening(a) as port:
            b = Peer("b", None, {"a": f"127.0.0.1:{port}"})
            async with listening(b):
                await b.until(lambda: "raft.tls" in b.transport.problems.get("a", ""))

    run(scenario())


def test_silent_connections_are_bounded_in_number_and_time(
    run: Run, authority: Authority, monkeypatch: pytest.MonkeyPatch
):
    """Whoever does not finish the handshake of TLS holds a place for the handshake's time, and there are few places."""
    monkeypatch.setattr(accepting, "UNGREETED_LIMIT", 3)
    monkeypatch.setattr(sockets, "HANDSHAKE_TIMEOUT_SECONDS", 0.3)

    async def scenario() -> None:
        a = Peer("a", authority.files("a"))
        async with listening(a) as port, contextlib.AsyncExitStack() as stack:
            silent = []
            for _ in range(5):
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                stack.callback(writer.close)
                silent.append(reader)
            await a.until(lambda: a.transport.refused_connections == 2)
            assert len(a.transport._acceptor._ungreeted) == 3
            await asyncio.gather(*(reader.read() for reader in silent), return_exceptions=True)
            assert a.transport.refused_connections == 5
            assert not a.transport._acceptor._ungreeted

    run(scenario())


# -- certificates that change -----------------------------------------------------------------------------------------


def serial(writer: asyncio.StreamWriter) -> str:
    """The serial number of the certificate that the peer presented on this stream."""
    return writer.get_extra_info("peercert")["serialNumber"]


def test_new_certificate_is_used_by_new_connections_and_open_ones_stay(run: Run, authority: Authority):
    async def scenario() -> None:
        async with pair(authority) as (a, b, port):
            stream = b.transport._outgoing[1]
            before = a.transport._certificates.contexts
            authority.files("a")
            await a.until(lambda: a.transport._certificates.contexts is not before)
            b.transport.send(1, b"on the old stream")
            await a.until(lambda: a.received == [(2, b"on the old stream")])
            assert b.transport._outgoing[1] is stream
            again = Peer("b", authority.files("b"), {"a": f"127.0.0.1:{port}"})
            async with listening(again):
                await again.until(lambda: again.transport.connected() == {1})
                assert serial(again.transport._outgoing[1].writer) != serial(stream.writer)

    run(scenario())


@pytest.mark.asyncio
async def test_R3_members_over_tls_keep_their_term_when_every_certificate_is_replaced(tmp_path: Path):
    """Real members, without a database: reloads of all of them change no term, and the new certificates do serve."""
    authority = Authority(tmp_path / "pki")
    cluster = Cluster(tmp_path, dsn="")
    times = {"heartbeat_interval_ms": 50, "election_timeout_ms": 300}

    async def start(name: str) -> None:
        files = {"cert": f"{tmp_path}/pki/{name}.pem", "key": f"{tmp_path}/pki/{name}.key", "ca": str(authority.path)}
        await cluster.start(name, cluster={"name": "test"}, raft={"tls": files, **times})

    try:
        for name in cluster.ports:
            authority.files(name)
            await start(name)
        leader, leadership = await cluster.leader()
        await cluster.until(lambda: {m.status().term for m in cluster.members.values()} == {leadership.term})
        held = {name: member._driver._links.transport._certificates for name, member in cluster.members.items()}
        before = {name: certificates.contexts for name, certificates in held.items()}
        for name, member in cluster.members.items():
            authority.files(name)
            member.reload_certificates()
        await cluster.until(lambda: all(held[name].contexts is not before[name] for name in held))
        # A member that lost its leader by this would campaign within two election timeouts.
        await asyncio.sleep(3 * times["election_timeout_ms"] / 1000)
        follower = next(name for name in cluster.ports if name != leader)
        await cluster.stop(follower)
        await start(follower)
        await cluster.until(lambda: cluster.members[follower].status().leader_name == leader)
        assert {member.status().term for member in cluster.members.values()} == {leadership.term}
        assert leadership.remaining() > 0
    finally:
        await cluster.close()


@pytest.mark.asyncio
async def test_member_does_not_open_when_its_certificate_has_expired(tmp_path: Path):
    authority = Authority(tmp_path / "pki")
    files = authority.files("a", age_days=2)
    cluster = Cluster(tmp_path, dsn="")
    tls = {"cert": files.cert, "key": files.key, "ca": files.ca}
    with pytest.raises(tenure.ConfigError, match=r"raft\.tls\.cert.*has expired.*tenure certs issue"):
        await cluster.start("a", cluster={"name": "test"}, raft={"tls": tls})
