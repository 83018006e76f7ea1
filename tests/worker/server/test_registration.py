"""Which registrations are refused, with which code, and what an accepted client is told."""

from __future__ import annotations

import time

import pytest
from msgspec.structs import replace

from qmux import __version__
from qmux.pki.identity import Identity
from qmux.pool.rows import Offer
from qmux.protocol.frames import Limits, Offered, Register, RejectCode, ServiceSettings
from qmux.worker.server.registration import Admission, Rejected, acknowledgement, check, offers_of, settings_of
from tests.worker.server.fakes import config_of

FAR_FUTURE = 1 << 40
REGISTER = Register(bytes(16), "host-1", (Offered("web", 3, True), Offered("ssh")), "1.0")
IDENTITY = Identity("pod-1", ("web", "ssh"), "", "", FAR_FUTURE)
CONFIG = replace(config_of(web={}, ssh={}), max_clients=10)
NEW = Admission(stopping=False, is_new_session=True, session_count=9)

WEB, SSH = Offer("web", 3, True), Offer("ssh", 1, False)


def test_accepted() -> None:
    assert check(REGISTER, IDENTITY, CONFIG, NEW) == (WEB, SSH)


def test_a_certificate_for_every_service() -> None:
    assert check(REGISTER, replace(IDENTITY, services=("*",)), CONFIG, NEW) == (WEB, SSH)


def test_a_service_that_the_server_does_not_have_is_left_out() -> None:
    assert check(REGISTER, IDENTITY, config_of(web={}), NEW) == (WEB,)


@pytest.mark.parametrize(
    ("register", "identity", "admission", "code", "reason"),
    [
        (REGISTER, IDENTITY, replace(NEW, stopping=True), RejectCode.SHUTTING_DOWN, ""),
        (REGISTER, replace(IDENTITY, not_after=1), NEW, RejectCode.CERTIFICATE_EXPIRED, ""),
        (replace(REGISTER, services=()), IDENTITY, NEW, RejectCode.NO_SERVICE, ""),
        (REGISTER, replace(IDENTITY, services=("web",)), NEW, RejectCode.UNAUTHORIZED_SERVICE, 'service "ssh"'),
        (REGISTER, replace(IDENTITY, services=()), NEW, RejectCode.UNAUTHORIZED_SERVICE, 'services "web", "ssh"'),
        (
            replace(REGISTER, services=(Offered("smtp"),)),
            replace(IDENTITY, services=("smtp",)),
            NEW,
            RejectCode.UNKNOWN_SERVICE,
            'service "smtp"',
        ),
        (REGISTER, IDENTITY, replace(NEW, session_count=10), RejectCode.TOO_MANY_CLIENTS, "max_clients = 10"),
    ],
)
def test_rejected(register: Register, identity: Identity, admission: Admission, code: RejectCode, reason: str) -> None:
    with pytest.raises(Rejected) as caught:
        check(register, identity, CONFIG, admission)
    assert (caught.value.code, caught.value.reason) == (code, reason)
    assert str(caught.value) == (f"{code}: {reason}" if reason else str(code))


def test_another_connection_of_a_session_is_no_other_client() -> None:
    assert check(REGISTER, IDENTITY, CONFIG, Admission(False, is_new_session=False, session_count=10))


def test_a_certificate_is_valid_up_to_its_last_second() -> None:
    assert check(REGISTER, replace(IDENTITY, not_after=int(time.time()) + 60), CONFIG, NEW)
    with pytest.raises(Rejected, match="certificate_expired"):
        check(REGISTER, replace(IDENTITY, not_after=int(time.time()) - 1), CONFIG, NEW)


def test_a_reason_names_eight_services_at_most() -> None:
    many = replace(REGISTER, services=tuple(Offered(f"s{number}") for number in range(20)))
    with pytest.raises(Rejected) as caught:
        check(many, IDENTITY, CONFIG, NEW)
    assert caught.value.reason == "services " + ", ".join(f'"s{number}"' for number in range(8))


def test_offers_keep_weight_and_backup() -> None:
    assert offers_of(REGISTER.services, config_of(web={}, smtp={})) == (WEB,)
    assert offers_of((), CONFIG) == ()


def test_what_a_registered_client_is_told() -> None:
    config = config_of(max_streams=7, web={"idle_timeout_s": 9.0, "half_closed_timeout_s": 0.5}, ssh={})
    ack = acknowledgement(config, b"s" * 16, 2, (0, 2), (WEB,))
    assert (ack.server_id, ack.lane, ack.lanes, ack.version) == (b"s" * 16, 2, (0, 2), __version__)
    assert (ack.keep_alive_ms, ack.heartbeat_ms) == (10_000, 4000)
    assert ack.limits == Limits(max_streams=7, idle_timeout_ms=30_000)
    assert ack.services == (ServiceSettings("web", 9000, 500),), "only those that it serves"


def test_a_timeout_that_is_off_is_zero_and_a_short_one_is_not() -> None:
    config = config_of(web={"half_closed_timeout_s": 0.0001})
    assert settings_of(config.services["web"]) == ServiceSettings("web", idle_timeout_ms=0, half_closed_timeout_ms=1)
