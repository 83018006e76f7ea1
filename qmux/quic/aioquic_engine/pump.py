"""The relay of the aioquic engine: one stream, one socket, bytes in both directions with backpressure.

Socket → stream stops reading when ``SEND_BUFFER_BYTES`` wait for acknowledgement; stream → socket moves the stream's
window only by what the socket took. FIN, RST and their QUIC counterparts are mapped as docs/architecture.md says.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from typing_extensions import override

from qmux import sockets
from qmux.protocol.frames import AppCode
from qmux.quic.engine import ConnectionLost, Relay, RelayEnd, RelayLimits, StreamError

if TYPE_CHECKING:
    from qmux.quic.aioquic_engine.open_streams import OpenStreams

READ_BYTES = 65_536
"""Read from a socket in one turn of the loop: what one relay may take before the others have theirs."""

Chunk = bytes | memoryview

_SMALL_CHUNK_BYTES = 512
_MERGED_CHUNK_BYTES = 4096
_IOVECS = 64
"""Chunks in one ``sendmsg``: about what one batch of datagrams brings."""

_RESUME_BELOW_BYTES = 512 * 1024
_PAUSE_ABOVE_BYTES = 1 << 20


def append_chunk(chunks: deque[Chunk], data: Chunk) -> None:
    """Queue ``data``. Small pieces are joined: a peer that sends single bytes must not cost an object for each."""
    if len(data) < _SMALL_CHUNK_BYTES and chunks and len(chunks[-1]) < _MERGED_CHUNK_BYTES:
        chunks[-1] = b"".join((chunks[-1], data))
    else:
        chunks.append(data)


class Pump(Relay):
    """Moves bytes on the event loop."""

    # In place of the protocol's read-only properties.
    bytes_to_socket = 0
    bytes_to_stream = 0

    def __init__(self, streams: OpenStreams, stream_id: int, sock: socket.socket, limits: RelayLimits) -> None:
        self.done: asyncio.Future[RelayEnd] = streams.loop.create_future()
        self._streams = streams
        self._loop = streams.loop
        self._stream_id = stream_id
        self._socket = sock
        self._limits = limits
        self._pending: deque[Chunk] = deque()
        self._fed = False  # waits for ``flush``
        self._stream_ended = False  # FIN received
        self._socket_shut = False  # ... and passed on
        self._socket_ended = False  # EOF read, FIN queued on the stream
        self._reading = False
        self._writing = False
        self._closed = False
        self._active_at = time.monotonic()

    def start(self, chunks: Sequence[Chunk], end: bool, error: StreamError | ConnectionLost | None) -> None:
        """Begin, with what the stream had already received."""
        if isinstance(error, ConnectionLost):
            self.connection_lost()
        elif error is not None:
            self.stream_reset()
        else:
            self._read_again()
            for chunk in chunks:
                self.feed(chunk, False)
            self.feed(b"", end)
            self.flush()

    @override
    def abort(self) -> None:
        self._abort(AppCode.CANCELLED, RelayEnd.ABORTED)

    # --- stream → socket ---

    def feed(self, data: Chunk, end: bool) -> None:
        """In-order bytes from the stream, and whether FIN follows; ``flush`` is called when the batch is through."""
        if self._closed:
            return
        self._stream_ended = self._stream_ended or end
        if data:
            append_chunk(self._pending, data)
        if not self._fed:
            self._fed = True
            self._streams.flush_later(self)

    def flush(self) -> None:
        """Write what was fed."""
        self._fed = False
        if self._closed:
            return
        self._active_at = time.monotonic()
        if not self._writing:
            self._write()

    def _write(self) -> None:
        taken = 0
        try:
            while self._pending:
                sent = self._socket.sendmsg(list(itertools.islice(self._pending, _IOVECS)))
                taken += sent
                self._drop(sent)
        except (BlockingIOError, InterruptedError):
            pass  # the writer callback goes on
        except OSError:
            self._abort(AppCode.SOCKET_RESET, RelayEnd.SOCKET_RESET)
            return
        self._took(taken)
        self._watch_writable(bool(self._pending))
        if not self._pending and self._stream_ended and not self._socket_shut:
            self._shut()

    def _drop(self, size_bytes: int) -> None:
        while size_bytes:
            chunk = self._pending.popleft()
            if size_bytes < len(chunk):
                self._pending.appendleft(memoryview(chunk)[size_bytes:])
                return
            size_bytes -= len(chunk)

    def _took(self, size_bytes: int) -> None:
        if size_bytes:
            self.bytes_to_socket += size_bytes
            self._active_at = time.monotonic()
            self._streams.consumed(self._stream_id, size_bytes)

    def _shut(self) -> None:
        self._socket_shut = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # the other end reset it in the meantime
            self._abort(AppCode.SOCKET_RESET, RelayEnd.SOCKET_RESET)
            return
        self._finish_when_both_ended()

    # --- socket → stream ---

    def _on_readable(self) -> None:
        try:
            data = self._socket.recv(READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._abort(AppCode.SOCKET_RESET, RelayEnd.SOCKET_RESET)
            return
        self._active_at = time.monotonic()
        if not data:
            self._socket_ended = True
            self._stop_reading()
            self._streams.write(self._stream_id, b"", fin=True)
            self._finish_when_both_ended()
            return
        self.bytes_to_stream += len(data)
        self._streams.write(self._stream_id, data)
        if self._streams.buffered_bytes(self._stream_id) >= _PAUSE_ABOVE_BYTES:
            self._stop_reading()
            self._streams.watch(self._stream_id, self._room_again)
        elif sockets.is_reset(self._socket):
            # uvloop calls a reader once where a socket has an error, and never again (its ``UVPoll._fatal_error``).
            # What came before the error is read first, as the kernel gives it; the error itself comes last.
            self._stop_reading()
            self._loop.call_soon(self._read_again)

    def _room_again(self) -> bool:
        if self._closed:
            return True
        if self._streams.buffered_bytes(self._stream_id) > _RESUME_BELOW_BYTES:
            return False
        self._read_again()
        return True

    # --- ends ---

    def stream_reset(self) -> None:
        """The peer reset or stopped the stream: RST to the socket."""
        self._abort(AppCode.CANCELLED, RelayEnd.STREAM_RESET)

    def connection_lost(self) -> None:
        """The connection is gone: RST to the socket."""
        self._release(reset=True)
        self._resolve(RelayEnd.CONNECTION_LOST)

    def sweep(self, now: float) -> None:
        """Called about four times a second: timeouts, and a reset of a socket that is not being read."""
        idle_s = now - self._active_at
        limits = self._limits
        if self._closed:
            # Both directions have ended here and the peer does not take the rest.
            if idle_s >= limits.half_closed_timeout_s:
                self._abort(AppCode.TIMED_OUT, RelayEnd.HALF_CLOSED_TIMEOUT)
        elif limits.idle_timeout_s is not None and idle_s >= limits.idle_timeout_s:
            self._abort(AppCode.TIMED_OUT, RelayEnd.IDLE_TIMEOUT)
        elif (self._socket_ended or self._socket_shut) and idle_s >= limits.half_closed_timeout_s:
            self._abort(AppCode.TIMED_OUT, RelayEnd.HALF_CLOSED_TIMEOUT)
        elif not self._reading and self._is_reset():
            self._abort(AppCode.SOCKET_RESET, RelayEnd.SOCKET_RESET)

    def _is_reset(self) -> bool:
        # Not the state of TCP_INFO: CLOSE is also where a socket is that has both FINs and bytes still to be read.
        return self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0

    def _finish_when_both_ended(self) -> None:
        if self._socket_ended and self._socket_shut and not self._closed:
            self._release(reset=False)
            # Done only when the peer has it all: a connection that closes earlier would lose the tail.
            self._streams.watch(self._stream_id, self._delivered)

    def _delivered(self) -> bool:
        if not self._streams.is_delivered(self._stream_id):
            return False
        self._resolve(RelayEnd.FINISHED)
        return True

    def _abort(self, code: AppCode, end: RelayEnd) -> None:
        if not self.done.done():
            self._streams.abort(self._stream_id, code)
            self._release(reset=True)
            self._resolve(end)

    def _resolve(self, end: RelayEnd) -> None:
        if not self.done.done():
            self.done.set_result(end)
        self._streams.relays.discard(self)
        self._streams.forget(self._stream_id)

    def _release(self, reset: bool) -> None:
        if self._closed:
            return
        self._closed = True
        self._stop_reading()
        self._watch_writable(False)
        self._pending.clear()
        if reset:
            sockets.reset(self._socket)
        else:
            sockets.close(self._socket)

    # --- the loop's callbacks ---

    def _read_again(self) -> None:
        if not self._closed and not self._reading and not self._socket_ended:
            self._reading = True
            self._loop.add_reader(self._socket.fileno(), self._on_readable)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket.fileno())

    def _watch_writable(self, wanted: bool) -> None:
        if wanted and not self._writing:
            self._loop.add_writer(self._socket.fileno(), self._write)
        elif self._writing and not wanted:
            self._loop.remove_writer(self._socket.fileno())
        self._writing = wanted
