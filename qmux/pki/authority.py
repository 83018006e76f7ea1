"""The CA of one deployment: ``init`` once, then ``issue_server`` and ``issue_client`` write one bundle each."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qmux import addresses
from qmux.errors import CertificateError, UsageError
from qmux.pki.bundle import PemParts, parse
from qmux.pki.directory import bundle_path, load_ca, write
from qmux.pki.holding import Holding, foreign, read_holding, renewed
from qmux.pki.identity import ANY_SERVICE, CLIENT_URI, SERVICE_URI
from qmux.pki.material import Role
from qmux.pki.own import flaws

CA_DAYS = 3650
"""A CA lives as long as the deployment: replacing it means touching every machine."""

LEAF_DAYS = 365
"""Renewed with the same command and applied by a reload; ``qmux status`` warns before it ends."""

CLOCK_SKEW = datetime.timedelta(minutes=5)
"""A machine whose clock is a little behind must accept a certificate that was made just now."""

MAX_COMMON_NAME = 64

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
    write(directory / "ca.key", _key_pem(key), 0o600)
    write(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return directory / "ca.pem"


def issue_server(directory: Path, names: Sequence[str], drop: Sequence[str] = ()) -> Path:
    """A server's bundle for these DNS names and IP addresses, in a file called after the first.

    Where that file is a server's bundle of ours, it is renewed and keeps its names, but those in ``drop``.
    """
    if not names:
        raise UsageError("a server certificate needs at least one DNS name or IP address")
    wanted = [server_name(name) for name in names]
    path = bundle_path(directory, wanted[0])
    held = _held(directory, path, "server", wanted[0])
    if held is not None:
        dropped = [server_name(name) for name in drop]
        if held.names[0] in dropped:
            raise UsageError(
                f"{path}: is called after {held.names[0]}, which it keeps; issue another without that name"
            )
        wanted = list(renewed(held, path, wanted, dropped))
    elif drop:
        raise UsageError(f"{path}: no such bundle, so there is nothing to drop")
    sans = [_general_name(name) for name in dict.fromkeys(wanted)]
    return _issue(directory, path, wanted[0], sans, ExtendedKeyUsageOID.SERVER_AUTH)


def issue_client(directory: Path, name: str, services: Sequence[str], drop: Sequence[str] = ()) -> Path:
    """A client's bundle: ``name`` is its principal, ``services`` are those that it may serve (``*``: all).

    Where there is one of ours, it is renewed and keeps its services, but those in ``drop``.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f'"{name}" cannot be a client name: letters, digits, dot, dash and underscore, at most 64')
    for service in services:
        if service != ANY_SERVICE and not _NAME.fullmatch(service):
            raise UsageError(f'"{service}" cannot be a service name: letters, digits, dot, dash and underscore')
    path = bundle_path(directory, name)
    wanted = tuple(dict.fromkeys(services))
    if wanted or path.exists():
        held = _held(directory, path, "client", name)
        if held is not None:
            wanted = renewed(held, path, wanted, drop)
        elif drop:
            raise UsageError(f"{path}: no such bundle, so there is nothing to drop")
    if not wanted:
        raise UsageError(f"which services may {name} serve? name each: --service NAME, or --service '*' for all")
    uris = [CLIENT_URI + name, *(SERVICE_URI + service for service in wanted)]
    sans = [x509.UniformResourceIdentifier(uri) for uri in uris]
    return _issue(directory, path, name, sans, ExtendedKeyUsageOID.CLIENT_AUTH)


def renew(directory: Path, name: str, drop: Sequence[str] = ()) -> Path:
    """Issue the bundle called ``name`` again, with the names and services that it has, but those in ``drop``."""
    held = holding(directory, name)
    if held is None:
        path = bundle_path(directory, name)
        raise CertificateError(
            f"{path}: no such bundle; make one: qmux pki issue server {name}, or issue client {name}"
        )
    if held.role == "server":
        return issue_server(directory, held.names[:1], drop)
    return issue_client(directory, held.names[0], (), drop)


def holding(directory: Path, name: str) -> Holding | None:
    """What the bundle called ``name`` holds; None where there is none. Raises CertificateError for a foreign file."""
    with contextlib.suppress(UsageError):  # what is no server's name may be a client's
        name = server_name(name)
    path = bundle_path(directory, name)
    return read_holding(path, load_ca(directory)[0]) if path.exists() else None


def _held(directory: Path, path: Path, role: Role, name: str) -> Holding | None:
    """What the bundle ``path`` holds, which is to be renewed for ``name``; None where there is none yet.

    Only a bundle of this name and kind by this CA is replaced. Raises CertificateError.
    """
    held = read_holding(path, load_ca(directory)[0])
    if held is None:
        return None
    if held.role != role:
        other = f"the bundle of a {held.role}"
        raise CertificateError(f"{path}: exists and is {other}; it was left alone: take another name")
    if held.names[0] != name:
        raise foreign(path)
    return held


def _issue(
    directory: Path, path: Path, name: str, sans: Sequence[x509.GeneralName], usage: x509.ObjectIdentifier
) -> Path:
    ca, ca_key = load_ca(directory)
    key = ec.generate_private_key(ec.SECP256R1())
    # A common name has at most 64 characters (RFC 5280, ub-common-name). Nobody reads it: a longer name stands in the
    # SAN alone, which is critical where there is no subject (§4.2.1.6).
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if len(name) <= MAX_COMMON_NAME else [])
    certificate = (
        _builder(subject, ca.subject, key.public_key(), LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sans), critical=not subject)
        .add_extension(_identifier_of(ca), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    made = PemParts(certificate.public_bytes(pem), _key_pem(key), ca.public_bytes(pem))
    _refuse_useless(directory, made, usage)
    write(path, b"".join(made), 0o600)
    return path


def _refuse_useless(directory: Path, made: PemParts, usage: x509.ObjectIdentifier) -> None:
    """Raise CertificateError where peers would refuse what this CA issues: it has ended, or it may not issue."""
    role: Role = "server" if usage == ExtendedKeyUsageOID.SERVER_AUTH else "client"
    for flaw in flaws(parse(*made, str(directory)), role, datetime.datetime.now(datetime.UTC)):
        if not flaw.is_warning:
            raise CertificateError(f"{directory / 'ca.pem'}: what it issues is of no use: {flaw.text}")


def _identifier_of(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        own = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:  # a CA that somebody else made
        key = ca.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey), "the key of ca.key"
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(key)
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)


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


def server_name(text: str) -> str:
    """A name or address as a certificate has it; a name may begin with ``*.``, which stands for one label."""
    is_wildcard = text.startswith("*.")
    try:
        name = addresses.certified(text.removeprefix("*."))
    except addresses.AddressError as error:
        raise UsageError(f"{error}; a certificate is for a DNS name or an IP address") from None
    if is_wildcard and addresses.ip(name) is not None:
        raise UsageError(f'"{text}" is neither a DNS name nor an IP address')
    return f"*.{name}" if is_wildcard else name


def _general_name(name: str) -> x509.GeneralName:
    address = addresses.ip(name)
    return x509.DNSName(name) if address is None else x509.IPAddress(address)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
