"""CONNECTION_REFUSED without a connection (RFC 9000 §5.2.2): an Initial packet that closes, and no state."""

from __future__ import annotations

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicHeader, QuicPacketType
from aioquic.quic.packet_builder import QuicPacketBuilder

_REASON = b"the server is stopping or full"


def refuse_initial(header: QuicHeader) -> bytes:
    """The datagram that refuses the Initial with this header. Its keys come from the client's destination ID."""
    assert header.version is not None, "an Initial has a long header"
    crypto = CryptoPair()
    crypto.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        peer_cid=header.source_cid,
        version=header.version,
        is_client=False,
        max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=32 + len(_REASON))
    frame.push_uint_var(QuicErrorCode.CONNECTION_REFUSED)
    frame.push_uint_var(QuicFrameType.PADDING)
    frame.push_uint_var(len(_REASON))
    frame.push_bytes(_REASON)
    datagrams, _ = builder.flush()
    return datagrams[0]
