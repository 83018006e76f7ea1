"""The servers of a client: names, reloads, and ``--once``."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import pytest
from msgspec.structs import replace
from typing_extensions import override

from qmux.config.schema import ClientConfig, ServerAddress
from qmux.errors import CertificateError
from qmux.messages import Timings
from qmux.pki.material import Material
from qmux.quic.engine import CloseKind, CloseReason, ConnectConfig, Connection, ConnectionHandler
from qmux.resolver import Resolver
from qmux.worker.client.connector import Connector
from qmux.worker.client.failures import CERTIFICATE, FAILED, UNREACHABLE, Failure
from qmux.worker.client.remote import Remote
from qmux.worker.client.servers import Servers
from qmux.worker.signal import ChangeSignal
from tests.aio import until
from tests.worker.fakes import CLIENT, FakeEngine, FakeLink, FakeStreamServer

ONE, OTHER = ServerAddress("192.0.2.1", 8443), ServerAddress("192.0.2.2", 8443)
NAME = ServerAddress("no such name", 8443)


class World:
    """The servers of one client process, whose connections ``engine`` makes."""

    def __init__(self, config: ClientConfig) -> None:
        self.config = config
        self.engine = FakeEngine()
        self.exit_codes: list[int] = []
        connector = Connector(self.engine, FakeStreamServer(), config, Material(b"", b"", b""))
        self.servers = Servers(config, connector, Timings(), ChangeSignal(), Resolver(), self.exit_codes.append)
        self.servers.start()

    def states(self) -> dict[str, str]:
        return {row.server: row.state for row in self.servers.rows()}


@contextlib.asynccontextmanager
async def a_world(*servers: ServerAddress, once: bool = False) -> AsyncIterator[World]:
    world = World(replace(CLIENT, servers=servers, once=once))
    try:
        yield world
    finally:
        await world.servers.close()
        for _, lane, _ in world.engine.lanes:
            await lane.close_tasks()


async def test_a_server_whose_name_has_no_address_has_a_row() -> None:
    async with a_world(ONE, NAME) as world:
        await until(lambda: world.states() == {str(ONE): "registered", str(NAME): "unresolved"})
        assert world.exit_codes == []


async def test_a_reload_connects_to_new_servers_and_drops_old_ones() -> None:
    async with a_world(ONE) as world:
        await until(lambda: world.states() == {str(ONE): "registered"})
        first = world.servers.links()[0]
        world.servers.configure(replace(world.config, servers=(OTHER,)))
        await until(lambda: world.states().get(str(ONE)) == "giving up", what="what runs there may finish")
        await until(lambda: world.states() == {str(OTHER): "registered"})
        assert all(lane.ended.done() for lane in first.connections())


async def test_a_configuration_is_not_followed_before_the_start() -> None:
    engine = FakeEngine()
    connector = Connector(engine, FakeStreamServer(), CLIENT, Material(b"", b"", b""))
    servers = Servers(CLIENT, connector, Timings(), ChangeSignal(), Resolver(), lambda _: None)
    servers.configure(replace(CLIENT, servers=(ONE,)))
    assert servers.links() == []
    servers.start()
    await until(lambda: [row.state for row in servers.rows()] == ["registered"])
    await servers.close()


async def test_one_attempt_at_servers_that_cannot_be_reached() -> None:
    async with a_world(ONE, NAME, once=True) as world:
        world.engine.refuses = OSError(101, "Network is unreachable")
        await until(lambda: world.exit_codes)
        assert set(world.exit_codes) == {UNREACHABLE}


async def test_one_attempt_with_a_certificate_that_the_engine_does_not_take() -> None:
    async with a_world(ONE, once=True) as world:
        world.engine.refuses = CertificateError("unsupported curve")
        await until(lambda: world.exit_codes)
        assert world.exit_codes[0] == CERTIFICATE


async def test_one_attempt_that_ends_with_a_defect() -> None:
    async with a_world(ONE, once=True) as world:
        world.engine.refuses = RuntimeError("a defect")
        await until(lambda: world.exit_codes)
        assert world.exit_codes[0] == FAILED


async def test_one_attempt_tells_what_can_be_mended() -> None:
    async with a_world(ONE, OTHER, once=True) as world:
        world.engine.answers = False
        await until(lambda: len(world.engine.lanes) == 2)
        world.engine.lanes[0][1].closed(CloseReason(CloseKind.CERTIFICATE, 0, "expired"))
        await until(lambda: "server_certificate" in world.states().values())
        assert world.exit_codes == [], "the other server may still answer"
        world.engine.lanes[1][1].closed(CloseReason(CloseKind.TIMEOUT))
        await until(lambda: world.exit_codes)
        assert world.exit_codes[0] == CERTIFICATE


async def test_one_attempt_is_over_when_the_server_is_lost() -> None:
    async with a_world(ONE, NAME, once=True) as world:
        await until(lambda: world.states().get(str(ONE)) == "registered")
        await until(lambda: sum(lane.is_usable for _, lane, _ in world.engine.lanes) == 2)
        assert world.exit_codes == [], "a server answers: the name that does not resolve is no failure"
        world.engine.answers = False
        for _, lane, _ in list(world.engine.lanes):
            lane.closed(CloseReason(CloseKind.IDLE))
        await until(lambda: world.exit_codes)
        assert world.exit_codes == [UNREACHABLE]


@pytest.mark.parametrize(
    ("host", "asked"),
    [("tunnel.example.", "tunnel.example"), ("fe80::1%eth0", "fe80::1"), ("192.0.2.1", "192.0.2.1")],
)
async def test_the_name_that_a_server_must_have_is_a_certificates(host: str, asked: str) -> None:
    """Neither the last dot nor a scope is part of a certificate's name (RFC 6066 §3, RFC 4007 §11)."""
    names: list[str] = []

    class Engine(FakeEngine):
        @override
        def connect(self, address: tuple[str, int], config: ConnectConfig, handler: ConnectionHandler) -> Connection:
            names.append(config.server_name)
            raise OSError(101, "Network is unreachable")

    connector = Connector(Engine(), FakeStreamServer(), CLIENT, Material(b"", b"", b""))
    remote = Remote(ServerAddress(host, 8443), ("192.0.2.1", 8443))
    assert isinstance(connector.connect(FakeLink(), remote, None), Failure)
    assert names == [asked]
