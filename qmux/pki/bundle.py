"""Reading certificate material: one bundle with chain, key and CA, or three files. Errors say what is missing."""

from __future__ import annotations

from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes, PrivateKeyTypes

from qmux.errors import CertificateError
from qmux.pki.reading import Unreadable, read_certificate, read_key

_BEGIN = b"-----BEGIN "


class Bundle(NamedTuple):
    """Parsed material: ``chain`` leaf first; ``ca`` what peers are verified against."""

    chain: tuple[x509.Certificate, ...]
    key: PrivateKeyTypes
    ca: tuple[x509.Certificate, ...]

    @property
    def leaf(self) -> x509.Certificate:
        """The certificate that speaks for us."""
        return self.chain[0]


class PemParts(NamedTuple):
    """The PEM blocks of a bundle."""

    chain: bytes
    key: bytes
    ca: bytes


def split_bundle(data: bytes, what: str) -> PemParts:
    """The parts of a one-file bundle: CA certificates are those that are self-issued. Raises CertificateError."""
    found = certificates(data, what)
    keys = [block for block in _blocks(data) if b"PRIVATE KEY" in block.splitlines()[0]]
    chain = [c for c in found if c.issuer != c.subject]
    ca = [c for c in found if c.issuer == c.subject]
    if not chain:
        raise CertificateError(f"{what}: has no certificate; a bundle holds the chain, the key and the CA")
    if len(keys) != 1:
        raise CertificateError(f"{what}: has {len(keys)} private keys; a bundle holds exactly one")
    if not ca:
        raise CertificateError(f"{what}: has no CA certificate; a bundle holds the chain, the key and the CA")
    return PemParts(_pem(chain), keys[0], _pem(ca))


def parse(chain: bytes, key: bytes, ca: bytes, what: str = "certificate material") -> Bundle:
    """Parse the three parts and check that the key belongs to the leaf. Raises CertificateError."""
    ours = certificates(chain, what)
    authorities = certificates(ca, f"{what}: CA")
    if not ours or not authorities:
        raise CertificateError(f"{what}: has no {'certificate' if not ours else 'CA certificate'}")
    try:
        private = read_key(key)
    except Unreadable as error:
        raise CertificateError(f"{what}: the private key cannot be read: {error}") from None
    if _public(private) != _public_of(ours[0]):
        raise CertificateError(f"{what}: the private key does not belong to the certificate")
    return Bundle(tuple(ours), private, tuple(authorities))


def certificates(data: bytes, what: str) -> list[x509.Certificate]:
    """Every certificate in PEM text, in its order. Raises CertificateError, after the file's name ``what``."""
    if _BEGIN not in data:
        raise CertificateError(f"{what}: is not PEM")
    blocks = [block for block in _blocks(data) if block.startswith(b"-----BEGIN CERTIFICATE-----")]
    try:
        return [read_certificate(block) for block in blocks]
    except Unreadable as error:
        raise CertificateError(f"{what}: a certificate cannot be read: {error}") from None


def _blocks(data: bytes) -> list[bytes]:
    return [_BEGIN + part for part in data.split(_BEGIN)[1:]]


def _pem(certificates: list[x509.Certificate]) -> bytes:
    return b"".join(c.public_bytes(serialization.Encoding.PEM) for c in certificates)


def _public(key: PrivateKeyTypes | CertificateIssuerPrivateKeyTypes) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def _public_of(certificate: x509.Certificate) -> bytes:
    return certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
