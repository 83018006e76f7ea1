"""The certificate material that a configuration names: read, and checked for what its daemon needs of it.

A daemon finds out at the start, not when the first peer refuses it: an expired certificate, a foreign key, a client's
certificate on a server. It is the peer's own check that decides (``qmux.pki.own``); what is said before it explains.
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from cryptography import x509

from qmux.config.files import ReadError, is_world_readable, read_file
from qmux.config.schema import TlsFiles
from qmux.errors import CertificateError
from qmux.paths import path_of
from qmux.pki.bundle import Bundle, PemParts, parse, split_bundle
from qmux.pki.material import Material, Role
from qmux.pki.own import flaws
from qmux.pki.reading import subject_of
from qmux.pki.verify import client_names, judge_leaf, server_names

MAX_PEM_BYTES = 256 << 10
"""Chain, key and several CAs fit many times over."""

SOON = datetime.timedelta(days=14)
"""How long before its end a certificate is called out: two weeks leave time for a holiday."""


_UNNAMED = "<>"
"""Stands in an error for the file's name, which the finding's own line has."""


class Finding(NamedTuple):
    """What is wrong with the file that ``key`` ("bundle", "cert", "key", "ca") names."""

    key: str
    text: str
    is_warning: bool = False


class Checked(NamedTuple):
    """``material`` is None where it cannot be used; ``leaf`` is our certificate, where there is one."""

    material: Material | None
    findings: list[Finding]
    leaf: x509.Certificate | None = None


def load_material(files: TlsFiles, role: Role, services: Sequence[str], now: datetime.datetime) -> Checked:
    """Read the files and check them for a daemon of this role. Nothing is raised: every finding is listed."""
    findings: list[Finding] = []
    leaf_key = "bundle" if files.bundle else "cert"
    parts = _read_bundle(files, findings, role) if files.bundle else _read_parts(files, findings, role)
    if parts is None:
        return Checked(None, findings)
    try:
        bundle = parse(parts.chain, parts.key, parts.ca, _UNNAMED)
    except CertificateError as error:
        findings.append(Finding(_blamed(files, str(error)), str(error).replace(f"{_UNNAMED}: ", "")))
        return Checked(None, findings)
    renew = _renewal(bundle.leaf, role, services)
    findings += _dates(bundle, leaf_key, renew, now)
    findings += _authorities(bundle, "bundle" if files.bundle else "ca", now)
    findings += _as_peers_judge(bundle, role, leaf_key, renew, now, findings)
    if role == "client":
        findings += _services(bundle.leaf, leaf_key, services)
    usable = all(finding.is_warning for finding in findings)
    return Checked(Material(parts.chain, parts.key, parts.ca) if usable else None, findings, bundle.leaf)


def _read_bundle(files: TlsFiles, findings: list[Finding], role: Role) -> PemParts | None:
    data = _read(files.bundle, "bundle", findings, role)
    if data is None:
        return None
    _check_mode(files.bundle, "bundle", findings)
    try:
        return split_bundle(data, _UNNAMED)
    except CertificateError as error:
        findings.append(Finding("bundle", str(error).replace(f"{_UNNAMED}: ", "")))
        return None


def _read_parts(files: TlsFiles, findings: list[Finding], role: Role) -> PemParts | None:
    chain = _read(files.cert, "cert", findings, role)
    key = _read(files.key, "key", findings, role)
    ca = _read(files.ca, "ca", findings, role)
    if key is not None:
        _check_mode(files.key, "key", findings)
    return None if chain is None or key is None or ca is None else PemParts(chain, key, ca)


def _read(path: str, key: str, findings: list[Finding], role: Role) -> bytes | None:
    try:
        return read_file(Path(path_of(path)), MAX_PEM_BYTES)
    except ReadError as error:
        command = "issue server NAME" if role == "server" else "issue client NAME --service SERVICE"
        hint = f" ({path}); make one: qmux pki {command}" if str(error) == "no such file" else f" ({path})"
        findings.append(Finding(key, f"{error}{hint}"))
        return None


def _check_mode(path: str, key: str, findings: list[Finding]) -> None:
    if is_world_readable(Path(path_of(path))):
        text = f"every user of this machine may read the private key; chmod 600 {path}"
        findings.append(Finding(key, text, is_warning=True))


def _blamed(files: TlsFiles, error: str) -> str:
    if files.bundle:
        return "bundle"
    if "CA" in error:
        return "ca"
    return "key" if "private key" in error else "cert"


def _dates(bundle: Bundle, key: str, renew: str, now: datetime.datetime) -> list[Finding]:
    for certificate in bundle.chain:
        what = (
            "certificate"
            if certificate is bundle.leaf
            else f'intermediate certificate "{subject_of(certificate.subject)}"'
        )
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if now > end:
            return [Finding(key, f"{what} expired {_span(now - end)} ago ({_when(end)}); {renew}")]
        if now < begin:
            text = (
                f"{what} is not valid before {_when(begin)} (in {_span(begin - now)}); is this machine's clock right?"
            )
            return [Finding(key, text)]
        if end - now < SOON:
            return [Finding(key, f"{what} expires in {_span(end - now)} ({_when(end)}); {renew}", is_warning=True)]
    return []


def _authorities(bundle: Bundle, key: str, now: datetime.datetime) -> list[Finding]:
    """A CA that has ended may stay beside the one that replaced it, but one must be good."""
    findings = []
    for ca in bundle.ca:
        end = ca.not_valid_after_utc
        if not _is_ca(ca):
            findings.append(
                Finding(key, f'"{subject_of(ca.subject)}" is not a CA certificate; name the CA itself, as in ca.pem')
            )
        elif now > end:
            expired = f"expired {_span(now - end)} ago ({_when(end)}); make a new one: qmux pki init"
            text = f'CA "{subject_of(ca.subject)}" {expired}'
            findings.append(Finding(key, text, is_warning=any(c.not_valid_after_utc > now for c in bundle.ca)))
    return findings


def _as_peers_judge(
    bundle: Bundle, role: Role, key: str, renew: str, now: datetime.datetime, found: Sequence[Finding]
) -> list[Finding]:
    """The handshake's own check, once what it would stop at is out of the way."""
    if not all(finding.is_warning for finding in found):
        return []
    other: Role = "client" if role == "server" else "server"
    try:
        judge_leaf(bundle.leaf, role)
    except CertificateError as error:
        with contextlib.suppress(CertificateError):
            judge_leaf(bundle.leaf, other)
            return [Finding(key, f"this is a {other}'s certificate, a {role}'s is needed; {renew}")]
        return [Finding(key, f"{error}; {renew}")]
    return [Finding(key, f"{flaw.text}; {renew}", flaw.is_warning) for flaw in flaws(bundle, role, now)]


def _services(leaf: x509.Certificate, key: str, services: Sequence[str]) -> list[Finding]:
    names, allowed = client_names(leaf)
    missing = [service for service in services if service not in allowed and "*" not in allowed]
    if not missing or len(names) != 1:
        return []
    # A warning, since the server decides: it may come to authorise more than the certificate names.
    text = (
        f"the certificate does not name {_words(missing)}, so servers refuse it; {_renewal(leaf, 'client', services)}"
    )
    return [Finding(key, text, is_warning=True)]


def _words(services: Sequence[str]) -> str:
    return f"service {services[0]}" if len(services) == 1 else f"the services {', '.join(services)}"


def _renewal(leaf: x509.Certificate, role: Role, services: Sequence[str]) -> str:
    """The command that issues this certificate again, with the names that it has."""
    if role == "server":
        return f"issue a new one: qmux pki issue server {' '.join(server_names(leaf)) or 'NAME'}"
    names, allowed = client_names(leaf)
    wanted = list(dict.fromkeys([*allowed, *([] if "*" in allowed else services)])) or ["SERVICE"]
    options = " ".join(f"--service {_shell(service)}" for service in wanted)
    return f"issue a new one: qmux pki issue client {names[0] if names else 'NAME'} {options}"


def _shell(service: str) -> str:
    return "'*'" if service == "*" else service


def _is_ca(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def _when(moment: datetime.datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")


def _span(span: datetime.timedelta) -> str:
    """``2 days``, ``1 hour``, ``5 minutes``."""
    for amount, unit in ((span.days, "day"), (span.seconds // 3600, "hour"), (max(1, span.seconds // 60), "minute")):
        if amount:
            return f"{amount} {unit}{'s' if amount != 1 else ''}"
    raise AssertionError("a minute is the least")
