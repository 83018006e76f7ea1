"""Certificates for the suites: a deployment made by ``qmux.pki.authority``, and certificates that it must refuse."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qmux.pki import authority
from qmux.pki.bundle import split_bundle
from qmux.pki.material import Material

DAY = datetime.timedelta(days=1)
CLIENT_AUTH, SERVER_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH
CLIENT_NAMES = ["qmux:client:alpha", "qmux:service:*"]
SERVER_NAMES = ["localhost"]


@dataclass(frozen=True)
class Pki:
    """One deployment's material, and another deployment's CA."""

    directory: Path
    server: Material
    client: Material
    foreign_directory: Path

    @property
    def foreign_client(self) -> Material:
        """A client of another deployment, which trusts our CA."""
        return _trusting(self._foreign("alpha"), self.client)

    @property
    def foreign_server(self) -> Material:
        """A server of another deployment, which trusts our CA."""
        return _trusting(self._foreign("localhost"), self.client)

    def made(self, **how: object) -> Material:
        """A certificate of our CA that is wrong in some way; see ``_leaf``."""
        return _trusting(_leaf(self.directory, **how), self.client)  # type: ignore[arg-type]

    def _foreign(self, name: str) -> Material:
        return read(self.foreign_directory / f"{name}.pem")


def make(directory: Path) -> Pki:
    ours, theirs = directory / "ours", directory / "theirs"
    for folder in (ours, theirs):
        authority.init(folder)
        authority.issue_server(folder, ["localhost", "127.0.0.1", "::1"])
        authority.issue_client(folder, "alpha", ["*"])
    return Pki(ours, read(ours / "localhost.pem"), read(ours / "alpha.pem"), theirs)


def read(path: Path) -> Material:
    parts = split_bundle(path.read_bytes(), path.name)
    return Material(parts.chain, parts.key, parts.ca)


def _trusting(material: Material, other: Material) -> Material:
    return Material(material.chain, material.key, other.ca)


def _leaf(
    directory: Path,
    *,
    usage: x509.ObjectIdentifier = CLIENT_AUTH,
    names: list[str] | None = None,
    self_signed: bool = False,
    not_before: datetime.timedelta = -DAY,
    not_after: datetime.timedelta = DAY,
) -> Material:
    ca = x509.load_pem_x509_certificate((directory / "ca.pem").read_bytes())
    ca_key = serialization.load_pem_private_key((directory / "ca.key").read_bytes(), None)
    assert isinstance(ca_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "made")])
    now = datetime.datetime.now(datetime.UTC)
    sans: list[x509.GeneralName] = [
        x509.UniformResourceIdentifier(name) if ":" in name else x509.DNSName(name)
        for name in (names or (CLIENT_NAMES if usage == CLIENT_AUTH else SERVER_NAMES))
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if self_signed else ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + not_before)
        .not_valid_after(now + not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectAlternativeName(sans), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key((key if self_signed else ca_key).public_key()),
            critical=False,
        )
        .sign(key if self_signed else ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Material(certificate.public_bytes(pem), private, b"")
