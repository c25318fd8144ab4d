"""What every peer connection has in common, whichever side opened it: bounds in time, and how sockets are made.

It reads and writes nothing.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from typing import Any

HANDSHAKE_TIMEOUT_SECONDS = 3.0
#: A peer that acknowledges nothing for so long is given up and dialled again. Left to itself, TCP would repeat more and
#: more rarely, and after a long cut some of the members would not hear of one another for minutes.
SILENCE_SECONDS_MAX = 3
#: How long a finished connection waits for the farewell of the other side's TLS.
TLS_SHUTDOWN_SECONDS = 1.0


async def listen(host: str, port: int) -> list[socket.socket]:
    """Bind every address of ``host``; :class:`OSError` if one of them cannot be had."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((info[0], info[4]) for info in found):
            listeners.append(socket.create_server(address, family=family))
            listeners[-1].setblocking(False)
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def tls_options(context: ssl.SSLContext) -> dict[str, Any]:
    """The arguments with which a connection of the loop begins TLS."""
    return {
        "ssl": context,
        "ssl_handshake_timeout": HANDSHAKE_TIMEOUT_SECONDS,
        "ssl_shutdown_timeout": TLS_SHUTDOWN_SECONDS,
    }


def bound_silence(transport: asyncio.BaseTransport) -> None:
    """End the connection when its other side vanished without a word."""
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE_SECONDS_MAX * 1000)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE_SECONDS_MAX)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
