"""Why a connection ended, in the words of the seam: what aioquic tells of it, read with what is known here."""

from __future__ import annotations

from aioquic.quic.events import ConnectionTerminated

from qmux.pki.verify import BAD_CERTIFICATE, CERTIFICATE_REQUIRED, UNKNOWN_CA
from qmux.quic.engine import CloseKind, CloseReason

CERTIFICATE_ALERTS = frozenset({*range(BAD_CERTIFICATE, UNKNOWN_CA + 1), CERTIFICATE_REQUIRED})
"""The alerts about a certificate (RFC 8446 §6): sent by us, they are about the peer's."""

APPLICATION_ERROR = 0x0C
"""The transport's code for an application that closes before the handshake is complete (RFC 9000 §20.1, §10.2.3)."""


def close_reason(
    event: ConnectionTerminated, *, by_peer: bool, is_connected: bool, certificate_error: str
) -> CloseReason:
    """``by_peer``: the CONNECTION_CLOSE came from there. ``certificate_error``: what we found wrong with the peer's."""
    code, message = event.error_code, event.reason_phrase
    if certificate_error:
        return CloseReason(CloseKind.CERTIFICATE, code, certificate_error)
    if not by_peer and event.reason_phrase == "Idle timeout":
        return CloseReason(CloseKind.IDLE if is_connected else CloseKind.TIMEOUT)
    if event.frame_type is None and by_peer:
        return CloseReason(CloseKind.APPLICATION, code, message)
    if code == APPLICATION_ERROR and by_peer:
        # What an application's close looks like before the handshake is complete.
        return CloseReason(CloseKind.APPLICATION, 0, message or "closed before the handshake was complete")
    if 0x100 <= code <= 0x1FF:  # CRYPTO_ERROR, RFC 9000 §20.1
        if not by_peer and code - 0x100 in CERTIFICATE_ALERTS:
            return CloseReason(CloseKind.CERTIFICATE, code, message)
        return CloseReason(CloseKind.TLS, code - 0x100, message)
    return CloseReason(CloseKind.TRANSPORT, code, message)
