"""A client's connection behind the engine seam, for tests of what is above it: what it answers, a test decides."""

from __future__ import annotations

import asyncio
import socket
import time

from typing_extensions import override

from qmux.pki.identity import Identity
from qmux.protocol.codec import FrameDecoder, VarintReader, encode
from qmux.protocol.frames import Frame, NewConn
from qmux.quic.engine import (
    CloseKind,
    CloseReason,
    Connection,
    ConnectionLost,
    ConnectionStats,
    Relay,
    RelayEnd,
    RelayLimits,
    Stream,
    StreamError,
    StreamLimit,
)
from tests.aio import until

LOST = CloseReason(CloseKind.IDLE)


class FakeRelay(Relay):
    """A relay that a test ends."""

    bytes_to_socket = bytes_to_stream = 0

    def __init__(self, sock: socket.socket) -> None:
        self.done: asyncio.Future[RelayEnd] = asyncio.get_running_loop().create_future()
        self.ended: RelayEnd | None = None
        self.socket = socket.socket(fileno=sock.detach())

    @override
    def abort(self) -> None:
        self.end(RelayEnd.ABORTED)

    def end(self, why: RelayEnd = RelayEnd.FINISHED) -> None:
        self.socket.close()
        self.ended = self.ended or why
        if not self.done.done():
            self.done.set_result(why)


class FakeStream(Stream):
    """One stream. ``peer_...`` methods are what the client does."""

    stream_id = 0

    def __init__(self, connection: FakeConnection) -> None:
        self._connection = connection
        self.sent = bytearray()
        self.aborted: int | None = None
        self.write_room = asyncio.Event()
        self.write_room.set()
        self._received = bytearray()
        self._ended: Exception | bool | None = None
        self._readable = asyncio.Event()
        self.relayed: FakeRelay | None = None

    @property
    def connection(self) -> Connection:
        return self._connection

    # --- the engine's side ---

    async def read(self, limit_bytes: int) -> bytes:
        while not self._received:
            if isinstance(self._ended, Exception):
                raise self._ended
            if self._ended:
                return b""
            self._readable.clear()
            await self._readable.wait()
        data = bytes(self._received[:limit_bytes])
        del self._received[:limit_bytes]
        return data

    async def write(self, data: bytes) -> None:
        await self.write_room.wait()
        if isinstance(self._ended, Exception):
            raise self._ended
        self.sent += data

    def finish(self) -> None:
        raise NotImplementedError

    def abort(self, code: int) -> None:
        if self.aborted is None:
            self.aborted = code

    def set_priority(self, priority: int) -> None:
        raise NotImplementedError

    def relay(self, sock: socket.socket, limits: RelayLimits) -> FakeRelay:
        self.relayed = FakeRelay(sock)
        return self.relayed

    # --- the peer's side ---

    def peer_sends(self, data: bytes | Frame) -> None:
        self._received += data if isinstance(data, bytes) else encode(data)
        self._connection.hears()
        self._readable.set()

    def peer_ends(self, why: Exception | bool = True) -> None:
        """FIN, or with an exception whatever that says."""
        self._ended = why
        self._readable.set()

    def end(self, why: RelayEnd = RelayEnd.FINISHED) -> None:
        """The user connection, which is relayed, ends."""
        assert self.relayed is not None
        self.relayed.end(why)

    @property
    def left(self) -> bytes:
        """What was received and not read."""
        return bytes(self._received)

    def request(self) -> tuple[int, NewConn, bytes]:
        """What was sent: the stream's type, the request, and what follows it."""
        reader, decoder, at = VarintReader(), FrameDecoder({NewConn}), 0
        stream_type: int | None = None
        frame: object = None
        while frame is None:
            wanted = reader.want() if stream_type is None else decoder.want()
            piece = bytes(self.sent[at : at + wanted])
            at += len(piece)
            if stream_type is None:
                stream_type = reader.feed(piece)
            else:
                frame = decoder.feed(piece)
        assert isinstance(frame, NewConn)
        assert stream_type is not None
        return stream_type, frame, bytes(self.sent[at:])


class FakeConnection(Connection):
    """``answers_pings``: as a live client's QUIC does, whatever its application is busy with."""

    number = 1
    peer_address = ("192.0.2.1", 4711)
    peer_slot = None
    ack_eliciting_outstanding = False
    resumed = early_data_accepted = may_write_early = False
    max_datagram_size = 0

    def __init__(self, answers_pings: bool = True, pto_s: float = 0.01) -> None:
        self.answers_pings = answers_pings
        self.pto_s = pto_s
        self.pings = 0
        self.streams: list[FakeStream] = []
        self.refuses: Exception | None = None
        self.heard_at = time.monotonic()

    @property
    def identity(self) -> Identity | None:
        raise NotImplementedError

    @property
    def is_closed(self) -> bool:
        return isinstance(self.refuses, ConnectionLost)

    @property
    def last_received_at(self) -> float:
        return self.heard_at

    def hears(self) -> None:
        self.heard_at = time.monotonic()

    def open_stream(self) -> FakeStream:
        if self.refuses is not None:
            raise self.refuses
        self.streams.append(FakeStream(self))
        return self.streams[-1]

    async def asked(self, number: int = 0) -> FakeStream:
        await until(lambda: len(self.streams) > number and self.streams[number].sent, what="the client is asked")
        return self.streams[number]

    def send_datagram(self, data: bytes) -> bool:
        raise NotImplementedError

    def ping(self) -> None:
        self.pings += 1
        if self.answers_pings:
            asyncio.get_running_loop().call_later(0.005, self.hears)

    def raise_limits(self, max_streams: int, stream_window_bytes: int) -> None:
        raise NotImplementedError

    def close(self, code: int, reason: str) -> None:
        raise NotImplementedError

    def stats(self) -> ConnectionStats:
        return ConnectionStats(self.pto_s / 3, self.pto_s, 0, 0, 0, 0, 1200, 12_000)


def lost() -> ConnectionLost:
    return ConnectionLost(LOST)


def reset(code: int = 0x12) -> StreamError:
    return StreamError(code)


def full() -> StreamLimit:
    return StreamLimit()
