"""Our own certificate as its peers will judge it: with the code of the handshake, before a start or a reload."""

from __future__ import annotations

import datetime
from typing import NamedTuple

from cryptography.hazmat.primitives.serialization import Encoding

from qmux.pki.bundle import Bundle
from qmux.pki.material import Role
from qmux.pki.verify import (
    BAD_CERTIFICATE,
    UNKNOWN_CA,
    CertificateRejected,
    identity,
    judge_leaf,
    server_names,
    verify_server,
)


class Flaw(NamedTuple):
    """Why peers refuse our certificate; a warning where they may have another CA, or another name for us."""

    text: str
    is_warning: bool = False


def flaws(bundle: Bundle, role: Role, now: datetime.datetime) -> list[Flaw]:
    """Everything that a peer would refuse in our chain, if it trusts the CAs that we do."""
    try:
        return _judged(bundle, role, now)
    except CertificateRejected as error:
        if error.alert != UNKNOWN_CA:
            return [Flaw(str(error))]
        foreign = Flaw(f"{error}, not by the CA beside it: peers refuse it, unless they trust that other CA", True)
    # Its CA is not here: the rest of the chain is judged as if the topmost certificate were the CA.
    try:
        if len(bundle.chain) > 1:
            return [foreign, *_judged(bundle._replace(ca=bundle.chain[-1:]), role, now)]
        judge_leaf(bundle.leaf, role)
    except CertificateRejected as error:
        return [foreign, Flaw(str(error))]
    return [foreign]


def _judged(bundle: Bundle, role: Role, now: datetime.datetime) -> list[Flaw]:
    """Raises CertificateRejected where no peer can accept the chain."""
    chain = [certificate.public_bytes(Encoding.DER) for certificate in bundle.chain]
    if role == "client":
        identity(chain, bundle.ca, now)
        return []
    names = server_names(bundle.leaf)
    if not names:
        text = "the certificate has no name: clients check the DNS name or IP address in it"
        raise CertificateRejected(BAD_CERTIFICATE, text)
    refusals: dict[str, CertificateRejected] = {}
    for name in names:
        try:
            verify_server(chain, bundle.ca, name.replace("*", "any", 1), now)
        except CertificateRejected as error:
            refusals[name] = error
    if len(refusals) == len(names):
        raise refusals[names[0]]
    return [Flaw(f"clients cannot use its name {name}: {error}", True) for name, error in refusals.items()]
