"""Endpoints, connections and handlers for the suites over the engine seam; every socket is a real one on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from qmux.pki.material import Keys
from qmux.quic.engine import (
    CloseReason,
    ConnectConfig,
    Connection,
    ConnectionHandler,
    Endpoint,
    EndpointConfig,
    Engine,
    Relay,
    RelayLimits,
    Stream,
)
from tests.aio import until
from tests.quic.certificates import Pki

WINDOW_BYTES = 1 << 20
MAX_STREAMS = 64


class Recorder(ConnectionHandler):
    """Remembers what a connection told it. ``registered``: raise the limits at ``connected``, as a worker does."""

    def __init__(self, registered: bool = True) -> None:
        self.connection: Connection | None = None
        self.registered = registered
        self.told: list[str] = []
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.datagrams: list[bytes] = []
        self.reason: CloseReason | None = None

    def connected(self) -> None:
        self.told.append("connected")
        if self.registered and self.connection is not None:
            self.connection.raise_limits(MAX_STREAMS, WINDOW_BYTES)

    def stream_opened(self, stream: Stream) -> None:
        self.told.append("stream")
        self.streams.put_nowait(stream)

    def datagram_received(self, data: bytes) -> None:
        self.told.append("datagram")
        self.datagrams.append(data)

    def closed(self, reason: CloseReason) -> None:
        self.told.append("closed")
        self.reason = reason

    async def is_connected(self, timeout_s: float = 15.0) -> None:
        await until(lambda: "connected" in self.told or self.reason, timeout_s, what="connected")
        assert self.reason is None, self.reason

    async def is_closed(self, timeout_s: float = 15.0) -> CloseReason:
        await until(lambda: self.reason is not None, timeout_s, what="closed")
        assert self.reason is not None
        return self.reason


@dataclass
class Side:
    """One end of a connection and what it heard."""

    connection: Connection
    heard: Recorder


@dataclass
class Server:
    """An endpoint on a socket of its own."""

    endpoint: Endpoint
    config: EndpointConfig
    address: tuple[str, int]
    sides: list[Side] = field(default_factory=list)

    def reconfigure(self, **changed: Any) -> None:
        self.config = replace(self.config, **changed)
        self.endpoint.reconfigure(self.config)

    async def side(self, number: int = 0) -> Side:
        await until(lambda: len(self.sides) > number, what="a connection at the server")
        return self.sides[number]


@dataclass
class Pair:
    """Both ends of one connection, connected and registered."""

    client: Side
    server: Side

    async def stream(self) -> tuple[Stream, Stream]:
        """A stream that the server opened: (the server's end, the client's end); one byte was spent on it."""
        ours = self.server.connection.open_stream()
        await ours.write(b"!")
        theirs = await asyncio.wait_for(self.client.heard.streams.get(), 15)
        assert await theirs.read(1) == b"!"
        return ours, theirs


class Mixed(Engine):
    """Servers on one engine and clients on another; ``name`` is the clients'."""

    def __init__(self, server: Engine, client: Engine) -> None:
        self.name = client.name
        self.serve = server.serve  # type: ignore[method-assign]
        self.connect = client.connect  # type: ignore[method-assign]


class World:
    """Makes endpoints and connections with ``engine`` and closes them all in the end."""

    def __init__(self, engine: Engine, pki: Pki) -> None:
        self.engine = engine
        self.pki = pki
        self.keys = Keys(os.urandom(32), os.urandom(32), os.urandom(32))
        self._servers: list[Server] = []
        self._sides: list[Side] = []
        self._sockets: list[socket.socket] = []

    def serve(
        self,
        *,
        slot: int = 0,
        host: str = "127.0.0.1",
        port: int = 0,
        sock: socket.socket | None = None,
        registered: bool = True,
        **changed: Any,
    ) -> Server:
        defaults: dict[str, Any] = dict(
            slot=slot,
            material=self.pki.server,
            keys=self.keys,
            idle_timeout_s=30.0,
            keep_alive_s=10.0,
            handshake_timeout_s=30.0,
            retry_threshold=100,
            max_connections=1000,
            datagrams=True,
        )

        def accept(connection: Connection) -> Recorder:
            heard = Recorder(registered)
            heard.connection = connection
            server.sides.append(Side(connection, heard))
            return heard

        config = EndpointConfig(**{**defaults, **changed})
        endpoint = self.engine.serve(config, accept)
        sock = sock or udp_socket(host, port)
        server = Server(endpoint, config, sock.getsockname()[:2])
        endpoint.add_socket(sock)
        self._servers.append(server)
        return server

    def connect(self, address: tuple[str, int], *, registered: bool = False, **changed: Any) -> Side:
        defaults: dict[str, Any] = dict(
            material=self.pki.client,
            server_name="localhost",
            lane=None,
            idle_timeout_s=600.0,
            keep_alive_s=10.0,
            handshake_timeout_s=30.0,
            max_streams=MAX_STREAMS,
            stream_window_bytes=WINDOW_BYTES,
            datagrams=True,
        )
        heard = Recorder(registered)
        side = Side(self.engine.connect(address, ConnectConfig(**{**defaults, **changed}), heard), heard)
        heard.connection = side.connection
        self._sides.append(side)
        return side

    async def pair(self, server: Server | None = None, via: tuple[str, int] | None = None, **changed: Any) -> Pair:
        server = server or self.serve()
        number = len(server.sides)
        client = self.connect(via or server.address, **changed)
        await client.heard.is_connected()
        side = await server.side(number)
        await side.heard.is_connected()
        return Pair(client, side)

    async def tcp_pair(self) -> tuple[socket.socket, socket.socket]:
        """(a socket to hand to ``relay``, the user's end of it): non-blocking TCP over loopback."""
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            user = socket.socket()
            user.setblocking(False)
            self._sockets.append(user)
            await loop.sock_connect(user, listener.getsockname())
            inner, _ = await loop.sock_accept(listener)
            return inner, user

    async def relayed(self, pair: Pair, limits: RelayLimits | None = None) -> Relayed:
        """A relay at both ends of a new stream: user ↔ server relay ↔ client relay ↔ service."""
        ours, theirs = await pair.stream()
        (inner_a, user), (inner_b, service) = await self.tcp_pair(), await self.tcp_pair()
        limits = limits or RelayLimits()
        return Relayed(ours.relay(inner_a, limits), theirs.relay(inner_b, limits), user, service)

    async def close(self) -> None:
        for side in self._sides:
            side.connection.close(0, "test over")
        for server in self._servers:
            server.endpoint.close(0, "test over")
        for sock in self._sockets:
            sock.close()
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # sockets of connections are closed one turn later


@dataclass
class Relayed:
    """Two relays back to back and the TCP sockets at either end."""

    server: Relay
    client: Relay
    user: socket.socket
    service: socket.socket


def udp_socket(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    if port == 0:  # without the option: the kernel could choose a port that another socket with the option has
        sock.bind((host, port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    else:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
    sock.setblocking(False)
    return sock


async def ping(connection: Connection) -> None:
    """Send a PING and wait for its acknowledgement."""
    heard_at = connection.last_received_at
    connection.ping()
    await until(lambda: connection.last_received_at > heard_at, what="an answer to a PING")
    await until(lambda: not connection.ack_eliciting_outstanding, what="the acknowledgement of a PING")


async def read_exactly(stream: Stream, size_bytes: int) -> bytes:
    parts, missing = [], size_bytes
    while missing:
        parts.append(await stream.read(missing))
        assert parts[-1], f"FIN with {missing} of {size_bytes} bytes missing"
        missing -= len(parts[-1])
    return b"".join(parts)


async def receive_all(sock: socket.socket) -> bytes:
    """Everything up to EOF."""
    loop = asyncio.get_running_loop()
    parts = []
    while data := await loop.sock_recv(sock, 1 << 18):
        parts.append(data)
    return b"".join(parts)


async def send_and_shut(sock: socket.socket, data: bytes) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close with RST (SO_LINGER 0)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


async def is_reset(sock: socket.socket, timeout_s: float = 15.0) -> bool:
    """Whether the other end resets this connection; what comes before is thrown away."""
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeout_s):
            while await loop.sock_recv(sock, 1 << 16):
                pass
    except ConnectionResetError:
        return True
    return False


def open_descriptors() -> set[str]:
    """What this process has open, as the kernel names it."""
    found = set()
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the directory's own descriptor is gone by now
            target = os.readlink(f"/proc/self/fd/{fd}")
            if target.startswith("socket:"):
                found.add(target)
    return found


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[Callable[[], None]]:
    """Every socket opened inside is closed at the end."""
    before = open_descriptors()

    def check() -> None:
        assert open_descriptors() <= before

    yield check
    check()
