"""A record as text: one line for each event, for people or as JSON; what belongs to the event stands behind it."""

from __future__ import annotations

import json
import logging
import os
import time
from typing import Any

from typing_extensions import override

from qmux.heard import clipped, escaped
from qmux.log.journal import prefix
from qmux.log.repeats import REPEAT_WINDOW_S

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "repeated"}

MAX_LINE_BYTES = 4000
"""A line that is written with one call reaches a pipe whole if it has at most 4,096 bytes (pipe(7), PIPE_BUF), whoever
else writes there. A priority and a newline have room too."""

MAX_TEXT_BYTES = 1000
"""Of a message, of a value: no value is so long by its nature, and the others of its line have room."""

MAX_TRACEBACK_LINES = 200


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class LineFormatter(logging.Formatter):
    """What both formats share. ``process`` names this process in each line; ``for_journal``: each line begins with its
    priority and has no time, which the journal has.
    """

    def __init__(self, process: str, for_journal: bool = False) -> None:
        super().__init__()
        self._process = process
        self._for_journal = for_journal

    @override
    def format(self, record: logging.LogRecord) -> str:
        """Lines without a newline at the end, none longer than ``MAX_LINE_BYTES``."""
        lines = self.lines(record)
        if self._for_journal:
            mark = prefix(record.levelno)
            lines = [mark + line for line in lines]
        return "\n".join(lines)

    def lines(self, record: logging.LogRecord) -> list[str]:
        """The record's lines."""
        raise NotImplementedError


class HumanFormatter(LineFormatter):
    """``2026-11-20T12:00:01.123Z warning worker-0    text  service=a client=pod-1``, UTC."""

    @override
    def lines(self, record: logging.LogRecord) -> list[str]:
        """One line, and the traceback where there is one."""
        head = f"{record.levelname.lower():7} {self._process:11} "
        if not self._for_journal:
            clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            head = f"{clock}.{int(record.msecs):03d}Z {head}"
        text = _text(record.getMessage()) + _repeat_note(record)
        fields = " ".join(f"{name}={_shown(value)}" for name, value in fields_of(record).items())
        lines = [clipped(head + text + ("  " + fields if fields else ""), MAX_LINE_BYTES)]
        if record.exc_info:
            lines += [clipped(escaped(line), MAX_LINE_BYTES) for line in _traceback(self, record)]
        return lines


class JsonFormatter(LineFormatter):
    """One JSON object a line: ``ts`` (seconds), ``level``, ``process``, ``pid``, ``event``, then the fields."""

    @override
    def lines(self, record: logging.LogRecord) -> list[str]:
        """One object on one line."""
        entry: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "event": record.getMessage(),
            **fields_of(record),
        }
        if self._for_journal:
            del entry["ts"]
        if repeated := getattr(record, "repeated", 0):
            entry["repeated"] = repeated
        if record.exc_info:
            entry["traceback"] = "\n".join(_traceback(self, record))
        return [_object(entry)]


def _object(entry: dict[str, Any]) -> str:
    line = _json(entry)
    while len(line.encode()) > MAX_LINE_BYTES:
        longest = max(entry, key=lambda name: len(_json(entry[name])))
        text = str(entry[longest])
        half = len(text) // 2
        # The end of a traceback tells most, and the beginning of everything else.
        entry[longest] = "…" + text[-half:] if longest == "traceback" else text[:half] + "…"
        line = _json(entry)
    return line


def _json(value: object) -> str:
    """Every character that cannot be printed as an escape of JSON; it stands within a string."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    assert record.exc_info, "asked for"
    lines = formatter.formatException(record.exc_info).split("\n")
    left_out = len(lines) - MAX_TRACEBACK_LINES
    return lines if left_out <= 0 else [lines[0], f"  ({left_out} lines are left out)", *lines[left_out + 1 :]]


def _repeat_note(record: logging.LogRecord) -> str:
    repeated = getattr(record, "repeated", 0)
    return f" ({repeated} more like this in the last {REPEAT_WINDOW_S:.0f} s were not shown)" if repeated else ""


def _shown(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and text and not any(c in text for c in ' "=')
    return clipped(text, MAX_TEXT_BYTES) if is_plain else f'"{_text(text).replace(chr(34), chr(92) + chr(34))}"'


def _text(text: str) -> str:
    return clipped(escaped(text), MAX_TEXT_BYTES)
