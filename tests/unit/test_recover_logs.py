"""Reading the logs: the last write of each node, from JSON or any text, at the price of the file's end."""

from __future__ import annotations

import json
from pathlib import Path

from tenure.core.verdict import LogWrite
from tenure.recovery.logs import TAIL_BYTES, read_logs


def committed(node: str, token: int, second: int) -> str:
    """A line as the payment service writes it."""
    return json.dumps(
        {
            "event": "payment_committed",
            "statement": "INSERT INTO payment_events",
            "node": node,
            "token": token,
            "term": 6,
            "amount": 250,
            "ts": f"2026-11-23T02:15:{second:02}.123456Z",
        }
    )


def test_last_write_is_found_when_the_log_is_json(tmp_path: Path):
    log = tmp_path / "payment-1b.log"
    log.write_text("\n".join([committed("payment-1b", 6, 1), committed("payment-1b", 7, 2), '{"event": "x"}', ""]))
    writes, missing = read_logs([str(tmp_path / "*.log")])
    assert writes == [
        LogWrite(node="payment-1b", path=str(log), at="2026-11-23T02:15:02.123456Z", token=7),
    ]
    assert missing == []


def test_node_is_the_files_name_when_a_line_is_plain_text(tmp_path: Path):
    log = tmp_path / "payment-1c.log"
    log.write_text("2026-11-23 02:15:07,123 INFO INSERT INTO payment_events (fencing_token=41, amount=5)\n")
    assert read_logs([str(log)])[0] == [LogWrite(node="payment-1c", path=str(log), at="2026-11-23 02:15:07", token=41)]


def test_what_a_line_does_not_tell_is_unknown_when_it_is_bare(tmp_path: Path):
    log = tmp_path / "payment-1c.log"
    log.write_bytes(b"\xff\xfe INSERT INTO payment_events\n")
    assert read_logs([str(log)])[0] == [LogWrite(node="payment-1c", path=str(log))]


def test_missing_files_and_empty_logs_are_said_when_nothing_is_found(tmp_path: Path):
    (tmp_path / "payment-1a.log").write_text("nothing here\n")
    (tmp_path / "folder.log").mkdir()
    writes, missing = read_logs([str(tmp_path / "*.log"), str(tmp_path / "none" / "*.log")])
    assert writes == []
    assert len(missing) == 3
    assert "folder.log cannot be read" in missing[0]
    assert "payment-1a.log has no INSERT INTO payment_events" in missing[1]
    assert "no file matches" in missing[2]


def test_only_the_end_is_read_when_the_log_is_long(tmp_path: Path):
    log = tmp_path / "payment-1b.log"
    with log.open("w") as file:
        file.write(committed("payment-1b", 1, 1) + "\n")
        file.seek(TAIL_BYTES * 1000)
        file.write("\n" + committed("payment-1b", 7, 2) + "\n")
    assert [write.token for write in read_logs([str(log)])[0]] == [7]


def test_line_cut_in_half_is_still_told_when_the_tail_begins_in_it(tmp_path: Path):
    log = tmp_path / "payment-1b.log"
    line = committed("payment-1b", 7, 2)
    log.write_text("x" * 100 + line[:-1] + "\n" + "y" * (TAIL_BYTES - len(line) + 20) + "\n")
    assert [write.token for write in read_logs([str(log)])[0]] == [7]
