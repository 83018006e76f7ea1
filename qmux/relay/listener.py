"""Accepting users on the worker's share of a bind."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from typing_extensions import override

from qmux.quic.accepting import Bind

log = logging.getLogger(__name__)

BATCH = 32
"""Connections accepted in one turn of the loop, so that established ones keep their share."""

EXHAUSTED_PAUSE_S = 0.1
"""Out of descriptors or memory: look again after this time; the kernel's queue holds the users meanwhile."""

CLOSING_BATCH = 4096
"""Users taken from the queue of a listener that closes, at most: the kernel's own limit of a queue (somaxconn)."""

OnAccept = Callable[[socket.socket, object], None]


class Listener(Bind):
    """One listening socket. Nothing is accepted before ``start``; ``may_accept`` is asked before each connection."""

    def __init__(self, sock: socket.socket, service: str, on_accept: OnAccept, may_accept: Callable[[], bool]) -> None:
        self.service = service
        self.address = sock.getsockname()
        self._socket = sock
        self._on_accept = on_accept
        self._may_accept = may_accept
        self._loop = asyncio.get_running_loop()
        self._reading = False
        self._resume: asyncio.TimerHandle | None = None
        self._socket.setblocking(False)

    @override
    def start(self) -> None:
        if not self._reading and self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket.fileno(), self._on_readable)
            self._reading = True

    @override
    def close(self, shutdown: bool) -> None:
        """Accept no more. Without ``shutdown`` the queue is left to whoever holds a duplicate of the listener. With it
        the bind is over for everybody (shutdown(2) acts on the socket, close(2) on the descriptor): who is queued is
        taken first, since the kernel resets the queue.
        """
        for _ in range(CLOSING_BATCH if shutdown else 0):
            if not (self._may_accept() and self._accept_one()):
                break
        self._pause()
        if self._socket.fileno() < 0:
            return
        if shutdown:
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            if not self._may_accept():
                self._wait("as many users as this worker may have")
                return
            if not self._accept_one():
                return

    def _accept_one(self) -> bool:
        """Whether there may be another one."""
        if self._socket.fileno() < 0:
            return False
        try:
            sock, address = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionAbortedError:
            return True  # this user gave up while queued (accept(2)); the next one may not have
        except OSError as error:
            if error.errno == errno.EINVAL:  # shut down through a duplicate: this bind is over for everybody
                self._pause()
                self._socket.close()
            else:  # out of descriptors or memory, or a network error of that user (accept(2), "Error handling")
                self._wait(error.strerror or str(error))
            return False
        self._on_accept(sock, address)
        return True

    def _wait(self, reason: str) -> None:
        log.warning("accept paused", extra={"service": self.service, "reason": reason})
        self._pause()
        self._resume = self._loop.call_later(EXHAUSTED_PAUSE_S, self.start)

    def _pause(self) -> None:
        """Neither read nor wait to."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())
