"""Calls the native core when its descriptor is ready or something was queued, and hands its events out."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import qmux_native

from qmux.quic.engine import CloseKind, CloseReason, RelayEnd

if TYPE_CHECKING:
    from qmux.quic.native_engine.connection import NativeConnection
    from qmux.quic.native_engine.relay import NativeRelay

log = logging.getLogger(__name__)

PANIC_EXIT_CODE = 101
"""As Rust's own programs end after a panic."""

Accept = Callable[[int, tuple[str, int]], None]
UserEnded = Callable[[int, str, str], None]
"""For one tally: conn_id, source, how the relay ended."""


def _end_process(reason: str) -> None:
    """The engine panicked: nothing of it can be used any more. The supervisor starts another worker at once, and the
    kernel resets what this one relayed.
    """
    log.critical("defect: the native engine panicked, this process ends", extra={"reason": reason})
    logging.shutdown()
    os._exit(PANIC_EXIT_CODE)


class Driver:
    """Ties one ``qmux_native.Core`` to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        qmux_native.on_panic(_end_process)
        self.core = qmux_native.Core()
        self.connections: dict[int, NativeConnection] = {}
        self.relays: dict[int, NativeRelay] = {}
        self.on_users_changed: list[Callable[[], None]] = []
        self.on_user_ended: dict[int, UserEnded] = {}
        self._acceptors: dict[int, Accept] = {}
        self._handle: asyncio.Handle | None = None
        self._watching = False
        self._on_event: dict[int, Callable[..., None]] = {
            qmux_native.ACCEPTED: self._accepted,
            qmux_native.CONNECTED: self._connected,
            qmux_native.STREAM_OPENED: self._stream_opened,
            qmux_native.READABLE: self._readable,
            qmux_native.WRITABLE: self._writable,
            qmux_native.STREAM_ENDED: self._stream_ended,
            qmux_native.DATAGRAM: self._datagram,
            qmux_native.CLOSED: self._closed,
            qmux_native.RELAY_DONE: self._relay_done,
            qmux_native.USERS_CHANGED: self._users_changed,
            qmux_native.USER_ENDED: self._user_ended,
            qmux_native.TICKET: self._ticket,
        }

    def wake(self) -> None:
        """Something was queued: poll once in this turn of the loop."""
        if self._handle is None:
            self._handle = self.loop.call_soon(self._poll)
        if not self._watching:
            self._watching = True
            self.loop.add_reader(self.core.fileno(), self._poll)

    def listen(self, handlers: Mapping[int, Callable[..., None]]) -> None:
        """Who hears events of these kinds."""
        self._on_event.update(handlers)

    def add_endpoint(self, endpoint: int, accept: Accept) -> None:
        """``accept(connection, peer_address)`` hears of new connections."""
        self._acceptors[endpoint] = accept
        self.wake()

    def remove_endpoint(self, endpoint: int) -> None:
        """It is closed."""
        self._acceptors.pop(endpoint, None)
        self.rest_if_idle()

    def forget(self, connection: int) -> None:
        """It is closed."""
        self.connections.pop(connection, None)
        self.rest_if_idle()

    def rest_if_idle(self) -> None:
        """Leave the loop alone while there is nothing to be driven."""
        if self._watching and not self._acceptors and not self.connections and not self.relays:
            self._watching = False
            self.loop.remove_reader(self.core.fileno())
            if self._handle is not None:
                self._handle.cancel()
                self._handle = None

    def _poll(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        more, events = self.core.poll()
        for event in events:
            try:
                self._on_event[event[0]](*event[1:])
            except Exception:  # a defect of the layer above: the events behind this one are not told again
                log.exception("defect: an event of the native engine was not handled", extra={"event": event[0]})
        if more and self._watching:
            self.wake()

    # --- events ---

    def _accepted(self, connection: int, endpoint: int, host: str, port: int) -> None:
        if (accept := self._acceptors.get(endpoint)) is not None:
            accept(connection, (host, port))

    def _connected(self, connection: int, identity: Any, resumed: bool, early_data: bool) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.connected(identity, resumed, early_data)

    def _ticket(self, connection: int, ticket: qmux_native.Ticket) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.ticket_received(ticket)

    def _stream_opened(self, connection: int, stream: int, dialled_s: float) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.stream_opened(stream, dialled_s)

    def _readable(self, connection: int, stream: int) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.stream_readable(stream)

    def _writable(self, connection: int, stream: int) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.stream_writable(stream)

    def _stream_ended(self, connection: int, stream: int, code: int) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.stream_ended(stream, code)

    def _datagram(self, connection: int, data: bytes) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.datagram_received(data)

    def _closed(self, connection: int, kind: str, code: int, message: str) -> None:
        if (found := self.connections.get(connection)) is not None:
            found.dispose(CloseReason(CloseKind(kind), code, message))

    def _relay_done(self, relay: int, end: str, to_socket: int, to_stream: int) -> None:
        if (found := self.relays.pop(relay, None)) is not None:
            found.ended(RelayEnd(end), to_socket, to_stream)
        self.rest_if_idle()

    def _users_changed(self) -> None:
        for listener in self.on_users_changed:
            listener()

    def _user_ended(self, tally: int, conn_id: int, source: str, end: str) -> None:
        if (listener := self.on_user_ended.get(tally)) is not None:
            listener(conn_id, source, end)
