"""A server's answers that need no connection and leave no state: refusals, Retries, versions, stateless resets."""

from __future__ import annotations

import os
import time

from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    encode_quic_retry,
    encode_quic_version_negotiation,
)
from aioquic.quic.packet_builder import QuicPacketBuilder

from qmux.quic.aioquic_engine.overrides import reset_token

MIN_RESET_BYTES, MAX_RESET_BYTES = 21, 42
"""A stateless reset is shorter than its cause, or two endpoints could reset each other for ever; a PING alone, of 33
bytes, must get one. 21 bytes are the least that a peer takes for one; above 42 nothing is won (RFC 9000 §10.3)."""

RESETS_PER_S = 200
"""Stateless resets are for the clients of a dead worker, at most a few thousand; a flood of garbage is not answered."""

_REASON = b"the server is stopping or full"


def refuse_initial(header: QuicHeader) -> bytes:
    """CONNECTION_REFUSED for the Initial with this header (RFC 9000 §5.2.2): an Initial packet that closes. Its keys
    come from the client's destination ID.
    """
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


def retry(header: QuicHeader, source_id: bytes, token: bytes) -> bytes:
    """The Retry for the Initial with this header: the client comes again with ``token``, to ``source_id``."""
    assert header.version is not None, "an Initial has a long header"
    return encode_quic_retry(
        version=header.version,
        source_cid=source_id,
        destination_cid=header.source_cid,
        original_destination_cid=header.destination_cid,
        retry_token=token,
    )


def version_negotiation(header: QuicHeader, size_bytes: int, supported: list[int]) -> bytes | None:
    """The versions that we have, for a datagram of another one; None where it must not be answered."""
    # Version 0 is itself a Version Negotiation: answering it would bounce for ever (RFC 9000 §6.1).
    if header.packet_type == QuicPacketType.VERSION_NEGOTIATION or size_bytes < SMALLEST_MAX_DATAGRAM_SIZE:
        return None
    return encode_quic_version_negotiation(
        source_cid=header.destination_cid,
        destination_cid=header.source_cid,
        supported_versions=supported,
    )


class StatelessResets:
    """Stateless resets (RFC 9000 §10.3), at most ``RESETS_PER_S``."""

    def __init__(self) -> None:
        self._rate = _Rate(RESETS_PER_S)

    def answer(self, key: bytes, connection_id: bytes, size_bytes: int) -> bytes | None:
        """The reset for a datagram of ``size_bytes`` to an ID without a connection; None where there is to be none."""
        size_bytes = min(MAX_RESET_BYTES, size_bytes - 1)
        if size_bytes < MIN_RESET_BYTES or not self._rate.take():
            return None
        token = reset_token(key, connection_id)
        noise = bytearray(os.urandom(size_bytes - len(token)))
        noise[0] = 0x40 | (noise[0] & 0x3F)  # a short header (RFC 9000 §17.3.1)
        return bytes(noise) + token


class _Rate:
    """A token bucket of one second's worth."""

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._left = per_s
        self._at = time.monotonic()

    def take(self) -> bool:
        now = time.monotonic()
        self._left = min(self._per_s, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True
