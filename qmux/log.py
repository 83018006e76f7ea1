"""Logging: one line for each event, for people or as JSON; repeated lines are limited and counted.

Every module logs with the standard library, ``logging.getLogger(__name__)``, and passes what belongs to the event as
``extra={"service": …, "client": …}``: the formatters here show those fields. A child process writes to the stderr that
it inherited, so that the supervisor alone opens ``[log] file``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, TextIO

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "repeated"}

REPEAT_WINDOW_S = 10.0
"""In this time the same line is written at most ``REPEAT_BURST`` times; the next one says how many were left out."""

REPEAT_BURST = 5
"""Enough to see that it is not a single one."""

MAX_TRACKED_LINES = 512
"""Different lines that are counted at a time; a flood of different ones is not what the limit is for."""


def configure(level: str, style: str, process: str, stream: TextIO | None = None) -> None:
    """Send this process's log to ``stream`` (default: stderr) as ``style`` "human" or "json".

    ``process`` names this process in each line. Called again on reload; replaces what was there.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(process) if style == "json" else HumanFormatter(process))
    handler.addFilter(RepeatFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # aioquic says at WARNING what a peer did wrong and asyncio what a socket did: both have counters and lines of ours.
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR if level != "debug" else logging.DEBUG)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was passed as ``extra``."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class HumanFormatter(logging.Formatter):
    """``2026-11-20T12:00:01.123Z warning worker-0    text  service=a client=pod-1``, UTC."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One line, and the traceback where there is one."""
        clock = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = f"{clock}.{int(record.msecs):03d}Z {record.levelname.lower():7} {self._process:11} "
        text = _one_line(record.getMessage()) + _repeat_note(record)
        fields = " ".join(f"{name}={_shown(value)}" for name, value in fields_of(record).items())
        lines = [head + text + ("  " + fields if fields else "")]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``ts`` (seconds), ``level``, ``process``, ``pid``, ``event``, then the fields."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        """One object on one line."""
        entry: dict[str, Any] = {
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": os.getpid(),
            "event": record.getMessage(),
            **fields_of(record),
        }
        if repeated := getattr(record, "repeated", 0):
            entry["repeated"] = repeated
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class RepeatFilter(logging.Filter):
    """Lets a line through ``REPEAT_BURST`` times a window; the first of the next one says how many were held back.

    Lines are the same when logger, level, template and ``service``, ``client`` and ``reason`` are.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, ...], list[float]] = {}  # key → [window start, written, held back]

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is written; sets its ``repeated``."""
        extra = tuple(str(getattr(record, name, "")) for name in ("service", "client", "reason"))
        key = (record.name, record.levelno, str(record.msg), extra)
        entry = self._seen.get(key)
        # Not only "later": a wall clock that was set back must not silence a line until it has caught up.
        if entry is None or not 0 <= record.created - entry[0] < REPEAT_WINDOW_S:
            record.repeated = int(entry[2]) if entry else 0
            self._forget_oldest()
            self._seen.pop(key, None)
            self._seen[key] = [record.created, 1, 0]
            return True
        if entry[1] < REPEAT_BURST:
            entry[1] += 1
            return True
        entry[2] += 1
        return False

    def _forget_oldest(self) -> None:
        while len(self._seen) >= MAX_TRACKED_LINES:
            self._seen.pop(next(iter(self._seen)))


def _repeat_note(record: logging.LogRecord) -> str:
    repeated = getattr(record, "repeated", 0)
    return f" ({repeated} more like this in the last {REPEAT_WINDOW_S:.0f} s were not shown)" if repeated else ""


def _shown(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and text and not any(c in text for c in ' "=')
    return text if is_plain else f'"{_one_line(text).replace(chr(34), chr(92) + chr(34))}"'


def _one_line(text: str) -> str:
    """What cannot be printed, escaped: a peer's words may neither begin a line of their own nor steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
