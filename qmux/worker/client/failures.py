"""Why a client has no connection, in words: what happened, where, and what to do; and the exit code for ``--once``."""

from __future__ import annotations

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
        return Failure("unreachable", f"cannot send UDP packets to it: {reason.message}", UNREACHABLE)
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


def rejected(frame: RegisterReject) -> Failure:
    """Why the server did not register us."""
    try:
        exit_code = _REJECT_EXIT.get(RejectCode(frame.code), CERTIFICATE)
    except ValueError:
        exit_code = FAILED
    return Failure(frame.code, reasons.rejected(frame.code, frame.reason), exit_code)


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
