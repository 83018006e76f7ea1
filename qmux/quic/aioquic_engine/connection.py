"""One aioquic connection on the event loop: datagrams in, events up, timers, datagrams out."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable
from typing import Any

from aioquic.quic import events
from typing_extensions import override

from qmux import steering
from qmux.pki.identity import Identity
from qmux.quic.aioquic_engine.closing import close_reason
from qmux.quic.aioquic_engine.datagrams import max_datagram_size, queue_datagram
from qmux.quic.aioquic_engine.mtu import SearchingConnection
from qmux.quic.aioquic_engine.open_streams import OpenStreams
from qmux.quic.aioquic_engine.overrides import UNLIMITED_BYTES
from qmux.quic.aioquic_engine.stream import AioquicStream
from qmux.quic.aioquic_engine.turns import Turns
from qmux.quic.engine import (
    CloseKind,
    CloseReason,
    Connection,
    ConnectionHandler,
    ConnectionLost,
    ConnectionStats,
)

log = logging.getLogger(__name__)

SWEEP_S = 0.25
"""How often relays are looked at for timeouts: what an idle timeout may be late by."""

IDLE_SWEEP_S = 1.0
"""The same for a connection without relays: thousands of idle ones must not keep the loop busy."""

MAX_EARLY_EVENTS = 256
"""What a client may bring about before its handshake is confirmed: a registration is a few STREAM frames."""

PROTOCOL_VIOLATION = 0x0A  # RFC 9000 §20.1

_numbers = itertools.count(1)
Address = tuple[Any, ...]


class AioquicConnection(Connection):
    """One connection of aioquic, driven by the event loop."""

    # In place of the protocol's read-only properties.
    number = 0
    identity: Identity | None = None
    is_closed = False
    resumed = False
    early_data_accepted = False

    def __init__(
        self,
        quic: SearchingConnection,
        loop: asyncio.AbstractEventLoop,
        send: Callable[[bytes, Address], None],
        on_disposed: Callable[[AioquicConnection], None],
        keep_alive_s: float,
        handshake_timeout_s: float,
    ) -> None:
        self._loop = loop
        self.quic = quic
        self.certificate_error = ""
        self._turns = Turns(quic, loop, self.flush, self._timed_out)
        self.streams = OpenStreams(self, quic, loop, self._turns.wake)
        self.number = next(_numbers)
        self.is_connected = False
        self.on_id_issued: Callable[[bytes], None] = lambda _: None
        self.on_id_retired: Callable[[bytes], None] = lambda _: None
        self.on_connected: Callable[[], None] = lambda: None
        self._handler: ConnectionHandler | None = None
        self._send = send
        self._on_disposed = on_disposed
        self._keep_alive_s = keep_alive_s
        self._early: list[events.QuicEvent] = []
        self._sent_bytes = 0
        self._pings = 0
        self._address: Address = ("", 0)
        self._close_reason = CloseReason(CloseKind.LOCAL)
        self._handshake_timer = loop.call_later(handshake_timeout_s, self._handshake_timed_out)
        self._sweep_timer: asyncio.TimerHandle | None = None

    def set_handler(self, handler: ConnectionHandler) -> None:
        """Who hears what happens here; before the first datagram."""
        self._handler = handler

    # --- in and out ---

    def receive(self, data: bytes, address: Address, now: float) -> None:
        """One datagram; ``flush`` must follow when the batch is through."""
        self.quic.received_bytes += len(data)
        try:
            self.quic.receive_datagram(data, address, now)
        except Exception:
            # Past releases of aioquic let exceptions of malformed packets escape (its issue 549): one peer must not
            # stop the worker.
            self._broke("receiving")

    def flush(self) -> None:
        """Hand the events up, then send what is to be sent and set the timer."""
        self._turns.begin()
        self._take_events()
        if not self.is_closed:
            self.streams.run_watches()
        if not self.is_closed:
            self._transmit()
        # New connection IDs are events of their being sent: whoever routes must know them before the peer uses one.
        self._take_events()
        if not self.is_closed and (event := self.quic.termination) is not None:
            self._dispose(
                close_reason(
                    event,
                    by_peer=self.quic.closed_by_peer,
                    is_connected=self.is_connected,
                    certificate_error=self.certificate_error,
                )
            )
        if not self.is_closed:
            self._turns.arm()

    def _take_events(self) -> None:
        while not self.is_closed and (event := self.quic.next_event()) is not None:
            self._dispatch(event)
        if not self.is_connected and not self.is_closed and self.quic.handshake_confirmed:
            self._connected()
        self.streams.flush_relays()

    def wake(self) -> None:
        """Something is to be sent: flush once in this turn of the loop."""
        self._turns.wake()

    def reset_received(self) -> None:
        """A stateless reset came (RFC 9000 §10.3.1)."""
        self._dispose(CloseReason(CloseKind.RESET, 0, "the server does not know this connection any more"))

    def fail(self, reason: CloseReason) -> None:
        """The network says that it will not work: gone at once, without a word to the peer."""
        self._dispose(reason)

    def _transmit(self) -> None:
        try:
            datagrams = self.quic.datagrams_to_send(time.monotonic())
        except Exception:
            self._broke("sending")
            return
        for data, address in datagrams:
            self._sent_bytes += len(data)
            self._send(data, address)

    def _timed_out(self) -> None:
        now = time.monotonic()
        due = self.quic.get_timer()
        if due is not None and due <= now:
            try:
                self.quic.handle_timer(now)
            except Exception:
                self._broke("handling a timer")
                return
        self.flush()

    def _broke(self, doing: str) -> None:
        log.exception("QUIC engine failed %s; the connection is closed", doing, extra={"connection": self.number})
        self._dispose(CloseReason(CloseKind.TRANSPORT, 0x1, f"internal error while {doing}"))

    # --- events ---

    def _dispatch(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.ConnectionIdIssued):
            self.on_id_issued(event.connection_id)
        elif isinstance(event, events.ConnectionIdRetired):
            self.on_id_retired(event.connection_id)
        elif not self.is_connected:
            # A client's handshake is complete before the server has seen its certificate; only the confirmation says
            # that it was accepted (RFC 9001 §4.1.2). What overtakes it waits, bounded by the windows. At a server, what
            # came with 0-RTT waits too: only then is the client there, and what came not somebody's replay.
            self._early.append(event)
            if len(self._early) > MAX_EARLY_EVENTS and not self.quic.configuration.is_client:
                self.fail(CloseReason(CloseKind.TRANSPORT, PROTOCOL_VIOLATION, "too much before the handshake"))
        elif isinstance(event, events.StreamDataReceived):
            if (stream := self._stream_for(event.stream_id)) is not None:
                stream.data_received(event.data, event.end_stream)
        elif isinstance(event, events.StreamReset | events.StopSendingReceived):
            if (stream := self._stream_for(event.stream_id)) is not None:
                stream.reset_received(event.error_code)
        elif isinstance(event, events.DatagramFrameReceived) and self._handler is not None:
            self._handler.datagram_received(event.data)

    def _connected(self) -> None:
        self.is_connected = True
        self.resumed, self.early_data_accepted = self.quic.tls.session_resumed, self.quic.tls.early_data_accepted
        self._handshake_timer.cancel()
        self._sweep_timer = self._loop.call_later(SWEEP_S, self._sweep)
        self.on_connected()
        assert self._handler is not None, "set before the first datagram"
        self._handler.connected()
        early, self._early = self._early, []
        for event in early:
            if not self.is_closed:
                self._dispatch(event)

    def _stream_for(self, stream_id: int) -> AioquicStream | None:
        stream = self.streams.get(stream_id)
        if stream is None and (stream := self.streams.accept(stream_id)) is not None:
            assert self._handler is not None, "set before the first datagram"
            self._handler.stream_opened(stream)
        return stream

    def _sweep(self) -> None:
        delay_s = SWEEP_S if self.streams.relays else max(SWEEP_S, min(IDLE_SWEEP_S, self._keep_alive_s / 4))
        self._sweep_timer = self._loop.call_later(delay_s, self._sweep)
        now = time.monotonic()
        self.streams.sweep(now)
        if now - self.quic.last_received_at >= self._keep_alive_s * (1 + self._pings):
            self._pings += 1
            self.ping()
        elif now - self.quic.last_received_at < self._keep_alive_s:
            self._pings = 0

    # --- the rest of the seam ---

    @override
    def open_stream(self) -> AioquicStream:
        if self.is_closed:
            raise ConnectionLost(self._close_reason)
        return self.streams.open()

    @property
    @override
    def may_write_early(self) -> bool:
        return not self.is_closed and not self.is_connected and self.quic.has_early_keys

    @property
    @override
    def peer_address(self) -> tuple[str, int]:
        if not self.is_closed:
            self._address = self.quic.get_peer_address() or self._address
        return self._address[0], self._address[1]

    @property
    @override
    def peer_slot(self) -> int | None:
        return steering.issued_slot(self.quic.peer_connection_id)

    @property
    @override
    def last_received_at(self) -> float:
        return self.quic.last_received_at

    @property
    @override
    def ack_eliciting_outstanding(self) -> bool:
        return self.quic.outstanding

    @property
    @override
    def max_datagram_size(self) -> int:
        return max_datagram_size(self.quic)

    @override
    def send_datagram(self, data: bytes) -> bool:
        if self.is_closed or not queue_datagram(self.quic, data):
            return False
        self.wake()
        return True

    @override
    def ping(self) -> None:
        if not self.is_closed:
            self.quic.send_ping(0)
            self.wake()

    @override
    def raise_limits(self, max_streams: int, stream_window_bytes: int) -> None:
        if not self.is_closed:
            self.quic.raise_limits(max_streams, min(stream_window_bytes, UNLIMITED_BYTES))
            self.wake()

    @override
    def close(self, code: int, reason: str) -> None:
        """The state goes at once: later packets get a stateless reset."""
        if not self.is_closed:
            self.quic.close(error_code=code, reason_phrase=reason)
            self._transmit()
            self._dispose(CloseReason(CloseKind.LOCAL, code, reason))

    @override
    def stats(self) -> ConnectionStats:
        return ConnectionStats(
            rtt_s=self.quic.rtt_s,
            pto_s=self.quic.pto_s,
            sent_bytes=self._sent_bytes,
            received_bytes=self.quic.received_bytes,
            sent_packets=self.quic.sent_packets,
            lost_packets=self.quic.lost_packets,
            mtu_bytes=self.quic.datagram_bytes,
            cwnd_bytes=self.quic.congestion_window_bytes,
        )

    # --- the end ---

    def _handshake_timed_out(self) -> None:
        if not self.is_connected:
            self._dispose(CloseReason(CloseKind.TIMEOUT, 0, "the handshake was not completed in time"))

    def _dispose(self, reason: CloseReason) -> None:
        if self.is_closed:
            return
        self._address = self.quic.get_peer_address() or self._address
        self.is_closed = True
        self._close_reason = reason
        self._turns.close()
        self._handshake_timer.cancel()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
        self.streams.connection_lost(ConnectionLost(reason))
        self._on_disposed(self)
        if self._handler is not None:
            self._handler.closed(reason)
