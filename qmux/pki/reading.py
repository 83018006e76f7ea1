"""Certificates and keys that somebody else made, read to the end: whatever is malformed is found here, in words."""

from __future__ import annotations

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes

from qmux.heard import heard

ACCEPTED_KEYS = "ECDSA P-256 or P-384, Ed25519, or RSA with 2048 to 4096 bits"
"""What both engines sign with and accept from a peer: rustls with ring has no P-521 and signs with RSA of these sizes,
aioquic has no other curve. The peer may run either engine, so a key must suit both.
"""

_CURVES = (ec.SECP256R1, ec.SECP384R1)
_RSA_BITS = range(2048, 4097)

_MALFORMED = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)
"""What ``cryptography`` raises for a file that is damaged, or that is of a kind which it does not know."""


class Unreadable(ValueError):
    """A certificate or key cannot be read, and why."""


def read_certificate(data: bytes) -> x509.Certificate:
    """One certificate in PEM or DER. Raises Unreadable.

    Most of a certificate is parsed when it is asked for: it is asked for here, so that nothing fails later.
    """
    try:
        load = x509.load_pem_x509_certificate if data.startswith(b"-----") else x509.load_der_x509_certificate
        certificate = load(data)
        certificate.public_key()
        for extension in certificate.extensions:
            if isinstance(extension.value, x509.SubjectAlternativeName):
                list(extension.value)
        _ = certificate.subject, certificate.issuer, certificate.version, certificate.signature_algorithm_oid
        _ = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    except _MALFORMED as error:
        raise Unreadable(_words(error)) from None
    return certificate


def read_key(pem: bytes) -> PrivateKeyTypes:
    """A private key without a passphrase. Raises Unreadable."""
    try:
        return serialization.load_pem_private_key(pem, password=None)
    except TypeError:
        raise Unreadable("it has a passphrase; remove it: openssl pkey -in KEY -out NEW_KEY") from None
    except _MALFORMED as error:
        raise Unreadable(_words(error)) from None


def key_name(key: object) -> str:
    """A public key's kind and size, as people name it."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return f"ECDSA {key.curve.name}"
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    return type(key).__name__.removesuffix("PublicKey")


def subject_of(name: x509.Name) -> str:
    """A subject or an issuer for a message: a peer may have written it."""
    return heard(name.rfc4514_string()) or "without a name"


def is_accepted(key: object) -> bool:
    """Whether a certificate of ours or of a peer may have this public key."""
    if isinstance(key, ec.EllipticCurvePublicKey):
        return isinstance(key.curve, _CURVES)
    if isinstance(key, rsa.RSAPublicKey):
        return key.key_size in _RSA_BITS
    return isinstance(key, ed25519.Ed25519PublicKey)


def _words(error: Exception) -> str:
    return str(error.args[0]) if error.args else type(error).__name__
