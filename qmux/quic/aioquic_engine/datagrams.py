"""DATAGRAM frames (RFC 9221): how large one may be, and how many may wait."""

from __future__ import annotations

from qmux.quic.aioquic_engine.mtu import SearchingConnection

DATAGRAM_OVERHEAD_BYTES = 22
"""What a packet costs a DATAGRAM's payload besides the connection ID: flags 1, packet number 2, tag 16 (RFC 9001 §5.3),
frame type 1 and length 2."""

DATAGRAM_FRAME_OVERHEAD_BYTES = 3
"""Frame type and length: the peer's ``max_datagram_frame_size`` includes them (RFC 9221 §3)."""

MAX_QUEUED_DATAGRAMS = 256
"""aioquic's own queue has no bound; beyond this a DATAGRAM is dropped, as a full socket buffer would."""


def max_datagram_size(quic: SearchingConnection) -> int:
    """The largest payload that fits into a packet and that the peer takes; 0: none."""
    overhead = DATAGRAM_OVERHEAD_BYTES + len(quic.peer_connection_id)
    by_packet = quic.datagram_bytes - overhead
    by_peer = quic.peer_max_datagram_frame_bytes - DATAGRAM_FRAME_OVERHEAD_BYTES
    return max(0, min(by_packet, by_peer))


def queue_datagram(quic: SearchingConnection, data: bytes) -> bool:
    """False where it is dropped. An oversized one would block aioquic's queue for ever."""
    if len(data) > max_datagram_size(quic) or quic.queued_datagrams >= MAX_QUEUED_DATAGRAMS:
        return False
    quic.send_datagram_frame(data)
    return True
