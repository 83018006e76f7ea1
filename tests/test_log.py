from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator

import pytest

from qmux import log as qmux_log
from qmux.log import MAX_TRACKED_LINES, REPEAT_BURST, REPEAT_WINDOW_S, RepeatFilter

log = logging.getLogger("qmux.test")


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("quic", "asyncio", "aiohttp")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)


def configured(style: str = "human", level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    qmux_log.configure(level, style, "worker-0", stream)
    return stream


def written(stream: io.StringIO) -> dict[str, object]:
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert isinstance(entry, dict)
    return entry


# --- for people ---


def test_a_line_for_people() -> None:
    stream = configured()
    log.warning("user connection refused", extra={"service": "web", "reason": "no client serves it", "conn": 7})
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z warning worker-0    user connection refused"
        r'  service=web reason="no client serves it" conn=7\n',
        stream.getvalue(),
    )


def test_without_fields() -> None:
    stream = configured()
    log.info("serving %d binds", 3)
    assert stream.getvalue().endswith(" info    worker-0    serving 3 binds\n")


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
    stream = configured()
    log.info("x", extra={"field": value})
    assert stream.getvalue().endswith(f"  field={shown}\n")


def test_a_message_stays_on_its_line() -> None:
    stream = configured()
    log.info("peer says %s", "hello\r\n2026-11-20 error forged \x1b[31m")
    assert stream.getvalue().count("\n") == 1
    assert r"hello\r\n2026-11-20 error forged \x1b[31m" in stream.getvalue()


def test_a_traceback_follows() -> None:
    stream = configured()
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        log.exception("task failed", extra={"service": "web"})
    lines = stream.getvalue().splitlines()
    assert lines[0].endswith("task failed  service=web")
    assert lines[1].startswith("Traceback")
    assert lines[-1] == "RuntimeError: a defect"


# --- JSON ---


def test_an_object_for_programs() -> None:
    stream = configured("json")
    log.error("no %s", "luck", extra={"service": "web", "reason": ValueError("x\ny"), "count": 3})
    entry = written(stream)
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
    stream = configured("json")
    try:
        raise RuntimeError("a defect")
    except RuntimeError:
        log.exception("task failed")
    assert "RuntimeError: a defect" in str(written(stream)["traceback"])


def test_repeats_are_counted_in_the_object() -> None:
    stream = configured("json")
    line = logging.makeLogRecord({"msg": "x", "levelno": logging.INFO, "levelname": "INFO", "created": 100.0})
    handler = logging.getLogger().handlers[0]
    for _ in range(REPEAT_BURST + 7):
        handler.handle(line)
    line.created += REPEAT_WINDOW_S
    handler.handle(line)
    entries = [json.loads(each) for each in stream.getvalue().splitlines()]
    assert [entry.get("repeated") for entry in entries] == [None] * REPEAT_BURST + [7]


# --- configure ---


def test_levels() -> None:
    stream = configured(level="warning")
    log.info("not shown")
    log.warning("shown")
    assert "not shown" not in stream.getvalue()
    assert "shown" in stream.getvalue()


def test_configured_again_writes_once() -> None:
    first = configured()
    second = configured("json")
    log.info("x")
    assert not first.getvalue()
    assert written(second)["event"] == "x"


def test_what_libraries_say_of_peers_is_left_out() -> None:
    stream = configured(level="info")
    logging.getLogger("quic").warning("peer did something")
    logging.getLogger("asyncio").warning("socket.send() raised exception")
    logging.getLogger("aiohttp.access").info("GET /healthz")
    assert not stream.getvalue()


# --- repeated lines ---


class Lines:
    """Lines at given times, and whether each was let through with which count."""

    def __init__(self) -> None:
        self.limit = RepeatFilter()

    def at(self, created: float, text: object = "x", **extra: object) -> int | None:
        """The count of those that were held back, or None where this one is."""
        record = logging.makeLogRecord({"msg": text, "created": created, "name": "n", "levelno": 20, **extra})
        return int(getattr(record, "repeated", 0)) if self.limit.filter(record) else None


def test_a_burst_is_let_through_and_the_rest_counted() -> None:
    lines = Lines()
    assert [lines.at(100.0 + each / 10) for each in range(10)] == [0] * REPEAT_BURST + [None] * 5
    assert lines.at(100.0 + REPEAT_WINDOW_S) == 5
    assert lines.at(100.1 + REPEAT_WINDOW_S) == 0
    assert lines.at(100.0 + 3 * REPEAT_WINDOW_S) == 0


def test_the_count_is_shown() -> None:
    stream = configured()
    record = logging.makeLogRecord({"msg": "x", "levelname": "INFO", "levelno": 20, "created": 100.0})
    handler = logging.getLogger().handlers[0]
    for _ in range(REPEAT_BURST + 3):
        handler.handle(record)
    record.created = 200.0
    handler.handle(record)
    assert stream.getvalue().splitlines()[-1].endswith("x (3 more like this in the last 10 s were not shown)")


@pytest.mark.parametrize(
    ("extra", "is_same"),
    [
        ({"service": "b"}, False),
        ({"client": "pod-2"}, False),
        ({"reason": "other"}, False),
        ({"levelno": 30}, False),
        ({"name": "other"}, False),
        ({"source": "192.0.2.1:1"}, True),
        ({"conn": 8}, True),
    ],
)
def test_which_lines_are_the_same(extra: dict[str, object], is_same: bool) -> None:
    lines = Lines()
    first = {"service": "a", "client": "pod-1", "reason": "r", "conn": 7, "source": "x"}
    for _ in range(REPEAT_BURST):
        lines.at(100.0, **first)
    assert (lines.at(100.0, **{**first, **extra}) is None) is is_same


def test_a_flood_of_different_lines_keeps_little() -> None:
    lines = Lines()
    for number in range(10 * MAX_TRACKED_LINES):
        assert lines.at(100.0, f"line {number}") == 0
    assert len(lines.limit._seen) == MAX_TRACKED_LINES


def test_a_clock_that_was_set_back_silences_nothing() -> None:
    lines = Lines()
    for _ in range(REPEAT_BURST + 2):
        lines.at(100_000.0)
    assert lines.at(50_000.0) == 2


def test_messages_of_any_type() -> None:
    lines = Lines()
    assert lines.at(100.0, {"not": "hashable"}) == 0
    assert lines.at(100.0, ValueError("x")) == 0
