"""What one peer can make a server hold. The server runs in a process of its own; its RSS may grow by 8 MiB at most."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from aioquic.tls import Epoch

from qmux import steering
from qmux.quic.aioquic_engine.credentials import Credentials
from qmux.quic.aioquic_engine.overrides import UNLIMITED_BYTES, TunnelConnection
from qmux.quic.engine import Engine
from tests.quic import packets
from tests.quic.certificates import Pki

pytestmark = pytest.mark.serial

ALLOWED_BYTES = 8 << 20


class Victim:
    """The server process."""

    def __init__(self, process: subprocess.Popen[str], engine: str) -> None:
        self.engine = engine
        assert process.stdin is not None
        assert process.stdout is not None
        self._in, self._out = process.stdin, process.stdout
        self.address = ("127.0.0.1", int(self._out.readline()))

    def facts(self) -> dict[str, int]:
        self._in.write("\n")
        self._in.flush()
        facts: dict[str, int] = json.loads(self._out.readline())
        return facts


@pytest.fixture
def victim(engine: Engine, pki: Pki) -> Iterator[Callable[..., Victim]]:
    with subprocesses() as start:

        def make(max_streams: int = 0) -> Victim:
            arguments = ["tests.quic.victim", engine.name, str(pki.directory), str(max_streams)]
            victim = Victim(start([sys.executable, "-m", *arguments]), engine.name)
            for _ in range(20):  # what any server holds after its first clients
                Attacker(pki, victim.address).close()
            return victim

        yield make


@contextmanager
def subprocesses() -> Iterator[Callable[[list[str]], subprocess.Popen[str]]]:
    running: list[subprocess.Popen[str]] = []

    def start(command: list[str]) -> subprocess.Popen[str]:
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        return running[-1]

    try:
        yield start
    finally:
        for process in running:
            process.communicate()  # EOF on stdin: it ends
            assert process.returncode == 0


class Attacker:
    """A client with a good certificate and bad manners: a handshake by the book, then packets of its own making."""

    def __init__(self, pki: Pki, server: tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(server)
        self._server = server
        configuration = Credentials(pki.client).configuration(
            is_client=True, idle_timeout_s=60, window_bytes=1 << 20, datagrams=True
        )
        self.quic = TunnelConnection(
            configuration=configuration,
            verifier=lambda _: None,
            initial_destination_id=steering.initial_id(0),
            max_streams=64,
            connection_window_bytes=UNLIMITED_BYTES,
        )
        self.quic.connect(server, time.monotonic())
        deadline = time.monotonic() + 30
        while not self.quic.handshake_confirmed:
            self.exchange()
            if time.monotonic() > deadline:
                self.leave()
                raise AssertionError(f"no handshake: {self.quic.termination or self.quic._cryptos.keys()}")

    def exchange(self, wait_s: float = 0.02) -> None:
        """Be a good peer for a moment: answer what comes."""
        for data, _ in self.quic.datagrams_to_send(time.monotonic()):
            self._socket.send(data)
        self._socket.settimeout(wait_s)
        try:
            while True:
                self.quic.receive_datagram(self._socket.recv(65_535), self._server, time.monotonic())
                self._socket.settimeout(0.001)
        except TimeoutError:
            pass
        if (due := self.quic.get_timer()) is not None and due <= time.monotonic():
            self.quic.handle_timer(time.monotonic())

    def send_frames(self, frames: bytes) -> None:
        """One 1-RTT packet with these frames."""
        number = self.quic._packet_number
        self.quic._packet_number += 1  # acknowledging what was never sent would end the connection
        header = b"\x41" + self.quic.peer_connection_id + (number & 0xFFFF).to_bytes(2, "big")
        payload = frames + bytes(max(0, 20 - len(frames)))
        crypto = self.quic._cryptos[Epoch.ONE_RTT]
        self._socket.send(crypto.encrypt_packet(header, payload, number))

    def window_of(self, stream_id: int) -> int:
        """How far the server lets this stream go, as far as it told us."""
        stream = self.quic._streams.get(stream_id)
        window = self.quic._remote_max_stream_data_bidi_remote if stream is None else stream.max_stream_data_remote
        return min(window, self.quic._remote_max_data)

    def close(self) -> None:
        self.quic.close()
        self.exchange(0.001)
        self._socket.close()

    def leave(self) -> None:
        self._socket.close()


@pytest.mark.parametrize("max_streams", [0, 1], ids=["unregistered", "registered"])
def test_bytes_at_the_far_edge_of_the_window(victim: Callable[..., Victim], pki: Pki, max_streams: int) -> None:
    """Stock aioquic doubles its window for each such packet: 11 of them cost 1 GiB."""
    server = victim(max_streams)
    before = server.facts()["rss_bytes"]
    attacker = Attacker(pki, server.address)
    attacker.quic.send_stream_data(0, b"x")
    for _ in range(40):
        attacker.exchange(0.01)
        attacker.send_frames(packets.stream_frame(0, attacker.window_of(0) - 1, b"x"))
        assert attacker.quic.termination is None  # it broke no rule, and is still there
    grown = server.facts()["rss_bytes"] - before
    attacker.leave()
    assert grown < ALLOWED_BYTES, f"{grown >> 10} KiB"


@pytest.mark.parametrize("crypto_offset", [0, 16_000, 520_000])
def test_ten_thousand_spoofed_initials(victim: Callable[..., Victim], crypto_offset: int) -> None:
    server = victim()
    before = server.facts()
    sent, most = 10_000, 0
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(server.address)
        for number in range(sent):
            sock.send(packets.initial(crypto_offset=crypto_offset))
            if number % 100 == 99:  # it keeps up: a socket's buffer does not hold many more
                most = max(most, server.facts()["rss_bytes"])
    after = server.facts()
    assert after["datagrams_received"] - before["datagrams_received"] > sent * 0.9
    assert after["half_open"] <= 100
    grown = max(most, after["rss_bytes"]) - before["rss_bytes"]
    assert grown < ALLOWED_BYTES, f"{grown >> 10} KiB"


def test_a_handshake_message_that_never_ends(victim: Callable[..., Victim]) -> None:
    """A ClientHello that announces 16 MiB and comes in order, from an address that proved nothing."""
    server = victim()
    before = server.facts()["rss_bytes"]
    destination = steering.initial_id()
    message = b"\x01\xff\xff\xff" + bytes(996)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(server.address)
        for number in range(3000):
            sock.send(packets.initial(destination, crypto_offset=1000 * number, data=message, packet_number=number))
            if number % 100 == 99:
                server.facts()  # it keeps up
    # A refused handshake leaves no state on the native engine, so a later piece may begin another one.
    assert server.facts()["half_open"] <= (0 if server.engine == "aioquic" else 1)
    grown = server.facts()["rss_bytes"] - before
    assert grown < 2 << 20, f"{grown >> 10} KiB"  # 3 MB were sent


@pytest.mark.parametrize("max_streams", [0, 1], ids=["unregistered", "registered"])
def test_a_peer_that_opens_streams_and_never_reads(victim: Callable[..., Victim], pki: Pki, max_streams: int) -> None:
    """It opens as many streams as it is given, asks for an answer on each, and neither reads nor acknowledges it."""
    server = victim(max_streams)
    before = server.facts()["rss_bytes"]
    attackers = [Attacker(pki, server.address) for _ in range(4)]
    for stream_id in range(0, 400, 4):
        for attacker in attackers:
            attacker.exchange(0.001)
            if stream_id // 4 < attacker.quic.peer_max_streams:
                attacker.send_frames(packets.stream_frame(stream_id, 0, os.urandom(1000)) + reset_stream(stream_id))
    grown = server.facts()["rss_bytes"] - before
    for attacker in attackers:
        attacker.leave()
    assert grown < ALLOWED_BYTES, f"{grown >> 10} KiB"


def reset_stream(stream_id: int) -> bytes:
    """RESET_STREAM with the final size of a thousand bytes (RFC 9000 §19.4)."""
    return b"\x04" + (0x4000 | stream_id).to_bytes(2, "big") + b"\x00" + (0x4000 | 1000).to_bytes(2, "big")
