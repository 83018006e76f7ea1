"""Every code of the protocol in words for people: what happened and what to do."""

from __future__ import annotations

from typing import TypeVar

from qmux.heard import heard
from qmux.protocol.frames import AppCode, RefuseCode, RejectCode

Code = TypeVar("Code", RejectCode, RefuseCode)

_REJECTED = {
    RejectCode.UNAUTHORIZED_SERVICE: "the certificate does not allow this service; issue one that does: "
    "qmux pki issue client NAME --service SERVICE",
    RejectCode.UNKNOWN_SERVICE: "the server has no such service; add [services.NAME] to the server's configuration "
    "and reload it, or correct the name here",
    RejectCode.NO_SERVICE: "no service was offered; add [services.NAME] with a target",
    RejectCode.TOO_MANY_CLIENTS: "the server has as many clients as its max_clients allows; raise it there",
    RejectCode.INVALID: "the server did not accept a value of the registration",
    RejectCode.INCOMPATIBLE: "client and server have no common protocol version; update the older one",
    RejectCode.SHUTTING_DOWN: "the server is stopping; the client keeps trying",
    RejectCode.CERTIFICATE_EXPIRED: "the client's certificate has expired; issue a new one: qmux pki issue client NAME",
}
_REFUSED = {
    RefuseCode.REFUSED: "the service refused the connection: is it running?",
    RefuseCode.TIMEOUT: "the service did not answer in time",
    RefuseCode.RESET: "the service accepted the connection and reset it at once",
    RefuseCode.UNREACHABLE: "the service cannot be reached from the client",
    RefuseCode.NAME: "the target's name does not resolve at the client",
    RefuseCode.UNKNOWN_SERVICE: "the client no longer serves it",
    RefuseCode.DRAINING: "the client is stopping",
    RefuseCode.OVERLOADED: "the client is out of descriptors or ports",
}
_CLOSED = {
    AppCode.NONE: "closed without error",
    AppCode.PROTOCOL_ERROR: "protocol violation",
    AppCode.NOT_REGISTERED: "the client did not register in time",
    AppCode.REJECTED: "the registration was rejected",
    AppCode.GOING_AWAY: "the other end stopped",
    AppCode.REPLACED: "a newer connection of the same session took its place",
    AppCode.SURPLUS: "surplus connection",
    AppCode.UNKNOWN_STREAM_TYPE: "unknown stream type",
    AppCode.CANCELLED: "no longer wanted",
    AppCode.SOCKET_RESET: "the TCP connection was reset",
    AppCode.TIMED_OUT: "timed out",
    AppCode.REFUSED: "refused",
}


def rejected(code: str, detail: str) -> str:
    """Why a registration was rejected; a newer release's code is shown as it is."""
    return _with_detail(_lookup(RejectCode, _REJECTED, code), detail)


def refused(code: str, detail: str) -> str:
    """Why a client could not connect a user."""
    return _with_detail(_lookup(RefuseCode, _REFUSED, code), detail)


def closed(code: int) -> str:
    """What an application error code means."""
    try:
        return _CLOSED[AppCode(code)]
    except ValueError:
        return f"code {code:#x}"


def _lookup(kind: type[Code], words: dict[Code, str], code: str) -> str:
    try:
        return words[kind(code)]
    except ValueError:
        return f"{heard(code)} (a reason unknown to this release)"


def _with_detail(text: str, detail: str) -> str:
    return f"{heard(detail)}: {text}" if detail else text
