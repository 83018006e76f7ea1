"""Whether a client may register, and what it is told when it may. No I/O: rules over an identity and a Register."""

from __future__ import annotations

import time

import msgspec

from qmux import __version__
from qmux.config.schema import ServerConfig, ServiceConfig
from qmux.pki.identity import Identity
from qmux.pool.rows import Offer
from qmux.protocol.frames import Limits, Offered, Register, RegisterAck, RejectCode, ServiceSettings


class Rejected(Exception):
    """The registration is refused: ``code`` for the client's program, ``reason`` for its user."""

    def __init__(self, code: RejectCode, reason: str = "") -> None:
        super().__init__(f"{code}: {reason}" if reason else str(code))
        self.code = code
        self.reason = reason


class Admission(msgspec.Struct, frozen=True):
    """What the server knows when a Register comes."""

    stopping: bool
    is_new_session: bool
    session_count: int


def check(register: Register, identity: Identity, config: ServerConfig, admission: Admission) -> tuple[Offer, ...]:
    """The offers to take from ``register``. Raises Rejected.

    A service that the certificate does not name refuses the whole registration; one that this server does not have
    (yet) is left out, so that a client of several services does not lose all of them to one.
    """
    if admission.stopping:
        raise Rejected(RejectCode.SHUTTING_DOWN)
    if identity.not_after <= time.time():
        raise Rejected(RejectCode.CERTIFICATE_EXPIRED)
    if not register.services:
        raise Rejected(RejectCode.NO_SERVICE)
    if forbidden := [offered.name for offered in register.services if not identity.may_serve(offered.name)]:
        raise Rejected(RejectCode.UNAUTHORIZED_SERVICE, _services(forbidden))
    offers = offers_of(register.services, config)
    if not offers:
        raise Rejected(RejectCode.UNKNOWN_SERVICE, _services([offered.name for offered in register.services]))
    if admission.is_new_session and admission.session_count >= config.max_clients:
        raise Rejected(RejectCode.TOO_MANY_CLIENTS, f"max_clients = {config.max_clients}")
    return offers


def offers_of(offered: tuple[Offered, ...], config: ServerConfig) -> tuple[Offer, ...]:
    """Those of ``offered`` that this server has."""
    return tuple(Offer(each.name, each.weight, each.backup) for each in offered if each.name in config.services)


def acknowledgement(
    config: ServerConfig, server_id: bytes, lane: int, lanes: tuple[int, ...], offers: tuple[Offer, ...]
) -> RegisterAck:
    """What a registered client is told."""
    return RegisterAck(
        server_id=server_id,
        lane=lane,
        lanes=lanes,
        keep_alive_ms=_ms(config.quic.keep_alive_s),
        heartbeat_ms=_ms(config.quic.heartbeat_s),
        limits=Limits(max_streams=config.quic.max_streams, idle_timeout_ms=_ms(config.quic.idle_timeout_s)),
        services=tuple(settings_of(config.services[offer.service]) for offer in offers),
        version=__version__,
    )


def settings_of(service: ServiceConfig) -> ServiceSettings:
    """What both ends of a service must agree on."""
    return ServiceSettings(
        name=service.name,
        idle_timeout_ms=_ms(service.idle_timeout_s or 0.0),
        half_closed_timeout_ms=_ms(service.half_closed_timeout_s),
    )


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000)) if seconds else 0


def _services(names: list[str]) -> str:
    shown = ", ".join(f'"{name}"' for name in names[:8])
    return f"service{'s' if len(names) > 1 else ''} {shown}"
