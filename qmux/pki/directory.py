"""The files of a CA's directory: its certificate and key, and the bundles that it issued."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from qmux.errors import CertificateError
from qmux.pki.bundle import certificates
from qmux.pki.reading import Unreadable, read_key

MAX_STEM = 251
"""Of a bundle's file name, with ``.pem``: NAME_MAX is 255 bytes."""


def bundle_path(directory: Path, name: str) -> Path:
    """The file of the bundle called ``name``: a file's name has no colon, and at most NAME_MAX bytes."""
    stem = name.replace(":", "_")
    if len(stem) > MAX_STEM:
        stem = f"{stem[: MAX_STEM - 9]}-{hashlib.sha256(stem.encode()).hexdigest()[:8]}"
    return directory / f"{stem}.pem"


def load_ca(directory: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA of ``directory`` and its key. Raises CertificateError where they are missing, or are not each other's."""
    try:
        found = certificates((directory / "ca.pem").read_bytes(), str(directory / "ca.pem"))
        key = read_key((directory / "ca.key").read_bytes())
    except FileNotFoundError as error:
        raise CertificateError(f"{error.filename}: no such file; make a CA first: qmux pki init") from None
    except Unreadable as error:
        raise CertificateError(f"{directory / 'ca.key'}: cannot be read: {error}") from None
    if len(found) != 1:
        raise CertificateError(f"{directory / 'ca.pem'}: has {len(found)} certificates; that of the CA alone is needed")
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateError(
            f"{directory / 'ca.key'}: not an elliptic-curve key; this CA was not made by qmux pki init"
        )
    if found[0].public_key() != key.public_key():
        raise CertificateError(f"{directory / 'ca.key'}: is not the key of {directory / 'ca.pem'}")
    return found[0], key


def write(path: Path, data: bytes, mode: int) -> None:
    """Atomically: a reader sees the old file or the new one, and a key is never readable by others."""
    try:
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".qmux-pki.")
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise CertificateError(f"{path}: cannot be written: {error.strerror}") from None
