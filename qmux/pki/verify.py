"""The one check of a peer's certificate, for both engines: ``identity`` of a client, ``verify_server`` of a server.

The decision is cryptography's verifier (RFC 5280 paths, Web PKI profile: AKI, SAN and EKU required). It does not say
why it refuses, so ``_diagnose`` looks for the reason afterwards: it explains, it never accepts.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from qmux.errors import CertificateError
from qmux.heard import heard
from qmux.pki.identity import CLIENT_URI, SERVICE_URI, Identity

MAX_CHAIN = 4
"""Leaf and at most three intermediates: what a peer may make us parse and verify."""

# TLS alerts, RFC 8446 §6
BAD_CERTIFICATE = 42
UNSUPPORTED_CERTIFICATE = 43
CERTIFICATE_EXPIRED = 45
UNKNOWN_CA = 48
CERTIFICATE_REQUIRED = 116


class CertificateRejected(CertificateError):
    """A peer's certificate is not accepted; ``alert`` is the TLS alert that tells the peer."""

    def __init__(self, alert: int, reason: str) -> None:
        super().__init__(reason)
        self.alert = alert


def identity(chain: Sequence[bytes], cas: Sequence[x509.Certificate], now: datetime.datetime) -> Identity:
    """Who the client with this chain (DER, leaf first) is: asked in a full handshake, and again before a session of its
    is resumed. Raises CertificateRejected.
    """
    leaf, intermediates = _parse(chain)
    verifier = PolicyBuilder().store(Store(list(cas))).time(now).max_chain_depth(MAX_CHAIN - 1).build_client_verifier()
    try:
        verifier.verify(leaf, intermediates)
    except VerificationError:
        raise _diagnose(leaf, cas, now, ExtendedKeyUsageOID.CLIENT_AUTH) from None
    _require_usage(leaf, ExtendedKeyUsageOID.CLIENT_AUTH)
    return _identity_of(leaf)


def verify_server(chain: Sequence[bytes], cas: Sequence[x509.Certificate], name: str, now: datetime.datetime) -> int:
    """Accept the server with this chain as ``name`` (DNS name or IP address) until the time that is returned, in
    seconds since the epoch. Raises CertificateRejected.
    """
    leaf, intermediates = _parse(chain)
    builder = PolicyBuilder().store(Store(list(cas))).time(now).max_chain_depth(MAX_CHAIN - 1)
    try:
        builder.build_server_verifier(_subject(name)).verify(leaf, intermediates)
    except VerificationError:
        raise _diagnose(leaf, cas, now, ExtendedKeyUsageOID.SERVER_AUTH, name) from None
    except ValueError:
        raise CertificateRejected(BAD_CERTIFICATE, f'no certificate can be for "{name}": it is not a name') from None
    _require_usage(leaf, ExtendedKeyUsageOID.SERVER_AUTH)
    return int(min(certificate.not_valid_after_utc for certificate in (leaf, *intermediates)).timestamp())


def server_names(certificate: x509.Certificate) -> list[str]:
    """The DNS names and IP addresses that a certificate stands for."""
    san = _san(certificate)
    if san is None:
        return []
    addresses = [str(address) for address in san.get_values_for_type(x509.IPAddress)]
    return [*san.get_values_for_type(x509.DNSName), *addresses]


def client_names(certificate: x509.Certificate) -> tuple[list[str], tuple[str, ...]]:
    """The client names and the services in a certificate's URI SANs."""
    san = _san(certificate)
    uris = san.get_values_for_type(x509.UniformResourceIdentifier) if san is not None else []
    names = [uri.removeprefix(CLIENT_URI) for uri in uris if uri.startswith(CLIENT_URI)]
    services = tuple(uri.removeprefix(SERVICE_URI) for uri in uris if uri.startswith(SERVICE_URI))
    return names, services


def _parse(chain: Sequence[bytes]) -> tuple[x509.Certificate, list[x509.Certificate]]:
    if not chain:
        raise CertificateRejected(CERTIFICATE_REQUIRED, "no certificate was presented")
    if len(chain) > MAX_CHAIN:
        raise CertificateRejected(
            BAD_CERTIFICATE, f"a chain of {len(chain)} certificates; at most {MAX_CHAIN} are read"
        )
    try:
        leaf, *intermediates = [x509.load_der_x509_certificate(der) for der in chain]
        _ = leaf.extensions  # parsed on first use, and may be malformed
    except ValueError as error:
        raise CertificateRejected(BAD_CERTIFICATE, f"the certificate cannot be parsed: {heard(error)}") from None
    return leaf, intermediates


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


def _diagnose(
    leaf: x509.Certificate,
    cas: Sequence[x509.Certificate],
    now: datetime.datetime,
    usage: x509.ObjectIdentifier,
    name: str = "",
) -> CertificateRejected:
    if now > leaf.not_valid_after_utc:
        return CertificateRejected(CERTIFICATE_EXPIRED, f"the certificate expired {_when(leaf.not_valid_after_utc)}")
    if now < leaf.not_valid_before_utc:
        return CertificateRejected(
            CERTIFICATE_EXPIRED, f"the certificate is not valid before {_when(leaf.not_valid_before_utc)}"
        )
    if leaf.issuer == leaf.subject and not any(ca.subject == leaf.issuer for ca in cas):
        return CertificateRejected(UNKNOWN_CA, "the certificate is self-signed")
    if not any(_signed_by(leaf, ca) for ca in cas):
        issuer = heard(leaf.issuer.rfc4514_string()) or "without a name"
        return CertificateRejected(UNKNOWN_CA, f"the certificate is signed by another CA ({issuer})")
    if not _has_usage(leaf, usage):
        return _wrong_usage(usage)
    if name and name.lower() not in (known := [other.lower() for other in server_names(leaf)]):
        found = heard(", ".join(known)) or "no name at all"
        return CertificateRejected(BAD_CERTIFICATE, f'the certificate is not for "{name}" but for {found}')
    for extension, words in (
        (x509.AuthorityKeyIdentifier, "authority key identifier"),
        (x509.SubjectAlternativeName, "name (SAN)"),
    ):
        if not _has(leaf, extension):
            return CertificateRejected(BAD_CERTIFICATE, f"the certificate has no {words}")
    return CertificateRejected(BAD_CERTIFICATE, "the certificate's chain does not verify against our CA")


def _subject(name: str) -> x509.verification.Subject:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _signed_by(leaf: x509.Certificate, ca: x509.Certificate) -> bool:
    try:
        leaf.verify_directly_issued_by(ca)
    except Exception:  # ValueError, TypeError, InvalidSignature: only an explanation is sought here
        return False
    return True


def _require_usage(leaf: x509.Certificate, usage: x509.ObjectIdentifier) -> None:
    """The verifier refuses other usages, but takes a certificate without any as fit for all (RFC 5280 §4.2.1.12)."""
    if not _has_usage(leaf, usage):
        raise _wrong_usage(usage)


def _wrong_usage(usage: x509.ObjectIdentifier) -> CertificateRejected:
    needed = "clientAuth" if usage == ExtendedKeyUsageOID.CLIENT_AUTH else "serverAuth"
    return CertificateRejected(UNSUPPORTED_CERTIFICATE, f"the certificate is not for this use: it lacks {needed}")


def _has_usage(leaf: x509.Certificate, usage: x509.ObjectIdentifier) -> bool:
    try:
        return usage in leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return False


def _has(leaf: x509.Certificate, extension: type[x509.ExtensionType]) -> bool:
    try:
        leaf.extensions.get_extension_for_class(extension)
    except x509.ExtensionNotFound:
        return False
    return True


def _san(certificate: x509.Certificate) -> x509.SubjectAlternativeName | None:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None


def _when(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
