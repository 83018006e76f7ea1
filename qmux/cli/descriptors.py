"""The three descriptors that every program expects, also where it was started without them (``2>&-``)."""

from __future__ import annotations

import contextlib
import io
import os
import sys


def open_standard() -> None:
    """Give every closed one of stdin, stdout and stderr to /dev/null: else the next file or socket that is opened takes
    its number, and receives what is written there. To be called before anything is opened.
    """
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            with contextlib.suppress(OSError):  # without /dev/null there is nothing to give
                _open_null(fd)
    # Python has None for a stream whose descriptor was closed when it started.
    sys.stdout = sys.stdout or _text_on(1)
    sys.stderr = sys.stderr or _text_on(2)


def _open_null(fd: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
    if null != fd:
        os.dup2(null, fd)
        os.close(null)


def _text_on(fd: int) -> io.TextIOWrapper:
    return open(fd, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # for as long as we run
