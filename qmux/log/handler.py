"""From ``logging`` to the writer: a record becomes text where it is made, and is written elsewhere."""

from __future__ import annotations

import logging
import time

from typing_extensions import override

from qmux.log.writer import Writer

FLUSH_S = 0.5
"""The end of a process waits so long for its last lines, whoever reads them."""


class LogHandler(logging.Handler):
    """Writes to ``fd``. Where ``before`` writes to the same place, its writer is taken over; else its last lines come
    first, and it is closed.
    """

    writer: Writer

    def __init__(self, fd: int, formatter: logging.Formatter, before: LogHandler | None = None) -> None:
        """Raises OSError where no thread can be started for the writer."""
        self._before: Writer | None = None
        if before is not None and before.writer.leads_to(fd):
            self.writer = before.writer
            self.writer.describe_loss = self._loss
        else:
            self._before = before.writer if before is not None else None
            self.writer = Writer(fd, self._loss, after=self._before)
        super().__init__()  # after what may fail: ``logging.shutdown`` flushes every handler that was begun
        self.setFormatter(formatter)

    def replaces_before(self) -> None:
        """Nothing goes to ``before`` any more."""
        if self._before is not None:
            self._before.close()
            self._before = None

    @override
    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        try:
            text = self.format(record)
        except Exception as error:  # a record that cannot become text is a defect: of whom, it says itself
            text = self.format(_record(logging.ERROR, "a log line could not be made", line=record.msg, reason=error))
        self.writer.put(text)

    @override
    def flush(self) -> None:
        """Wait for the last lines, ``FLUSH_S`` at most; ``logging.shutdown`` does."""
        self.writer.flush(FLUSH_S)

    def say(self, text: str) -> None:
        """Write ``text`` as it is."""
        self.writer.put(text)

    def forked(self) -> None:
        """In the child of a fork: it has no thread, and what waited is the parent's to write."""
        self.writer = Writer(self.writer.fd, self._loss)

    def _loss(self, count: int, reason: str) -> str:
        return self.format(_record(logging.WARNING, "log lines were lost", count=count, reason=reason))


def _record(level: int, text: str, **fields: object) -> logging.LogRecord:
    known = {"name": __name__, "levelno": level, "levelname": logging.getLevelName(level), "created": time.time()}
    return logging.makeLogRecord({**known, "msg": text, **fields})
