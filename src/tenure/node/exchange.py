"""Moves the content of snapshots between members, in chunks that the receiver asks for one by one.

::

    leader                                  lagging member
      MsgSnapshot with its manifest   -->     hold it back, ask for the content
      chunk 0                         <-->    write it aside, ask for the next          (so nothing piles up anywhere)
      ...                                     hash right: commit the file, step the MsgSnapshot

The engine never sees a snapshot whose content is not here, whole and durable; a torn or foreign content is dropped,
and the leader, which is told nothing, tries again. All work on files runs on a thread of its own, so that a snapshot
of any size holds no fsync of the log up.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tenure.core.manifest import Content, Manifest
from tenure.errors import StorageError
from tenure.node.envelopes import Chunk, ChunkRequest, encode
from tenure.storage import SnapshotPoint, SnapshotStore, SnapshotWriter

logger = logging.getLogger("tenure.node")
T = TypeVar("T")

#: A member that asked for nothing for so long has lost the snapshot: the engine sends it again.
SILENCE_SECONDS = 3.0
#: A chunk that did not come in this time is asked for again.
REPEAT_SECONDS = 1.0
#: A content of which no chunk came for so long is given up.
GIVE_UP_SECONDS = 10.0
#: Contents that are served at once, one for each member that lags.
SERVED_MAX = 8


@dataclass(slots=True)
class _Served:
    """A content on its way to one member: an open file, read forwards."""

    sha256: str
    scope: contextlib.ExitStack
    chunks: Iterator[bytes]
    number: int = 0
    current: bytes | None = None
    following: bytes | None = None


@dataclass(slots=True)
class _Fetch:
    """A content on its way here, and the payload that waits for it."""

    sender: int
    payload: bytes
    manifest: Manifest
    content: Content
    writer: SnapshotWriter
    asked_at: float
    heard_at: float
    number: int = 0
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    writing: bool = False


class SnapshotExchange:
    """Serves contents and fetches one at a time. Its owner's loop calls it; ``run`` runs a call on the file thread."""

    def __init__(
        self,
        store: SnapshotStore,
        *,
        run: Callable[[Callable[[], Any]], Awaitable[Any]],
        spawn: Callable[[Any], None],
        send: Callable[[int, bytes], None],
        deliver: Callable[[int, bytes], None],
        lost: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._run = run
        self._spawn = spawn
        self._send = send
        self._deliver = deliver
        self._lost = lost
        self._clock = clock
        self._sent: dict[int, float] = {}
        self._served: dict[int, _Served] = {}
        self._serving: set[int] = set()
        self._fetch: _Fetch | None = None
        self._begun = 0

    # -- the sending side -------------------------------------------------------------------------------------------

    def note_sent(self, peer: int) -> None:
        """The engine sent a snapshot to ``peer``, which will ask for its content."""
        self._sent[peer] = self._clock()

    def on_request(self, peer: int, request: ChunkRequest) -> None:
        """A member asks for a chunk."""
        if peer in self._sent:
            self._sent[peer] = self._clock()
        if peer not in self._serving and (peer in self._served or len(self._served) < SERVED_MAX):
            self._serving.add(peer)
            self._spawn(self._serve(peer, request))

    async def _serve(self, peer: int, request: ChunkRequest) -> None:
        try:
            data, last = await self._run(lambda: self._chunk(peer, request))
        except StorageError as error:
            logger.warning("snapshot %s cannot be sent: %s", request.id, error)
            data, last = None, False
        finally:
            self._serving.discard(peer)
        self._send(peer, encode(Chunk(request.id, request.sha256, request.number, data, last)))

    def _chunk(self, peer: int, request: ChunkRequest) -> tuple[bytes | None, bool]:
        """On the file thread: the chunk that was asked for, the last one again, or the next one."""
        served = self._served.get(peer)
        if served is None or served.sha256 != request.sha256 or request.number < served.number:
            self._forget(peer)
            served = self._open(request)
            if served is None:
                return None, False
            self._served[peer] = served
        while served.number < request.number:
            if served.following is None:
                return None, False
            served.current, served.following = served.following, next(served.chunks, None)
            served.number += 1
        return served.current if served.current is not None else b"", served.following is None

    def _open(self, request: ChunkRequest) -> _Served | None:
        if request.id not in self._store.ids():
            return None
        scope = contextlib.ExitStack()
        reader = scope.enter_context(self._store.open(request.id))
        if reader.info.sha256 != request.sha256:
            scope.close()
            return None
        chunks = reader.chunks()
        return _Served(request.sha256, scope, chunks, 0, next(chunks, None), next(chunks, None))

    def _forget(self, peer: int) -> None:
        served = self._served.pop(peer, None)
        if served is not None:
            served.scope.close()

    # -- the receiving side -----------------------------------------------------------------------------------------

    def on_snapshot(self, sender: int, payload: bytes, manifest: Manifest) -> None:
        """A snapshot message came. It is delivered once its content is here, or dropped."""
        content = manifest.content
        if content is None:
            self._deliver(sender, payload)
            return
        fetch = self._fetch
        if fetch is not None and fetch.content == content:
            fetch.sender, fetch.payload = sender, payload
            return
        self._begun += 1
        self._spawn(self._begin(self._begun, sender, payload, manifest, content))

    async def _begin(self, number: int, sender: int, payload: bytes, manifest: Manifest, content: Content) -> None:
        self._abort("a newer snapshot was sent")
        point = SnapshotPoint(
            index=manifest.index, term=manifest.term, voters=manifest.voters, learners=manifest.learners
        )
        if await self._run(lambda: self._has(content)):
            self._deliver(sender, payload)
            return
        writer = await self._run(lambda: self._store.begin(point))
        if number != self._begun:
            writer.abort()
            return
        now = self._clock()
        self._fetch = _Fetch(sender, payload, manifest, content, writer, asked_at=now, heard_at=now)
        logger.info("fetching snapshot %s, %s bytes", content.id, content.size)
        self._ask(self._fetch)

    def _has(self, content: Content) -> bool:
        if content.id not in self._store.ids():
            return False
        with self._store.open(content.id) as reader:
            return reader.info.sha256 == content.sha256

    def _ask(self, fetch: _Fetch) -> None:
        fetch.asked_at = self._clock()
        self._send(fetch.sender, encode(ChunkRequest(fetch.content.id, fetch.content.sha256, fetch.number)))

    def on_chunk(self, sender: int, chunk: Chunk) -> None:
        """A chunk came; one that was not asked for is dropped."""
        fetch = self._fetch
        if fetch is None or fetch.writing or (chunk.sha256, chunk.number) != (fetch.content.sha256, fetch.number):
            return
        if chunk.data is None or fetch.size + len(chunk.data) > fetch.content.size:
            self._abort("the sender does not have it any more" if chunk.data is None else "it is longer than announced")
            return
        fetch.heard_at, fetch.writing = self._clock(), True
        self._spawn(self._take(fetch, chunk.data, last=chunk.last))

    async def _take(self, fetch: _Fetch, data: bytes, *, last: bool) -> None:
        def write() -> bool:
            fetch.digest.update(data)
            fetch.size += len(data)
            fetch.writer.write(data)
            if not last:
                return False
            if (fetch.size, fetch.digest.hexdigest()) != (fetch.content.size, fetch.content.sha256):
                fetch.writer.abort()
                return False
            fetch.writer.commit()
            return True

        whole = await self._run(write)
        if self._fetch is not fetch:
            return
        fetch.writing = False
        if not last:
            fetch.number += 1
            self._ask(fetch)
            return
        self._fetch = None
        if whole:
            logger.info("snapshot %s is here", fetch.content.id)
            self._deliver(fetch.sender, fetch.payload)
        else:
            logger.warning("snapshot %s came with another content than announced: dropped", fetch.content.id)

    def _abort(self, why: str) -> None:
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            logger.warning("snapshot %s is given up: %s", fetch.content.id, why)
            self._spawn(self._drop(fetch.writer))

    def end(self) -> None:
        """On the file thread, when nothing else will come: nothing stays open."""
        fetch, self._fetch = self._fetch, None
        if fetch is not None:
            fetch.writer.abort()
        for peer in list(self._served):
            self._forget(peer)

    async def _drop(self, writer: SnapshotWriter) -> None:
        await self._run(writer.abort)

    # -- time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Ask again for what did not come, and tell the engine of snapshots that were lost."""
        now = self._clock()
        for peer in [peer for peer, at in self._sent.items() if now - at > SILENCE_SECONDS]:
            del self._sent[peer]
            self._lost(peer)
            self._spawn(self._release(peer))
        fetch = self._fetch
        if fetch is None or fetch.writing:
            return
        if now - fetch.heard_at > GIVE_UP_SECONDS:
            self._abort("the sender does not answer")
        elif now - fetch.asked_at > REPEAT_SECONDS:
            self._ask(fetch)

    async def _release(self, peer: int) -> None:
        await self._run(lambda: self._forget(peer))
