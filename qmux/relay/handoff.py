"""Handing an accepted user to the worker whose client was chosen: SCM_RIGHTS over one socket pair for two workers."""

from __future__ import annotations

import array
import asyncio
import logging
import os
import socket
from collections.abc import Callable

import msgspec

from qmux.channel import receive

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 4096
BATCH = 32
FULL_PAUSE_S = 0.1
"""As many users as this worker may have: look again after this time."""

MAX_HOPS = 2
"""A user that was handed on this often stays where it is: views that disagree must not play ball with it."""


class Handoff(msgspec.Struct, frozen=True):
    """What goes with the descriptor. ``waited_ms``: how long the user has waited so far."""

    service: str
    source: str
    dest: str
    conn_id: int
    principal: str
    session: bytes
    hops: int
    waited_ms: int
    tried: tuple[tuple[str, bytes], ...] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Handoff)
OnHandoff = Callable[[socket.socket, Handoff], None]


class HandoffLink:
    """Our end of the pair with one other worker. ``may_take`` is asked before each user: without a descriptor for it,
    the kernel would drop it. What is not taken stays in the pair, and where that is full the other chooses again.
    """

    def __init__(self, sock: socket.socket, on_handed: OnHandoff, may_take: Callable[[], bool] = lambda: True) -> None:
        self._socket = sock
        self._on_handed = on_handed
        self._may_take = may_take
        self._resume: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        sock.setblocking(False)
        self._read()

    def send(self, user: socket.socket, about: Handoff) -> bool:
        """Give ``user`` away and close our descriptor. False (and nothing changed) where the other does not take it."""
        data = _encoder.encode(about)
        if len(data) > MAX_MESSAGE_BYTES:
            return False  # the receiver would lose its end and the user with it
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [user.fileno()]))
        try:
            self._socket.sendmsg([data], [rights])
        except OSError:
            return False  # its queue is full, or it has just died: the caller chooses again
        user.close()
        return True

    def finish(self) -> None:
        """Take what the other worker has handed over, and no more: from now on its ``send`` says False."""
        if self._socket.fileno() < 0:
            return
        self._socket.shutdown(socket.SHUT_RD)  # before the last look: nothing can come in between (shutdown(2))
        self._may_take = lambda: True
        while self._socket.fileno() >= 0:
            self._on_readable()

    def close(self) -> None:
        """The other worker is gone; what it had not read yet is closed with the pair."""
        if self._resume is not None:
            self._resume.cancel()
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    def _read(self) -> None:
        self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            if not self._may_take():
                self._loop.remove_reader(self._socket.fileno())
                self._resume = self._loop.call_later(FULL_PAUSE_S, self._read)
                return
            try:
                data, fds, flags = receive(self._socket, MAX_MESSAGE_BYTES, 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self.close()
                return
            if not data:
                _close_all(fds)
                self.close()
                return
            self._received(data, fds, flags)

    def _received(self, data: bytes, fds: list[int], flags: int) -> None:
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or len(fds) != 1:
                raise ValueError(f"truncated, or with {len(fds)} descriptors instead of one")
            about = _decoder.decode(data)
            user = socket.socket(fileno=fds[0])
        except (ValueError, OSError, RecursionError) as error:  # ValueError: also msgspec's and Unicode's
            log.error("handed-off user connection could not be received", extra={"reason": error})
            _close_all(fds)
            return
        self._on_handed(user, about)


def _close_all(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
