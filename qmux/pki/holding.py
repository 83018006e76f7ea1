"""A bundle of ours in a CA's directory: whose it is, and so what its renewal must name again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

from qmux.errors import CertificateError, UsageError
from qmux.pki.bundle import certificates
from qmux.pki.description import kind_of
from qmux.pki.material import Role
from qmux.pki.verify import client_names, server_names


class Holding(NamedTuple):
    """``names``: a server's DNS names and addresses, or the one of a client; ``services``: what a client may serve."""

    role: Role
    names: tuple[str, ...]
    services: tuple[str, ...] = ()

    @property
    def kept(self) -> tuple[str, ...]:
        """What a renewal keeps: a server's names, or a client's services."""
        return self.names if self.role == "server" else self.services


def read_holding(path: Path, ca: x509.Certificate) -> Holding | None:
    """What the bundle ``path`` holds; None where there is no such file, or none that ``ca`` issued to one end."""
    try:
        leaf = certificates(path.read_bytes(), str(path))[0]
        leaf.verify_directly_issued_by(ca)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CertificateError(f"{path}: cannot be read: {error.strerror}") from None
    except (CertificateError, IndexError, InvalidSignature, UnsupportedAlgorithm, ValueError, TypeError):
        raise foreign(path) from None
    kind = kind_of(leaf)
    names, services = client_names(leaf)
    if kind == "client" and len(names) == 1:
        return Holding("client", tuple(names), services)
    if kind == "server" and (found := server_names(leaf)):
        return Holding("server", tuple(found))
    raise foreign(path)


def foreign(path: Path) -> CertificateError:
    """What is said of a file that is not ours to replace."""
    return CertificateError(f"{path}: exists and is not a bundle of this name by this CA; it was left alone")


def renewed(held: Holding, path: Path, wanted: Sequence[str], dropped: Sequence[str]) -> tuple[str, ...]:
    """The names (of a server) or services (of a client) after a renewal: those it has, those that are wanted beside
    them, none that is ``dropped``. Raises UsageError where a dropped one is not there, or all would be.
    """
    what = "name" if held.role == "server" else "service"
    for each in dropped:
        if each in wanted:
            raise UsageError(f"{each} is asked for and dropped at once: leave one of both out")
        if each not in held.kept:
            raise UsageError(f"{path}: has no {what} {each} to drop; it has {', '.join(held.kept) or 'none'}")
    names = tuple(each for each in dict.fromkeys([*held.kept, *wanted]) if each not in dropped)
    if not names:
        raise UsageError(f"{path}: without {', '.join(dropped)} it has no {what} left")
    return names
