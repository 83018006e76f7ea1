"""A stream before its relay: what QMux itself reads and writes at its head."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from qmux.quic.engine import ConnectionLost, RelayLimits, StreamError
from qmux.quic.native_engine.relay import NativeRelay

if TYPE_CHECKING:
    from qmux.quic.native_engine.connection import NativeConnection


class NativeStream:
    """Implements ``qmux.quic.engine.Stream`` and ``qmux.quic.dialling.DialledStream``."""

    def __init__(self, connection: NativeConnection, stream_id: int, dialled_s: float = 0.0) -> None:
        self.dialled_s = dialled_s
        self._connection = connection
        self._stream_id = stream_id
        self._error: StreamError | ConnectionLost | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writers: list[asyncio.Future[None]] = []
        self._read_ended = False
        self._finished = False

    @property
    def stream_id(self) -> int:
        """The QUIC stream ID (RFC 9000 §2.1)."""
        return self._stream_id

    @property
    def connection(self) -> NativeConnection:
        """The connection it belongs to."""
        return self._connection

    # --- what the layer above calls ---

    async def read(self, limit_bytes: int) -> bytes:
        """See ``qmux.quic.engine.Stream.read``."""
        while self._error is None:
            if self._read_ended:
                return b""
            data = self._connection.read_stream(self._stream_id, limit_bytes)
            if data is not None:
                self._read_ended = not data
                self._forget_if_over()
                return data
            self._reader = self._connection.loop.create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        raise self._error

    async def write(self, data: bytes) -> None:
        """See ``qmux.quic.engine.Stream.write``."""
        if self._error is not None:
            raise self._error
        if self._connection.write_stream(self._stream_id, data, finish=False):
            room = self._connection.loop.create_future()
            self._writers.append(room)
            try:
                await room
            finally:
                self._writers.remove(room)
            if self._error is not None:
                raise self._error

    def finish(self) -> None:
        """See ``qmux.quic.engine.Stream.finish``."""
        if self._error is None and not self._finished:
            self._finished = True
            self._connection.write_stream(self._stream_id, b"", finish=True)
            self._forget_if_over()

    def abort(self, code: int) -> None:
        """See ``qmux.quic.engine.Stream.abort``."""
        if self._error is not None:
            return  # both directions are closed already, and the first code stands
        self._connection.abort_stream(self._stream_id, code)
        self.fail(StreamError(code))

    def set_priority(self, priority: int) -> None:
        """See ``qmux.quic.engine.Stream.set_priority``."""
        if self._error is None:
            self._connection.set_priority(self._stream_id, priority)

    def relay(self, sock: socket.socket, limits: RelayLimits) -> NativeRelay:
        """See ``qmux.quic.engine.Stream.relay``."""
        return self._connection.start_relay(self._stream_id, sock, limits)

    def _forget_if_over(self) -> None:
        if self._read_ended and self._finished:
            self._connection.forget_stream(self._stream_id)

    # --- what the connection tells ---

    def readable(self) -> None:
        """A reader may try again."""
        self._wake(self._reader)

    def writable(self) -> None:
        """All that was written has found room."""
        self._wake(*self._writers)

    def fail(self, error: StreamError | ConnectionLost) -> None:
        """The stream has ended abruptly, or its connection is gone."""
        self._error = self._error or error
        self._wake(self._reader, *self._writers)

    @staticmethod
    def _wake(*waiters: asyncio.Future[None] | None) -> None:
        for waiter in waiters:
            if waiter is not None and not waiter.done():
                waiter.set_result(None)
