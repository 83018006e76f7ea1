"""Why a chain was refused, in words and as a TLS alert. It explains a decision that is made, and never accepts."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.x509.oid import SignatureAlgorithmOID

from qmux.errors import CertificateError
from qmux.heard import heard
from qmux.pki.policy import MAX_CHAIN
from qmux.pki.reading import subject_of

# TLS alerts, RFC 8446 §6
BAD_CERTIFICATE = 42
UNSUPPORTED_CERTIFICATE = 43
CERTIFICATE_EXPIRED = 45
UNKNOWN_CA = 48
CERTIFICATE_REQUIRED = 116

_WRAPPING = re.compile(r"validation failed: |candidates exhausted: |Python extension validator failed: \w+: ")
_PLACE = re.compile(r" \(encountered processing .*\)$")

_SIGNATURES_OF_CAS = (
    SignatureAlgorithmOID.RSA_WITH_SHA256,
    SignatureAlgorithmOID.RSA_WITH_SHA384,
    SignatureAlgorithmOID.RSA_WITH_SHA512,
    SignatureAlgorithmOID.RSASSA_PSS,
    SignatureAlgorithmOID.ECDSA_WITH_SHA256,
    SignatureAlgorithmOID.ECDSA_WITH_SHA384,
    SignatureAlgorithmOID.ECDSA_WITH_SHA512,
)


class CertificateRejected(CertificateError):
    """A certificate is not accepted; ``alert`` is the TLS alert that tells the peer."""

    def __init__(self, alert: int, reason: str) -> None:
        super().__init__(reason)
        self.alert = alert


def outside_its_time(certificate: x509.Certificate, now: datetime.datetime, what: str) -> CertificateRejected | None:
    """A refusal where ``certificate`` is not valid now, in which it is called ``what``."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if now > end:
        return CertificateRejected(CERTIFICATE_EXPIRED, f"{what} expired {_when(end)}")
    if now < begin:
        return CertificateRejected(CERTIFICATE_EXPIRED, f"{what} is not valid before {_when(begin)}")
    return None


def path_problem(
    chain: Sequence[x509.Certificate], cas: Sequence[x509.Certificate], now: datetime.datetime
) -> CertificateRejected | None:
    """What is wrong between the leaf and our CAs, as far as it can be named: dates, or a CA that is not ours."""
    leaf, *others = chain
    if refused := outside_its_time(leaf, now, "the certificate"):
        return refused
    path = _path(leaf, others, cas, MAX_CHAIN)
    if not path and leaf.issuer == leaf.subject and not any(ca.subject == leaf.issuer for ca in cas):
        return CertificateRejected(UNKNOWN_CA, "the certificate is self-signed")
    if not path:
        issuer = subject_of((others[-1] if others else leaf).issuer)
        return CertificateRejected(UNKNOWN_CA, f"the certificate is signed by another CA ({issuer})")
    for issuer_certificate in path:
        name = subject_of(issuer_certificate.subject)
        if refused := outside_its_time(issuer_certificate, now, f"the certificate of its CA ({name})"):
            return refused
    return None


def verifier_s_words(
    error: Exception, chain: Sequence[x509.Certificate], cas: Sequence[x509.Certificate]
) -> CertificateRejected:
    """The verifier's own reason, and what to do where that can be told."""
    leaf, *others = chain
    path = [leaf, *_path(leaf, others, cas, MAX_CHAIN)]
    for certificate in path:
        name = subject_of(certificate.subject)
        if certificate.version is not x509.Version.v3:
            text = f"{name} is an X.509 certificate of version 1; issue it with extensions (version 3)"
            return CertificateRejected(BAD_CERTIFICATE, text)
    for certificate in path[:-1]:
        if certificate.signature_algorithm_oid not in _SIGNATURES_OF_CAS:
            text = (
                f"the CA ({subject_of(certificate.issuer)}) signs in a way that is not accepted; a CA's key must "
                "be RSA from 2048 bits or ECDSA P-256, P-384 or P-521, with SHA-256, SHA-384 or SHA-512"
            )
            return CertificateRejected(BAD_CERTIFICATE, text)
    reason = heard(_PLACE.sub("", _WRAPPING.sub("", str(error))))
    where = "the certificate" if _PLACE.search(str(error)) else "the chain from its CA"
    return CertificateRejected(BAD_CERTIFICATE, f"{where} is not accepted: {reason}")


def _path(
    certificate: x509.Certificate, others: Sequence[x509.Certificate], cas: Sequence[x509.Certificate], depth: int
) -> list[x509.Certificate]:
    """The certificates that vouch for ``certificate``, up to one of ``cas``, by signatures alone; [] where none do."""
    for ca in cas:
        if _signed_by(certificate, ca):
            return [ca]
    for other in others:
        if depth > 1 and other != certificate and _signed_by(certificate, other):
            rest = _path(other, [each for each in others if each != other], cas, depth - 1)
            if rest:
                return [other, *rest]
    return []


def _signed_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    except (ValueError, TypeError, UnsupportedAlgorithm):  # other names, or SHA-1, for one: then the names must do
        return certificate.issuer == issuer.subject
    return True


def _when(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
