from __future__ import annotations

import msgspec
import pytest
from hypothesis import given

from qmux.errors import PeerError
from qmux.protocol import varint
from qmux.protocol.frames import (
    ConnRefused,
    Drain,
    Frame,
    Heartbeat,
    Lanes,
    Limits,
    NewConn,
    Offered,
    Register,
    RegisterAck,
    RegisterReject,
    ServiceSettings,
)
from qmux.protocol.values import MAX_COUNT, MAX_DURATION_MS, check, clipped
from tests.protocol.strategies import frames

REGISTER = Register(bytes(16), "pod-1", (Offered("web"),), "1.0")
ACK = RegisterAck(b"server", 1, (1, 2), 10_000, 4_000, Limits(64, 30_000), (ServiceSettings("web"),))
LANES = Lanes(1, (1, 2))
NEW_CONN = NewConn(1, "web", "192.0.2.1:1", "192.0.2.2:80")
SETTINGS = ServiceSettings("web")


@given(frames)
def test_what_is_in_range_passes(frame: Frame) -> None:
    check(frame)


@pytest.mark.parametrize(
    ("frame", "field", "value", "message"),
    [
        (REGISTER, "session", bytes(15), "session has 15 bytes, not 16"),
        (REGISTER, "session", bytes(17), "session has 17 bytes"),
        (REGISTER, "client_id", "x" * 129, "client_id is too long"),
        (REGISTER, "client_id", "pod\x1b[2J", "client_id has characters that cannot be printed"),
        (REGISTER, "client_id", "pod\n2026 error", "client_id has characters"),
        (REGISTER, "version", "1" * 129, "version is too long"),
        (REGISTER, "capabilities", ("c",) * 65, "too many capabilities"),
        (REGISTER, "capabilities", ("c" * 129,), "a capability is too long"),
        (REGISTER, "services", tuple(Offered(f"s{i}") for i in range(257)), "257 services; at most 256"),
        (REGISTER, "services", (Offered("a"), Offered("a", 2)), "a service is offered twice"),
        (REGISTER, "services", (Offered("a", 0),), "weight 0 is not within"),
        (REGISTER, "services", (Offered("a", -1),), "weight -1 is not within"),
        (REGISTER, "services", (Offered("a", 257),), "weight 257 is not within"),
        (REGISTER, "services", (Offered(""),), "service is not a name"),
        (REGISTER, "services", (Offered("a b"),), "service is not a name"),
        (REGISTER, "services", (Offered("../etc"),), "service is not a name"),
        (REGISTER, "services", (Offered("a\n"),), "service is not a name"),
        (REGISTER, "services", (Offered("a" * 129),), "service is not a name"),
        (ACK, "server_id", b"", "server_id is empty"),
        (ACK, "server_id", bytes(65), "too long"),
        (ACK, "lane", -1, "lane: one is out of range"),
        (ACK, "lane", 0x8000, "lane: one is out of range"),
        (ACK, "lanes", (1, 0x8000), "lanes: one is out of range"),
        (ACK, "lanes", (1, 1), "lanes: one stands there twice"),
        (ACK, "lanes", tuple(range(65)), "lanes: more than 64"),
        (ACK, "keep_alive_ms", 0, "keep_alive_ms is out of range"),
        (ACK, "keep_alive_ms", -5, "keep_alive_ms is out of range"),
        (ACK, "heartbeat_ms", 0, "heartbeat_ms is out of range"),
        (ACK, "heartbeat_ms", MAX_DURATION_MS + 1, "heartbeat_ms is out of range"),
        (ACK, "limits", Limits(0, 30_000), "limits.max_streams is out of range"),
        (ACK, "limits", Limits(1 << 21, 30_000), "limits.max_streams is out of range"),
        (ACK, "limits", Limits(64, 0), "limits.idle_timeout_ms is out of range"),
        (ACK, "limits", Limits(64, -1), "limits.idle_timeout_ms is out of range"),
        (ACK, "services", (SETTINGS,) * 257, "too many services"),
        (ACK, "services", (ServiceSettings("a b"),), "service is not a name"),
        (ACK, "services", (ServiceSettings("a", -1),), "idle_timeout_ms is out of range"),
        (ACK, "services", (ServiceSettings("a", 0, -1),), "half_closed_timeout_ms is out of range"),
        (ACK, "version", "\x00", "version has characters"),
        (ACK, "capabilities", ("c",) * 65, "too many capabilities"),
        (RegisterReject("x"), "code", "c" * 129, "code is too long"),
        (RegisterReject("x"), "code", "\x1b", "code has characters"),
        (RegisterReject("x"), "reason", "r" * 1025, "a reason is too long"),
        (LANES, "lane", -1, "lane: one is out of range"),
        (LANES, "lanes", (0x8000,), "lanes: one is out of range"),
        (LANES, "lanes", tuple(range(65)), "lanes: more than 64"),
        (LANES, "suspect", (-1,), "suspect: one is out of range"),
        (LANES, "suspect", tuple(range(65)), "suspect: more than 64"),
        (Heartbeat(0, 0), "active_total", -1, "a count is out of range"),
        (Heartbeat(0, 0), "active_total", MAX_COUNT + 1, "a count is out of range"),
        (Heartbeat(0, 0), "active_here", -1, "a count is out of range"),
        (Heartbeat(0, 0), "active_here", 2**64 - 1, "a count is out of range"),
        (Drain(0), "deadline_ms", -1, "deadline_ms is out of range"),
        (Drain(0), "deadline_ms", MAX_DURATION_MS + 1, "deadline_ms is out of range"),
        (NEW_CONN, "conn_id", -1, "conn_id is out of range"),
        (NEW_CONN, "conn_id", varint.MAX + 1, "conn_id is out of range"),
        (NEW_CONN, "service", "", "service is not a name"),
        (NEW_CONN, "source", "x" * 129, "source is too long"),
        (NEW_CONN, "dest", "\x7f", "dest has characters"),
        (ConnRefused("x"), "code", "c" * 129, "code is too long"),
        (ConnRefused("x"), "reason", "r" * 1025, "a reason is too long"),
    ],
)
def test_what_is_out_of_range_is_refused(frame: Frame, field: str, value: object, message: str) -> None:
    check(frame)
    with pytest.raises(PeerError, match=message):
        check(msgspec.structs.replace(frame, **{field: value}))


def test_the_message_shows_little_of_what_a_peer_sent() -> None:
    with pytest.raises(PeerError) as caught:
        check(msgspec.structs.replace(NEW_CONN, service="a\x1b" * 500))
    assert len(str(caught.value)) < 250
    assert str(caught.value).isprintable()


def test_clipped() -> None:
    assert clipped("the service refused") == "the service refused"
    assert clipped("a" * 600) == "a" * 512
    assert clipped("a" + "é" * 300) == "a" + "é" * 255
    assert clipped("path \udcff") == "path ?"
