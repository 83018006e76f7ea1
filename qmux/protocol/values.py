"""Ranges that a frame's fields must keep: what a peer may make us store."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from qmux.errors import PeerError
from qmux.protocol import varint
from qmux.protocol.frames import (
    SESSION_BYTES,
    ConnRefused,
    Drain,
    Frame,
    Heartbeat,
    Lanes,
    NewConn,
    Register,
    RegisterAck,
    RegisterReject,
)
from qmux.steering import MAX_SLOT

MAX_SERVICES = 256
MAX_CAPABILITIES = 64
MAX_LANES_TOLD = 64
MAX_WEIGHT = 256
MAX_NAME = 128
MAX_REASON = 1024
MAX_STREAMS = 1 << 20
MAX_DURATION_MS = 30 * 24 * 3600 * 1000
MAX_COUNT = (1 << 53) - 1

CLIPPED_BYTES = 512
"""What we say ourselves as a reason: it fits into every frame that carries one."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def clipped(reason: str) -> str:
    """``reason`` short enough for a frame, and encodable."""
    return reason.encode("utf-8", "replace")[:CLIPPED_BYTES].decode("utf-8", "ignore")


def check(frame: Frame) -> None:
    """Raise PeerError where a value of ``frame`` is out of range."""
    rule = _RULES.get(type(frame))
    if rule is not None:
        rule(frame)


def _check_register(frame: Register) -> None:
    _require(len(frame.session) == SESSION_BYTES, f"session has {len(frame.session)} bytes, not {SESSION_BYTES}")
    _check_text(frame.client_id, "client_id")
    _check_text(frame.version, "version")
    _check_capabilities(frame.capabilities)
    _require(len(frame.services) <= MAX_SERVICES, f"{len(frame.services)} services; at most {MAX_SERVICES}")
    _require(len({service.name for service in frame.services}) == len(frame.services), "a service is offered twice")
    for service in frame.services:
        _check_name(service.name, "service")
        _require(1 <= service.weight <= MAX_WEIGHT, f"weight {service.weight} is not within 1 and {MAX_WEIGHT}")


def _check_register_ack(frame: RegisterAck) -> None:
    _require(1 <= len(frame.server_id) <= 64, "server_id is empty or too long")
    _check_lanes((frame.lane,), "lane")
    _check_lanes(frame.lanes, "lanes")
    _check_text(frame.version, "version")
    _check_capabilities(frame.capabilities)
    _check_duration(frame.heartbeat_ms, "heartbeat_ms", least=1)
    _check_duration(frame.keep_alive_ms, "keep_alive_ms", least=1)
    _check_duration(frame.limits.idle_timeout_ms, "limits.idle_timeout_ms", least=1)
    _require(1 <= frame.limits.max_streams <= MAX_STREAMS, "limits.max_streams is out of range")
    _require(len(frame.services) <= MAX_SERVICES, "too many services")
    for service in frame.services:
        _check_name(service.name, "service")
        _check_duration(service.idle_timeout_ms, "idle_timeout_ms")
        _check_duration(service.half_closed_timeout_ms, "half_closed_timeout_ms")


def _check_lanes_frame(frame: Lanes) -> None:
    _check_lanes((frame.lane,), "lane")
    _check_lanes(frame.lanes, "lanes")
    _check_lanes(frame.suspect, "suspect")


def _check_heartbeat(frame: Heartbeat) -> None:
    counts = (frame.active_total, frame.active_here)
    _require(all(0 <= count <= MAX_COUNT for count in counts), "a count is out of range")


def _check_drain(frame: Drain) -> None:
    _check_duration(frame.deadline_ms, "deadline_ms")


def _check_new_conn(frame: NewConn) -> None:
    _require(0 <= frame.conn_id <= varint.MAX, "conn_id is out of range")
    _check_name(frame.service, "service")
    _check_text(frame.source, "source")
    _check_text(frame.dest, "dest")


def _check_reason(frame: RegisterReject | ConnRefused) -> None:
    _check_text(frame.code, "code")
    _require(len(frame.reason) <= MAX_REASON, "a reason is too long")


_RULES: dict[type[Frame], Callable[[Any], None]] = {
    Register: _check_register,
    RegisterAck: _check_register_ack,
    RegisterReject: _check_reason,
    Lanes: _check_lanes_frame,
    Heartbeat: _check_heartbeat,
    Drain: _check_drain,
    NewConn: _check_new_conn,
    ConnRefused: _check_reason,
}
"""HeartbeatAck and ConnReady carry nothing."""


def _check_capabilities(capabilities: tuple[str, ...]) -> None:
    _require(len(capabilities) <= MAX_CAPABILITIES, "too many capabilities")
    for capability in capabilities:
        _check_text(capability, "a capability")


def _check_lanes(lanes: tuple[int, ...], what: str) -> None:
    _require(len(lanes) <= MAX_LANES_TOLD, f"{what}: more than {MAX_LANES_TOLD}")
    _require(len(set(lanes)) == len(lanes), f"{what}: one stands there twice")
    _require(all(0 <= lane <= MAX_SLOT for lane in lanes), f"{what}: one is out of range")


def _check_duration(milliseconds: int, what: str, least: int = 0) -> None:
    _require(least <= milliseconds <= MAX_DURATION_MS, f"{what} is out of range")


def _check_text(text: str, what: str) -> None:
    """Shown to people and written into logs: nothing in it may steer a terminal."""
    _require(len(text) <= MAX_NAME, f"{what} is too long")
    _require(text.isprintable(), f"{what} has characters that cannot be printed")


def _check_name(name: str, what: str) -> None:
    _require(len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None, f"{what} is not a name: {name[:40]!r}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PeerError(otherwise)
