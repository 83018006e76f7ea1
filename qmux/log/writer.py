"""The one place that writes the log: a thread of its own, so that nothing else ever waits for who reads the log.

A pipe whose reader stopped, a terminal after Ctrl-S and a full disk block or refuse a write. Making the descriptor
non-blocking is no way out: all processes of a daemon, and the shell that started it, share its flags (open(2)).
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import threading
from collections.abc import Callable
from queue import SimpleQueue

MAX_QUEUED_BYTES = 1 << 20
"""Some thousand lines; what does not fit is counted. Each process may hold as much while nobody reads its log."""

LINE_COST_BYTES = 100
"""What a queued line takes besides its text."""

HANDOVER_S = 1.0
"""So long a new target waits for the last lines to reach the old one, which may be the same file."""

READY_WAIT_MS = 1000

TOO_SLOW = "they came faster than the log was read"


class Writer:
    """Writes lines to ``fd`` in the order of ``put``, which never waits. ``fd`` is duplicated and stays the caller's.

    ``describe_loss`` makes the line that tells how many lines were lost, and why. ``after``: the writer in whose place
    this one comes; it is closed first. Raises OSError where no thread can be started.
    """

    def __init__(self, fd: int, describe_loss: Callable[[int, str], str], after: Writer | None = None) -> None:
        self.describe_loss = describe_loss
        try:
            self.fd, self._owns_fd = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3), True
        except OSError:  # none is left, or ``fd`` is closed: then a write says so
            self.fd, self._owns_fd = fd, False
        self._after = after
        self._lines: SimpleQueue[tuple[bytes, int] | threading.Event | None] = SimpleQueue()
        # Each of these only grows, and is changed by one side only, so that no lock can hold who logs.
        self._put_bytes = self._dropped = 0
        self._done_bytes = self._dropped_told = 0
        self._failed = 0
        self._failure = ""
        self._is_torn = self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="log", daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            raise OSError(errno.EAGAIN, "no thread can be started: is a limit of processes (pids) reached?") from None

    def leads_to(self, fd: int) -> bool:
        """Whether ``fd`` is the same file, pipe or terminal; a closed writer leads nowhere."""
        try:
            return not self._is_closed and os.path.samestat(os.fstat(fd), os.fstat(self.fd))
        except OSError:
            return False

    def put(self, text: str) -> None:
        """Write ``text`` and a newline as soon as that is possible; count it as lost where too much waits already."""
        data = text.encode("utf-8", "backslashreplace") + b"\n"
        cost = len(data) + LINE_COST_BYTES
        if self._put_bytes + cost - self._done_bytes > MAX_QUEUED_BYTES:
            self._dropped += 1
            return
        self._put_bytes += cost
        self._lines.put((data, self._dropped))

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything that was put is written or failed, but no longer than that. Returns whether it is."""
        if self._is_closed:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        written = threading.Event()
        self._lines.put(written)
        return written.wait(timeout_s)

    def close(self) -> None:
        """End the thread once it has written what was put; nobody waits for that."""
        self._is_closed = True
        self._lines.put(None)

    # --- the thread ---

    def _run(self) -> None:
        if self._after is not None:
            self._take_over(self._after)
            self._after = None
        while (item := self._lines.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            data, dropped_before = item
            self._write_line(data, dropped_before)
            self._done_bytes += len(data) + LINE_COST_BYTES
            if self._lines.empty():
                self._tell_loss(self._dropped)
        if self._owns_fd:
            os.close(self.fd)

    def _take_over(self, after: Writer) -> None:
        after._thread.join(HANDOVER_S)
        if not after._thread.is_alive():  # what it could not tell, of a full disk perhaps, is told here
            self._failed = after._dropped - after._dropped_told + after._failed
            self._failure = after._failure

    def _write_line(self, data: bytes, dropped_before: int) -> None:
        if not self._tell_loss(dropped_before) or not self._write(data):
            self._failed += 1

    def _tell_loss(self, dropped: int) -> bool:
        """Say what was lost up to here, where something was. False: that cannot be written either."""
        count = dropped - self._dropped_told + self._failed
        if not count:
            return True
        text = self.describe_loss(count, self._failure or TOO_SLOW)
        if not self._write(text.encode("utf-8", "backslashreplace") + b"\n"):
            return False
        self._dropped_told, self._failed, self._failure = dropped, 0, ""
        return True

    def _write(self, data: bytes) -> bool:
        if self._is_torn:  # the disk was full in the middle of a line
            data = b"\n" + data
        rest = data
        while rest:
            try:
                rest = rest[os.write(self.fd, _whole_lines(rest)) :]
            except BlockingIOError:  # somebody who shares the descriptor made it non-blocking
                poll = select.poll()
                poll.register(self.fd, select.POLLOUT)
                poll.poll(READY_WAIT_MS)
            except OSError as error:
                self._failure = error.strerror or str(error)
                self._is_torn = self._is_torn if rest is data else not data[: len(data) - len(rest)].endswith(b"\n")
                return False
        self._is_torn = False
        return True


def _whole_lines(data: bytes) -> bytes:
    """As many whole lines as one call writes to a pipe without another process's lines in between."""
    if len(data) <= select.PIPE_BUF:
        return data
    end = data.rfind(b"\n", 0, select.PIPE_BUF) + 1
    return data[: end or select.PIPE_BUF]
