"""Why a client could not connect, in words."""

from __future__ import annotations

from qmux.pki.verify import BAD_CERTIFICATE, UNKNOWN_CA
from qmux.quic.engine import CloseKind, CloseReason

_CERTIFICATE_ALERTS = range(BAD_CERTIFICATE, UNKNOWN_CA + 1)
"""The alerts about a certificate (RFC 8446 §6): where we refuse the peer's, the CloseKind is CERTIFICATE."""


def of_client(reason: CloseReason) -> str:
    """At a server: why a client could not connect, and which end refused the other's certificate."""
    if reason.kind is CloseKind.CERTIFICATE:
        return f"its certificate is not accepted: {reason.message}"
    if reason.kind is CloseKind.TLS and reason.code in _CERTIFICATE_ALERTS:
        return f"the client does not accept our certificate: {reason.message or f'TLS alert {reason.code}'}"
    return str(reason)
