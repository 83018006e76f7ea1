"""Certificates made by the ``openssl`` program, as other people make theirs: every extension is as it is asked for."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from qmux.pki.material import Material

KEYS = {
    "P-256": ("EC", "ec_paramgen_curve:P-256"),
    "P-384": ("EC", "ec_paramgen_curve:P-384"),
    "P-521": ("EC", "ec_paramgen_curve:P-521"),
    "secp256k1": ("EC", "ec_paramgen_curve:secp256k1"),
    "RSA 2048": ("RSA", "rsa_keygen_bits:2048"),
    "RSA 1024": ("RSA", "rsa_keygen_bits:1024"),
    "RSA e=3": ("RSA", "rsa_keygen_bits:2048", "rsa_keygen_pubexp:3"),
    "Ed25519": ("ED25519",),
    "Ed448": ("ED448",),
}
BARE = "[req]\ndistinguished_name = name\n[name]\n"
"""Without a default section of extensions."""

CLIENT_NAMES = "subjectAltName = URI:qmux:client:pod-1,URI:qmux:service:web"
SERVER_NAMES = "subjectAltName = DNS:tunnel.example.com,DNS:localhost,IP:127.0.0.1"
CLIENT, SERVER = "extendedKeyUsage = clientAuth", "extendedKeyUsage = serverAuth"
CA_TRUE = "basicConstraints = critical,CA:TRUE"


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    certificate: bytes
    key: bytes
    path: Path


def openssl(directory: Path, *words: str) -> None:
    done = subprocess.run(["openssl", *words], cwd=directory, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, (words, done.stderr)


def make(
    directory: Path,
    name: str,
    extensions: str,
    issuer: Issued | None = None,
    key: str = "P-256",
    subject: str | None = None,
    digest: str = "sha256",
) -> Issued:
    """A certificate with these lines of an extension file, which ``issuer`` signs or, without one, itself."""
    path = directory / name
    algorithm, *wanted = KEYS[key]
    options = [word for option in wanted for word in ("-pkeyopt", option)]
    openssl(directory, "genpkey", "-algorithm", algorithm, *options, "-out", f"{name}.key")
    (directory / "bare.cnf").write_text(BARE)
    (directory / f"{name}.ext").write_text(f"{extensions}\n")
    words = ["-key", f"{name}.key", "-subj", f"/CN={name}" if subject is None else subject, "-config", "bare.cnf"]
    openssl(directory, "req", "-new", *words, "-out", f"{name}.csr")
    signing = (
        ["-key", f"{name}.key"] if issuer is None else ["-CA", f"{issuer.path}.pem", "-CAkey", f"{issuer.path}.key"]
    )
    openssl(
        directory, "x509", "-req", "-in", f"{name}.csr", *signing, "-days", "30", f"-{digest}", "-extfile",
        f"{name}.ext", "-set_serial", str(abs(hash(name)) % 10**9 + 1), "-out", f"{name}.pem",
    )  # fmt: skip
    certificate = path.with_name(f"{name}.pem").read_bytes()
    return Issued(certificate, path.with_name(f"{name}.key").read_bytes(), path)


def plain_ca(directory: Path) -> Issued:
    """What the one command of every how-to makes, with the defaults of the program."""
    words = [
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        "ca.key",
        "-subj",
        "/CN=plain",
        "-days",
        "30",
        "-out",
        "ca.pem",
    ]
    openssl(directory, "req", "-x509", *words)
    return Issued((directory / "ca.pem").read_bytes(), (directory / "ca.key").read_bytes(), directory / "ca")


def material(leaf: Issued, ca: Issued, *between: Issued) -> Material:
    return Material(b"".join([leaf.certificate, *(each.certificate for each in between)]), leaf.key, ca.certificate)
