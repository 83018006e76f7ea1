"""Ranges that a frame's fields must keep: what a peer may make us store."""

from __future__ import annotations

import re

from qmux.errors import PeerError
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
MAX_LANES = 64
MAX_WEIGHT = 256
MAX_NAME = 128
MAX_TEXT = 512
MAX_DURATION_MS = 30 * 24 * 3600 * 1000
MAX_COUNT = (1 << 53) - 1

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]*")


def check(frame: Frame) -> None:
    """Raise PeerError where a value of ``frame`` is out of range."""
    if isinstance(frame, Register):
        _check_register(frame)
    elif isinstance(frame, RegisterAck):
        _require(len(frame.server_id) <= 64, "server_id is too long")
        _check_lanes(frame.lane, frame.lanes)
        _require(len(frame.services) <= MAX_SERVICES, "too many services")
        _require(0 < frame.heartbeat_ms <= MAX_DURATION_MS, "heartbeat_ms is out of range")
        _require(0 < frame.keep_alive_ms <= MAX_DURATION_MS, "keep_alive_ms is out of range")
        _require(0 < frame.limits.max_streams <= 1 << 20, "limits.max_streams is out of range")
    elif isinstance(frame, Lanes):
        _check_lanes(frame.lane, (*frame.lanes, *frame.suspect))
    elif isinstance(frame, Heartbeat):
        counts = (frame.active_total, frame.opened_by_you)
        _require(all(0 <= count <= MAX_COUNT for count in counts), "a count is out of range")
    elif isinstance(frame, Drain):
        _require(0 <= frame.deadline_ms <= MAX_DURATION_MS, "deadline_ms is out of range")
    elif isinstance(frame, NewConn):
        _check_name(frame.service, "service")
        _require(max(len(frame.source), len(frame.dest)) <= MAX_NAME, "an address is too long")
    elif isinstance(frame, RegisterReject | ConnRefused):
        _require(len(frame.code) <= MAX_NAME and len(frame.reason) <= MAX_TEXT * 2, "a text is too long")


def _check_register(frame: Register) -> None:
    _require(len(frame.session) == SESSION_BYTES, f"session has {len(frame.session)} bytes, not {SESSION_BYTES}")
    _require(len(frame.client_id) <= MAX_NAME, "client_id is too long")
    _require(len(frame.services) <= MAX_SERVICES, f"{len(frame.services)} services; at most {MAX_SERVICES}")
    _require(len(frame.capabilities) <= 64, "too many capabilities")
    _require(len({service.name for service in frame.services}) == len(frame.services), "a service is offered twice")
    for service in frame.services:
        _check_name(service.name, "service")
        _require(1 <= service.weight <= MAX_WEIGHT, f"weight {service.weight} is not within 1 and {MAX_WEIGHT}")


def _check_lanes(lane: int, lanes: tuple[int, ...]) -> None:
    _require(len(lanes) <= 2 * MAX_LANES, "too many lanes")
    _require(all(0 <= each <= MAX_SLOT for each in (lane, *lanes)), "a lane is out of range")


def _check_name(name: str, what: str) -> None:
    _require(len(name) <= MAX_NAME and _NAME.fullmatch(name) is not None, f"{what} is not a name: {name[:40]!r}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise PeerError(otherwise)
