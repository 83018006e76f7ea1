"""A stream before its relay: what QMux itself reads and writes at its head."""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import TYPE_CHECKING

from typing_extensions import override

from qmux.quic.aioquic_engine.pump import Chunk, Pump, append_chunk
from qmux.quic.engine import Connection, ConnectionLost, RelayLimits, Stream, StreamError

if TYPE_CHECKING:
    from qmux.quic.aioquic_engine.open_streams import OpenStreams

SEND_BUFFER_BYTES = 1 << 20
"""Written and not yet acknowledged, at most: enough for 80 Mbit/s at 100 ms, and a bound on what a stalled reader holds
(with the peer's receive window and the kernel's buffers it stays under 4 MiB end to end)."""


class AioquicStream(Stream):
    """Holds what was received and not read."""

    def __init__(self, streams: OpenStreams, stream_id: int) -> None:
        self._streams = streams
        self._stream_id = stream_id
        self._chunks: deque[Chunk] = deque()
        self._end = False
        self._error: StreamError | ConnectionLost | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._pump: Pump | None = None
        self._fin_sent = False

    @property
    @override
    def stream_id(self) -> int:
        return self._stream_id

    @property
    @override
    def connection(self) -> Connection:
        return self._streams.connection

    # --- what the layer above calls ---

    @override
    async def read(self, limit_bytes: int) -> bytes:
        while not self._chunks and not self._end:
            if self._error is not None:
                raise self._error
            self._reader = self._streams.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        if not self._chunks:
            self._forget_if_over()
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > limit_bytes:
            self._chunks.appendleft(memoryview(chunk)[limit_bytes:])
            chunk = chunk[:limit_bytes]
        self._streams.consumed(self._stream_id, len(chunk))
        return bytes(chunk)

    @override
    async def write(self, data: bytes) -> None:
        if self._error is not None:
            raise self._error
        self._streams.write(self._stream_id, data)
        while self._streams.buffered_bytes(self._stream_id) >= SEND_BUFFER_BYTES:
            room = self._streams.loop.create_future()
            self._writers.append(room)
            self._streams.watch(self._stream_id, self._room_again)
            try:
                await room
            finally:
                self._writers.remove(room)
            if self._error is not None:
                raise self._error

    @override
    def finish(self) -> None:
        if self._error is None and not self._fin_sent:
            self._fin_sent = True
            self._streams.write(self._stream_id, b"", fin=True)
            self._forget_if_over()

    def _forget_if_over(self) -> None:
        if self._fin_sent and self._end and not self._chunks:
            self._streams.forget(self._stream_id)  # what is left, QUIC does alone

    @override
    def abort(self, code: int) -> None:
        if self._error is not None:
            return  # both directions are closed already, and the first code stands
        self._streams.abort(self._stream_id, code)
        self._chunks.clear()
        self._fail(StreamError(code))

    def set_priority(self, priority: int) -> None:
        """No effect: this engine always serves stream 0, the control stream, first, and the others in turn."""

    @override
    def relay(self, sock: socket.socket, limits: RelayLimits) -> Pump:
        self._pump = Pump(self._streams, self._stream_id, sock, limits)
        self._streams.relays.add(self._pump)
        self._pump.start(list(self._chunks), self._end, self._error)
        self._chunks.clear()
        return self._pump

    # --- what the connection tells ---

    def data_received(self, data: bytes, end: bool) -> None:
        """In-order bytes, and whether FIN follows them."""
        if self._pump is not None:
            self._pump.feed(data, end)
            return
        if data:
            append_chunk(self._chunks, data)
        self._end = self._end or end
        self._wake(self._reader)

    def reset_received(self, code: int) -> None:
        """RESET_STREAM or STOP_SENDING: with QMux one always goes with the other, so this end closes both, too."""
        if self._pump is not None:
            self._pump.stream_reset()
            return
        self._streams.abort(self._stream_id, code)
        self._chunks.clear()
        self._end = False
        self._fail(StreamError(code))

    def connection_lost(self, error: ConnectionLost) -> None:
        """The connection is gone."""
        if self._pump is not None:
            self._pump.connection_lost()
        else:
            self._fail(error)

    def _fail(self, error: StreamError | ConnectionLost) -> None:
        self._error = self._error or error
        self._wake(self._reader, *self._writers)

    def _room_again(self) -> bool:
        if self._streams.buffered_bytes(self._stream_id) > SEND_BUFFER_BYTES // 2:
            return False
        self._wake(*self._writers)
        return True

    @staticmethod
    def _wake(*waiters: asyncio.Future[None] | None) -> None:
        for waiter in waiters:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
