"""PEM material → what the core takes, and the check of the peer that it calls back."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence

import qmux_native
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from qmux.errors import CertificateError
from qmux.pki.bundle import parse
from qmux.pki.identity import Identity
from qmux.pki.material import Material
from qmux.pki.verify import identity, verify_server
from qmux.quic import engine

ALPN = engine.ALPN


class Credentials:
    """Our certificate and the CAs that we trust. Raises CertificateError where the material cannot be used."""

    def __init__(self, material: Material) -> None:
        bundle = parse(material.chain, material.key, material.ca)
        self.chain = [certificate.public_bytes(Encoding.DER) for certificate in bundle.chain]
        self.key = bundle.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        self.alpn = ALPN.encode()
        self._cas: list[x509.Certificate] = list(bundle.ca)

    def client_verifier(self) -> Callable[[Sequence[bytes]], Identity]:
        """On a server: who is this client? Raises CertificateRejected."""
        return lambda chain: identity(chain, self._cas, datetime.datetime.now(datetime.UTC))

    def server_verifier(self, name: str) -> Callable[[Sequence[bytes]], int]:
        """On a client: is this the server called ``name``, and until when? Raises CertificateRejected."""
        return lambda chain: verify_server(chain, self._cas, name, datetime.datetime.now(datetime.UTC))


class ClientContext:
    """What connections share that may resume each other's sessions: rustls wants the very same objects. ``expires_at``:
    the end of the newest server certificate that was accepted. Raises CertificateError.
    """

    def __init__(self, credentials: Credentials, server_name: str) -> None:
        verify = credentials.server_verifier(server_name)
        self.expires_at = 0.0

        def accept(chain: Sequence[bytes]) -> None:
            self.expires_at = verify(chain)

        try:
            self.core = qmux_native.Client(
                chain=credentials.chain, key=credentials.key, alpn=credentials.alpn, verify=accept
            )
        except ValueError as error:  # a key that rustls does not take
            raise CertificateError(str(error)) from None
