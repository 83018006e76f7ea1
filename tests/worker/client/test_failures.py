"""What a user of ``qmuxc`` reads for each way in which a connection can fail, and what a script gets."""

from __future__ import annotations

import errno

import pytest

from qmux.pki.verify import (
    BAD_CERTIFICATE,
    CERTIFICATE_EXPIRED,
    CERTIFICATE_REQUIRED,
    UNKNOWN_CA,
    UNSUPPORTED_CERTIFICATE,
)
from qmux.protocol.frames import AppCode, RegisterReject, RejectCode
from qmux.quic.engine import CloseKind, CloseReason
from qmux.worker.client.failures import (
    CERTIFICATE,
    CONDITION,
    FAILED,
    UNREACHABLE,
    closed,
    rejected,
    unresolved,
)

CLOSED = {
    CloseKind.LOCAL: ("local", "the connection failed: local", UNREACHABLE),
    CloseKind.APPLICATION: ("closed", "the server closed the connection: closed without error", FAILED),
    CloseKind.TRANSPORT: ("transport", "the connection failed: transport", UNREACHABLE),
    CloseKind.TLS: ("our_certificate", "the TLS handshake failed with alert 0", CERTIFICATE),
    CloseKind.IDLE: ("idle", "the connection failed: idle", UNREACHABLE),
    CloseKind.RESET: ("reset", "the connection failed: reset", UNREACHABLE),
    CloseKind.REFUSED: ("refused", "nothing listens on UDP port 8443 of 2001:db8::1:", UNREACHABLE),
    CloseKind.UNREACHABLE: ("unreachable", "cannot send UDP packets to it", UNREACHABLE),
    CloseKind.TIMEOUT: ("no_answer", "no answer over UDP within 3 s: is UDP port 8443 blocked", UNREACHABLE),
    CloseKind.CERTIFICATE: ("server_certificate", "the server's certificate is not accepted", CERTIFICATE),
}

UNREACHABLE_WORDS = {
    errno.EPERM: "a firewall on this machine forbids it; allow UDP to port 8443",
    errno.EACCES: "a firewall here or on the way forbids it; allow UDP to port 8443",
    errno.EHOSTUNREACH: "No route to host: the host is down, there is no way to it, or a firewall on the way rejects",
    errno.ENETUNREACH: "this machine has no route to it (ip route get HOST), or no IPv6",
    errno.ENETDOWN: "Network is down: is the network up?",
}

REJECTED = {
    RejectCode.UNAUTHORIZED_SERVICE: CERTIFICATE,
    RejectCode.UNKNOWN_SERVICE: CERTIFICATE,
    RejectCode.NO_SERVICE: CERTIFICATE,
    RejectCode.TOO_MANY_CLIENTS: CONDITION,
    RejectCode.INVALID: FAILED,
    RejectCode.INCOMPATIBLE: FAILED,
    RejectCode.SHUTTING_DOWN: UNREACHABLE,
    RejectCode.CERTIFICATE_EXPIRED: CERTIFICATE,
}


@pytest.mark.parametrize("kind", CloseKind)
def test_every_way_in_which_a_connection_ends(kind: CloseKind) -> None:
    failure = closed(CloseReason(kind), "[2001:db8::1]:8443", 3.0)
    told, text, exit_code = CLOSED[kind]
    assert (failure.kind, failure.exit_code) == (told, exit_code)
    assert failure.text.startswith(text)


@pytest.mark.parametrize("number", UNREACHABLE_WORDS)
def test_a_firewall_is_not_called_a_route(number: int) -> None:
    failure = closed(CloseReason(CloseKind.UNREACHABLE, number), "192.0.2.1:8443", 3.0)
    assert (failure.kind, failure.exit_code) == ("unreachable", UNREACHABLE)
    assert UNREACHABLE_WORDS[number] in failure.text


@pytest.mark.parametrize(
    ("alert", "text"),
    [
        (UNKNOWN_CA, "does not know the CA of our certificate"),
        (CERTIFICATE_EXPIRED, "has expired or is not valid yet"),
        (UNSUPPORTED_CERTIFICATE, "does not accept our certificate for a client"),
        (BAD_CERTIFICATE, "does not accept our certificate (revoked)"),
        (CERTIFICATE_REQUIRED, "requires a certificate and we have none"),
        (120, "speaks another protocol or version"),
        (80, "failed with alert 80"),
    ],
)
def test_every_alert_of_tls(alert: int, text: str) -> None:
    failure = closed(CloseReason(CloseKind.TLS, alert, "revoked"), "192.0.2.1:8443", 3.0)
    assert (failure.kind, failure.exit_code) == ("our_certificate", CERTIFICATE)
    assert text in failure.text


@pytest.mark.parametrize(
    ("message", "advice"),
    [
        ("issued by another CA", "is this bundle from the CA of that server?"),
        ("self-signed", "is this bundle from the CA of that server?"),
        ("it is not for pod.internal", "set client.server_name"),
        ("expired yesterday", "issue a new one on the server"),
    ],
)
def test_a_server_certificate_comes_with_advice(message: str, advice: str) -> None:
    failure = closed(CloseReason(CloseKind.CERTIFICATE, 0, message), "192.0.2.1:8443", 3.0)
    assert message in failure.text
    assert advice in failure.text


def test_a_server_that_refuses_new_connections() -> None:
    failure = closed(CloseReason(CloseKind.TRANSPORT, 2), "192.0.2.1:8443", 3.0)
    assert (failure.kind, failure.text, failure.exit_code) == (
        "stopping",
        "the server is stopping or full",
        UNREACHABLE,
    )


@pytest.mark.parametrize("code", AppCode)
def test_every_code_of_the_protocol_is_told_in_words(code: AppCode) -> None:
    failure = closed(CloseReason(CloseKind.APPLICATION, code, "detail"), "192.0.2.1:8443", 3.0)
    assert failure.text.endswith(": detail")
    assert str(int(code)) not in failure.text


@pytest.mark.parametrize("code", RejectCode)
def test_every_rejection(code: RejectCode) -> None:
    failure = rejected(RegisterReject(code, "web"))
    assert (failure.kind, failure.exit_code) == (code, REJECTED[code])
    assert "web" in failure.text


def test_a_rejection_of_a_newer_release() -> None:
    failure = rejected(RegisterReject("too_new", "web"))
    assert (failure.kind, failure.exit_code) == ("rejected", FAILED), "a server's words are not shown as a state"
    assert "too_new" in failure.text


def test_a_name_without_an_address() -> None:
    failure = unresolved("server.internal", "Name or service not known")
    assert failure.exit_code == UNREACHABLE
    assert "server.internal" in failure.text
