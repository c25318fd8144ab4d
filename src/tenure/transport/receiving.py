"""Cuts the frames out of what one accepted connection brings, without a task switch for each of them.

::

    socket --read--> one buffer --cut--> on_frame(head, payload), (head, payload), ... --> the next read

Nothing is read while ``on_frame`` runs, so a sender that is faster than its receiver fills its own socket and not our
memory: one buffer for each connection, which grows with the bytes that really came and never above ``limit``.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable
from typing import Any, TypeVar, cast

from tenure.transport import frames, sockets
from tenure.transport.frames import HEAD_BYTES, HELLO_LIMIT, LENGTH_BYTES, FrameError

#: The buffer before anything is known of the other side, and while frames of usual size come.
SMALL_BUFFER_BYTES = 8 << 10
BUFFER_BYTES = 256 << 10

Value = TypeVar("Value")

logger = logging.getLogger("tenure.transport")


class FrameReceiver(asyncio.BufferedProtocol):
    """The protocol of one connection. ``on_frame`` gets head and payload of each frame, in order.

    Its first caller gets this object before them, since it does not know the sender yet; whoever is to have what
    follows is named by :meth:`expect_messages`. A :class:`FrameError` out of either ends the connection, and so does
    any other error, which is logged, too. After :meth:`abort` nothing is handed out.
    """

    def __init__(self, on_frame: Callable[[FrameReceiver, bytes, bytes], None]) -> None:
        loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        #: Resolves once it is known whether messages are taken: with False when the connection ended before.
        self.greeted: asyncio.Future[bool] = loop.create_future()
        #: Resolves when the connection has ended, with what was wrong with it, if anything was.
        self.ended: asyncio.Future[Exception | None] = loop.create_future()
        self._on_frame: Callable[[bytes, bytes], None] = functools.partial(on_frame, self)
        self._limit = HELLO_LIMIT
        self._usual = SMALL_BUFFER_BYTES
        #: What was read and not handed out yet lies from ``_start`` to ``_stop``.
        self._start = self._stop = 0
        self._replace_buffer(SMALL_BUFFER_BYTES)

    def expect_messages(self, on_frame: Callable[[bytes, bytes], None], *, limit: int) -> None:
        """From the next frame on: who sends is known, and its frames may be as large as ``limit``."""
        self._on_frame = on_frame
        _resolve(self.greeted, True)
        self._limit = limit
        self._usual = BUFFER_BYTES

    def answer(self, data: bytes) -> None:
        """Send something back."""
        if self._transport is not None:
            self._transport.write(data)

    def peer_address(self) -> str:
        """Where the other side sends from: the host alone, since its port says nothing."""
        name = self._transport.get_extra_info("peername") if self._transport is not None else None
        return str(name[0]) if name else "an unknown address"

    def certificate(self) -> dict[str, Any] | None:
        """The verified certificate of the other side; None without TLS."""
        return self._transport.get_extra_info("peercert") if self._transport is not None else None

    def close(self) -> None:
        """End the connection behind what was answered, and take nothing more."""
        self._on_frame = _nothing
        if self._transport is not None:
            self._transport.close()

    def abort(self, error: Exception | None = None) -> None:
        """End the connection now. Idempotent."""
        if self._transport is not None:
            self._transport.abort()
        self._end(error)

    # -- what the loop calls -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self._transport = cast("asyncio.Transport", transport)
        sockets.bound_silence(transport)
        if self.ended.done():
            self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """See :class:`asyncio.BufferedProtocol`."""
        if self._stop == len(self._buffer):
            self._make_room()
        return self._view[self._stop :]

    def buffer_updated(self, nbytes: int) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self._stop += nbytes
        try:
            self._cut()
        except FrameError as error:
            self.abort(error)
        except Exception as error:
            logger.exception("taking a frame failed")
            self.abort(error)

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.BufferedProtocol`."""
        self._end(exc)
        # It names this object: without that circle the buffer is free as soon as the connection is.
        self._on_frame = _nothing

    # -- the buffer --------------------------------------------------------------------------------------------------

    def _cut(self) -> None:
        buffer, view, start, end = self._buffer, self._view, self._start, self._stop
        while end - start >= LENGTH_BYTES and not self.ended.done():
            body = start + LENGTH_BYTES
            stop = body + frames.decode_length(buffer, start, limit=self._limit)
            if stop > end:
                break
            start = stop
            payload = body + HEAD_BYTES
            self._on_frame(view[body:payload].tobytes(), view[payload:stop].tobytes())
        self._start = start
        if start == end and not self.ended.done():
            self._start = self._stop = 0
            if len(buffer) != self._usual:
                self._replace_buffer(self._usual)

    def _make_room(self) -> None:
        """Move what is left of a frame to the front; twice the room, if it fills the buffer already."""
        rest = self._view[self._start :].tobytes()
        if 2 * len(rest) > len(self._buffer):
            self._replace_buffer(max(min(2 * len(self._buffer), LENGTH_BYTES + self._limit), self._usual))
        self._view[: len(rest)] = rest
        self._start, self._stop = 0, len(rest)

    def _replace_buffer(self, size: int) -> None:
        # Never resized: the loop may still hold a view of the older one.
        self._buffer = bytearray(size)
        self._view = memoryview(self._buffer)
        self._start = self._stop = 0

    def _end(self, error: Exception | None) -> None:
        _resolve(self.ended, error)
        _resolve(self.greeted, False)


def _nothing(head: bytes, payload: bytes) -> None:
    """What comes behind a refusal is read and forgotten, until the connection ends."""


def _resolve(future: asyncio.Future[Value], value: Value) -> None:
    if not future.done():
        future.set_result(value)
