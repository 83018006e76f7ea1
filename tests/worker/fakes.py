"""What the worker's parts have around them, for tests: connections and users that do what a test says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from msgspec.structs import replace
from typing_extensions import override

from qmux.config.schema import ClientConfig, ClientServiceConfig, ProcessConfig, Target, TlsFiles
from qmux.protocol.frames import Lanes, Limits, Offered, Register, RegisterAck
from qmux.quic.engine import (
    Acceptor,
    CloseKind,
    CloseReason,
    ConnectConfig,
    Connection,
    ConnectionHandler,
    Endpoint,
    EndpointConfig,
    Engine,
    Stream,
)
from qmux.tasks import TaskSet, only_logged
from qmux.worker.client.lane import LaneConnection, Link, StreamServer
from tests.aio import until
from tests.relay import fakes

ACK = RegisterAck(b"s" * 16, 0, (0, 1), 10_000, 4000, Limits(100, 30_000), ())


class FakeStream(fakes.FakeStream):
    def set_priority(self, priority: int) -> None:
        pass

    def finish(self) -> None:
        pass


class FakeConnection(fakes.FakeConnection):
    """Closing it is told to the handler, as the engine does."""

    may_write_early = False  # a test may say so

    def __init__(self) -> None:
        super().__init__()
        self.handler: ConnectionHandler | None = None
        self.closed_with: tuple[int, str] | None = None

    def of(self, handler: ConnectionHandler) -> FakeConnection:
        """As if it was made for ``handler``."""
        self.handler = handler
        return self

    def open_stream(self) -> FakeStream:
        self.streams.append(FakeStream(self))
        stream = self.streams[-1]
        assert isinstance(stream, FakeStream)
        return stream

    def raise_limits(self, max_streams: int, stream_window_bytes: int) -> None:
        pass

    def close(self, code: int, reason: str) -> None:
        if self.closed_with is None:
            self.closed_with = code, reason
            if self.handler is not None:
                self.handler.closed(CloseReason(CloseKind.LOCAL, code, reason))


CLIENT = ClientConfig(
    source="qmuxc.toml",
    process=ProcessConfig(tls=TlsFiles()),
    servers=(),
    services={"web": ClientServiceConfig(name="web", target=Target("127.0.0.1", 80))},
)


class FakeEngine(Engine):
    """Its connections reach a server that registers them as soon as they ask, where ``answers`` says so."""

    name = "fake"

    def __init__(self) -> None:
        self.refuses: Exception | None = None
        self.lanes: list[tuple[int, LaneConnection, FakeConnection]] = []
        self.on_registered: Callable[[LaneConnection, FakeConnection], None] = lambda lane, connection: None
        self.answers = True
        self._tasks = TaskSet(only_logged)

    @override
    def serve(self, config: EndpointConfig, acceptor: Acceptor) -> Endpoint:
        raise NotImplementedError

    @override
    def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
        if self.refuses is not None:
            raise self.refuses
        assert isinstance(handler, LaneConnection)
        made = config.lane or 0, handler, FakeConnection().of(handler)
        self.lanes.append(made)
        if self.answers:
            self._tasks.start(self.answer(*made), "answer")
        return made[2]

    async def answer(self, number: int, lane: LaneConnection, connection: FakeConnection) -> None:
        lane.connected()
        await until(lambda: connection.closed_with or (connection.streams and connection.streams[0].sent))
        if connection.closed_with is None:
            connection.streams[0].peer_sends(replace(ACK, lane=number))
            await lane.registered
            self.on_registered(lane, connection)


class FakeStreamServer(StreamServer):
    """Has the user connections that a test says."""

    max_streams = 1000
    stream_window_bytes = 1 << 20

    def __init__(self) -> None:
        self.on: Counter[LaneConnection] = Counter()

    @property
    @override
    def active(self) -> int:
        return self.on.total()

    @override
    def active_on(self, lane: LaneConnection) -> int:
        return self.on[lane]

    @override
    def registered(self, lane: LaneConnection) -> None:
        pass

    @override
    def serve(self, lane: LaneConnection, stream: Stream) -> None:
        raise NotImplementedError


class FakeLink(Link):
    """Remembers what lanes told it."""

    text = "192.0.2.1:8443"
    active = 0

    def __init__(self) -> None:
        self.told: list[Lanes] = []

    @override
    def lanes_told(self, lane: LaneConnection, lanes: Lanes) -> None:
        self.told.append(lanes)


def lane_on(connection: FakeConnection, timeout_s: float = 30.0, link: Link | None = None) -> LaneConnection:
    """A lane whose handshake is complete."""
    lane = unconnected_lane(connection, timeout_s, link)
    lane.connected()
    return lane


def unconnected_lane(connection: FakeConnection, timeout_s: float = 30.0, link: Link | None = None) -> LaneConnection:
    """A lane whose handshake has just begun."""
    register = Register(bytes(16), "pod-1", (Offered("web"),), "1.0")
    return LaneConnection(connection.of, register, FakeStreamServer(), link or FakeLink(), timeout_s)
