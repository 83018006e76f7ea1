"""Logging: one line for each event, for people or as JSON; repeated lines are limited and counted; nothing ever waits.

Every module logs with the standard library, ``logging.getLogger(__name__)``, and passes what belongs to the event as
``extra={"service": …, "client": …}``: the formatters show those fields. Text that a peer chose is passed through
``qmux.heard`` first. A child process writes to the stderr that it inherited, so that the supervisor alone opens
``[log] file``. Each process has a writer of its own: a log that nobody reads costs lines, which are counted, and
nothing else.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from types import TracebackType
from typing import NamedTuple

from qmux.log.handler import LogHandler
from qmux.log.journal import leads_to_journal, prefix
from qmux.log.lines import HumanFormatter, JsonFormatter
from qmux.log.repeats import Reason as Reason
from qmux.log.repeats import RepeatFilter

log = logging.getLogger(__name__)

STDERR = 2


class _Settings(NamedTuple):
    level: str
    style: str
    process: str
    fd: int


_settings: _Settings | None = None


def configure(level: str, style: str, process: str, fd: int = STDERR) -> None:
    """Send this process's log to ``fd`` as ``style`` "human" or "json".

    ``process`` names this process in each line. Called again on reload; replaces what was there.
    """
    global _settings
    _settings = _Settings(level, style, process, fd)
    root = logging.getLogger()
    formatter = (JsonFormatter if style == "json" else HumanFormatter)(process, leads_to_journal(fd))
    handler = LogHandler(fd, formatter, before=_handler())
    handler.addFilter(RepeatFilter())
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    handler.replaces_before()
    # aioquic says at WARNING what a peer did wrong and asyncio what a socket did: both have counters and lines of ours.
    logging.getLogger("quic").setLevel(logging.CRITICAL)
    logging.getLogger("asyncio").setLevel(logging.ERROR if level != "debug" else logging.DEBUG)
    logging.getLogger("aiohttp").setLevel(logging.WARNING)


def moved() -> None:
    """The descriptor that was configured leads elsewhere now: follow it."""
    if _settings is not None:
        configure(*_settings)


def say(text: str, level: int = logging.ERROR, fd: int = STDERR) -> None:
    """Write ``text`` to ``fd`` after what was logged there, and wait for it a bounded time. For what a program says
    to its user at its end, without a time and a name before it.
    """
    if leads_to_journal(fd):
        text = "\n".join(prefix(level) + line for line in text.split("\n"))
    handler = _handler()
    if handler is None or not handler.writer.leads_to(fd):
        handler = LogHandler(fd, logging.Formatter())
    handler.say(text)
    handler.flush()


def log_uncaught() -> None:
    """From now on what nothing catches is logged like everything else: the interpreter itself would wait until it can
    write. For a process of a daemon.
    """
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    sys.unraisablehook = _unraisable
    logging.captureWarnings(True)


def _handler() -> LogHandler | None:
    return next((each for each in logging.getLogger().handlers if isinstance(each, LogHandler)), None)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):  # the process ends by the signal, which its parent sees
        return
    log.critical("unexpected error", exc_info=(kind, error, traceback))


def _uncaught_in_thread(failure: threading.ExceptHookArgs) -> None:
    error = failure.exc_value
    if error is not None:
        name = failure.thread.name if failure.thread is not None else "unknown"
        log.critical("unexpected error in a thread", exc_info=error, extra={"thread_name": name})


def _unraisable(failure: sys.UnraisableHookArgs) -> None:
    log.error("error that nothing can catch", exc_info=failure.exc_value, extra={"object": repr(failure.object)})


def _forked() -> None:
    if (handler := _handler()) is not None:
        handler.forked()


os.register_at_fork(after_in_child=_forked)
