"""One worker of a server for tests, with an engine that accepts: it follows nothing, a test says what it did."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator, Sequence
from typing import Any

from typing_extensions import override

from qmux.config.schema import ProcessConfig, QuicConfig, ServerConfig, ServiceConfig, TlsFiles
from qmux.pki.identity import Identity
from qmux.pool.pool import Pool
from qmux.protocol.codec import FrameDecoder, UnknownFrame, encode_stream_type
from qmux.protocol.frames import (
    Drain,
    Frame,
    HeartbeatAck,
    Lanes,
    Offered,
    Register,
    RegisterAck,
    RegisterReject,
    StreamType,
)
from qmux.quic.accepting import Accepted, Accepting, Bind, Changes, UserHandler
from qmux.quic.engine import Connection, RelayLimits
from qmux.quic.offload import OffloadCounts
from qmux.relay.handoff import HandoffLink
from qmux.tasks import TaskSet, only_logged
from qmux.worker.server.client_connection import ClientConnection
from qmux.worker.server.client_row import ClientRow
from qmux.worker.server.ledger import Ledger
from qmux.worker.server.offload import Offload
from qmux.worker.server.peers import PeerLinks
from qmux.worker.server.plans import Plans
from qmux.worker.server.roster import Roster
from qmux.worker.server.user_connections import UserConnections, first_conn_id
from qmux.worker.signal import ChangeSignal
from tests.aio import until
from tests.worker import fakes

SLOT = 2
LIMIT = 500
FAR_FUTURE = 1 << 40
ABOUT = Accepted("web", (SLOT << 40) | 7, "192.0.2.1:5", "192.0.2.2:80")


class FakeConnection(fakes.FakeConnection):
    """A connection of the client called ``name``, whose certificate is for every service."""

    def __init__(self, name: str = "pod-1", session: str = "") -> None:
        super().__init__()
        self.session = (session or name).encode().ljust(16, b".")[:16]
        self._identity = Identity(name, ("*",), "", "", not_after=FAR_FUTURE)

    @property
    @override
    def identity(self) -> Identity:
        return self._identity


class FakeBind(Bind):
    """A bind that the engine got. ``error``: what ``start`` raises."""

    def __init__(self, service: str, sock: socket.socket) -> None:
        self.service = service
        self.socket = sock
        self.is_started = False
        self.closed_with_shutdown: bool | None = None
        self.error: OSError | None = None

    @override
    def start(self) -> None:
        if self.error is not None:
            raise self.error
        self.is_started = True

    @override
    def close(self, shutdown: bool) -> None:
        self.closed_with_shutdown = shutdown


class FakeAccepting(Accepting):
    """``plans``: the one in force of each service; ``on`` and ``of``: what the engine says of its users."""

    accepts = True
    handler: UserHandler

    def __init__(self, first_conn_id: int, limit: int) -> None:
        self.first = (first_conn_id, limit)
        self.plans: dict[str, list[tuple[Connection, int]]] = {}
        self.made = 0
        self.limits: dict[str, RelayLimits] = {}
        self.others = 0
        self.room: dict[Connection, tuple[int, int]] = {}
        self.on: dict[Connection, int] = {}
        self.by_service: dict[str, int] = {}
        self.binds: list[FakeBind] = []
        self.is_closed = False

    @override
    def begin(self, handler: UserHandler) -> None:
        self.handler = handler

    @override
    def add_bind(self, service: str, sock: socket.socket) -> Bind:
        self.binds.append(bind := FakeBind(service, sock))
        return bind

    @override
    def set_limits(self, service: str, limits: RelayLimits) -> None:
        self.limits[service] = limits

    @override
    def plan(self, service: str, grants: Sequence[tuple[Connection, int]]) -> None:
        self.plans[service] = list(grants)
        self.made += 1

    @override
    def unused(self, service: str) -> int:
        return sum(count for _, count in self.plans.get(service, []))

    @override
    def limit_users(self, connection: Connection, others: int, most: int) -> None:
        self.room[connection] = (others, most)

    @override
    def set_other_users(self, count: int) -> None:
        self.others = count

    @property
    @override
    def users(self) -> int:
        return sum(self.on.values())

    @override
    def users_on(self, connection: Connection) -> int:
        return self.on.get(connection, 0)

    @override
    def changes(self) -> Changes:
        return Changes(list(self.on.items()), list(self.by_service.items()))

    @override
    def counts(self) -> dict[str, OffloadCounts]:
        return {name: OffloadCounts(count, 100, 5, 6) for name, count in self.by_service.items()}

    @override
    def tell_usual_ends(self, tell: bool) -> None:
        pass

    @override
    def close(self) -> None:
        self.is_closed = True

    # --- what a test does ---

    def serves(self, connection: Connection, count: int, service: str = "web") -> None:
        """The engine has so many users on ``connection``."""
        self.on[connection] = count
        self.by_service[service] = self.users
        self.handler.counts_changed()


def frames(stream: fakes.FakeStream) -> list[Frame]:
    """What was sent on a control stream."""
    decoder = FrameDecoder({RegisterAck, RegisterReject, Lanes, Drain, HeartbeatAck})
    found: list[Frame] = []
    left = bytes(stream.sent)
    while left:
        piece, left = left[: decoder.want()], left[decoder.want() :]
        if (frame := decoder.feed(piece)) is not None:
            assert not isinstance(frame, UnknownFrame)
            found.append(frame)
    return found


def config_of(*, max_streams: int = 4096, **services: dict[str, Any]) -> ServerConfig:
    return ServerConfig(
        source="/etc/qmux/server.toml",
        process=ProcessConfig(tls=TlsFiles(bundle="/etc/qmux/server.pem")),
        quic=QuicConfig(max_streams=max_streams),
        services={name: ServiceConfig(name=name, **options) for name, options in services.items()},
    )


class Worker:
    """The users of one worker, its pool and its clients."""

    def __init__(self, config: ServerConfig) -> None:
        self.tasks = TaskSet(only_logged)
        self.signal = ChangeSignal()
        self.pool = Pool(SLOT, 1)
        self.pool.subscribe(self.signal.fire)
        self.accepting = FakeAccepting(first_conn_id(SLOT), LIMIT)
        self.ledger = Ledger(self.pool, self.accepting, LIMIT)
        self.peers = PeerLinks(self.pool)
        self.roster = Roster(config, self.pool, self.ledger, SLOT, b"s" * 16, self.tasks)
        self.plans = Plans(self.accepting, self.pool, self.roster, self.ledger, self.peers)
        self.users = UserConnections(
            config,
            self.pool,
            self.roster,
            self.ledger,
            self.plans,
            self.peers,
            self.signal,
            self.tasks,
            self.accepting,
        )
        self.accepting.begin(Offload(self.users, self.plans, self.roster))
        self._sockets: list[socket.socket] = []

    def accept(self, name: str = "pod-1", session: str = "") -> FakeConnection:
        """A connection whose handshake is complete, and that says nothing yet."""
        connection = FakeConnection(name, session)
        handler = self.roster.accept(connection)
        connection.of(handler)
        handler.connected()
        return connection

    def client(self, name: str, session: str = "") -> FakeConnection:
        """A registered client, without a control stream."""
        connection = self.accept(name, session)
        register = Register(connection.session, name, tuple(map(Offered, self.roster.config.services)), "1.0")
        client = connection.handler
        assert isinstance(client, ClientConnection)
        client.row = ClientRow(connection, register, self.roster, client.fields)
        self.roster.registered(client, client.row)
        return connection

    def row(self, connection: FakeConnection) -> ClientRow:
        """The row of a registered client."""
        row = self.roster.by_connection(connection)
        assert row is not None
        return row

    async def registers(
        self, connection: FakeConnection, services: Sequence[str] = ("web",), answered: bool = True
    ) -> fakes.FakeStream:
        """The client opens its control stream and asks to be registered."""
        stream = self.opens(connection, encode_stream_type(StreamType.CONTROL))
        stream.peer_sends(Register(connection.session, "host-1", tuple(map(Offered, services)), "1.0"))
        if answered:
            await until(lambda: stream.sent, what="an answer to the registration")
        return stream

    def opens(self, connection: FakeConnection, data: bytes) -> fakes.FakeStream:
        """The client opens a stream and sends ``data`` on it."""
        assert connection.handler is not None
        stream = fakes.FakeStream(connection)
        stream.peer_sends(data)
        connection.handler.stream_opened(stream)
        return stream

    def joins(self, slot: int) -> None:
        """One more worker."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sockets.append(far)
        self.peers.set(slot, HandoffLink(near, self.users.take_over))

    def user(self) -> tuple[socket.socket, socket.socket]:
        """(the engine's end, the user's end)."""
        pair = socket.socketpair()
        pair[0].setblocking(False)
        pair[1].settimeout(5)
        self._sockets += pair
        return pair

    def comes(self, service: str = "web") -> None:
        """A user whom the engine leaves to us."""
        about = Accepted(service, ABOUT.conn_id, ABOUT.source, ABOUT.dest)
        self.accepting.handler.unplanned(about, self.user()[0])

    def planned(self, service: str = "web") -> list[tuple[Connection, int]]:
        return self.accepting.plans.get(service, [])

    async def until_planned(self, service: str = "web") -> list[tuple[Connection, int]]:
        await until(lambda: self.planned(service), what=f"a plan for {service}")
        return self.planned(service)

    async def until_void(self, service: str = "web") -> None:
        await until(lambda: not self.planned(service), what=f"no plan for {service}")

    async def close(self) -> None:
        self.plans.close()
        self.accepting.close()
        self.peers.close()
        self.roster.close()
        await self.tasks.close()
        for sock in self._sockets:
            sock.close()


@contextlib.asynccontextmanager
async def worker_of(*, max_streams: int = 4096, **services: dict[str, Any]) -> AsyncIterator[Worker]:
    worker = Worker(config_of(max_streams=max_streams, **(services or {"web": {}})))
    try:
        yield worker
    finally:
        await worker.close()
