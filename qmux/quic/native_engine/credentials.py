"""PEM material → what the core takes, and the check of the peer that it calls back."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from typing import Any

import qmux_native
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from qmux.errors import CertificateError
from qmux.pki.bundle import parse
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
        self._cas: list[x509.Certificate] = list(bundle.ca)

    def of_server(self) -> qmux_native.Credentials:
        """For a server. The check returns the Identity of a client, or raises CertificateRejected."""
        return self._with(lambda chain: identity(chain, self._cas, datetime.datetime.now(datetime.UTC)))

    def of_client(self, name: str, accepted: Callable[[int], None]) -> qmux_native.Credentials:
        """For a client of the server called ``name``. The check raises CertificateRejected. ``accepted`` is called with
        the end of an accepted certificate's validity.
        """
        return self._with(
            lambda chain: accepted(verify_server(chain, self._cas, name, datetime.datetime.now(datetime.UTC)))
        )

    def _with(self, verify: Callable[[Sequence[bytes]], Any]) -> qmux_native.Credentials:
        return qmux_native.Credentials(chain=self.chain, key=self.key, alpn=ALPN.encode(), verify=verify)


class _Newest:
    """The end of the newest server certificate that was accepted, in seconds since the epoch."""

    def __init__(self) -> None:
        self.expires_at = 0.0

    def accepted(self, expires_at: int) -> None:
        self.expires_at = expires_at


class ClientContext:
    """What connections share that may resume each other's sessions: rustls wants the very same objects. Raises
    CertificateError.
    """

    def __init__(self, credentials: Credentials, server_name: str) -> None:
        # Not a method of our own: Python's collector does not see through the core, and a cycle would live for ever.
        self._newest = _Newest()
        try:
            self.core = qmux_native.Client(credentials.of_client(server_name, self._newest.accepted))
        except ValueError as error:  # a key that rustls does not take
            raise CertificateError(str(error)) from None

    @property
    def expires_at(self) -> float:
        """The end of the newest server certificate that was accepted, in seconds since the epoch."""
        return self._newest.expires_at
