"""What a certificate says, as facts for JSON and as lines for people."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID

from qmux.errors import CertificateError
from qmux.heard import escaped
from qmux.pki.bundle import certificates
from qmux.pki.reading import key_name
from qmux.pki.verify import client_names, server_names

MAX_FILE_BYTES = 1 << 20
"""A bundle is some 3 KiB and a store of every public CA 250 KiB: what is larger is something else."""


def describe_file(path: Path) -> list[dict[str, Any]]:
    """The facts of every certificate in a PEM file, in its order. Raises CertificateError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES or b"-----BEGIN CERTIFICATE-----" not in data:
        raise CertificateError(f"{path}: has no certificate; it should be a PEM file such as `qmux pki issue` writes")
    now = datetime.datetime.now(datetime.UTC)
    return [facts(certificate, now) for certificate in certificates(data, str(path))]


def facts(certificate: x509.Certificate, now: datetime.datetime) -> dict[str, Any]:
    """What a certificate says; times as ISO 8601 in UTC."""
    names, services = client_names(certificate)
    return {
        "kind": kind_of(certificate),
        "subject": certificate.subject.rfc4514_string(),
        "names": [*names, *server_names(certificate)],
        "services": list(services),
        "issuer": certificate.issuer.rfc4514_string(),
        "not_before": certificate.not_valid_before_utc.isoformat(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "valid_now": certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc,
        "days_left": (certificate.not_valid_after_utc - now).days,
        "key": key_name(certificate.public_key()),
        "serial": f"{certificate.serial_number:x}",
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
    }


def as_text(facts: dict[str, Any]) -> str:
    """The facts as aligned lines; somebody else may have written the names in them."""
    lines = {
        facts["kind"]: facts["subject"],
        "names": ", ".join(facts["names"]),
        "services": ", ".join(facts["services"]),
        "issuer": "itself" if facts["issuer"] == facts["subject"] else facts["issuer"],
        "valid": f"{_minute(facts['not_before'])} to {_minute(facts['not_after'])} UTC, {_left(facts)}",
        "key": facts["key"],
        "serial": facts["serial"],
        "SHA-256": facts["fingerprint"],
    }
    return "\n".join(f"{name:12} {escaped(value)}" for name, value in lines.items() if value)


def kind_of(certificate: x509.Certificate) -> str:
    """ "CA", "server", "client", "server and client", or "certificate" where it does not say."""
    try:
        if certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            return "CA"
    except x509.ExtensionNotFound:
        pass
    try:
        usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return "certificate"
    kinds = [
        kind
        for kind, usage in (
            ("server", ExtendedKeyUsageOID.SERVER_AUTH),
            ("client", ExtendedKeyUsageOID.CLIENT_AUTH),
        )
        if usage in usages
    ]
    return " and ".join(kinds) or "certificate"


def _minute(iso: str) -> str:
    return datetime.datetime.fromisoformat(iso).strftime("%Y-%m-%d %H:%M")


def _left(facts: dict[str, Any]) -> str:
    if facts["valid_now"]:
        days = facts["days_left"]
        return f"{days} day{'' if days == 1 else 's'} left"
    return "expired" if facts["days_left"] < 0 else "not yet valid"
