"""A stream before its relay: what QMux itself reads and writes at its head."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from typing_extensions import override

from qmux.quic.dialling import DialledStream
from qmux.quic.engine import ConnectionLost, RelayLimits, Stream, StreamError
from qmux.quic.native_engine.relay import NativeRelay

if TYPE_CHECKING:
    from qmux.quic.native_engine.connection import NativeConnection


class NativeStream(Stream, DialledStream):
    """A stream of the core, by its ID."""

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
    @override
    def stream_id(self) -> int:
        return self._stream_id

    @property
    @override
    def connection(self) -> NativeConnection:
        return self._connection

    # --- what the layer above calls ---

    @override
    async def read(self, limit_bytes: int) -> bytes:
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

    @override
    async def write(self, data: bytes) -> None:
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

    @override
    def finish(self) -> None:
        if self._error is None and not self._finished:
            self._finished = True
            self._connection.write_stream(self._stream_id, b"", finish=True)
            self._forget_if_over()

    @override
    def abort(self, code: int) -> None:
        if self._error is not None:
            return  # both directions are closed already, and the first code stands
        self._connection.abort_stream(self._stream_id, code)
        self.fail(StreamError(code))

    @override
    def set_priority(self, priority: int) -> None:
        if self._error is None:
            self._connection.set_priority(self._stream_id, priority)

    @override
    def relay(self, sock: socket.socket, limits: RelayLimits) -> NativeRelay:
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
