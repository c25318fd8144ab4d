"""A node of the replicated dictionary on parts of one's own: a transport over plain TCP, and a log store that counts.

    python own_parts.py one 127.0.0.1:9101 127.0.0.1:9102 127.0.0.1:9103

A part of one's own keeps the promises of its protocol, and a suite of ``tenure.testing`` tries them. Plain TCP is for
hosts that trust each other: whoever reaches the port can say that it is a member.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from tenure.config import parse_address
from tenure.core.founding import Hello
from tenure.raft import Ports
from tenure.storage import SegmentLogStore, StoredLog, StoredSnapshot
from tenure.transport import TransportHooks
from tenure.transport.greeting import Lives, NotAdmitted, answer_hello, judge_answer

DIAL_SECONDS = 0.1
#: Bytes that may wait for a peer; what is beyond is dropped, and Raft repeats what matters.
WAITING_MAX = 16 << 20
FRAME_MAX = 8 << 20


class PlainTransport:
    """Each member dials the others and sends on what it dialled; it hears on what it accepted."""

    def __init__(self, listen: str, hooks: TransportHooks) -> None:
        self.dropped_frames = 0
        self._listen = listen
        self._hooks = hooks
        self._lives = Lives(hooks)
        self._peers: dict[str, str] = {}
        self._server: asyncio.Server | None = None
        self._diallers: dict[str, asyncio.Task[None]] = {}
        self._hearers: set[asyncio.Task[None]] = set()
        self._outgoing: dict[int, tuple[str, asyncio.StreamWriter]] = {}
        self._incoming: dict[int, tuple[str, asyncio.StreamWriter]] = {}
        self._watch: asyncio.Task[None] | None = None
        self._closed = False

    async def start(self) -> int:
        """See :class:`tenure.raft.Transport`, as for the other methods."""
        if self._closed:
            raise OSError("this transport was closed: make a new one")
        self._server = await asyncio.start_server(self._accept, *parse_address(self._listen))
        self._watch = asyncio.create_task(self._end_streams_of_strangers())
        self.set_peers(self._peers)
        return int(self._server.sockets[0].getsockname()[1])

    def set_peers(self, peers: Mapping[str, str]) -> None:
        """Streams to others end at once."""
        if self._closed:
            return
        for name in [name for name in self._diallers if peers.get(name) != self._peers[name]]:
            self._diallers.pop(name).cancel()
            for raft_id in [raft_id for raft_id, (other, _) in self._outgoing.items() if other == name]:
                self._outgoing.pop(raft_id)[1].close()
            if name not in peers:
                self._lives.forget(name)
        self._peers = dict(peers)
        for name, address in self._peers.items() if self._server is not None else ():
            if name not in self._diallers:
                self._diallers[name] = asyncio.create_task(self._keep_dialling(name, address))

    def send(self, peer: int, payload: bytes) -> None:
        """It never waits: what cannot be sent now is dropped."""
        name, writer = self._outgoing.get(peer, ("", None))
        waits = 0 if writer is None else writer.transport.get_write_buffer_size()
        if writer is None or writer.is_closing() or waits + len(payload) > WAITING_MAX:
            self.dropped_frames += 1
        elif self._hooks.raft_id_of(name) != peer:
            self.dropped_frames += 1
            writer.close()
        else:
            writer.write(_framed(payload))

    def connected(self) -> set[int]:
        """As far as this side knows."""
        return {peer for peer, (name, _) in self._outgoing.items() if self._hooks.raft_id_of(name) == peer}

    async def close(self) -> None:
        """Idempotent; nothing is delivered afterwards."""
        self._closed = True
        if self._server is not None:
            self._server.close()
        tasks = [*self._diallers.values(), *self._hearers, *([self._watch] if self._watch else [])]
        for task in tasks:
            task.cancel()
        self._outgoing.clear()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _end_streams_of_strangers(self) -> None:
        """Who is a member changes while streams are open."""
        while True:
            for streams in (self._outgoing, self._incoming):
                for raft_id, (name, writer) in streams.items():
                    if self._hooks.raft_id_of(name) != raft_id:
                        writer.close()
            await asyncio.sleep(DIAL_SECONDS)

    async def _keep_dialling(self, name: str, address: str) -> None:
        while True:
            try:
                reader, writer = await asyncio.open_connection(*parse_address(address))
            except ConnectionRefusedError:
                self._lives.ended(name)
            except (OSError, ValueError):
                pass  # not reachable, or no address at all: that says nothing of the member
            else:
                with contextlib.closing(writer), contextlib.suppress(OSError, EOFError, ValueError, NotAdmitted):
                    await self._send_on(name, reader, writer)
            await asyncio.sleep(DIAL_SECONDS)

    async def _send_on(self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_framed(msgspec.json.encode(self._hooks.identity().hello)))
        answer = await _read(reader)
        if answer[:1] == b"-":
            self._hooks.on_refused(name, answer[1:].decode(errors="replace"))
            return
        hello = msgspec.json.decode(answer[1:], type=Hello)
        raft_id = judge_answer(self._hooks, name, hello)
        if answer[:1] != b"+":
            return
        self._lives.met(name, hello.incarnation)
        self._outgoing[raft_id] = (name, writer)
        try:
            await reader.read(1)  # nothing comes on it but its end
        finally:
            if self._outgoing.get(raft_id) == (name, writer):
                del self._outgoing[raft_id]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._hearers.add(task)
            task.add_done_callback(self._hearers.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError, EOFError, ValueError, asyncio.CancelledError):
            if not self._closed:
                await self._hear_on(reader, writer)

    async def _hear_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with asyncio.timeout(5):
            hello = msgspec.json.decode(await _read(reader), type=Hello)
        try:
            own, sender = answer_hello(self._hooks, hello)
        except NotAdmitted as refusal:
            writer.write(_framed(b"-" + str(refusal).encode()))
            return
        writer.write(_framed((b"0" if sender is None else b"+") + msgspec.json.encode(own)))
        if sender is None:
            return
        if sender in self._incoming:
            self._incoming[sender][1].close()
        self._incoming[sender] = (hello.name, writer)
        while True:
            payload = await _read(reader)
            # A newer stream, or another answer of the member, ends this one.
            if self._incoming[sender][1] is not writer or self._hooks.raft_id_of(hello.name) != sender:
                return
            self._hooks.on_payload(sender, payload)


def _framed(payload: bytes) -> bytes:
    return len(payload).to_bytes(4, "big") + payload


async def _read(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(4), "big")
    if length > FRAME_MAX:
        raise ValueError("this is no member")
    return await reader.readexactly(length)


class CountingLogStore:
    """Keeps the log by the means of another store, and knows how often and how much it saved."""

    def __init__(self, folder: Path) -> None:
        self.saves = 0
        self.bytes = 0
        self._store = SegmentLogStore(folder / "own-log")

    def load(self) -> StoredLog:
        """See :class:`tenure.raft.LogStore`, as for the other methods."""
        return self._store.load()

    def save(
        self,
        *,
        first: int,
        last: int,
        entries: bytes,
        hard_state: tuple[int, int, int] | None,
        snapshot: StoredSnapshot | None = None,
    ) -> None:
        """Durable when it returns, as a whole or not at all."""
        self.saves += 1
        self.bytes += len(entries)
        self._store.save(first=first, last=last, entries=entries, hard_state=hard_state, snapshot=snapshot)

    def compact(self, snapshot: StoredSnapshot) -> None:
        """From now on the snapshot stands for what lies behind it."""
        self._store.compact(snapshot)

    def close(self) -> None:
        """Close the files."""
        self._store.close()


def own_parts(listen: str, *, log_store: Callable[[Path], CountingLogStore] = CountingLogStore) -> Ports:
    """What ``Node.open(config, fsm, ports=...)`` takes."""
    return Ports(log_store=log_store, transport=lambda hooks: PlainTransport(listen, hooks))


if __name__ == "__main__":
    import replicated_dictionary

    if len(sys.argv) != 5 or sys.argv[1] not in replicated_dictionary.NAMES:
        sys.exit(__doc__)
    own_address = sys.argv[2 + replicated_dictionary.NAMES.index(sys.argv[1])]
    asyncio.run(replicated_dictionary.main(sys.argv[1], sys.argv[2:], own_parts(own_address)))
