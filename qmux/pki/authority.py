"""The CA of one deployment: ``init`` once, then ``issue_server`` and ``issue_client`` write one bundle each."""

from __future__ import annotations

import datetime
import ipaddress
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qmux.errors import CertificateError, UsageError
from qmux.pki.identity import ANY_SERVICE, CLIENT_URI, SERVICE_URI

CA_DAYS = 3650
"""A CA lives as long as the deployment: replacing it means touching every machine."""

LEAF_DAYS = 365
"""Renewed with the same command and applied by a reload; ``qmux status`` warns before it ends."""

CLOCK_SKEW = datetime.timedelta(minutes=5)
"""A machine whose clock is a little behind must accept a certificate that was made just now."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def init(directory: Path) -> Path:
    """Write ``ca.pem`` and ``ca.key`` (0600) below ``directory``. Raises CertificateError where one exists."""
    for name in ("ca.pem", "ca.key"):
        if (directory / name).exists():
            raise CertificateError(f"{directory / name}: exists already; a CA is made once, so it was left alone")
    directory.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"QMux CA {os.urandom(4).hex()}")])
    certificate = (
        _builder(subject, subject, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write(directory / "ca.key", _key_pem(key), 0o600)
    _write(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return directory / "ca.pem"


def issue_server(directory: Path, names: Sequence[str]) -> Path:
    """A server's bundle for these DNS names and IP addresses, in a file called after the first."""
    if not names:
        raise UsageError("a server certificate needs at least one DNS name or IP address")
    sans = [_server_name(name) for name in names]
    return _issue(directory, names[0].replace(":", "_"), sans, ExtendedKeyUsageOID.SERVER_AUTH)


def issue_client(directory: Path, name: str, services: Sequence[str]) -> Path:
    """A client's bundle: ``name`` is its principal, ``services`` are those that it may serve (``*``: all)."""
    if not _NAME.fullmatch(name):
        raise UsageError(f'"{name}" cannot be a client name: letters, digits, dot, dash and underscore, at most 64')
    if not services:
        raise UsageError(f"which services may {name} serve? name each: --service NAME, or --service '*' for all")
    for service in services:
        if service != ANY_SERVICE and not _NAME.fullmatch(service):
            raise UsageError(f'"{service}" cannot be a service name: letters, digits, dot, dash and underscore')
    uris = [CLIENT_URI + name, *(SERVICE_URI + service for service in services)]
    sans = [x509.UniformResourceIdentifier(uri) for uri in uris]
    return _issue(directory, name, sans, ExtendedKeyUsageOID.CLIENT_AUTH)


def _issue(directory: Path, name: str, sans: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier) -> Path:
    ca, ca_key = _load_ca(directory)
    path = directory / f"{name}.pem"
    _refuse_foreign(path, ca, name, usage)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    certificate = (
        _builder(subject, ca.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    _write(path, certificate.public_bytes(pem) + _key_pem(key) + ca.public_bytes(pem), 0o600)
    return path


def _refuse_foreign(path: Path, ca: x509.Certificate, name: str, usage: x509.ObjectIdentifier) -> None:
    """Only a bundle of this name and kind by this CA is replaced: that is how one renews."""
    if not path.exists():
        return
    is_same_kind = True
    try:
        old = x509.load_pem_x509_certificates(path.read_bytes())[0]
        old.verify_directly_issued_by(ca)
        ours = old.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == name
        is_same_kind = usage in old.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except Exception:  # not PEM, another CA, another signature: whatever it is, it is not ours to replace
        ours = False
    if not ours:
        raise CertificateError(f"{path}: exists and is not a bundle of this name by this CA; it was left alone")
    if not is_same_kind:
        other = "client" if usage == ExtendedKeyUsageOID.SERVER_AUTH else "server"
        raise CertificateError(f"{path}: exists and is the bundle of a {other}; it was left alone: take another name")


def _load_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    try:
        certificate = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
        key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), password=None)
    except FileNotFoundError as error:
        raise CertificateError(f"{error.filename}: no such file; make a CA first: qmux pki init") from None
    except (ValueError, TypeError) as error:
        raise CertificateError(f"{directory}: the CA cannot be read: {error}") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(
            f"{directory / 'ca.key'}: not an elliptic-curve key; this CA was not made by qmux pki init"
        )
    return certificate, key


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(**wanted: bool) -> x509.KeyUsage:
    usages = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{usage: wanted.get(usage, False) for usage in usages})


def _server_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not re.fullmatch(r"(\*\.)?[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", name):
        raise UsageError(f'"{name}" is neither a DNS name nor an IP address')
    return x509.DNSName(name)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, data: bytes, mode: int) -> None:
    """Atomically: a reader sees the old file or the new one, and a key is never readable by others."""
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CertificateError(f"{path}: cannot be written: {error.strerror}") from None
