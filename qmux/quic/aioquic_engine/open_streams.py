"""The streams of one connection that somebody above still cares for, and what these may do with the connection.

Streams and their relays write, take and give up here; the connection brings what arrived and what was acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from qmux.quic.aioquic_engine.mtu import SearchingConnection
from qmux.quic.aioquic_engine.pump import Pump
from qmux.quic.aioquic_engine.stream import AioquicStream
from qmux.quic.engine import Connection, ConnectionLost, StreamLimit


class OpenStreams:
    """``wake``: there is something to be sent. The ``connection`` is what streams say that they belong to."""

    def __init__(
        self,
        connection: Connection,
        quic: SearchingConnection,
        loop: asyncio.AbstractEventLoop,
        wake: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.loop = loop
        self.relays: set[Pump] = set()
        self._quic = quic
        self._wake = wake
        self._is_closed = False
        self._streams: dict[int, AioquicStream] = {}
        self._next_peer_id = 1 if quic.configuration.is_client else 0
        self._overtaken: set[int] = set()
        self._fed: list[Pump] = []
        self._watches: dict[int, list[Callable[[], bool]]] = {}
        self._unchecked: set[int] = set()

    # --- what the connection tells ---

    def open(self) -> AioquicStream:
        """A new stream of ours. Raises StreamLimit."""
        stream_id = self._quic.get_next_available_stream_id()
        if stream_id // 4 >= self._quic.peer_max_streams:
            raise StreamLimit
        stream = self._streams[stream_id] = AioquicStream(self, stream_id)
        self._quic.send_stream_data(stream_id, b"")
        return stream

    def get(self, stream_id: int) -> AioquicStream | None:
        """The stream with this ID, while it is open here."""
        return self._streams.get(stream_id)

    def accept(self, stream_id: int) -> AioquicStream | None:
        """The stream that the peer opens with this ID; None where it ended here already."""
        if not self._is_new(stream_id):
            return None
        stream = self._streams[stream_id] = AioquicStream(self, stream_id)
        return stream

    def _is_new(self, stream_id: int) -> bool:
        """Whether the peer opens this stream now. Packets overtake each other: a lower number may come later."""
        if (stream_id % 2 == 0) == self._quic.configuration.is_client:  # RFC 9000 §2.1: ours
            return False
        if stream_id < self._next_peer_id:
            if stream_id not in self._overtaken:
                return False
            self._overtaken.remove(stream_id)
            return True
        # At most as many as the peer may have open at once: aioquic refuses an ID beyond its limit.
        self._overtaken.update(range(self._next_peer_id, stream_id, 4))
        self._next_peer_id = stream_id + 4
        return True

    def flush_relays(self) -> None:
        """The batch is through: the relays that got bytes write them."""
        while self._fed:
            self._fed.pop().flush()

    def run_watches(self) -> None:
        """Call what watches the streams of which something was acknowledged since the last time."""
        acknowledged = self._quic.take_acknowledged()
        if not self._watches:
            return
        due = [stream_id for stream_id in acknowledged | self._unchecked if stream_id in self._watches]
        self._unchecked.clear()
        for stream_id in due:
            left = [check for check in self._watches.pop(stream_id) if not check()]
            if left and not self._is_closed:
                self._watches.setdefault(stream_id, []).extend(left)

    def sweep(self, now: float) -> None:
        """Look at the relays' timeouts."""
        for relay in list(self.relays):
            relay.sweep(now)

    def connection_lost(self, error: ConnectionLost) -> None:
        """The connection is gone."""
        self._is_closed = True
        for stream in list(self._streams.values()):
            stream.connection_lost(error)
        for relay in list(self.relays):
            relay.connection_lost()
        self._streams.clear()
        self._watches.clear()

    # --- what streams and relays do ---

    def write(self, stream_id: int, data: bytes, fin: bool = False) -> None:
        """Queue bytes and FIN; nothing where the stream or the connection is gone (its owner hears of that)."""
        if self._is_closed:
            return
        try:
            self._quic.send_stream_data(stream_id, data, fin)
        except (ValueError, RuntimeError):
            return  # stopped by the peer in this very turn: StopSendingReceived is in the event queue
        self._wake()

    def abort(self, stream_id: int, code: int) -> None:
        """RESET_STREAM and STOP_SENDING: a reset alone leaves the other direction open for ever."""
        if self._is_closed:
            return
        try:
            self._quic.reset_stream(stream_id, code)
            self._quic.stop_stream(stream_id, code)
        except ValueError:
            pass  # both directions had ended, the state is gone
        self.forget(stream_id)
        self._wake()

    def forget(self, stream_id: int) -> None:
        """Nothing above cares for this stream any more."""
        self._streams.pop(stream_id, None)
        self._watches.pop(stream_id, None)
        self._quic.forget_stream(stream_id)

    def consumed(self, stream_id: int, size_bytes: int) -> None:
        """Bytes of a stream left our hands."""
        if not self._is_closed and self._quic.consume(stream_id, size_bytes):
            self._wake()

    def buffered_bytes(self, stream_id: int) -> int:
        """Written and not yet acknowledged."""
        return 0 if self._is_closed else self._quic.buffered_bytes(stream_id)

    def is_delivered(self, stream_id: int) -> bool:
        """Whether everything up to FIN was acknowledged."""
        return self._quic.is_sent(stream_id)

    def watch(self, stream_id: int, check: Callable[[], bool]) -> None:
        """Call ``check`` soon, and then whenever something of this stream was acknowledged, until it returns True."""
        self._watches.setdefault(stream_id, []).append(check)
        self._unchecked.add(stream_id)
        self._wake()

    def flush_later(self, relay: Pump) -> None:
        """This relay got bytes: it writes them to its socket in one call when the batch is through."""
        self._fed.append(relay)
