"""What is around a user connection at a worker, for tests: the pool, counters and service are the real ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import time
from collections.abc import AsyncIterator

from typing_extensions import override

from qmux.config.schema import ServiceConfig
from qmux.pool.pool import Pool
from qmux.pool.rows import Delta
from qmux.quic.engine import Connection
from qmux.relay.counters import Counters
from qmux.relay.handoff import Handoff
from qmux.relay.surroundings import Carrier, ServiceRuntime, StartedAttempt, Surroundings
from qmux.relay.user_connection import UserConnection
from qmux.worker.signal import ChangeSignal
from tests.pool.examples import row
from tests.relay.fakes import FakeConnection

SLOT = 2
ABOUT = Handoff("web", "192.0.2.1:4000", "192.0.2.2:80", 7, "", b"", 0, 0)


class FakeCarrier(Carrier):
    """A client's connection here, with the room that a test says."""

    def __init__(self, connection: FakeConnection) -> None:
        self._connection = connection
        self.room = True
        self.users = 0
        self.suspected = 0

    @property
    @override
    def connection(self) -> Connection:
        return self._connection

    @override
    def has_room(self) -> bool:
        return self.room

    @override
    def user_added(self) -> None:
        self.users += 1

    @override
    def user_removed(self) -> None:
        self.users -= 1

    @override
    def suspect(self) -> None:
        self.suspected += 1


class FakeSurroundings(Surroundings):
    """``places``: how many ``maxconn`` leaves; ``takers``: the workers that take user connections."""

    slot = SLOT

    def __init__(self, config: ServiceConfig) -> None:
        self.pool = Pool(SLOT, 1)
        self.counters = Counters()
        self.runtime: ServiceRuntime | None = ServiceRuntime(config, SLOT)
        self.signal = ChangeSignal()
        self.pool.subscribe(self.signal.fire)
        self.carriers: dict[int, FakeCarrier] = {}
        self.places = 100
        self.admitted = self.released = self.waiting = 0
        self.takers: set[int] = set()
        self.handed: list[tuple[int, Handoff]] = []
        self.tasks: list[asyncio.Task[None]] = []
        self.sockets: list[socket.socket] = []
        self._keys = itertools.count(1)

    @override
    def service(self, name: str) -> ServiceRuntime | None:
        return self.runtime if self.runtime is not None and self.runtime.config.name == name else None

    @override
    def carrier(self, key: int) -> Carrier | None:
        return self.carriers.get(key)

    @override
    def admit(self, service: str) -> bool:
        if self.admitted - self.released >= self.places:
            return False
        self.admitted += 1
        return True

    @override
    def release(self, service: str) -> None:
        self.released += 1

    @override
    def hand_over(self, slot: int, user: socket.socket, about: Handoff) -> bool:
        if slot not in self.takers:
            return False
        self.handed.append((slot, about))
        self.sockets.append(user.dup())
        user.close()
        return True

    @override
    def takes_users(self, slot: int) -> bool:
        return True

    @override
    async def changed(self, service: str, timeout_s: float) -> None:
        self.waiting += 1
        try:
            await self.signal.wait(timeout_s)
        finally:
            self.waiting -= 1

    # --- what a test does ---

    def client(self, name: str, load: int = 0) -> tuple[FakeConnection, FakeCarrier]:
        """A client that is connected here; the one with the lowest load is chosen."""
        connection = FakeConnection()
        key = next(self._keys)
        self.carriers[key] = carrier = FakeCarrier(connection)
        self.pool.add(row(key, name, active=load))
        return connection, carrier

    def client_at(self, slot: int, name: str, load: int = 0) -> None:
        """A client that is connected to another worker only."""
        self.pool.receive(Delta(slot, 1, (row(next(self._keys), name, active=load),), (), {}), time.monotonic())

    def user(self, about: Handoff = ABOUT, started: StartedAttempt | None = None, early: bytes = b"") -> socket.socket:
        """A user connection is served from now on; ``early``: what it has sent already. Returns the user's end."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = socket.create_connection(listener.getsockname(), timeout=15)
            ours, _ = listener.accept()
        theirs.sendall(early)
        assert len(ours.recv(len(early), socket.MSG_PEEK | socket.MSG_WAITALL) if early else b"") == len(early)
        ours.setblocking(False)
        self.sockets.append(theirs)
        self.admitted += started is not None
        connection = UserConnection(self, ours, about, time.monotonic(), started)
        self.tasks.append(asyncio.create_task(connection.serve()))
        return theirs

    async def served(self) -> None:
        """Until every user connection has ended."""
        await asyncio.gather(*self.tasks)

    async def close(self) -> None:
        """End what still runs. Whatever happened: a place that was given is free again, once."""
        for task in self.tasks:
            task.cancel()
        ends = await asyncio.gather(*self.tasks, return_exceptions=True)
        for sock in self.sockets:
            sock.close()
        assert [end for end in ends if end is not None and not isinstance(end, asyncio.CancelledError)] == []
        assert self.released == self.admitted
        assert {carrier.users for carrier in self.carriers.values()} <= {0}


@contextlib.asynccontextmanager
async def surroundings(**options: object) -> AsyncIterator[FakeSurroundings]:
    """A worker with the service ``web`` that has these options."""
    around = FakeSurroundings(ServiceConfig(name="web", **options))  # type: ignore[arg-type]
    try:
        yield around
    finally:
        await around.close()
