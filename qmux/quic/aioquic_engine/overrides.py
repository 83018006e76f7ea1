"""What we override inside aioquic 1.7.2, each with its reason. ``tests/quic/test_overrides.py`` has a canary for each.

- connection IDs: every one we issue steers to our slot (``qmux.steering``); aioquic draws them from ``os.urandom``;
- stateless-reset tokens: an HMAC of the ID under a shared key, so that a successor can end a dead worker's connections;
- flow control: windows follow what was consumed; stock aioquic doubles them on receipt, whoever reads, so that one
  peer can make a process hold 1 GiB with 11 packets;
- unregistered peers: 64 KiB and one stream until ``raise_limits``;
- CRYPTO: at most 16 KiB may be pending, where aioquic takes 512 KiB for each half-open connection, and smaller buffers;
- streams: a packet looks only at streams that have something to say, not at every open one (``stream_table``);
- a reset stream gives its buffers back at once instead of on acknowledgement (``stream_table``);
- 0-RTT: what was sent before a Retry is sent again; a client that resumes is not waited for with a certificate
  (``verification``).
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from typing import Any

from aioquic._buffer import Buffer
from aioquic.quic import connection as aioquic_connection
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import NetworkAddress, QuicConnection, QuicConnectionState
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch

from qmux import steering
from qmux.quic.aioquic_engine.stream_table import StreamTable
from qmux.quic.aioquic_engine.verification import PeerVerifier, VerifyingContext

MAX_PENDING_CRYPTO_BYTES = 16_384
"""A mutual handshake with a chain of 4 certificates needs less than 8 KiB in each direction."""

CRYPTO_BUFFER_BYTES = {Epoch.INITIAL: 4096, Epoch.HANDSHAKE: 12_288, Epoch.ONE_RTT: 4096}
"""For our own TLS messages, of which only the Certificate is large; aioquic takes 48 KiB for each connection."""

UNLIMITED_BYTES = 1 << 60
"""A connection window that never blocks: each stream has its own bound, and a few stalled ones must not stop all."""

CONTROL_WINDOW_BYTES = 65_536
"""Receive window of a stream that a client opens: the control stream, whose largest frame it holds."""

GROUP = 32
"""Streams that aioquic is given at a time: more than share a packet, and few enough to go through for each."""

RESET_TOKEN_BYTES = 16  # RFC 9000 §10.3

aioquic_connection.MAX_PENDING_CRYPTO = MAX_PENDING_CRYPTO_BYTES
# Each connection asks 31 times for one of seven sets, and would keep a copy of its own: 7 KiB.
aioquic_connection.EPOCHS = functools.cache(aioquic_connection.EPOCHS)


def reset_token(key: bytes, connection_id: bytes) -> bytes:
    """The stateless-reset token of an ID (RFC 9000 §10.3.2): the same in every worker and after a restart."""
    return hmac.digest(key, connection_id, hashlib.sha256)[:RESET_TOKEN_BYTES]


class TunnelConnection(QuicConnection):
    """aioquic's sans-I/O connection with our rules. See the module."""

    def __init__(
        self,
        *,
        configuration: QuicConfiguration,
        verifier: PeerVerifier,
        slot: int = 0,
        initial_destination_id: bytes | None = None,
        stateless_reset_key: bytes | None = None,
        max_streams: int = 1,
        connection_window_bytes: int = CONTROL_WINDOW_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(configuration=configuration, **kwargs)
        self.last_received_at = 0.0
        self._peer_address: Any = None
        self.lost_packets = 0
        self.received_bytes = 0
        self._verifier = verifier
        self._slot = slot
        self._stateless_reset_key = stateless_reset_key
        self._consumed: dict[int, int] = {}
        self._max_streams = max_streams
        self._steer(initial_destination_id)
        self._bound(max_streams, connection_window_bytes)
        self._announced_windows = (self._local_max_stream_data_bidi_remote, self._local_max_stream_data_bidi_local)
        self._streams = self._table = StreamTable(lambda stream_id: self._announced_windows[self._is_ours(stream_id)])
        self._count_losses()

    # --- set-up ---

    def _steer(self, initial_destination_id: bytes | None) -> None:
        first = self._host_cids[0]
        first.cid = steering.issued_id(self._slot)
        if self._stateless_reset_key is not None:
            first.stateless_reset_token = reset_token(self._stateless_reset_key, first.cid)
        self.host_cid = first.cid
        self._local_initial_source_connection_id = first.cid
        if initial_destination_id is not None:
            self._peer_cid.cid = initial_destination_id
            self._original_destination_connection_id = initial_destination_id

    def _bound(self, max_streams: int, connection_window_bytes: int) -> None:
        self._local_max_streams_bidi.value = self._local_max_streams_bidi.sent = max_streams
        # This version of the protocol has no unidirectional streams.
        self._local_max_streams_uni.value = self._local_max_streams_uni.sent = 0
        self._local_max_data.value = self._local_max_data.sent = connection_window_bytes
        if not self._is_client:
            self._local_max_stream_data_bidi_remote = CONTROL_WINDOW_BYTES

    def _count_losses(self) -> None:
        on_packets_lost = self._loss._on_packets_lost

        def counted(*, packets: Any, **kwargs: Any) -> None:
            lost = list(packets)
            self.lost_packets += len(lost) if kwargs.get("congestion_event", True) else 0
            on_packets_lost(packets=lost, **kwargs)

        self._loss._on_packets_lost = counted  # type: ignore[method-assign]

    def _initialize(self, peer_cid: bytes) -> None:
        sent_early = list(self._spaces[Epoch.ONE_RTT].sent_packets.values()) if self._spaces else []
        for space in self._spaces.values():
            self._loss.discard_space(space)
        super()._initialize(peer_cid)
        # After a Retry everything begins again, and aioquic forgets what it sent with 0-RTT: send that again, too.
        for packet in sent_early:
            for on_delivery, arguments in packet.delivery_handlers:
                on_delivery(QuicDeliveryState.LOST, *arguments)
        self._crypto_buffers = {epoch: Buffer(capacity=size) for epoch, size in CRYPTO_BUFFER_BYTES.items()}
        self.tls.__class__ = VerifyingContext
        self.tls.verify_peer = self._verifier  # type: ignore[attr-defined]
        self.tls._request_client_certificate = not self._is_client

    def _replenish_connection_ids(self) -> None:
        known = len(self._host_cids)
        super()._replenish_connection_ids()
        for issued in self._host_cids[known:]:
            issued.cid = steering.issued_id(self._slot)
            if self._stateless_reset_key is not None:
                issued.stateless_reset_token = reset_token(self._stateless_reset_key, issued.cid)

    # --- limits ---

    def raise_limits(self, max_streams: int, stream_window_bytes: int) -> None:
        """The peer is registered: let it open ``max_streams``, and let only each stream's own window bound it."""
        self._local_max_data.value = UNLIMITED_BYTES
        # aioquic raises the value by one for each stream that closes; the limit is for those that are open.
        limit = self._local_max_streams_bidi
        closed = limit.value - self._max_streams
        self._max_streams = max(self._max_streams, max_streams)
        limit.value = closed + self._max_streams
        if self._is_client:
            self._local_max_stream_data_bidi_remote = stream_window_bytes
        else:
            self._local_max_stream_data_bidi_local = stream_window_bytes

    def consume(self, stream_id: int, size_bytes: int) -> bool:
        """Bytes left our hands: move the window by them. True when there is a MAX_STREAM_DATA to send."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.receiver.is_finished:
            self._consumed.pop(stream_id, None)
            return False
        consumed = self._consumed.get(stream_id, 0) + size_bytes
        self._consumed[stream_id] = consumed
        window = self._window_of(stream_id)
        if consumed + window - stream.max_stream_data_local < window // 2:
            return False
        stream.max_stream_data_local = consumed + window
        self._table.announce(stream_id)
        return True

    def _window_of(self, stream_id: int) -> int:
        ours = self._is_ours(stream_id)
        window = self._local_max_stream_data_bidi_local if ours else self._local_max_stream_data_bidi_remote
        return max(window, self._announced_windows[ours])

    def _is_ours(self, stream_id: int) -> bool:
        return (stream_id % 2 == 0) == self._is_client  # RFC 9000 §2.1: bit 0 tells the initiator

    def _on_max_stream_data_delivery(self, delivery: QuicDeliveryState, stream: QuicStream) -> None:
        super()._on_max_stream_data_delivery(delivery, stream)
        if delivery != QuicDeliveryState.ACKED:
            assert stream.stream_id is not None, "only CRYPTO streams have no ID"
            self._table.announce(stream.stream_id)

    def _write_stream_limits(self, builder: QuicPacketBuilder, space: Any, stream: QuicStream) -> None:
        # The parent doubles the window when more than half of it was received; what was received is hidden from it.
        highest, stream.receiver.highest_offset = stream.receiver.highest_offset, 0
        try:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)
        finally:
            stream.receiver.highest_offset = highest

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: Any) -> None:
        used, self._local_max_data.used = self._local_max_data.used, 0
        try:
            super()._write_connection_limits(builder=builder, space=space)
        finally:
            self._local_max_data.used = used

    # --- streams ---

    def _write_application(self, builder: QuicPacketBuilder, network_path: Any, now: float) -> None:
        speaking = self._table.begin_writing()
        try:
            # In groups: aioquic goes through its whole queue for each packet.
            for start in range(0, max(1, len(speaking)), GROUP):
                self._write_group(speaking[start : start + GROUP], builder, network_path, now)
                if self._pacing_at is not None:
                    break
        finally:
            self._table.end_writing()
            self._streams_queue = []  # the table knows who is to be served

    def _write_group(self, group: list[QuicStream], builder: QuicPacketBuilder, network_path: Any, now: float) -> None:
        self._streams_queue = list(group)
        try:
            super()._write_application(builder, network_path, now)  # QuicPacketBuilderStop: no room for more
        finally:
            self._table.served(group, self._streams_queue)

    def take_acknowledged(self) -> set[int]:
        """Streams of which the peer acknowledged something since the last call."""
        acknowledged, self._table.acknowledged = self._table.acknowledged, set()
        return acknowledged

    def buffered_bytes(self, stream_id: int) -> int:
        """Bytes written to a stream and not yet acknowledged."""
        stream = self._streams.get(stream_id)
        return 0 if stream is None else len(stream.sender._buffer)

    def is_sent(self, stream_id: int) -> bool:
        """Whether the peer acknowledged everything up to FIN or the reset."""
        stream = self._streams.get(stream_id)
        return stream is None or stream.sender.is_finished

    @property
    def queued_datagrams(self) -> int:
        """DATAGRAM frames that wait to be sent."""
        return len(self._datagrams_pending)

    def forget_stream(self, stream_id: int) -> None:
        """The layer above is done with this stream."""
        self._consumed.pop(stream_id, None)

    # --- facts ---

    def _payload_received(self, context: Any, plain: bytes, crypto_frame_required: bool = False) -> tuple[bool, bool]:
        self.last_received_at = context.time
        return super()._payload_received(context, plain, crypto_frame_required=crypto_frame_required)

    def receive_datagram(self, data: bytes, addr: NetworkAddress, now: float) -> None:
        """As aioquic; and look whether the peer has moved."""
        super().receive_datagram(data, addr, now)
        if self._network_paths:
            self._follow_path(now)

    def _follow_path(self, now: float) -> None:
        """The peer's address changed (RFC 9000 §9.3). What is in flight went to the old one, and the probes for it may
        have become rare: probe the new path now, or its peer, with nothing to acknowledge, waits for minutes.
        """
        address = self._network_paths[0].addr
        if address == self._peer_address:
            return
        is_change, self._peer_address = self._peer_address is not None, address
        if is_change and self.outstanding:
            self._loss._pto_count = 0
            self._loss.reschedule_data(now=now)

    @property
    def peer_connection_id(self) -> bytes:
        """The destination ID in use: on a client its first two bytes name the server's worker."""
        return self._peer_cid.cid

    @property
    def outstanding(self) -> bool:
        """Whether an ack-eliciting packet waits for its acknowledgement."""
        return any(space.ack_eliciting_in_flight for space in self._loss.spaces)

    @property
    def paced_until(self) -> float | None:
        """When the pacer lets more be sent; None: it is not what holds packets back."""
        return self._pacing_at

    @property
    def pto_s(self) -> float:
        """Probe timeout without backoff (RFC 9002 §6.2.1)."""
        return self._loss.get_probe_timeout()

    @property
    def rtt_s(self) -> float:
        """Smoothed round-trip time; 0 before the first sample."""
        return self._loss._rtt_smoothed

    @property
    def has_early_keys(self) -> bool:
        """On a client: whether what is written now goes out with 0-RTT."""
        return self._is_client and self._cryptos[Epoch.ZERO_RTT].send.is_valid()

    @property
    def handshake_confirmed(self) -> bool:
        """RFC 9001 §4.1.2."""
        return self._handshake_confirmed

    @property
    def congestion_window_bytes(self) -> int:
        """The congestion controller's window."""
        return self._loss.congestion_window

    @property
    def sent_packets(self) -> int:
        """Packets sent so far (packet numbers count all spaces)."""
        return self._packet_number

    @property
    def peer_max_streams(self) -> int:
        """How many bidirectional streams the peer lets us open in all."""
        return self._remote_max_streams_bidi

    @property
    def peer_max_datagram_frame_bytes(self) -> int:
        """Largest DATAGRAM frame that the peer takes; 0: none (RFC 9221 §3)."""
        return self._remote_max_datagram_frame_size or 0

    @property
    def termination(self) -> events.ConnectionTerminated | None:
        """Set as soon as either side decided to close, before the closing period is over (RFC 9000 §10.2)."""
        return self._close_event

    @property
    def closed_by_peer(self) -> bool:
        """Whether the CONNECTION_CLOSE came from the peer."""
        return self._state is QuicConnectionState.DRAINING

    def issued(self, connection_id: bytes) -> bool:
        """Whether this is one of the IDs that we issued."""
        return any(issued.cid == connection_id for issued in self._host_cids)

    def knows_reset_token(self, token: bytes) -> bool:
        """Whether the peer told us this stateless-reset token; compared in constant time (RFC 9000 §10.3.1)."""
        known = [self._peer_cid, *self._peer_cid_available]
        return any([hmac.compare_digest(c.stateless_reset_token or b"", token) for c in known])
