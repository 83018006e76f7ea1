"""QUIC packets made by hand, for what no well-behaved peer sends."""

from __future__ import annotations

import os

from aioquic._buffer import Buffer
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import QuicFrameType, QuicPacketType, pull_quic_header
from aioquic.quic.packet_builder import QuicPacketBuilder

from qmux import steering

VERSION_1 = 1


def initial(
    destination: bytes | None = None,
    *,
    version: int = VERSION_1,
    size_bytes: int = 1200,
    crypto_offset: int = 0,
    data: bytes = b"\x01",
    token: bytes = b"",
    packet_number: int = 0,
) -> bytes:
    """An Initial that decrypts, with one CRYPTO frame."""
    destination = steering.initial_id() if destination is None else destination
    crypto = CryptoPair()
    crypto.setup_initial(cid=destination, is_client=True, version=VERSION_1)
    builder = QuicPacketBuilder(
        host_cid=os.urandom(steering.CONNECTION_ID_BYTES),
        peer_cid=destination,
        is_client=True,
        max_datagram_size=1200,
        version=VERSION_1,
        peer_token=token,
        packet_number=packet_number,
    )
    builder.start_packet(QuicPacketType.INITIAL, crypto)
    frame = builder.start_frame(QuicFrameType.CRYPTO, capacity=16 + len(data))
    frame.push_uint_var(crypto_offset)
    frame.push_uint_var(len(data))
    frame.push_bytes(data)
    datagram = builder.flush()[0][0]
    # The version is outside the encryption; a wrong one only has to be seen.
    return (datagram[:1] + version.to_bytes(4, "big") + datagram[5:])[:size_bytes]


def short_header(destination: bytes, size_bytes: int = 100) -> bytes:
    """A 1-RTT packet that nobody can decrypt."""
    return b"\x41" + destination + os.urandom(size_bytes - 1 - len(destination))


def stream_frame(stream_id: int, offset: int, data: bytes, fin: bool = False) -> bytes:
    frame = Buffer(capacity=32 + len(data))
    frame.push_uint_var(0x0E | fin)
    frame.push_uint_var(stream_id)
    frame.push_uint_var(offset)
    frame.push_uint_var(len(data))
    frame.push_bytes(data)
    return frame.data


def packet_types(datagram: bytes) -> list[QuicPacketType]:
    """Of the packets with a long header in one datagram, in order."""
    types = []
    while datagram and datagram[0] & 0x80:  # else a short header, or padding
        # aioquic wants the fixed bit, which quinn may clear (RFC 9287).
        datagram = bytes([datagram[0] | 0x40]) + datagram[1:]
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=steering.CONNECTION_ID_BYTES)
        types.append(header.packet_type)
        datagram = datagram[header.packet_length :]
    return types
