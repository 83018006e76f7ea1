"""Certificate checks inside aioquic's TLS state machine.

aioquic verifies a server's certificate with another library than ours and a client's not at all, and tells the
application that a handshake is complete before it could object. So both checks run where the Certificate message is
handled: a peer that fails gets a TLS alert before anything else is done for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from aioquic import tls
from aioquic._buffer import Buffer
from cryptography.hazmat.primitives.serialization import Encoding

from qmux.pki.verify import CertificateRejected

PeerVerifier = Callable[[Sequence[bytes]], None]
"""Gets the peer's chain (DER, leaf first; empty: it sent none). Raises CertificateRejected."""

MAX_MESSAGE_BYTES = 16_384
"""Longest TLS message of a peer: a Certificate with a chain of four. A stranger can make us hold this much."""


class _PeerRejected(tls.Alert):
    """A TLS alert with a description of our choice (RFC 8446 §6.2)."""

    def __init__(self, description: int, reason: str) -> None:
        super().__init__(reason)
        self.description = tls.AlertDescription(description)


class VerifyingContext(tls.Context):
    """aioquic's TLS state machine with ``verify_peer`` called on the peer's Certificate message."""

    verify_peer: PeerVerifier

    def handle_message(self, input_data: bytes, output_buf: dict[tls.Epoch, Buffer]) -> None:
        """Bytes of the handshake, in order. aioquic waits for a message of any length up to 16 MiB."""
        if len(self._receive_buffer) + len(input_data) > MAX_MESSAGE_BYTES:
            raise tls.AlertDecodeError("a TLS message is too long")
        super().handle_message(input_data, output_buf)

    def _set_state(self, state: tls.State) -> None:
        # aioquic waits for a certificate also where a session is resumed, and it asked for none (RFC 8446 §4.3.2).
        if state == tls.State.SERVER_EXPECT_CERTIFICATE and self.session_resumed:
            self._server_expect_finished()
        else:
            super()._set_state(state)

    def _server_handle_certificate(self, input_buf: Buffer) -> None:
        super()._server_handle_certificate(input_buf)
        self._check()

    def _client_handle_certificate(self, input_buf: Buffer) -> None:
        super()._client_handle_certificate(input_buf)
        self._check()

    def _check(self) -> None:
        leaf: Any = self._peer_certificate
        chain = [] if leaf is None else [leaf, *self._peer_certificate_chain]
        try:
            self.verify_peer([certificate.public_bytes(Encoding.DER) for certificate in chain])
        except CertificateRejected as error:
            raise _PeerRejected(error.alert, str(error)) from error
