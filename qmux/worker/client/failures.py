"""Why a client has no connection, in words: what happened, where, and what to do; and the exit code for ``--once``."""

from __future__ import annotations

import errno
import os

import msgspec

from qmux import addresses
from qmux.pki.verify import (
    BAD_CERTIFICATE,
    CERTIFICATE_EXPIRED,
    CERTIFICATE_REQUIRED,
    UNKNOWN_CA,
    UNSUPPORTED_CERTIFICATE,
)
from qmux.protocol import reasons
from qmux.protocol.frames import RegisterReject, RejectCode
from qmux.quic.engine import CloseKind, CloseReason

CERTIFICATE, UNREACHABLE, CONDITION, FAILED = 3, 5, 6, 1

_NO_APPLICATION_PROTOCOL = 120  # RFC 8446 §6
_CONNECTION_REFUSED = 0x02  # RFC 9000 §20.1

_ALERTS = {
    UNKNOWN_CA: "the server does not know the CA of our certificate; use a bundle that the server's CA issued",
    CERTIFICATE_EXPIRED: "the server says that our certificate has expired or is not valid yet; issue a new one: "
    "qmux pki issue client NAME --service SERVICE",
    UNSUPPORTED_CERTIFICATE: "the server does not accept our certificate for a client; issue one with: "
    "qmux pki issue client NAME --service SERVICE",
    BAD_CERTIFICATE: "the server does not accept our certificate",
    CERTIFICATE_REQUIRED: "the server requires a certificate and we have none",
    _NO_APPLICATION_PROTOCOL: "the server speaks another protocol or version; is it a qmuxd?",
}

_REJECT_EXIT = {
    RejectCode.TOO_MANY_CLIENTS: CONDITION,
    RejectCode.SHUTTING_DOWN: UNREACHABLE,
    RejectCode.INVALID: FAILED,
    RejectCode.INCOMPATIBLE: FAILED,
}


class Failure(msgspec.Struct, frozen=True):
    """``kind``: a short name for status; ``text``: for the log; ``exit_code``: for ``--once``."""

    kind: str
    text: str
    exit_code: int


def closed(reason: CloseReason, address: str, timeout_s: float) -> Failure:
    """Why a connection that was never registered ended."""
    host, port = addresses.split(address)
    kind = reason.kind
    if kind is CloseKind.REFUSED:
        text = f"nothing listens on UDP port {port} of {host}: is qmuxd running there, and is this its quic_bind?"
        return Failure("refused", text, UNREACHABLE)
    if kind is CloseKind.TIMEOUT:
        text = (
            f"no answer over UDP within {timeout_s:g} s: is UDP port {port} blocked by a firewall, "
            "or is the server down?"
        )
        return Failure("no_answer", text, UNREACHABLE)
    if kind is CloseKind.UNREACHABLE:
        return unreachable(reason.code, address)
    if kind is CloseKind.CERTIFICATE:
        return Failure("server_certificate", _server_certificate(reason.message), CERTIFICATE)
    if kind is CloseKind.TLS:
        words = _ALERTS.get(reason.code, f"the TLS handshake failed with alert {reason.code}")
        detail = f" ({reason.message})" if reason.message else ""
        return Failure("our_certificate", words + detail, CERTIFICATE)
    if kind is CloseKind.TRANSPORT and reason.code == _CONNECTION_REFUSED:
        return Failure("stopping", "the server is stopping or full", UNREACHABLE)
    if kind is CloseKind.APPLICATION:
        detail = f": {reason.message}" if reason.message else ""
        return Failure("closed", f"the server closed the connection: {reasons.closed(reason.code)}{detail}", FAILED)
    return Failure(str(kind), f"the connection failed: {reason}", UNREACHABLE)


def unreachable(number: int, address: str) -> Failure:
    """The system does not send packets to ``address``; ``number`` is the errno, which tells a firewall from a route.

    A packet filter of this machine gives EPERM; an ICMPv6 "administratively prohibited" EACCES, the same of ICMP
    EHOSTUNREACH, like a host that does not answer (``icmp_err_convert`` and ``icmpv6_err_convert`` of Linux).
    """
    _, port = addresses.split(address)
    words = os.strerror(number) if number else "the network refuses them"
    if number == errno.EPERM:
        advice = f"a firewall on this machine forbids it; allow UDP to port {port} there (nft list ruleset)"
    elif number == errno.EACCES:
        advice = f"a firewall here or on the way forbids it; allow UDP to port {port} there"
    elif number == errno.EHOSTUNREACH:
        advice = f"the host is down, there is no way to it, or a firewall on the way rejects UDP to port {port}"
    elif number == errno.ENETUNREACH:
        advice = "this machine has no route to it (ip route get HOST), or no IPv6"
    else:
        advice = "is the network up? (ip link, ip route)"
    return Failure("unreachable", f"cannot send UDP packets to it: {words}: {advice}", UNREACHABLE)


def rejected(frame: RegisterReject) -> Failure:
    """Why the server did not register us."""
    try:
        kind = RejectCode(frame.code)
        exit_code = _REJECT_EXIT.get(kind, CERTIFICATE)
    except ValueError:  # of a newer release: the text shows it
        return Failure("rejected", reasons.rejected(frame.code, frame.reason), FAILED)
    return Failure(kind, reasons.rejected(frame.code, frame.reason), exit_code)


def unusable_certificate(reason: str) -> Failure:
    """Our own certificate or key is none that the engine can use."""
    text = (
        f"our own certificate or key cannot be used: {reason}; "
        "issue another one, and reload: qmux pki issue client NAME --service SERVICE"
    )
    return Failure("our_certificate", text, CERTIFICATE)


def internal(name: str, error: BaseException) -> Failure:
    """A defect of ours."""
    return Failure("internal_error", f"task {name} failed: {error!r}; this is a defect, the log has more", FAILED)


def unresolved(host: str, reason: str) -> Failure:
    """The server's name has no address."""
    return Failure("name", f"the name {host} cannot be resolved: {reason}", UNREACHABLE)


def _server_certificate(message: str) -> str:
    advice = ""
    if "another CA" in message or "self-signed" in message:
        advice = "; is this bundle from the CA of that server?"
    elif "is not for" in message:
        advice = "; set client.server_name, or issue one for this name: qmux pki issue server NAME"
    elif "expired" in message:
        advice = "; issue a new one on the server: qmux pki issue server NAME"
    return f"the server's certificate is not accepted: {message}{advice}"
