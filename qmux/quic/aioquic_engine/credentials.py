"""PEM material → aioquic configuration, and the verifiers that go with it."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Callable, Sequence
from typing import Any

from aioquic import tls
from aioquic.quic.configuration import QuicConfiguration
from aioquic.tls import CipherSuite
from cryptography import x509

from qmux import steering
from qmux.errors import CertificateError
from qmux.pki.bundle import parse
from qmux.pki.identity import Identity
from qmux.pki.material import Material
from qmux.pki.reading import ACCEPTED_KEYS
from qmux.pki.verify import CertificateRejected, identity, verify_server
from qmux.quic.engine import ALPN

MAX_DATAGRAM_FRAME_BYTES = 65_535
"""We take DATAGRAM frames of any size that fits a packet (RFC 9221 §3)."""

_CIPHER_SUITES = [
    CipherSuite.AES_128_GCM_SHA256,  # the fastest with AES instructions, and what the native engine prefers
    CipherSuite.AES_256_GCM_SHA384,
    CipherSuite.CHACHA20_POLY1305_SHA256,
]


class Credentials:
    """Our certificate and the CAs that we trust. Raises CertificateError where the material cannot be used."""

    def __init__(self, material: Material) -> None:
        bundle = parse(material.chain, material.key, material.ca)
        self._chain: list[x509.Certificate] = list(bundle.chain)
        self._key = bundle.key
        self._cas: list[x509.Certificate] = list(bundle.ca)

    def try_key(self) -> None:
        """Sign as in a handshake: aioquic has no other check of its key. Raises CertificateError."""
        context = tls.Context(is_client=False)
        key: Any = self._key
        context.certificate_private_key = key
        algorithms = context._signature_algorithms_for_private_key()
        if not algorithms:
            raise CertificateError(f"aioquic cannot sign with a key of this kind; accepted are {ACCEPTED_KEYS}")
        try:
            key.sign(b"", *tls.signature_algorithm_params(algorithms[0]))
        except ValueError as error:  # an RSA key that is too short for the digest
            raise CertificateError(f"aioquic cannot sign with this key: {error}") from None

    def configuration(
        self, *, is_client: bool, idle_timeout_s: float, window_bytes: int, datagrams: bool
    ) -> QuicConfiguration:
        """A QuicConfiguration with this certificate; verification is ours (``verification``)."""
        configuration = QuicConfiguration(
            is_client=is_client,
            alpn_protocols=[ALPN],
            connection_id_length=steering.CONNECTION_ID_BYTES,
            idle_timeout=idle_timeout_s,
            max_datagram_frame_size=MAX_DATAGRAM_FRAME_BYTES if datagrams else None,
            max_stream_data=window_bytes,
            cipher_suites=_CIPHER_SUITES,
            verify_mode=ssl.CERT_NONE,
        )
        configuration.certificate = self._chain[0]
        configuration.certificate_chain = self._chain[1:]
        configuration.private_key = self._key
        return configuration

    def identity(self, chain: Sequence[bytes]) -> Identity:
        """On a server: who is this client? Raises CertificateRejected."""
        return identity(chain, self._cas, datetime.datetime.now(datetime.UTC))

    def server_verifier(
        self, name: str, accepted: Callable[[int], None], rejected: Callable[[str], None]
    ) -> Callable[[Sequence[bytes]], None]:
        """On a client: is this the server called ``name``? ``accepted`` gets until when (seconds since the epoch),
        ``rejected`` the reason where it is not.
        """

        def verify(chain: Sequence[bytes]) -> None:
            try:
                accepted(verify_server(chain, self._cas, name, datetime.datetime.now(datetime.UTC)))
            except CertificateRejected as error:
                rejected(str(error))
                raise

        return verify
