"""Hostile bytes: whatever comes, only the connection that it came on may close, and nothing escapes."""

from __future__ import annotations

import os
import random

from aioquic._buffer import Buffer
from aioquic.tls import Epoch

from tests.aio import until
from tests.quic import packets
from tests.quic.certificates import Pki
from tests.quic.harness import World, udp_socket
from tests.quic.test_overrides import CLIENT, Wire, our_pair

EDGES = [0, 1, 63, 64, 16_383, 16_384, 1 << 20, (1 << 30) - 1, 1 << 30, 1 << 60, (1 << 62) - 1]
FRAME_TYPES = [*range(0x1F), 0x30, 0x31]
PACKETS = 250
"""Most end their connection, and a handshake follows: raise it for a longer search."""


def varint(draw: random.Random) -> bytes:
    buffer = Buffer(capacity=8)
    buffer.push_uint_var(draw.choice([*EDGES, draw.randrange(200), draw.randrange(200)]))
    return buffer.data


def frames(draw: random.Random) -> bytes:
    made = b""
    for _ in range(draw.randrange(1, 4)):
        made += bytes([draw.choice(FRAME_TYPES)]) + b"".join(varint(draw) for _ in range(draw.randrange(6)))
        made += draw.randbytes(draw.randrange(40))
    return made[:1100].ljust(20, b"\0")


def test_frames_of_a_peer_with_good_keys(pki: Pki) -> None:
    draw = random.Random(7)
    connections = 0
    wire: Wire | None = None
    packet_number = 0
    for _ in range(PACKETS):
        if wire is None or wire.server.termination is not None:
            wire, packet_number = our_pair(pki), 1000
            wire.server.raise_limits(100, 1 << 20)
            wire.server.send_stream_data(1, b"x" * 5000)
            wire.run(2)
            connections += 1
        packet_number += draw.randrange(1, 3)
        header = b"\x41" + wire.client.peer_connection_id + (packet_number & 0xFFFF).to_bytes(2, "big")
        crypto = wire.client._cryptos[Epoch.ONE_RTT]
        wire.server.receive_datagram(crypto.encrypt_packet(header, frames(draw), packet_number), CLIENT, wire.now)
        wire.server.datagrams_to_send(wire.now)
        if draw.random() < 0.05:
            wire.now += 0.5
            if (due := wire.server.get_timer()) is not None and due <= wire.now:
                wire.server.handle_timer(wire.now)
        while wire.server.next_event() is not None:
            pass
    assert 10 < connections < PACKETS


async def test_datagrams_of_strangers(world: World) -> None:
    draw = random.Random(11)
    server = world.serve(retry_threshold=20, handshake_timeout_s=3.0)
    pair = await world.pair(server)
    with udp_socket() as sock:
        for number in range(2000):
            sock.sendto(mutated(draw), server.address)
            if number % 50 == 49:
                wanted = server.endpoint.stats().datagrams_received
                pair.client.connection.ping()
                await until(lambda seen=wanted: server.endpoint.stats().datagrams_received > seen)
    assert not pair.client.connection.is_closed
    ours, theirs = await pair.stream()
    await ours.write(b"fine")
    assert await theirs.read(10) == b"fine"
    await until(lambda: server.endpoint.stats().half_open == 0)


def mutated(draw: random.Random) -> bytes:
    kind = draw.random()
    if kind < 0.2:
        return os.urandom(draw.randrange(1400))
    data = bytearray(packets.initial(data=draw.randbytes(300)))
    if kind < 0.7:  # the header only: what is encrypted would be thrown away at once
        for _ in range(draw.randrange(1, 5)):
            data[draw.randrange(60)] = draw.randrange(256)
    return bytes(data[: draw.choice([len(data), draw.randrange(1, len(data))])])
