"""Clients that do not behave, made of the reference engine alone."""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

from qmux.pki.bundle import split_bundle
from qmux.pki.material import Material
from qmux.protocol.codec import FrameDecoder, encode, encode_stream_type
from qmux.protocol.frames import (
    Frame,
    Heartbeat,
    HeartbeatAck,
    Offered,
    Register,
    RegisterAck,
    RegisterReject,
    StreamType,
)
from qmux.quic.choose import load_engine
from qmux.quic.engine import CloseReason, ConnectConfig, Connection, Stream
from qmux.relay.frames import read_frame
from tests.netsim.proxy import Proxy


class Stranger:
    """A ConnectionHandler that only notes what happens."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.is_connected: asyncio.Future[None] = loop.create_future()
        self.is_closed: asyncio.Future[CloseReason] = loop.create_future()

    def connected(self) -> None:
        self.is_connected.set_result(None)

    def stream_opened(self, stream: Stream) -> None:
        pass

    def datagram_received(self, data: bytes) -> None:
        pass

    def closed(self, reason: CloseReason) -> None:
        self.is_closed.set_result(reason)


def connect_config(bundle: Path, lane: int | None = None) -> ConnectConfig:
    parts = split_bundle(bundle.read_bytes(), str(bundle))
    return ConnectConfig(
        material=Material(parts.chain, parts.key, parts.ca),
        server_name="127.0.0.1",
        lane=lane,
        idle_timeout_s=60.0,
        keep_alive_s=10.0,
        handshake_timeout_s=30.0,
        max_streams=64,
        stream_window_bytes=1 << 20,
    )


async def silent_client(port: int, bundle: Path) -> tuple[float, str]:
    """Complete a handshake and say nothing: how long the server bears it, and what it says."""
    stranger = Stranger()
    started = time.monotonic()
    load_engine("aioquic").connect(("127.0.0.1", port), connect_config(bundle), stranger)
    await asyncio.wait_for(stranger.is_connected, 30)
    reason = await asyncio.wait_for(stranger.is_closed, 30)
    await asyncio.sleep(0)
    return time.monotonic() - started, str(reason)


async def hang_up(connection: Connection, stranger: Stranger) -> None:
    """Close, and let the engine close its socket, which it does in the turn after."""
    connection.close(0, "done")
    await stranger.is_closed
    await asyncio.sleep(0)


async def register(port: int, bundle: Path, *services: str) -> Frame:
    """Offer ``services`` whatever the certificate names: the server's answer."""
    stranger = Stranger()
    connection = load_engine("aioquic").connect(("127.0.0.1", port), connect_config(bundle), stranger)
    await asyncio.wait_for(stranger.is_connected, 30)
    stream = connection.open_stream()
    offered = tuple(Offered(name) for name in services)
    frame = Register(os.urandom(16), "stranger", offered, "1.0")
    await stream.write(encode_stream_type(StreamType.CONTROL) + encode(frame))
    answer = await asyncio.wait_for(read_frame(stream, FrameDecoder({RegisterAck, RegisterReject})), 30)
    await hang_up(connection, stranger)
    return answer


async def heartbeat_flood(port: int, bundle: Path, service: str, count: int, answers: int) -> float:
    """Register, send ``count`` Heartbeats at once: how long it takes until so many of them are answered."""
    stranger = Stranger()
    connection = load_engine("aioquic").connect(("127.0.0.1", port), connect_config(bundle), stranger)
    await asyncio.wait_for(stranger.is_connected, 30)
    stream = connection.open_stream()
    frame = Register(os.urandom(16), "stranger", (Offered(service),), "1.0")
    await stream.write(encode_stream_type(StreamType.CONTROL) + encode(frame))
    assert isinstance(await read_frame(stream, FrameDecoder({RegisterAck})), RegisterAck)
    started = time.monotonic()
    flood = asyncio.ensure_future(stream.write(b"".join(encode(Heartbeat(n, 0)) for n in range(count))))
    decoder = FrameDecoder({HeartbeatAck})
    async with asyncio.timeout(60):
        for _ in range(answers):
            await read_frame(stream, decoder)
    took_s = time.monotonic() - started
    flood.cancel()
    await asyncio.gather(flood, return_exceptions=True)
    await hang_up(connection, stranger)
    return took_s


AT_A_TIME = 50


async def come_and_go(port: int, bundle: Path, service: str, count: int) -> None:
    """``count`` connections on the native engine, some at a time. Each gets as far as chance will have it; then half of
    them say goodbye, and the others are heard of no more.
    """
    rng = random.Random(count)
    config = connect_config(bundle)
    engine = load_engine("native")

    async def one(address: tuple[str, int]) -> Connection:
        stranger = Stranger()
        connection = engine.connect(address, config, stranger)
        await asyncio.sleep(rng.choice((0.0, 0.002, 0.02)))  # at any point of the handshake
        if far := rng.randrange(3):
            await asyncio.wait_for(stranger.is_connected, 30)
        if far == 2:
            stream = connection.open_stream()
            frame = Register(os.urandom(16), "stranger", (Offered(service),), "1.0")
            await stream.write(encode_stream_type(StreamType.CONTROL) + encode(frame))
            await asyncio.wait_for(read_frame(stream, FrameDecoder({RegisterAck})), 30)
        return connection

    for _ in range(count // AT_A_TIME):
        async with Proxy(("127.0.0.1", port)) as proxy:
            addresses = [("127.0.0.1", port), proxy.address] * (AT_A_TIME // 2)
            connections = await asyncio.gather(*(one(address) for address in addresses))
            proxy.blackhole(True)
            for connection in connections:
                connection.close(0, "done")
            await asyncio.sleep(0)  # the engine closes its sockets in the turn after
