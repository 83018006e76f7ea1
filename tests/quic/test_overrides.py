"""Canaries: one for each private part of aioquic that we override or read.

Each shows what stock aioquic does, so that it fails when a release changes that, and what ours does instead. The pin in
pyproject.toml moves only when all of these were read again.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import pytest
from aioquic import tls
from aioquic.quic import connection as aioquic_connection
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import Limit, QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicPacketType, encode_quic_retry
from aioquic.quic.packet_builder import QuicDeliveryState
from aioquic.quic.recovery import QuicPacketRecovery
from aioquic.quic.stream import QuicStream, QuicStreamReceiver, QuicStreamSender

from qmux import steering
from qmux.pki.verify import CertificateRejected
from qmux.quic.aioquic_engine import overrides
from qmux.quic.aioquic_engine.credentials import Credentials
from qmux.quic.aioquic_engine.overrides import TunnelConnection, reset_token
from qmux.quic.aioquic_engine.stream_table import ReportingReceiver, ReportingSender, StreamTable
from qmux.quic.aioquic_engine.verification import MAX_MESSAGE_BYTES, VerifyingContext
from tests.quic import packets
from tests.quic.certificates import Pki

CLIENT, SERVER = ("192.0.2.1", 1111), ("192.0.2.2", 4433)
KEY = b"k" * 32
WINDOW = 65_536


class Wire:
    """A client and a server without sockets, on a clock of their own."""

    def __init__(
        self,
        client: QuicConnection,
        server: QuicConnection,
        early: Callable[[QuicConnection], None] = lambda _: None,
    ) -> None:
        self.client, self.server = client, server
        self.now = 1000.0
        self.heard: dict[QuicConnection, list[events.QuicEvent]] = {client: [], server: []}
        client.connect(SERVER, self.now)
        early(client)
        self.run()

    def run(self, rounds: int = 30) -> None:
        for _ in range(rounds):
            self._pass(self.client, self.server, CLIENT)
            self._pass(self.server, self.client, SERVER)
            self.now += 0.01
            for end in (self.client, self.server):
                if (due := end.get_timer()) is not None and due <= self.now:
                    end.handle_timer(self.now)

    def _pass(self, sender: QuicConnection, receiver: QuicConnection, source: tuple[str, int]) -> None:
        for data, _ in sender.datagrams_to_send(self.now):
            receiver.receive_datagram(data, source, self.now)
        while (event := receiver.next_event()) is not None:
            self.heard[receiver].append(event)

    def received_bytes(self, end: QuicConnection, stream_id: int) -> int:
        return sum(
            len(e.data)
            for e in self.heard[end]
            if isinstance(e, events.StreamDataReceived) and e.stream_id == stream_id
        )


def stock_pair(pki: Pki, client_material: bool = True) -> Wire:
    client, server = configurations(pki)
    if not client_material:
        client.certificate = client.private_key = None
    first = QuicConnection(configuration=client)
    return Wire(first, QuicConnection(configuration=server, original_destination_connection_id=first._peer_cid.cid))


def our_pair(
    pki: Pki,
    slot: int = 7,
    ticket: tls.SessionTicket | None = None,
    early: Callable[[QuicConnection], None] = lambda _: None,
    client: dict[str, Any] | None = None,
    **server: Any,
) -> Wire:
    """``ticket``: what the client resumes; ``early``: what it does before anything is sent."""
    client_configuration, server_configuration = configurations(pki)
    client_configuration.session_ticket = ticket
    first_id = steering.initial_id(3)
    first = TunnelConnection(
        configuration=client_configuration,
        verifier=lambda _: None,
        initial_destination_id=first_id,
        max_streams=64,
        connection_window_bytes=overrides.UNLIMITED_BYTES,
        **(client or {}),
    )
    arguments: dict[str, Any] = dict(
        configuration=server_configuration,
        verifier=lambda _: None,
        slot=slot,
        stateless_reset_key=KEY,
        original_destination_connection_id=first_id,
    )
    return Wire(first, TunnelConnection(**{**arguments, **server}), early)


def configurations(pki: Pki) -> tuple[QuicConfiguration, QuicConfiguration]:
    made = [
        Credentials(material).configuration(is_client=is_client, idle_timeout_s=60, window_bytes=WINDOW, datagrams=True)
        for material, is_client in ((pki.client, True), (pki.server, False))
    ]
    for configuration in made:
        configuration.server_name = "localhost"
    return made[0], made[1]


def test_the_release_is_the_one_that_was_read() -> None:
    assert version("aioquic") == "1.7.2"


SIGNATURES: list[tuple[Any, str]] = [
    (QuicConnection._initialize, "(self, peer_cid: bytes) -> None"),
    (QuicConnection._replenish_connection_ids, "(self) -> None"),
    (
        QuicConnection._write_stream_limits,
        "(self, builder: aioquic.quic.packet_builder.QuicPacketBuilder, space: aioquic.quic.recovery.QuicPacketSpace, "
        "stream: aioquic.quic.stream.QuicStream) -> None",
    ),
    (
        QuicConnection._write_connection_limits,
        "(self, builder: aioquic.quic.packet_builder.QuicPacketBuilder, space: aioquic.quic.recovery.QuicPacketSpace) "
        "-> None",
    ),
    (
        QuicConnection._write_application,
        "(self, builder: aioquic.quic.packet_builder.QuicPacketBuilder, network_path: "
        "aioquic.quic.connection.QuicNetworkPath, now: float) -> None",
    ),
    (
        QuicConnection._payload_received,
        "(self, context: aioquic.quic.connection.QuicReceiveContext, plain: bytes, crypto_frame_required: bool = False)"
        " -> tuple[bool, bool]",
    ),
    (
        QuicConnection._on_max_stream_data_delivery,
        "(self, delivery: aioquic.quic.packet_builder.QuicDeliveryState, stream: aioquic.quic.stream.QuicStream) "
        "-> None",
    ),
    (QuicStreamSender.write, "(self, data: bytes, end_stream: bool = False) -> None"),
    (QuicStreamSender.reset, "(self, error_code: int) -> None"),
    (
        QuicStreamSender.on_data_delivery,
        "(self, delivery: aioquic.quic.packet_builder.QuicDeliveryState, start: int, stop: int, fin: bool) -> None",
    ),
    (
        QuicStreamSender.on_reset_delivery,
        "(self, delivery: aioquic.quic.packet_builder.QuicDeliveryState) -> None",
    ),
    (
        QuicStreamReceiver.handle_frame,
        "(self, frame: aioquic.quic.packet.QuicStreamFrame) -> aioquic.quic.events.StreamDataReceived | None",
    ),
    (
        QuicStreamReceiver.on_stop_sending_delivery,
        "(self, delivery: aioquic.quic.packet_builder.QuicDeliveryState) -> None",
    ),
    (tls.Context._server_handle_certificate, "(self, input_buf: aioquic._buffer.Buffer) -> None"),
    (tls.Context._client_handle_certificate, "(self, input_buf: aioquic._buffer.Buffer) -> None"),
    (tls.Context._set_state, "(self, state: aioquic.tls.State) -> None"),
    (tls.Context._server_expect_finished, "(self) -> None"),
    (QuicPacketRecovery.discard_space, "(self, space: aioquic.quic.recovery.QuicPacketSpace) -> None"),
]


@pytest.mark.parametrize(("method", "signature"), SIGNATURES, ids=[m.__qualname__ for m, _ in SIGNATURES])
def test_the_overridden_methods_have_the_known_signature(method: Any, signature: str) -> None:
    assert str(inspect.signature(method)) == signature


def test_the_attributes_that_are_read_exist(pki: Pki) -> None:
    wire = stock_pair(pki)
    server = wire.server
    for name in (
        "_host_cids", "host_cid", "_local_initial_source_connection_id", "_peer_cid", "_peer_cid_available",
        "_original_destination_connection_id", "_local_max_streams_bidi", "_local_max_streams_uni", "_local_max_data",
        "_local_max_stream_data_bidi_local", "_local_max_stream_data_bidi_remote", "_streams", "_streams_queue",
        "_datagrams_pending", "_loss", "_handshake_confirmed", "_packet_number", "_remote_max_streams_bidi",
        "_remote_max_datagram_frame_size", "_close_event", "_state", "_pacing_at", "_is_client", "tls",
        "_spaces", "_cryptos",
    ):  # fmt: skip
        assert hasattr(server, name), name
    for name in ("spaces", "_rtt_smoothed", "congestion_window", "get_probe_timeout", "_on_packets_lost"):
        assert hasattr(server._loss, name), name
    assert isinstance(server._local_max_data, Limit)
    assert {"used", "value", "sent"} <= vars(server._local_max_data).keys()
    stream = QuicStream(stream_id=1)
    assert {"_buffer", "_pending", "_reset_error_code", "_stream_id", "buffer_is_empty", "reset_pending"} <= vars(
        stream.sender
    ).keys()
    assert {"_buffer", "_ranges", "_stream_id", "is_finished", "stop_pending", "highest_offset"} <= vars(
        stream.receiver
    ).keys()
    assert {
        "is_blocked", "max_stream_data_local", "max_stream_data_local_sent", "max_stream_data_remote", "stream_id",
    } <= vars(stream).keys()  # fmt: skip
    assert server._state is QuicConnectionState.CONNECTED


# --- connection IDs and reset tokens ---


def test_stock_ids_are_random_and_ours_steer_through_rotation(pki: Pki) -> None:
    assert len({issued.cid[:2] for issued in stock_pair(pki).server._host_cids}) > 1
    wire = our_pair(pki, slot=7)
    seen = set()
    for _ in range(20):
        seen |= {issued.cid for issued in wire.server._host_cids}
        wire.client.change_connection_id()
        wire.client.send_ping(0)
        wire.run(5)
    assert len(seen) > 20
    assert {steering.issued_slot(issued) for issued in seen} == {7}
    assert wire.client._close_event is None


def test_stock_reset_tokens_are_random_and_ours_follow_from_the_key(pki: Pki) -> None:
    stock = stock_pair(pki).server._host_cids
    assert all(issued.stateless_reset_token != reset_token(KEY, issued.cid) for issued in stock)
    wire = our_pair(pki)
    assert all(issued.stateless_reset_token == reset_token(KEY, issued.cid) for issued in wire.server._host_cids)
    known = [wire.client._peer_cid, *wire.client._peer_cid_available]
    assert len(known) > 1
    assert all(wire.client.knows_reset_token(reset_token(KEY, issued.cid)) for issued in known)
    assert not wire.client.knows_reset_token(os.urandom(16))


def test_stock_ignores_a_stateless_reset(pki: Pki) -> None:
    wire = stock_pair(pki)
    token = wire.client._peer_cid.stateless_reset_token
    assert token is not None
    wire.client.receive_datagram(b"\x40" + os.urandom(25) + token, SERVER, wire.now)
    assert wire.client._state is QuicConnectionState.CONNECTED


def test_our_first_destination_id_is_the_lane(pki: Pki) -> None:
    wire = our_pair(pki)
    assert wire.server.original_destination_connection_id[:2] == (steering.INITIAL_FORM | 3).to_bytes(2, "big")
    assert wire.client._close_event is None  # the server's transport parameters name the same ID


# --- flow control ---


def test_stock_windows_grow_by_themselves_and_ours_follow_consumption(pki: Pki) -> None:
    stock = stock_pair(pki)
    stock.client.send_stream_data(0, bytes(4 * WINDOW))
    stock.run(100)
    assert stock.server._streams[0].max_stream_data_local > WINDOW

    ours = our_pair(pki)
    ours.client.send_stream_data(0, bytes(4 * WINDOW))
    ours.run(100)
    assert ours.received_bytes(ours.server, 0) == WINDOW
    assert ours.server._local_max_data.value == overrides.CONTROL_WINDOW_BYTES
    ours.server.raise_limits(8, WINDOW)
    assert ours.server.consume(0, WINDOW)
    ours.run(100)
    assert ours.received_bytes(ours.server, 0) == 2 * WINDOW


def test_stock_allows_128_streams_and_ours_as_many_as_were_granted(pki: Pki) -> None:
    assert stock_pair(pki).server._remote_max_streams_bidi == 128
    wire = our_pair(pki)
    assert wire.server._remote_max_streams_bidi == 64
    assert wire.client._remote_max_streams_bidi == 1
    wire.server.raise_limits(2000, WINDOW)
    wire.server.send_ping(0)
    wire.run(5)
    assert wire.client._remote_max_streams_bidi == 2000


def test_a_window_that_was_raised_is_announced_for_each_new_stream(pki: Pki) -> None:
    wire = our_pair(pki)
    wire.server.raise_limits(8, 1 << 20)
    wire.server.send_stream_data(1, b"x")
    wire.run(5)
    assert wire.client._streams[1].max_stream_data_remote == 1 << 20


# --- CRYPTO ---


def test_stock_lets_512_kib_of_crypto_wait_and_we_do_not() -> None:
    stock = "from aioquic.quic import connection; print(connection.MAX_PENDING_CRYPTO)"
    assert subprocess.check_output([sys.executable, "-c", stock]) == b"524288\n"
    assert aioquic_connection.MAX_PENDING_CRYPTO == overrides.MAX_PENDING_CRYPTO_BYTES == 16_384
    source = inspect.getsource(QuicConnection._handle_crypto_frame)
    assert "pending > MAX_PENDING_CRYPTO" in source  # the module's name is looked up at each call


def test_stock_buffers_are_larger_than_ours(pki: Pki) -> None:
    stock, ours = stock_pair(pki).server._crypto_buffers, our_pair(pki).server._crypto_buffers
    assert stock.keys() == ours.keys() == overrides.CRYPTO_BUFFER_BYTES.keys()
    assert {buffer.capacity for buffer in stock.values()} == {16_384}
    assert {epoch: buffer.capacity for epoch, buffer in ours.items()} == overrides.CRYPTO_BUFFER_BYTES


def test_frame_handlers_share_their_sets_of_epochs() -> None:
    assert aioquic_connection.EPOCHS("IH01") is aioquic_connection.EPOCHS("IH01")
    assert aioquic_connection.EPOCHS("1") == frozenset([tls.Epoch.ONE_RTT])


def test_stock_waits_for_a_message_of_any_length_and_ours_does_not(pki: Pki) -> None:
    endless = b"\x01\xff\xff\xff" + bytes(MAX_MESSAGE_BYTES)
    stock = QuicConnection(configuration=configurations(pki)[1], original_destination_connection_id=b"12345678")
    stock._version = 1
    stock._initialize(b"12345678")
    stock.tls.handle_message(endless, stock._crypto_buffers)
    assert len(stock.tls._receive_buffer) == len(endless)
    ours = TunnelConnection(
        configuration=configurations(pki)[1],
        verifier=lambda _: None,
        original_destination_connection_id=b"12345678",
    )
    ours._version = 1
    ours._initialize(b"12345678")
    with pytest.raises(tls.AlertDecodeError):
        ours.tls.handle_message(endless, ours._crypto_buffers)


# --- streams ---


def test_stock_has_plain_streams_and_ours_report(pki: Pki) -> None:
    stock = stock_pair(pki)
    stock.server.send_stream_data(1, b"x")
    assert type(stock.server._streams) is dict
    assert type(stock.server._streams[1].sender) is QuicStreamSender
    wire = our_pair(pki)
    wire.server.send_stream_data(1, b"x")
    wire.run(3)
    for end in (wire.server, wire.client):
        assert type(end._streams) is StreamTable
        assert type(end._streams[1].sender) is ReportingSender
        assert type(end._streams[1].receiver) is ReportingReceiver


def test_stock_looks_at_every_stream_and_ours_at_those_that_speak(pki: Pki) -> None:
    stock = stock_pair(pki)
    for number in range(50):
        stock.server.send_stream_data(1 + 4 * number, b"x")
    stock.run(5)
    assert len(stock.server._streams_queue) == 50
    wire = our_pair(pki)
    for number in range(50):
        wire.server.send_stream_data(1 + 4 * number, b"x")
    wire.run(20)
    assert wire.server._streams.begin_writing() == []
    wire.server._streams.end_writing()
    wire.server.send_stream_data(5, b"y")
    assert [stream.stream_id for stream in wire.server._streams.begin_writing()] == [5]
    wire.server._streams.end_writing()


def test_idle_streams_cost_a_packet_nothing(pki: Pki) -> None:
    """Stock aioquic needs 20 times as long for the same bytes beside 2,000 idle streams."""

    def seconds(idle: int) -> float:
        wire = our_pair(pki)
        wire.client.raise_limits(5000, 2 << 20)
        wire.server.raise_limits(5000, 2 << 20)
        wire.client.send_ping(0)
        wire.run(5)
        for number in range(idle):
            wire.server.send_stream_data(1 + 4 * number, b"x")
        wire.run(50)
        busy = wire.server.get_next_available_stream_id()
        wire.server.send_stream_data(busy, bytes(500_000))
        started = time.process_time()
        wire.run(200)
        spent = time.process_time() - started
        assert wire.received_bytes(wire.client, busy) == 500_000
        return spent

    alone = min(seconds(0) for _ in range(2))
    assert min(seconds(2000) for _ in range(2)) < 5 * alone


def test_stock_keeps_the_buffer_of_a_reset_stream_and_ours_gives_it_back(pki: Pki) -> None:
    for pair, kept in ((stock_pair(pki), True), (our_pair(pki), False)):
        pair.server.send_stream_data(1, bytes(1 << 20))
        pair.run(3)
        sender = pair.server._streams[1].sender
        pair.server.reset_stream(1, 0x11)
        assert bool(len(sender._buffer)) is kept
        pair.run(20)
        assert any(isinstance(event, events.StreamReset) for event in pair.heard[pair.client])


def test_a_lost_window_update_is_sent_again(pki: Pki) -> None:
    wire = our_pair(pki)
    wire.server.raise_limits(8, WINDOW)
    wire.client.send_stream_data(0, bytes(4 * WINDOW))
    wire.run(100)
    assert wire.server.consume(0, WINDOW)
    wire.server.datagrams_to_send(wire.now)  # and lost
    wire.server._on_max_stream_data_delivery(QuicDeliveryState.LOST, wire.server._streams[0])
    wire.run(100)
    assert wire.received_bytes(wire.server, 0) == 2 * WINDOW


def test_finished_streams_are_discarded(pki: Pki) -> None:
    wire = our_pair(pki)
    wire.server.send_stream_data(1, b"question", True)
    wire.run(5)
    wire.client.send_stream_data(1, b"answer", True)
    wire.run(20)
    assert not wire.server._streams
    assert not wire.client._streams


def test_stopping_what_has_ended_sends_nothing(pki: Pki) -> None:
    wire = our_pair(pki)
    wire.server.send_stream_data(1, b"x", True)
    wire.run(5)
    receiver = wire.client._streams[1].receiver
    assert receiver.is_finished
    receiver.stop(1)
    assert not receiver.stop_pending
    stock = QuicStreamReceiver(stream_id=1, readable=True)
    stock.is_finished = True
    stock.stop(1)
    assert stock.stop_pending


# --- recovery and facts ---


def test_losses_are_counted_where_recovery_declares_them(pki: Pki) -> None:
    parameters = inspect.signature(QuicPacketRecovery._on_packets_lost).parameters
    assert {"packets", "congestion_event"} <= parameters.keys()
    source = inspect.getsource(QuicPacketRecovery)
    assert source.count("self._on_packets_lost(") == 3
    wire = our_pair(pki)
    wire.client.send_stream_data(0, bytes(30_000))
    wire.client.datagrams_to_send(wire.now)  # all of it lost
    wire.run(100)
    assert wire.client.lost_packets > 0


def test_the_time_of_the_newest_authenticated_packet(pki: Pki) -> None:
    wire = our_pair(pki)
    heard_at = wire.server.last_received_at
    wire.now += 1
    wire.server.receive_datagram(b"\x41" + wire.server.host_cid + bytes(60), CLIENT, wire.now)
    assert wire.server.last_received_at == heard_at
    wire.client.send_ping(0)
    wire.run(1)
    assert wire.server.last_received_at > heard_at


# --- TLS ---


def test_stock_takes_any_client_and_ours_asks_the_verifier(pki: Pki) -> None:
    stock = stock_pair(pki, client_material=False)
    assert any(isinstance(event, events.HandshakeCompleted) for event in stock.heard[stock.server])

    chains = []
    wire = our_pair(pki, verifier=chains.append)
    assert [len(chain) for chain in chains] == [1]
    assert type(wire.server.tls) is VerifyingContext
    assert type(wire.client.tls) is VerifyingContext

    def reject(_: object) -> None:
        raise CertificateRejected(45, "it expired")

    refused = our_pair(pki, verifier=reject)
    assert not any(isinstance(event, events.HandshakeCompleted) for event in refused.heard[refused.server])
    close = refused.client._close_event
    assert close is not None
    assert (close.error_code, close.reason_phrase) == (0x100 + 45, "it expired")


def test_a_stock_client_is_told_of_completion_before_the_server_saw_it(pki: Pki) -> None:
    def reject(_: object) -> None:
        raise CertificateRejected(45, "it expired")

    wire = our_pair(pki, verifier=reject)
    completed = [isinstance(event, events.HandshakeCompleted) for event in wire.heard[wire.client]]
    assert any(completed)  # why ``connected`` waits for the confirmation
    assert not wire.client.handshake_confirmed


def test_the_server_asks_for_a_certificate_by_a_flag_of_the_context(pki: Pki) -> None:
    assert stock_pair(pki).server.tls._request_client_certificate is False
    assert our_pair(pki).server.tls._request_client_certificate is True
    assert {"_peer_certificate", "_peer_certificate_chain"} <= vars(our_pair(pki).server.tls).keys()


def test_a_new_path_is_probed_with_what_aioquic_has() -> None:
    """Canary for ``_follow_path``: the active path is the first, and a rescheduling asks for a probe."""
    assert "self._network_paths.insert(0" in inspect.getsource(QuicConnection.receive_datagram)
    assert "self._send_probe()" in inspect.getsource(QuicPacketRecovery.reschedule_data)
    assert list(inspect.signature(QuicPacketRecovery.reschedule_data).parameters)[:2] == ["self", "now"]


# --- resumption ---


def test_stock_waits_for_the_certificate_of_a_client_that_resumes_and_ours_does_not(
    pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    tickets: list[tls.SessionTicket] = []
    resumed = resuming_pair(pki, tickets)
    assert resumed.server.tls.session_resumed
    assert resumed.server.tls.early_data_accepted
    assert resumed.server.handshake_confirmed

    monkeypatch.setattr(VerifyingContext, "_set_state", tls.Context._set_state)
    close = resuming_pair(pki, tickets).client._close_event
    assert close is not None
    assert close.error_code == 0x100 + 10  # unexpected_message


def resuming_pair(pki: Pki, tickets: list[tls.SessionTicket]) -> Wire:
    """A pair that resumes the session of another, with early data."""
    kept: list[tls.SessionTicket] = []
    our_pair(pki, client={"session_ticket_handler": tickets.append}, session_ticket_handler=kept.append)

    def early(client: QuicConnection) -> None:
        client.send_stream_data(0, b"early")

    return our_pair(
        pki,
        ticket=tickets[-1],
        early=early,
        session_ticket_fetcher=lambda _: kept[-1],
        session_ticket_handler=kept.append,
    )


@pytest.mark.parametrize("kind", [QuicConnection, TunnelConnection])
def test_stock_forgets_early_data_after_a_retry_and_ours_sends_it_again(pki: Pki, kind: type[QuicConnection]) -> None:
    tickets: list[tls.SessionTicket] = []
    resuming_pair(pki, tickets)
    configuration, _ = configurations(pki)
    configuration.session_ticket = tickets[-1]
    ours = {"verifier": lambda _: None} if kind is TunnelConnection else {}
    client = kind(configuration=configuration, **ours)
    client.connect(SERVER, 0.0)
    client.send_stream_data(0, b"early")
    assert QuicPacketType.ZERO_RTT in sent_types(client, 0.0)
    retry = encode_quic_retry(
        version=1,
        source_cid=b"another ID",
        destination_cid=client.host_cid,
        original_destination_cid=client._peer_cid.cid,
        retry_token=b"token",
    )
    client.receive_datagram(retry, SERVER, 0.1)
    again = sent_types(client, 0.1)
    assert QuicPacketType.INITIAL in again
    assert (QuicPacketType.ZERO_RTT in again) is (kind is TunnelConnection)


def sent_types(connection: QuicConnection, now: float) -> list[QuicPacketType]:
    return [kind for data, _ in connection.datagrams_to_send(now) for kind in packets.packet_types(data)]
