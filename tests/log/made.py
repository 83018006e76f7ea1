"""This process's log, written to a file in memory; and the logging of the test runner as it was."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Iterator

from qmux import log as qmux_log


class Written:
    """Where a test's log goes. ``fd``: for whoever else writes there."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("log")

    @property
    def text(self) -> str:
        """Everything that was logged until now."""
        for handler in logging.getLogger().handlers:
            handler.flush()
        return os.pread(self.fd, 1 << 24, 0).decode()

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def entry(self) -> dict[str, object]:
        """The only line, as JSON."""
        (line,) = self.lines
        entry = json.loads(line)
        assert isinstance(entry, dict)
        return entry


def configured(style: str = "human", level: str = "info") -> Written:
    written = Written()
    qmux_log.configure(level, style, "worker-0", written.fd)
    return written


@contextlib.contextmanager
def logging_restored() -> Iterator[None]:
    """For a test that takes over the root logger."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in ("quic", "asyncio", "aiohttp")}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in levels.items():
        logging.getLogger(name).setLevel(was)
