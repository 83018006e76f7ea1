"""Which chains are accepted: RFC 5280 paths to one of our CAs, with the habits of other people's CAs.

``cryptography`` walks the path: signatures, dates, basicConstraints.cA, path lengths, name constraints, names, unknown
critical extensions, and keys and signature algorithms (RSA from 2048 bits, ECDSA P-256, P-384, P-521; no Ed25519 CA).
Its Web PKI profile refuses more, which only public CAs promise: plain ``openssl req -x509``, for one, writes no key
usage, and who leaves the subject empty, as cert-manager does, makes the name critical. What is added here is as safe as
in OpenSSL and Go: an extension may be absent or critical where RFC 5280 lets it, and where it stands it counts.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import Criticality, ExtensionPolicy, Policy, PolicyBuilder, Store

MAX_CHAIN = 4
"""Leaf and at most three intermediates: what a peer may make us parse and verify."""

MAX_CHAIN_BYTES = 16_000
"""All of them in DER: with its frame, the TLS message that carries them stays within 16 KiB, which the engines take."""

_ANY = Criticality.AGNOSTIC


def path_to(cas: Sequence[x509.Certificate], now: datetime.datetime) -> PolicyBuilder:
    """What a verifier of a client or a server is built from."""
    builder = PolicyBuilder().store(Store(list(cas))).time(now).max_chain_depth(MAX_CHAIN - 1)
    return builder.extension_policies(ca_policy=_CA, ee_policy=_LEAF)


def _may_sign(policy: Policy, certificate: x509.Certificate, usage: x509.KeyUsage | None) -> None:
    """A CA without key usage may sign (RFC 5280 §4.2.1.3: only where it stands, the bit must be set)."""
    if usage is not None and not usage.key_cert_sign:
        raise ValueError("its key usage lacks keyCertSign, so it may not issue certificates")


def _may_issue_for(policy: Policy, certificate: x509.Certificate, usage: x509.ExtendedKeyUsage | None) -> None:
    """A CA that is for some uses only issues for none else: what OpenSSL and Go make of it."""
    if usage is None or ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE in usage:
        return
    if policy.extended_key_usage not in usage:
        needed = "clientAuth" if policy.extended_key_usage == ExtendedKeyUsageOID.CLIENT_AUTH else "serverAuth"
        raise ValueError(f"its extended key usage lacks {needed}, so it may not issue such certificates")


def _is_leaf(policy: Policy, certificate: x509.Certificate, constraints: x509.BasicConstraints | None) -> None:
    """A CA's own certificate, with the key that issues all others, has no place on a machine that is reachable."""
    if constraints is not None and constraints.ca:
        raise ValueError("it is a CA's own; issue one for this machine with it")


_CA = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, _ANY, None)
    .may_be_present(x509.KeyUsage, _ANY, _may_sign)
    .may_be_present(x509.ExtendedKeyUsage, _ANY, _may_issue_for)
)

_LEAF = (
    ExtensionPolicy.permit_all()
    .require_present(x509.SubjectAlternativeName, _ANY, None)
    .may_be_present(x509.BasicConstraints, _ANY, _is_leaf)
    # RFC 5280 §4.2.1.1, §4.2.1.2, §4.2.2.1: never critical; the native engine refuses a leaf that has them so.
    .may_be_present(x509.AuthorityKeyIdentifier, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.SubjectKeyIdentifier, Criticality.NON_CRITICAL, None)
    .may_be_present(x509.AuthorityInformationAccess, Criticality.NON_CRITICAL, None)
)
