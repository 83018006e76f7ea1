"""Certificate material: each thing that can be wrong with it, made for real, and the words for it."""

from __future__ import annotations

import datetime
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from qmux.config.load import load
from qmux.config.material import load_material
from qmux.config.schema import TlsFiles
from qmux.errors import ConfigError
from qmux.pki import authority
from qmux.pki.material import Role

NOW = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
DAY = datetime.timedelta(days=1)
PEM = serialization.Encoding.PEM

SERVER = '[server]\nbundle = "server.pem"\n[services.web]\nbind = ":80"\n'
PARTS = '[server]\ncert = "cert.pem"\nkey = "key.pem"\nca = "ca.pem"\n[services.web]\nbind = ":80"\n'
CLIENT = '[client]\nservers = "s"\nbundle = "client.pem"\n[services.web]\ntarget = "127.0.0.1:1"\n'

Key = ec.EllipticCurvePrivateKey


class Issuer:
    """A CA that issues what ``qmux pki`` never would."""

    def __init__(self, is_ca: bool = True, end: datetime.datetime = NOW + 90 * DAY) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Test CA")])
        builder = self._builder(self.name, self.key, NOW - 90 * DAY, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())

    def bundle(
        self,
        sans: Sequence[x509.GeneralName] = (x509.DNSName("tunnel.example.com"),),
        usages: Sequence[x509.ObjectIdentifier] = (ExtendedKeyUsageOID.SERVER_AUTH,),
        begin: datetime.datetime = NOW - 30 * DAY,
        end: datetime.datetime = NOW + 30 * DAY,
        aki: bool = True,
        key: Key | None = None,
    ) -> tuple[bytes, bytes, bytes]:
        """Certificate, key and CA as PEM; ``key``: another one than the certificate's."""
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "leaf")])
        builder = self._builder(subject, own, begin, end)
        if sans:
            builder = builder.add_extension(x509.SubjectAlternativeName(sans), critical=False)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        if aki:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        certificate = builder.sign(self.key, hashes.SHA256())
        return certificate.public_bytes(PEM), pem(key or own), self.certificate.public_bytes(PEM)

    def _builder(
        self, subject: x509.Name, key: Key, begin: datetime.datetime, end: datetime.datetime
    ) -> x509.CertificateBuilder:
        return x509.CertificateBuilder(self.name, subject, key.public_key(), 7, begin, end)


def pem(key: Key) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def write(path: str, *parts: bytes) -> None:
    Path(path).write_bytes(b"".join(parts))
    os.chmod(path, 0o600)


def problem(text: str) -> str:
    """The only problem of this configuration."""
    Path("x.toml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"))
    (line,) = caught.value.problems
    return line


def warnings(text: str) -> tuple[str, ...]:
    Path("x.toml").write_text(text)
    return load(Path("x.toml")).warnings


def test_material_is_what_the_files_hold(place: Path) -> None:
    Path("x.toml").write_text(SERVER)
    from_bundle = load(Path("x.toml")).material
    data = Path("server.pem").read_bytes()
    assert from_bundle.chain in data
    assert from_bundle.key in data
    assert from_bundle.ca in data
    for name, part in (("cert.pem", from_bundle.chain), ("key.pem", from_bundle.key), ("ca.pem", from_bundle.ca)):
        write(name, part)
    Path("x.toml").write_text(PARTS)
    assert load(Path("x.toml")).material == from_bundle
    assert b"PRIVATE" not in repr(from_bundle).encode()


def test_expired(place: Path) -> None:
    end = NOW - 2 * DAY
    write("server.pem", *Issuer().bundle(end=end))
    assert problem(SERVER) == (
        f'x.toml:2: server.bundle = "server.pem": certificate expired 2 days ago ({end:%Y-%m-%d %H:%M} UTC); '
        "issue a new one: qmux pki issue server tunnel.example.com"
    )


def test_a_client_s_expired_certificate_is_issued_with_its_names(place: Path) -> None:
    sans = [x509.UniformResourceIdentifier(uri) for uri in ("qmux:client:pod-9", "qmux:service:a", "qmux:service:*")]
    write(
        "client.pem", *Issuer().bundle(sans, [ExtendedKeyUsageOID.CLIENT_AUTH], end=NOW - datetime.timedelta(hours=1))
    )
    assert problem(CLIENT).endswith("issue a new one: qmux pki issue client pod-9 --service a --service '*'")
    assert "expired 1 hour ago" in problem(CLIENT)


def test_not_yet_valid(place: Path) -> None:
    begin = NOW + 3 * DAY + datetime.timedelta(hours=1)
    write("server.pem", *Issuer().bundle(begin=begin))
    assert problem(SERVER) == (
        f'x.toml:2: server.bundle = "server.pem": certificate is not valid before {begin:%Y-%m-%d %H:%M} UTC (in 3 '
        "days); is this machine's clock right?"
    )


def test_expires_soon(place: Path) -> None:
    write("server.pem", *Issuer().bundle(end=NOW + 5 * DAY + datetime.timedelta(hours=1)))
    (line,) = warnings(SERVER)
    assert line.startswith('x.toml:2: server.bundle = "server.pem": certificate expires in 5 days (')
    assert line.endswith("issue a new one: qmux pki issue server tunnel.example.com")


def test_the_key_of_another_certificate(place: Path) -> None:
    cert, key, ca = Issuer().bundle(key=ec.generate_private_key(ec.SECP256R1()))
    write("server.pem", cert, key, ca)
    says = "the private key does not belong to the certificate"
    assert problem(SERVER) == f'x.toml:2: server.bundle = "server.pem": {says}'
    for name, part in (("cert.pem", cert), ("key.pem", key), ("ca.pem", ca)):
        write(name, part)
    assert problem(PARTS) == f'x.toml:3: server.key = "key.pem": {says}'


def test_a_client_s_certificate_on_a_server_and_the_other_way_round(place: Path, issued: Path) -> None:
    shutil.copy(issued / "client.pem", "server.pem")
    assert problem(SERVER) == (
        "x.toml:2: server.bundle = \"server.pem\": this is a client's certificate, a server's is needed; issue a new "
        "one: qmux pki issue server NAME"
    )
    shutil.copy(issued / "server.pem", "client.pem")
    assert "this is a server's certificate, a client's is needed" in problem(CLIENT)


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ({"usages": ()}, "the certificate is not for this use: its extended key usage lacks serverAuth"),
        ({"sans": ()}, "the certificate has no name"),
    ],
    ids=["usage", "name"],
)
def test_what_every_client_would_refuse(place: Path, made: dict[str, object], says: str) -> None:
    write("server.pem", *Issuer().bundle(**made))  # type: ignore[arg-type]
    assert says in problem(SERVER)


@pytest.mark.parametrize("names", [[], ["a", "b"]])
def test_a_client_has_one_name(place: Path, names: list[str]) -> None:
    sans = [x509.UniformResourceIdentifier(uri) for uri in ["qmux:service:web", *(f"qmux:client:{n}" for n in names)]]
    write("client.pem", *Issuer().bundle(sans, [ExtendedKeyUsageOID.CLIENT_AUTH]))
    assert f"needs exactly one name qmux:client:NAME, this has {len(names) or 'none'}" in problem(CLIENT)


def test_a_service_that_the_certificate_does_not_name(place: Path) -> None:
    (line,) = warnings(CLIENT.replace("services.web", "services.other"))
    assert line == (
        'x.toml:3: client.bundle = "client.pem": the certificate does not name service other, so servers refuse it; '
        "issue a new one: qmux pki issue client client --service a --service b --service web --service other"
    )


def test_a_ca_that_is_none(place: Path) -> None:
    write("server.pem", *Issuer(is_ca=False).bundle())
    assert '"CN=Test CA" is not a CA certificate' in problem(SERVER)


def test_a_ca_that_has_ended(place: Path) -> None:
    old = Issuer(end=NOW - DAY)
    cert, key, ca = Issuer().bundle()
    write("server.pem", cert, key, old.certificate.public_bytes(PEM))
    assert 'CA "CN=Test CA" expired 1 day ago' in problem(SERVER)
    write("server.pem", cert, key, old.certificate.public_bytes(PEM), ca)
    (line,) = warnings(SERVER)  # the new one beside it is enough
    assert 'CA "CN=Test CA" expired 1 day ago' in line


def test_a_key_that_everybody_may_read(place: Path) -> None:
    os.chmod("server.pem", 0o644)
    assert warnings(SERVER) == (
        'x.toml:2: server.bundle = "server.pem": every user of this machine may read the private key; '
        f"chmod 600 {place}/server.pem",
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not PEM"),
        (b"hello", "is not PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "a certificate cannot be read"),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", "has no certificate"),
        (b"x" * 300_000, "is larger than"),
    ],
    ids=["empty", "text", "certificate", "key alone", "large"],
)
def test_bundles_that_are_none(place: Path, content: bytes, says: str) -> None:
    write("server.pem", content)
    line = problem(SERVER)
    assert line.startswith('x.toml:2: server.bundle = "server.pem": ')
    assert says in line
    assert "\0" not in line


def test_a_bundle_without_key_or_ca(place: Path) -> None:
    cert, key, ca = Issuer().bundle()
    write("server.pem", cert, ca)
    assert problem(SERVER).endswith("has 0 private keys; a bundle holds exactly one")
    write("server.pem", cert, key)
    assert "has no CA certificate" in problem(SERVER)


def test_an_encrypted_key(place: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    locked = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"secret"))
    cert, _, ca = Issuer().bundle()
    write("server.pem", cert, locked, ca)
    assert "the private key cannot be read" in problem(SERVER)


def test_files_that_are_missing_are_told_together(place: Path) -> None:
    Path("x.toml").write_text(PARTS)
    with pytest.raises(ConfigError) as caught:
        load(Path("x.toml"))
    assert [line.split(":")[1] for line in caught.value.problems] == ["2", "3", "4"]
    assert all("no such file" in line for line in caught.value.problems)


def test_a_directory_is_no_file(place: Path) -> None:
    Path("server.pem").unlink()
    Path("server.pem").mkdir()
    assert "is a directory" in problem(SERVER)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_file_that_may_not_be_read(place: Path) -> None:
    write("server.pem", b"x")
    place.chmod(0o755)
    for parent in place.parents[:2]:
        parent.chmod(0o755)
    code = (
        "import datetime, os, sys\n"
        "from qmux.config.material import load_material\n"
        "from qmux.config.schema import TlsFiles\n"
        "os.setuid(65534)\n"
        "checked = load_material(TlsFiles(bundle=sys.argv[1]), 'server', [], datetime.datetime.now(datetime.UTC))\n"
        "print(checked.findings[0].text)\n"
    )
    command = [sys.executable, "-c", code, str(place / "server.pem")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout.startswith("may not be read by this user (uid 65534); change its owner or mode")


def test_intermediates_are_checked_too(place: Path, issued: Path) -> None:
    old, new = Issuer(end=NOW - DAY), Issuer()
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "between")])
    between = x509.CertificateBuilder(new.name, subject, old.key.public_key(), 8, NOW - 9 * DAY, NOW - DAY)
    cert, key, ca = new.bundle()
    write("server.pem", cert, between.sign(new.key, hashes.SHA256()).public_bytes(PEM), key, ca)
    assert 'intermediate certificate "CN=between" expired 1 day ago' in problem(SERVER)


@pytest.mark.parametrize("role", ["server", "client"])
def test_what_pki_issues_is_without_findings(tmp_path: Path, role: Role) -> None:
    authority.init(tmp_path)
    path = (
        authority.issue_server(tmp_path, ["::1"])
        if role == "server"
        else authority.issue_client(tmp_path, "pod", ["*"])
    )
    checked = load_material(TlsFiles(bundle=str(path)), role, ["x"], NOW)
    assert checked.findings == []
    assert checked.material is not None
