"""What an operator reads when a client could not connect: which end refused, and why."""

from __future__ import annotations

import pytest

from qmux.pki.verify import BAD_CERTIFICATE, CERTIFICATE_EXPIRED, CERTIFICATE_REQUIRED, UNKNOWN_CA
from qmux.quic.engine import CloseKind, CloseReason
from qmux.worker.server.failures import of_client

HANDSHAKE_FAILURE = 40  # RFC 8446 §6


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (
            CloseReason(CloseKind.CERTIFICATE, UNKNOWN_CA, "it is of another CA"),
            "its certificate is not accepted: it is of another CA",
        ),
        (
            CloseReason(CloseKind.TLS, BAD_CERTIFICATE, "no server name"),
            "the client does not accept our certificate: no server name",
        ),
        (
            CloseReason(CloseKind.TLS, CERTIFICATE_EXPIRED),
            "the client does not accept our certificate: TLS alert 45",
        ),
        (CloseReason(CloseKind.TLS, UNKNOWN_CA), "the client does not accept our certificate: TLS alert 48"),
        (CloseReason(CloseKind.TLS, HANDSHAKE_FAILURE, "no ALPN"), "tls 0x28: no ALPN"),
        (CloseReason(CloseKind.TLS, CERTIFICATE_REQUIRED), "tls 0x74"),
        (CloseReason(CloseKind.TLS, UNKNOWN_CA + 1), "tls 0x31"),
        (CloseReason(CloseKind.IDLE), "idle"),
    ],
)
def test_why_a_client_could_not_connect(reason: CloseReason, text: str) -> None:
    assert of_client(reason) == text
