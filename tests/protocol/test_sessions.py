from __future__ import annotations

import pytest

from qmux.errors import PeerError
from qmux.protocol import varint
from qmux.protocol.frames import (
    Drain,
    Frame,
    Heartbeat,
    HeartbeatAck,
    Lanes,
    Limits,
    Offered,
    Register,
    RegisterAck,
    RegisterReject,
    RejectCode,
)
from qmux.protocol.sessions import MIN_HEARTBEAT_INTERVAL_S, MIN_SILENCE_S, ClientSession, ControlStream, ServerSession
from qmux.protocol.states import LocalError, State
from tests.protocol.test_states import take

REGISTER = Register(bytes(16), "pod-1", (Offered("web"),), "1.0")
ACK = RegisterAck(b"server", 1, (1, 2), 10_000, 4_000, Limits(64, 30_000), ())
PTO_S = 0.05


def registered(now: float = 100.0) -> tuple[ClientSession, ServerSession]:
    client, server = ClientSession(), ServerSession()
    assert take(server, client.register(REGISTER)) == [REGISTER]
    assert take(client, server.accept(ACK)) == [ACK]
    return client, server


def beat(client: ClientSession, server: ServerSession, now: float) -> list[Frame]:
    """A Heartbeat if one is due, and its answer."""
    heard = take(server, client.poll(now))
    for _ in heard:
        take(client, server.heard())
    return heard


def test_a_session_from_register_to_drain() -> None:
    client, server = registered()
    assert client.is_registered
    assert server.is_registered
    assert take(client, server.lanes(Lanes(1, (1, 2, 3), (2,)))) == [Lanes(1, (1, 2, 3), (2,))]
    assert take(client, server.drain(5_000, replace=True)) == [Drain(5_000, True)]
    assert client.state is server.state is State.DRAINING
    assert beat(client, server, 100.0) == [Heartbeat(0, 0)]
    assert take(server, client.drain(1_000)) == [Drain(1_000)]


def test_rejected() -> None:
    client, server = ClientSession(), ServerSession()
    take(server, client.register(REGISTER))
    reason = "x" * 3000 + "\udcff"
    (frame,) = take(client, server.reject(RejectCode.UNKNOWN_SERVICE, reason))
    assert isinstance(frame, RegisterReject)
    assert (frame.code, frame.reason) == ("unknown_service", "x" * 512)
    assert client.state is State.REJECTED
    assert not client.is_registered
    with pytest.raises(LocalError):
        server.heard()


def test_a_reason_is_clipped_between_characters() -> None:
    client, server = ClientSession(), ServerSession()
    take(server, client.register(REGISTER))
    (frame,) = take(client, server.reject(RejectCode.INVALID, "x" + "é" * 600))
    assert isinstance(frame, RegisterReject)
    assert frame.reason == "x" + "é" * 255


def test_frames_of_a_later_release_are_skipped() -> None:
    client, server = registered()
    later = varint.encode(0x77) + varint.encode(3) + b"abc"
    assert take(server, later + client.poll(100.0)) == [Heartbeat(0, 0)]
    assert take(client, later + server.heard()) == [HeartbeatAck()]


def test_a_frame_of_a_user_connection_is_refused() -> None:
    _, server = registered()
    with pytest.raises(PeerError, match="a ConnReady frame is not allowed here"):
        take(server, b"\x11\x01\x80")


# --- the heartbeat's clock ---


def test_no_heartbeat_before_registration() -> None:
    client = ClientSession()
    assert client.poll(100.0) == b""
    client.register(REGISTER)
    assert client.poll(100.0) == b""


def test_heartbeats_without_a_change_keep_the_servers_interval() -> None:
    client, server = registered()
    assert beat(client, server, 100.0) == [Heartbeat(0, 0)]
    assert client.next_heartbeat() == pytest.approx(104.0)
    assert beat(client, server, 103.9) == []
    assert beat(client, server, 104.0) == [Heartbeat(0, 0)]


def test_a_change_is_told_at_once_and_then_every_100_ms() -> None:
    client, server = registered()
    beat(client, server, 100.0)
    client.load_changed(1, 1)
    assert client.next_heartbeat() == pytest.approx(100.0 + MIN_HEARTBEAT_INTERVAL_S)
    assert beat(client, server, 102.0) == [Heartbeat(1, 1)]
    client.load_changed(2, 2)
    assert beat(client, server, 102.05) == []
    client.load_changed(3, 3)
    assert beat(client, server, 102.11) == [Heartbeat(3, 3)]


def test_a_change_that_was_taken_back_is_not_told() -> None:
    client, server = registered()
    beat(client, server, 100.0)
    client.load_changed(1, 1)
    client.load_changed(0, 0)
    assert beat(client, server, 101.0) == []


def silent(client: ClientSession, now: float, last_received_at: float, pto_s: float = PTO_S) -> bool:
    return client.is_silent(now, last_received_at, pto_s)


def test_answered_heartbeats_are_never_silent() -> None:
    client, server = registered()
    beat(client, server, 100.0)
    assert not silent(client, 200.0, 100.01)


def test_silence_after_a_heartbeat() -> None:
    client, _ = registered()
    client.poll(100.0)
    assert not silent(client, 100.0 + MIN_SILENCE_S, 99.9)
    assert silent(client, 100.1 + MIN_SILENCE_S, 99.9)


def test_a_long_round_trip_is_no_silence() -> None:
    client, _ = registered()
    client.poll(100.0)
    assert not silent(client, 105.9, 99.9, pto_s=2.0)
    assert silent(client, 106.1, 99.9, pto_s=2.0)


def test_later_heartbeats_do_not_restart_the_clock() -> None:
    client, _ = registered()
    for tenth in range(25):
        client.load_changed(tenth, tenth)
        client.poll(100.0 + tenth / 10)
    assert silent(client, 102.4, 99.9)


def test_any_packet_ends_the_silence() -> None:
    client, _ = registered()
    client.poll(100.0)
    assert not silent(client, 103.0, 102.5)


def test_a_server_that_dies_after_acknowledging_a_packet_is_noticed() -> None:
    """The packet was acknowledged, the Heartbeat never answered, and from then on nothing came."""
    client, _ = registered()
    client.poll(100.0)
    client.poll(104.0)  # without a call of is_silent in between
    assert not silent(client, 104.1, 100.05)
    assert not silent(client, 105.9, 100.05)
    assert silent(client, 106.1, 100.05)


def test_an_answer_to_an_older_heartbeat_does_not_hide_a_newer_one() -> None:
    client, _ = registered()
    client.poll(100.0)
    assert not silent(client, 100.5, 100.05)
    client.poll(104.0)
    assert silent(client, 106.1, 100.05)


def test_both_ends_are_control_streams() -> None:
    for session in registered():
        assert isinstance(session, ControlStream)
        assert session.want() == 1
