"""Datagrams as large as the path carries (RFC 8899, RFC 9000 §14.3): aioquic itself stays at 1,200 bytes.

Costs in this engine are for each packet, so the size is its largest lever. The search begins with the size that every
path carries and goes up only when a padded PING of the larger size was acknowledged: no data is ever risked. A path
that shrinks later is noticed by large packets that vanish, and the connection goes back to the smallest size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aioquic import tls
from aioquic.quic.connection import NetworkAddress
from aioquic.quic.packet import QuicFrameType, QuicPacketType
from aioquic.quic.packet_builder import QuicDeliveryState, QuicPacketBuilder

from qmux.quic.aioquic_engine.overrides import TunnelConnection

BASE_BYTES = 1200
"""What every path carries (RFC 9000 §14)."""

STEPS_BYTES = (1452, 8952)
"""UDP payloads that fit an Ethernet frame and a jumbo frame under IPv6: loopback carries both, most data centres the
second, the Internet the first."""

TRIES = 3
"""Of one size: a probe may be lost for another reason (RFC 8899 §5.1.2, MAX_PROBES)."""

VANISHED_PACKETS = 6
"""Large packets lost with none acknowledged between them: the path does not carry them any more."""

VANISHED_PTOS = 2
"""... or probe timeouts in a row, when nothing at all is acknowledged."""

DATAGRAM_ROOM_BYTES = 64
"""More than the header, the frame's header and the tag of a packet with one DATAGRAM."""

SEARCH_AGAIN_S = 60.0
"""After the path shrank."""


class SearchingConnection(TunnelConnection):
    """A TunnelConnection that searches for the largest datagram of its path."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._next_step = 0
        self._tries = 0
        self._probing = False
        self._search_at = 0.0
        self._large_lost = 0
        self._watch_recovery()

    @property
    def datagram_bytes(self) -> int:
        """The largest datagram that we send now."""
        return self._max_datagram_size

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """As aioquic, and a probe where one is due."""
        datagrams = super().datagrams_to_send(now)
        if self._is_due(now):
            datagrams += self._probe(STEPS_BYTES[self._next_step], now)
        return datagrams

    def handle_timer(self, now: float) -> None:
        """As aioquic; timeouts in a row mean a path that shrank, if large packets were sent."""
        super().handle_timer(now)
        if self._loss._pto_count >= VANISHED_PTOS:
            self._shrink(now)

    def _is_due(self, now: float) -> bool:
        return (
            not self._probing
            and self._next_step < len(STEPS_BYTES)
            and self.handshake_confirmed
            and self.termination is None
            and now >= self._search_at
            and self._network_paths[0].is_validated
        )

    def _probe(self, size_bytes: int, now: float) -> list[tuple[bytes, NetworkAddress]]:
        self._probing = True
        assert self._version is not None, "the handshake is confirmed"
        builder = QuicPacketBuilder(
            host_cid=self.host_cid,
            is_client=self._is_client,
            max_datagram_size=size_bytes,
            packet_number=self._packet_number,
            peer_cid=self._peer_cid.cid,
            peer_token=self._peer_token,
            version=self._version,
        )
        builder.max_flight_bytes = size_bytes
        builder.start_packet(QuicPacketType.ONE_RTT, self._cryptos[tls.Epoch.ONE_RTT])
        builder.start_frame(QuicFrameType.PING, handler=self._on_probe_delivery, handler_args=(size_bytes, now))
        builder._datagram_needs_padding = True
        number = self._packet_number
        datagrams = self._flush_builder(
            builder=builder, network_path=self._network_paths[0], peer_cid=self._peer_cid.cid, now=now
        )
        # Its loss says nothing about congestion (RFC 9000 §14.4), so congestion control does not see it at all.
        packet = self._spaces[tls.Epoch.ONE_RTT].sent_packets[number]
        self._loss._cc.bytes_in_flight -= packet.sent_bytes
        packet.in_flight = False
        return datagrams

    def _on_probe_delivery(self, delivery: QuicDeliveryState, size_bytes: int, sent_at: float) -> None:
        self._probing = False
        if self._next_step >= len(STEPS_BYTES) or STEPS_BYTES[self._next_step] != size_bytes:
            return  # the path shrank meanwhile
        if delivery == QuicDeliveryState.ACKED:
            self._use(size_bytes)
            self._next_step += 1
            self._tries = 0
            return
        self._tries += 1
        if self._tries >= TRIES:
            self._next_step = len(STEPS_BYTES)

    def _use(self, size_bytes: int) -> None:
        """Congestion control counts in datagrams (RFC 9002 §7.2, §7.3): it must know their size, too."""
        self._max_datagram_size = size_bytes
        for part in (self._loss, self._loss._pacer, self._loss._cc):
            part._max_datagram_size = size_bytes  # type: ignore[union-attr]

    # --- a path that shrinks ---

    def _watch_recovery(self) -> None:
        on_packets_lost, on_packet_acked = self._loss._on_packets_lost, self._loss._cc.on_packet_acked

        def lost(*, now: float, packets: Sequence[Any], **kwargs: Any) -> None:
            packets = list(packets)
            self._large_lost += sum(packet.in_flight and packet.sent_bytes > BASE_BYTES for packet in packets)
            on_packets_lost(now=now, packets=packets, **kwargs)
            if self._large_lost >= VANISHED_PACKETS:
                self._shrink(now)

        def acked(*, packet: Any, **kwargs: Any) -> None:
            if packet.sent_bytes > BASE_BYTES:
                self._large_lost = 0
            on_packet_acked(packet=packet, **kwargs)

        self._loss._on_packets_lost = lost  # type: ignore[method-assign,assignment]
        self._loss._cc.on_packet_acked = acked  # type: ignore[method-assign]

    def _shrink(self, now: float) -> None:
        if self._max_datagram_size > BASE_BYTES:
            self._use(BASE_BYTES)
            self._large_lost = 0
            self._next_step = self._tries = 0
            self._search_at = now + SEARCH_AGAIN_S
            # One that does not fit would block aioquic's queue for ever.
            fitting = [data for data in self._datagrams_pending if len(data) <= BASE_BYTES - DATAGRAM_ROOM_BYTES]
            self._datagrams_pending.clear()
            self._datagrams_pending.extend(fitting)
