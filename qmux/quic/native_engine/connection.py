"""One native connection: the core's events to its handler and its streams, and their calls to the core."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable

import qmux_native
from typing_extensions import override

from qmux import steering
from qmux.pki.identity import Identity
from qmux.quic.engine import (
    CloseKind,
    CloseReason,
    Connection,
    ConnectionHandler,
    ConnectionLost,
    ConnectionStats,
    RelayLimits,
    StreamError,
    StreamLimit,
)
from qmux.quic.native_engine.driver import Driver
from qmux.quic.native_engine.relay import NativeRelay
from qmux.quic.native_engine.stream import NativeStream

_numbers = itertools.count(1)


class NativeConnection(Connection):
    """``handle``: its number in the core."""

    # In place of the protocol's read-only properties.
    number = 0
    identity: Identity | None = None
    is_closed = False
    resumed = False
    early_data_accepted = False

    def __init__(self, driver: Driver, handle: int, address: tuple[str, int]) -> None:
        self.loop: asyncio.AbstractEventLoop = driver.loop
        self.number = next(_numbers)
        self.on_ticket: Callable[[qmux_native.Ticket, int], None] = lambda *_: None
        self.on_closed: Callable[[NativeConnection], None] = lambda _: None
        self._core = driver.core
        self._driver = driver
        self._handle = handle
        self._handler: ConnectionHandler | None = None
        self._streams: dict[int, NativeStream] = {}
        self._address = address
        self._slot: int | None = None
        self._last_received_at = 0.0
        self._stats = ConnectionStats(0.0, 0.0, 0, 0, 0, 0, 0, 0)
        self._close_reason = CloseReason(CloseKind.LOCAL)
        driver.connections[handle] = self

    def set_handler(self, handler: ConnectionHandler) -> None:
        """Who hears what happens here; before the first event."""
        self._handler = handler

    # --- what streams ask for ---

    def read_stream(self, stream_id: int, limit_bytes: int) -> bytes | None:
        """None: ``readable`` or ``fail`` of the stream follows."""
        data = self._core.read(self._handle, stream_id, limit_bytes)
        self._driver.wake()
        return data

    def write_stream(self, stream_id: int, data: bytes, finish: bool) -> int:
        """Bytes that still wait for room: ``writable`` or ``fail`` of the stream follows."""
        waiting = self._core.write(self._handle, stream_id, data, finish)
        self._driver.wake()
        return waiting

    def abort_stream(self, stream_id: int, code: int) -> None:
        """RESET_STREAM and STOP_SENDING."""
        self._streams.pop(stream_id, None)
        self._core.abort_stream(self._handle, stream_id, code)
        self._driver.wake()

    def forget_stream(self, stream_id: int) -> None:
        """Nothing above cares for this stream any more."""
        self._streams.pop(stream_id, None)

    def set_priority(self, stream_id: int, priority: int) -> None:
        """Higher is sent first."""
        self._core.set_priority(self._handle, stream_id, priority)

    def start_relay(self, stream_id: int, sock: socket.socket, limits: RelayLimits) -> NativeRelay:
        """The core owns both from now on; it finds out itself where one of them has ended already."""
        self._streams.pop(stream_id, None)
        number = self._core.relay(
            self._handle, stream_id, sock.detach(), limits.idle_timeout_s, limits.half_closed_timeout_s
        )
        self._driver.wake()
        return NativeRelay(self._driver, number)

    # --- user connections that the core serves alone ---

    def serve_users(self, dialer: int, limits: list[tuple[str, float | None, float]]) -> None:
        """The peer's streams are users; ``limits``: service, idle and half-closed timeout."""
        if not self.is_closed:
            self._core.serve_users(self._handle, dialer, limits)

    @property
    def handle(self) -> int:
        """Its number in the core."""
        return self._handle

    def adopt_stream(self, stream_id: int) -> NativeStream:
        """A stream that the core opened and gave up."""
        stream = self._streams[stream_id] = NativeStream(self, stream_id)
        return stream

    @property
    def users(self) -> int:
        """User connections that the core serves here now."""
        return 0 if self.is_closed else self._core.users(self._handle)

    # --- what the core tells ---

    def connected(self, identity: Identity | None, resumed: bool, early_data: bool) -> None:
        """The handshake is confirmed."""
        self.identity, self.resumed, self.early_data_accepted = identity, resumed, early_data
        if self._handler is not None:
            self._handler.connected()

    def stream_opened(self, stream_id: int, dialled_s: float) -> None:
        """The peer opened a stream."""
        stream = self._streams[stream_id] = NativeStream(self, stream_id, dialled_s)
        if self._handler is not None:
            self._handler.stream_opened(stream)

    def stream_readable(self, stream_id: int) -> None:
        """A read that waited may try again."""
        if (stream := self._streams.get(stream_id)) is not None:
            stream.readable()

    def stream_writable(self, stream_id: int) -> None:
        """A write that waited has its room."""
        if (stream := self._streams.get(stream_id)) is not None:
            stream.writable()

    def stream_ended(self, stream_id: int, code: int) -> None:
        """RESET_STREAM or STOP_SENDING: with QMux one always goes with the other, and the core closed both."""
        if (stream := self._streams.pop(stream_id, None)) is not None:
            stream.fail(StreamError(code))

    def ticket_received(self, ticket: qmux_native.Ticket) -> None:
        """Another connection may resume this session, at the same worker."""
        if (lane := self.peer_slot) is not None:
            self.on_ticket(ticket, lane)

    def datagram_received(self, data: bytes) -> None:
        """A DATAGRAM frame."""
        if self._handler is not None:
            self._handler.datagram_received(data)

    def dispose(self, reason: CloseReason) -> None:
        """It is over: told once."""
        if self.is_closed:
            return
        self.is_closed = True
        self._close_reason = reason
        lost = ConnectionLost(reason)
        for stream in self._streams.values():
            stream.fail(lost)
        self._streams.clear()
        self._driver.forget(self._handle)
        self.on_closed(self)
        if self._handler is not None:
            self._handler.closed(reason)

    # --- the seam ---

    @override
    def open_stream(self) -> NativeStream:
        if self.is_closed:
            raise ConnectionLost(self._close_reason)
        stream_id = self._core.open_stream(self._handle)
        if stream_id is None:
            raise StreamLimit
        stream = self._streams[stream_id] = NativeStream(self, stream_id)
        return stream

    @property
    @override
    def may_write_early(self) -> bool:
        return not self.is_closed and self._core.may_write_early(self._handle)

    @property
    @override
    def peer_address(self) -> tuple[str, int]:
        if not self.is_closed:
            self._address = self._core.peer_address(self._handle)
        return self._address

    @property
    @override
    def peer_slot(self) -> int | None:
        if not self.is_closed:
            prefix = self._core.peer_prefix(self._handle)
            self._slot = None if prefix is None else steering.issued_slot(prefix.to_bytes(2, "big"))
        return self._slot

    @property
    @override
    def last_received_at(self) -> float:
        if not self.is_closed:
            self._last_received_at = self._core.last_received_at(self._handle)
        return self._last_received_at

    @property
    @override
    def ack_eliciting_outstanding(self) -> bool:
        return not self.is_closed and self._core.ack_eliciting_outstanding(self._handle)

    @property
    @override
    def max_datagram_size(self) -> int:
        return 0 if self.is_closed else self._core.max_datagram_size(self._handle)

    @override
    def send_datagram(self, data: bytes) -> bool:
        if self.is_closed or not self._core.send_datagram(self._handle, data):
            return False
        self._driver.wake()
        return True

    @override
    def ping(self) -> None:
        if not self.is_closed:
            self._core.ping(self._handle)
            self._driver.wake()

    @override
    def raise_limits(self, max_streams: int, stream_window_bytes: int) -> None:
        """A stream's window is what the connection began with: until
        now the window of the whole connection was the smaller one.
        """
        if not self.is_closed:
            self._core.raise_limits(self._handle, max_streams)
            self._driver.wake()

    @override
    def close(self, code: int, reason: str) -> None:
        if not self.is_closed:
            self._remember()
            self._core.close(self._handle, code, reason.encode())
            self._driver.wake()
            self.dispose(CloseReason(CloseKind.LOCAL, code, reason))

    @override
    def stats(self) -> ConnectionStats:
        if not self.is_closed:
            self._stats = ConnectionStats(*self._core.stats(self._handle))
        return self._stats

    def _remember(self) -> None:
        """What may be asked for after the end."""
        self._address, self._last_received_at = self.peer_address, self.last_received_at
        self._slot, self._stats = self.peer_slot, self.stats()
