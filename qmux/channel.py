"""The control channel between the supervisor and one child: typed messages and descriptors over SOCK_SEQPACKET.

Both ends run it on their event loop. Sending never blocks: what the kernel does not take is queued, up to a cap; a
child that does not read for that long is stuck, and the supervisor treats it so. A message above ``INLINE_BYTES``
travels in a sealed memfd (memfd_create(2)), since a SEQPACKET message must fit into the socket buffer whole.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import logging
import mmap
import os
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from qmux.messages import Down, Up

log = logging.getLogger(__name__)

INLINE_BYTES = 32_768
"""Far below the smallest default socket buffer, so that several messages fit at a time."""

MAX_BLOB_BYTES = 64 << 20
"""Largest message in a memfd: what a configuration with its certificates may reach."""

MAX_FDS = 250
"""Descriptors in one message (the kernel's SCM_MAX_FD is 253; one may be the memfd)."""

MAX_QUEUED = 4096
"""Messages that wait for a child to read; beyond this it is taken for stuck and the channel for broken."""

BATCH = 64

_FD_BYTES = array.array("i").itemsize
_INLINE, _BLOB = b"\x00", b"\x01"
_F_ADD_SEALS, _SEALS = 1033, 0x0F  # fcntl(2): seal, shrink, grow, write

Incoming = TypeVar("Incoming")
Outgoing = TypeVar("Outgoing")
_encoder = msgspec.msgpack.Encoder()


class Channel(Generic[Outgoing, Incoming]):
    """One end. ``on_message`` gets each message and the descriptors with it, which are then its own to close;
    ``on_closed`` is called once, when the other end is gone or broke the format.
    """

    def __init__(
        self,
        sock: socket.socket,
        decoder: msgspec.msgpack.Decoder[Incoming],
        on_message: Callable[[Incoming, list[int]], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._socket = sock
        self._decoder = decoder
        self._on_message = on_message
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._queue: deque[tuple[bytes, list[int]]] = deque()
        self._writing = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._on_readable)

    @property
    def is_closed(self) -> bool:
        """Whether the channel has ended."""
        return self._socket.fileno() < 0

    def send(self, message: Outgoing, fds: Sequence[int] = ()) -> None:
        """Send ``message`` with copies of ``fds``, which stay the caller's. Nothing where the channel has ended."""
        if self.is_closed:
            return
        if len(fds) > MAX_FDS:
            raise ValueError(f"{len(fds)} descriptors in one message; at most {MAX_FDS} are possible")
        own = [os.dup(fd) for fd in fds]
        body = _encoder.encode(message)
        if len(body) > INLINE_BYTES:
            own.append(_sealed(body))
            frame = _BLOB
        else:
            frame = _INLINE + body
        self._queue.append((frame, own))
        if not self._writing:
            self._flush()
        if len(self._queue) > MAX_QUEUED:
            self._end()

    def close(self) -> None:
        """End this side without a call of ``on_closed``; what the kernel has taken is still delivered."""
        self._on_closed = lambda: None
        self._end()

    # --- sending ---

    def _flush(self) -> None:
        while self._queue:
            frame, fds = self._queue[0]
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            try:
                self._socket.sendmsg([frame], rights)
            except (BlockingIOError, InterruptedError):
                self._watch_writable(True)
                return
            except OSError:  # EPIPE, ECONNRESET: the other process is gone
                self._end()
                return
            self._queue.popleft()
            _close_all(fds)
        self._watch_writable(False)

    def _watch_writable(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._socket.fileno(), self._flush)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._socket.fileno())
        self._writing = wanted

    # --- receiving ---

    def _on_readable(self) -> None:
        for _ in range(BATCH):
            if self.is_closed:
                return
            try:
                data, fds, flags = receive(self._socket, INLINE_BYTES + 1, MAX_FDS + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._end()
                return
            if not data:
                self._end()
                return
            try:
                message = self._decode(data, fds, flags)
            except (msgspec.DecodeError, ValueError, OSError) as error:
                log.error("control message could not be read", extra={"reason": error})
                _close_all(fds)
                self._end()
                return
            self._on_message(message, fds)

    def _decode(self, data: bytes, fds: list[int], flags: int) -> Incoming:
        if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            raise ValueError("truncated, or its descriptors did not fit")
        if data[:1] == _INLINE:
            return self._decoder.decode(data[1:])
        if not fds:
            raise ValueError("a large message came without its memfd")
        blob = fds.pop()
        try:
            return self._decoder.decode(_contents(blob))
        finally:
            os.close(blob)

    def _end(self) -> None:
        if self.is_closed:
            return
        self._loop.remove_reader(self._socket.fileno())
        self._watch_writable(False)
        for _, fds in self._queue:
            _close_all(fds)
        self._queue.clear()
        self._socket.close()
        self._on_closed()


def pair() -> tuple[socket.socket, socket.socket]:
    """The two sockets of a new channel: ours, and the child's (to be inherited)."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def supervisor_end(
    sock: socket.socket, on_message: Callable[[Up, list[int]], None], on_closed: Callable[[], None]
) -> Channel[Down, Up]:
    """The supervisor's end of a channel."""
    return Channel(sock, msgspec.msgpack.Decoder(Up), on_message, on_closed)


def child_end(
    sock: socket.socket, on_message: Callable[[Down, list[int]], None], on_closed: Callable[[], None]
) -> Channel[Up, Down]:
    """The child's end of a channel."""
    return Channel(sock, msgspec.msgpack.Decoder(Down), on_message, on_closed)


def receive(sock: socket.socket, max_bytes: int, max_fds: int) -> tuple[bytes, list[int], int]:
    """One message, the descriptors with it (not inheritable, the caller's to close), and the flags of recvmsg(2).

    ``socket.recv_fds`` does not pass its flags on (Python 3.11 Lib/socket.py), so that MSG_CMSG_CLOEXEC has no effect.
    """
    data, ancillary, flags, _ = sock.recvmsg(max_bytes, socket.CMSG_SPACE(max_fds * _FD_BYTES), socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
    return data, list(fds), flags


def _sealed(body: bytes) -> int:
    if len(body) > MAX_BLOB_BYTES:
        raise ValueError(f"a control message of {len(body)} bytes; at most {MAX_BLOB_BYTES} are allowed")
    fd = os.memfd_create("qmux-message", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with os.fdopen(os.dup(fd), "wb") as file:
        file.write(body)
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)
    return fd


def _contents(fd: int) -> bytes:
    size_bytes = os.fstat(fd).st_size
    if not 0 < size_bytes <= MAX_BLOB_BYTES:
        raise ValueError(f"a control message of {size_bytes} bytes")
    with mmap.mmap(fd, size_bytes, prot=mmap.PROT_READ) as memory:
        return memory[:]


def _close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
