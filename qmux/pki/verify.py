"""The one check of a certificate: of a peer's in a handshake, and of our own before a start or a reload takes it.

``identity`` is for a client's, ``verify_server`` for a server's, ``qmux.pki.own`` asks both about ours. What a path to
a CA is says ``policy``, why one is none ``diagnosis``, which keys there may be ``reading``.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import VerificationError

from qmux import addresses
from qmux.heard import heard
from qmux.pki.diagnosis import (
    BAD_CERTIFICATE,
    CERTIFICATE_EXPIRED,
    CERTIFICATE_REQUIRED,
    UNKNOWN_CA,
    UNSUPPORTED_CERTIFICATE,
    CertificateRejected,
    path_problem,
    verifier_s_words,
)
from qmux.pki.identity import CLIENT_URI, SERVICE_URI, Identity
from qmux.pki.material import Role
from qmux.pki.policy import MAX_CHAIN, MAX_CHAIN_BYTES, path_to
from qmux.pki.reading import ACCEPTED_KEYS, Unreadable, is_accepted, key_name, read_certificate

__all__ = [
    "BAD_CERTIFICATE",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_REQUIRED",
    "MAX_CHAIN",
    "UNKNOWN_CA",
    "UNSUPPORTED_CERTIFICATE",
    "CertificateRejected",
    "client_names",
    "identity",
    "judge_leaf",
    "server_names",
    "verify_server",
]


def identity(chain: Sequence[bytes], cas: Sequence[x509.Certificate], now: datetime.datetime) -> Identity:
    """Who the client with this chain (DER, leaf first) is: asked in a full handshake, and again before a session of its
    is resumed. Raises CertificateRejected.
    """
    certificates = _parse(chain)
    leaf, *intermediates = certificates
    try:
        path_to(cas, now).build_client_verifier().verify(leaf, intermediates)
    except VerificationError as error:
        raise _refused(error, certificates, cas, now, ExtendedKeyUsageOID.CLIENT_AUTH) from None
    judge_leaf(leaf, "client")
    return _identity_of(leaf)


def verify_server(chain: Sequence[bytes], cas: Sequence[x509.Certificate], name: str, now: datetime.datetime) -> int:
    """Accept the server with this chain as ``name`` (DNS name or IP address) until the time that is returned, in
    seconds since the epoch. Raises CertificateRejected.
    """
    certificates = _parse(chain)
    leaf, *intermediates = certificates
    try:
        path_to(cas, now).build_server_verifier(_subject(name)).verify(leaf, intermediates)
    except VerificationError as error:
        raise _refused(error, certificates, cas, now, ExtendedKeyUsageOID.SERVER_AUTH, name) from None
    except ValueError:
        raise CertificateRejected(BAD_CERTIFICATE, f'no certificate can be for "{name}": it is not a name') from None
    judge_leaf(leaf, "server")
    return int(min(certificate.not_valid_after_utc for certificate in certificates).timestamp())


def judge_leaf(leaf: x509.Certificate, role: Role) -> None:
    """What a certificate says of itself: for what it is, and its key. Raises CertificateRejected.

    The verifier takes one without any usage as fit for all (RFC 5280 §4.2.1.12): here it must name its own. A key that
    an engine does not take would end the handshake with an alert that says nothing.
    """
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if role == "client" else ExtendedKeyUsageOID.SERVER_AUTH
    if not _has_usage(leaf, usage):
        raise _wrong_usage(usage)
    if not is_accepted(key := leaf.public_key()):
        text = f"the certificate's key is {key_name(key)}; accepted are {ACCEPTED_KEYS}"
        raise CertificateRejected(UNSUPPORTED_CERTIFICATE, text)


def server_names(certificate: x509.Certificate) -> list[str]:
    """The DNS names and IP addresses that a certificate stands for, in its order."""
    names = _san(certificate) or ()
    return [str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))]


def client_names(certificate: x509.Certificate) -> tuple[list[str], tuple[str, ...]]:
    """The client names and the services in a certificate's URI SANs."""
    san = _san(certificate)
    uris = san.get_values_for_type(x509.UniformResourceIdentifier) if san is not None else []
    names = [uri.removeprefix(CLIENT_URI) for uri in uris if uri.startswith(CLIENT_URI)]
    services = tuple(uri.removeprefix(SERVICE_URI) for uri in uris if uri.startswith(SERVICE_URI))
    return names, services


def _parse(chain: Sequence[bytes]) -> list[x509.Certificate]:
    if not chain:
        raise CertificateRejected(CERTIFICATE_REQUIRED, "no certificate was presented")
    if len(chain) > MAX_CHAIN:
        raise CertificateRejected(
            BAD_CERTIFICATE, f"a chain of {len(chain)} certificates; at most {MAX_CHAIN} are read"
        )
    if (size := sum(len(der) for der in chain)) > MAX_CHAIN_BYTES:
        raise CertificateRejected(BAD_CERTIFICATE, f"a chain of {size} bytes; at most {MAX_CHAIN_BYTES} are read")
    try:
        return [read_certificate(der) for der in chain]
    except Unreadable as error:
        raise CertificateRejected(BAD_CERTIFICATE, f"the certificate cannot be parsed: {heard(error)}") from None


def _identity_of(leaf: x509.Certificate) -> Identity:
    names, services = client_names(leaf)
    if len(names) != 1 or not names[0]:
        found = f"{len(names)} of them" if names else "none"
        raise CertificateRejected(
            BAD_CERTIFICATE, f"a client certificate needs exactly one name {CLIENT_URI}NAME, this has {found}"
        )
    return Identity(
        principal=names[0],
        services=services,
        fingerprint=leaf.fingerprint(hashes.SHA256()).hex(),
        serial=f"{leaf.serial_number:x}",
        not_after=int(leaf.not_valid_after_utc.timestamp()),
    )


def _refused(
    error: VerificationError,
    chain: Sequence[x509.Certificate],
    cas: Sequence[x509.Certificate],
    now: datetime.datetime,
    usage: x509.ObjectIdentifier,
    name: str = "",
) -> CertificateRejected:
    """Why the verifier refused: what we can name, else its own reason."""
    leaf = chain[0]
    if refused := path_problem(chain, cas, now):
        return refused
    if not _has_usage(leaf, usage):
        return _wrong_usage(usage)
    if not name and _san(leaf) is None:
        return CertificateRejected(BAD_CERTIFICATE, "the certificate has no name (SAN)")
    if name and not _is_named(leaf, name):
        known = heard(", ".join(server_names(leaf))) or "no name at all"
        return CertificateRejected(BAD_CERTIFICATE, f'the certificate is not for "{name}" but for {known}')
    return verifier_s_words(error, chain, cas)


def _is_named(leaf: x509.Certificate, name: str) -> bool:
    """Whether ``name`` is one of the certificate's, or one that its wildcards may cover."""
    known = [other.lower() for other in server_names(leaf)]
    return name.lower() in known or f"*.{name.lower().partition('.')[2]}" in known


def _subject(name: str) -> x509.verification.Subject:
    address = addresses.ip(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _wrong_usage(usage: x509.ObjectIdentifier) -> CertificateRejected:
    needed = "clientAuth" if usage == ExtendedKeyUsageOID.CLIENT_AUTH else "serverAuth"
    return CertificateRejected(
        UNSUPPORTED_CERTIFICATE, f"the certificate is not for this use: its extended key usage lacks {needed}"
    )


def _has_usage(leaf: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    try:
        return usage in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False


def _san(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
