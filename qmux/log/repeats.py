"""Repeated lines are limited and counted."""

from __future__ import annotations

import enum
import logging
from typing import Any

REPEAT_WINDOW_S = 10.0
"""In this time the same line is written at most ``REPEAT_BURST`` times; the next one says how many were left out."""

REPEAT_BURST = 5
"""Enough to see that it is not a single one."""

MAX_TRACKED_LINES = 512
"""Different lines that are counted at a time; a flood of different ones is not what the limit is for."""


class Reason(str):
    """A line's ``reason`` as text, with the ``kind`` by which lines with it are told apart: a word of ours."""

    kind: object

    def __new__(cls, kind: object, text: str) -> Reason:
        """``text`` may quote a peer, ``kind`` must not."""
        reason = super().__new__(cls, text)
        reason.kind = kind
        return reason


class RepeatFilter(logging.Filter):
    """Lets a line through ``REPEAT_BURST`` times a window; the first of the next one says how many were held back.

    Lines are the same when logger, level, template, ``service``, ``client`` and the kind of ``reason`` are. The words
    of a reason do not count: a stranger who says something else each time could write without limit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._seen: dict[tuple[Any, ...], list[float]] = {}  # key → [window start, written, held back]

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether ``record`` is written; sets its ``repeated``."""
        extra = tuple(str(getattr(record, name, "")) for name in ("service", "client"))
        key = (record.name, record.levelno, str(record.msg), extra, _kind(getattr(record, "reason", None)))
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


def _kind(reason: object) -> str:
    kind = reason if isinstance(reason, enum.Enum) else getattr(reason, "kind", "")
    return str(kind)
