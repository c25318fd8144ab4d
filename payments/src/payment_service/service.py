"""One payment node from start to stop: the member, the writer, the reader and the HTTP server, on one event loop.

Starting is all or nothing: the port, the log and the database are there before the node joins its cluster. Stopping
on SIGTERM or SIGINT ends requests first, then the writer, then the membership (which releases leadership), so that
the successor need not wait the lease out. With ``raft.tls``, SIGHUP looks at the certificate's files. A node whose
engine or disk failed must not go on in any form (R2): the process ends at once, without unwinding.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Final

import httpx2
import uvicorn

import tenure
from payment_service import __version__
from payment_service.app import build_application
from payment_service.log import ServiceLog
from payment_service.pause import pause_hook
from payment_service.ports import Member
from payment_service.reader import PaymentReader
from payment_service.session import WriteSession
from payment_service.writer import GroupCommitWriter
from tenure import ConfigError, FoundingRefused, LeadershipLost, MemberRemoved, WrongCluster
from tenure.config import Config, parse_address

EXIT_FAILED: Final = 1
EXIT_REFUSED: Final = 4
_PEER_TIMEOUT: Final = 1.0


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop's event loop where it is installed, else None, which means asyncio's own."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


def bind(listen: str) -> socket.socket:
    """Take the HTTP port, before anything else is started; ConfigError if it cannot be had."""
    host, port = parse_address(listen)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            "http.listen",
            f"{listen} cannot be listened on: {error.strerror or error}; stop what uses it (ss -ltnp 'sport = :{port}' "
            "names it), or name another address",
        ) from None
    return listener


async def serve(config: Config, *, log: ServiceLog, listener: socket.socket, environ: Mapping[str, str]) -> None:
    """Run one node until SIGTERM or SIGINT, then stop it cleanly.

    Raises:
        TenureError: the member could not be opened; nothing is left running.
        ExceptionGroup: a part of the service failed; the rest was stopped.
    """
    stop = asyncio.Event()
    with _stopping_on_signals(stop):
        async with AsyncExitStack() as stack:
            member = await stack.enter_async_context(tenure.open(config))
            if config.raft.tls.configured:
                asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, member.reload_certificates)
            reader = await stack.enter_async_context(PaymentReader(config.database.dsn, config.node.name))
            client = await stack.enter_async_context(httpx2.AsyncClient(timeout=_PEER_TIMEOUT, trust_env=False))
            writer = _build_writer(config, log, environ)
            application = build_application(
                config, member=member, writer=writer, reader=reader, client=client, logger=log.logger
            )
            host, port = listener.getsockname()[:2]
            started = partial(log.logger.info, "started", listen=f"{host}:{port}", pid=os.getpid(), version=__version__)
            server = _build_server(application, config, started)
            async with asyncio.TaskGroup() as tasks:
                # In the order in which they end: the body of the leadership waits for the writer.
                background = [
                    tasks.create_task(_lead(member, writer), name="lead"),
                    tasks.create_task(writer.run(), name="writer"),
                    tasks.create_task(_end_if_failed(member, log), name="failure watch"),
                ]
                serving = tasks.create_task(server.serve(sockets=[listener]), name="http")
                await stop.wait()
                log.logger.info("stopping")
                server.should_exit = True
                await serving
                for task in background:
                    task.cancel()
                    await asyncio.wait({task})
    log.logger.info("stopped")


def _build_writer(config: Config, log: ServiceLog, environ: Mapping[str, str]) -> GroupCommitWriter:
    session = WriteSession(
        config.database.dsn, config.fence.resource, config.node.name, lease_ms=config.lease.duration_ms
    )
    return GroupCommitWriter(
        session,
        node=config.node.name,
        batch_rows_max=config.payments.batch_rows_max,
        queue_rows_max=config.payments.queue_rows_max,
        key_wait_ms=config.payments.idempotency_wait_ms,
        on_committed=log.committed,
        before_insert=pause_hook(environ),
    )


class _Server(uvicorn.Server):
    """uvicorn inside a program that has its own signals, and that wants to know when the port is open."""

    def __init__(self, config: uvicorn.Config, on_started: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_started = on_started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, then tell."""
        await super().startup(sockets)
        self._on_started()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to :func:`serve`."""
        yield


def _build_server(application: object, config: Config, on_started: Callable[[], None]) -> _Server:
    # Requests that still run when the node stops get one lease, as the leadership itself would.
    grace = max(1, round(config.lease.duration_ms / 1000))
    return _Server(
        uvicorn.Config(
            application,  # type: ignore[arg-type]
            lifespan="off",
            interface="asgi3",
            ws="none",
            access_log=False,
            log_config=None,
            server_header=False,
            timeout_graceful_shutdown=grace,
        ),
        on_started,
    )


async def _lead(member: Member, writer: GroupCommitWriter) -> None:
    """Hold every leadership that this member wins: the writer takes payments under it for as long as it lasts."""
    async for leadership in member.terms():
        with contextlib.suppress(LeadershipLost):
            async with leadership:
                try:
                    await asyncio.shield(leadership.lost)
                finally:
                    # The member releases the leadership when this body has returned, and its successor then waits
                    # for nothing: so no write of ours may still be under way.
                    await writer.drain()


async def _end_if_failed(member: Member, log: ServiceLog) -> None:
    error = await member.failed
    event = "member_removed" if isinstance(error, MemberRemoved) else "node_failed"
    log.logger.critical(event, reason=f"{type(error).__name__}: {error}")
    # Unwinding would call into an engine whose state is undefined (R2). The peers and the database see the sockets
    # close, and the log is not buffered.
    os._exit(EXIT_REFUSED if isinstance(error, FoundingRefused | MemberRemoved | WrongCluster) else EXIT_FAILED)


@contextlib.contextmanager
def _stopping_on_signals(stop: asyncio.Event) -> Iterator[None]:
    """Set ``stop`` on the first SIGTERM or SIGINT; a second one ends the process where it stands."""
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(EXIT_FAILED)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
