"""The service's log: one JSON object per line, to the node's file and to stderr.

After each commit there is one line per row, and only these lines contain ``INSERT INTO payment_events``: grep over
the files tells which nodes really wrote. A refused or unknown attempt must never contain those words, and no line
ever carries a credential. The log must never fail a payment: what cannot be written is dropped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import traceback
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
import structlog

from payment_service.identifiers import format_payment_id
from payment_service.session import NewRow
from tenure import ConfigError, Leadership

COMMITTED_STATEMENT: Final = "INSERT INTO payment_events"
_STDERR: Final = 2


class _Sink:
    """Writes whole lines to the file and to stderr. Appending writes of one call each are never torn apart."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        self._targets = [self._file, _STDERR]

    def write(self, data: bytes) -> None:
        for target in self._targets:
            with contextlib.suppress(OSError):
                os.write(target, data)

    def flush(self) -> None:
        """Nothing is buffered."""

    def close(self) -> None:
        """Close the file; later lines go to stderr alone."""
        self._targets.remove(self._file)
        os.close(self._file)


class ServiceLog:
    """The log of one node. ``logger`` is a structlog logger; :meth:`committed` is the fast way for committed rows."""

    def __init__(self, log_dir: str | Path, *, cluster: str, node: str) -> None:
        """Open ``<log_dir>/<node>.log`` for appending, making the folder if need be; ConfigError if that fails."""
        self.path = Path(log_dir) / f"{node}.log"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sink = _Sink(self.path)
        except OSError as error:
            raise ConfigError("node.log_dir", f"{self.path} cannot be opened for writing: {error}") from None
        self._cluster = cluster
        self._node = node
        self._bridge = _Bridge(self)
        self.logger: structlog.typing.FilteringBoundLogger = structlog.wrap_logger(
            structlog.BytesLogger(self._sink),  # type: ignore[arg-type]
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True, key="ts"),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(serializer=_encode_ordinary),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            cluster=cluster,
            node=node,
        )

    def committed(self, rows: Sequence[NewRow], leadership: Leadership) -> None:
        """Tell each row that the database has just committed, in one write for all of them."""
        at = datetime.now(UTC)
        lines = [
            _encode(
                {
                    "event": "payment_committed",
                    "statement": COMMITTED_STATEMENT,
                    "node": self._node,
                    "token": leadership.token,
                    "term": leadership.term,
                    "payment_id": format_payment_id(row.payment_id),
                    "amount": row.request.amount,
                    "currency": row.request.currency,
                    "cluster": self._cluster,
                    "level": "info",
                    "ts": at,
                }
            )
            for row in rows
        ]
        if lines:
            self._sink.write(b"\n".join(lines) + b"\n")

    def attach_standard_logging(self) -> None:
        """Send what libraries log through :mod:`logging` to the same lines, from INFO upwards."""
        root = logging.getLogger()
        root.addHandler(self._bridge)
        root.setLevel(logging.INFO)
        for name in ("uvicorn", "psycopg.pool", "httpx2", "httpcore2", "asyncio"):
            logging.getLogger(name).setLevel(logging.WARNING)

    def close(self) -> None:
        """Detach from :mod:`logging` and close the file."""
        logging.getLogger().removeHandler(self._bridge)
        self._sink.close()


class _Bridge(logging.Handler):
    """Turns a record of the standard library's logging into a line of this log.

    Tenure's own records (the role journal among them) carry their facts in the attribute ``tenure``.
    """

    def __init__(self, log: ServiceLog) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; a record that cannot be formatted says so instead of raising."""
        fields: dict[str, Any] = {"logger": record.name, **getattr(record, "tenure", {})}
        if record.exc_info:
            fields["exception"] = "".join(traceback.format_exception(*record.exc_info))
        try:
            text = record.getMessage()
        except (TypeError, ValueError):
            text = str(record.msg)
        self._log.logger.log(record.levelno, text, **fields)


def _encode(value: Any) -> bytes:
    return msgspec.json.encode(value, enc_hook=str)


def _encode_ordinary(value: Any, **_: Any) -> bytes:
    """Encode a line that tells of no commit; where an error quotes the statement, the words are broken up."""
    words = COMMITTED_STATEMENT.encode()
    return _encode(value).replace(words, words.replace(b" INTO ", b" into "))
