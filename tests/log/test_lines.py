from __future__ import annotations

import json
import logging
import os
import re

import pytest

from qmux.log.lines import MAX_LINE_BYTES, MAX_TRACEBACK_LINES
from qmux.log.repeats import REPEAT_BURST, REPEAT_WINDOW_S
from tests.log.made import configured

log = logging.getLogger("qmux.test")


# --- for people ---


def test_a_line_for_people() -> None:
    written = configured()
    log.warning("user connection refused", extra={"service": "web", "reason": "no client serves it", "conn": 7})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning worker-0    user connection refused"
        r'  service=web reason="no client serves it" conn=7\n',
        written.text,
    )


def test_without_fields() -> None:
    written = configured()
    log.info("serving %d binds", 3)
    assert written.text.endswith(" info    worker-0    serving 3 binds\n")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("web", "web"),
        ("", '""'),
        ("a b", '"a b"'),
        ("a=b", '"a=b"'),
        ('say "x"', r'"say \"x\""'),
        (None, "None"),
        (ValueError("no such thing"), '"no such thing"'),
        ("pod\n2026 error", r'"pod\n2026 error"'),
        ("\x1b[2J", r'"\x1b[2J"'),
        ("a\x9bb\u2028", r'"a\x9bb\u2028"'),
        ("\udcff", r'"\udcff"'),
        ("Größe", "Größe"),
    ],
)
def test_values(value: object, shown: str) -> None:
    written = configured()
    log.info("x", extra={"field": value})
    assert written.text.endswith(f"  field={shown}\n")


def test_a_message_stays_on_its_line() -> None:
    written = configured()
    log.info("peer says %s", "hello\r\n2026-11-20 error forged \x1b[31m")
    assert written.text.count("\n") == 1
    assert r"hello\r\n2026-11-20 error forged \x1b[31m" in written.text


def test_a_traceback_follows() -> None:
    written = configured()
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        log.exception("task failed", extra={"service": "web"})
    lines = written.lines
    assert lines[0].endswith("task failed  service=web")
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "RuntimeError: a defect"


# --- JSON ---


def test_an_object_for_programs() -> None:
    written = configured("json")
    log.error("no %s", "luck", extra={"service": "web", "reason": ValueError("x\ny"), "count": 3})
    entry = written.entry
    assert isinstance(entry.pop("ts"), float)
    assert entry == {
        "level": "error",
        "process": "worker-0",
        "pid": os.getpid(),
        "event": "no luck",
        "service": "web",
        "reason": "x\ny",
        "count": 3,
    }


def test_a_traceback_stays_in_the_object() -> None:
    written = configured("json")
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        log.exception("task failed")
    assert "RuntimeError: a defect" in str(written.entry["traceback"])


def test_repeats_are_counted_in_the_object() -> None:
    written = configured("json")
    line = logging.makeLogRecord({"msg": "x", "levelno": logging.INFO, "levelname": "INFO", "created": 100.0})
    handler = logging.getLogger().handlers[0]
    for _ in range(REPEAT_BURST + 7):
        handler.handle(line)
    line.created += REPEAT_WINDOW_S
    handler.handle(line)
    entries = [json.loads(each) for each in written.lines]
    assert [entry.get("repeated") for entry in entries] == [None] * REPEAT_BURST + [7]


@pytest.mark.parametrize("style", ["human", "json"])
def test_nothing_that_steers_a_terminal_is_written(style: str) -> None:
    written = configured(style)
    hostile = "a\x9b2J\x1b[31m\u2028\u202e\udcff\U000e0001\nb"
    log.warning("peer says %s", hostile, extra={"reason": hostile})
    (line,) = written.text.removesuffix("\n").split("\n")
    assert line.isprintable()
    if style == "json":
        assert written.entry["reason"] == hostile


@pytest.mark.parametrize("style", ["human", "json"])
def test_no_line_is_longer_than_what_a_pipe_takes_whole(style: str) -> None:
    written = configured(style)
    try:
        raise RuntimeError("x" * 10_000 + "the end")
    except RuntimeError:
        log.exception("y" * 5000, extra={"many": ["\x9b" * 3000] * 9, "reason": "ä" * 9000, "service": "web"})
    assert all(len(line.encode()) <= MAX_LINE_BYTES for line in written.lines)
    assert "web" in written.text
    if style == "json":
        assert str(written.entry["traceback"]).endswith("the end")


def test_a_long_traceback_keeps_its_end() -> None:
    written = configured()
    try:
        raise RuntimeError("\n".join(map(str, range(1000))))
    except RuntimeError:
        log.exception("task failed")
    assert len(written.lines) == MAX_TRACEBACK_LINES + 2
    assert written.lines[-1] == "999"


@pytest.mark.parametrize("style", ["human", "json"])
def test_a_line_that_cannot_be_made_says_which(style: str) -> None:
    written = configured(style)
    log.info("no %d", "number")
    assert "a log line could not be made" in written.text
    assert "no %d" in written.text


# --- configure ---


def test_levels() -> None:
    written = configured(level="warning")
    log.info("not shown")
    log.warning("shown")
    assert "not shown" not in written.text
    assert "shown" in written.text


def test_configured_again_writes_once() -> None:
    first = configured()
    second = configured("json")
    log.info("x")
    assert not first.text
    assert second.entry["event"] == "x"


def test_what_libraries_say_of_peers_is_left_out() -> None:
    written = configured(level="info")
    logging.getLogger("quic").warning("peer did something")
    logging.getLogger("asyncio").warning("socket.send() raised exception")
    logging.getLogger("aiohttp.access").info("GET /healthz")
    assert not written.text
