"""Every packet reaches the worker that owns its connection, through rebinding, ID rotation, crashes and changes."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from qmux.quic.aioquic_engine.connection import AioquicConnection
from qmux.quic.choose import load_engine
from tests import aio
from tests.daemons import START_S, Daemon, Deployment, free_port
from tests.integration.services import Service, named
from tests.integration.strangers import Stranger, connect_config, hang_up
from tests.integration.users import says
from tests.netsim.proxy import Proxy
from tests.waiting import until

AT_A_TIME = 50
ROUNDS = 3


def counters(server: Daemon, name: str) -> int:
    return sum(int(worker.get("endpoint", {}).get(name, 0)) for worker in server.workers())


async def rebind_and_rotate(server: Daemon, port: int, bundle: Path, count: int) -> int:
    """Open the connections; in each round every one gets another source port and another ID, and must be answered."""
    engine = load_engine("aioquic")
    config = connect_config(bundle)
    connections: list[AioquicConnection] = []
    async with Proxy(("127.0.0.1", port)) as proxy:
        for _ in range(count // AT_A_TIME):
            strangers = [Stranger() for _ in range(AT_A_TIME)]
            for stranger in strangers:
                connection = engine.connect(proxy.address, config, stranger)
                assert isinstance(connection, AioquicConnection)
                connections.append(connection)
            await asyncio.wait_for(asyncio.gather(*(s.is_connected for s in strangers)), 30)
        for _ in range(ROUNDS):
            proxy.rebind()
            asked_at = time.monotonic()
            for connection in connections:
                connection.quic.change_connection_id()
                connection.ping()
            await aio.until(lambda since=asked_at: all(c.last_received_at >= since for c in connections), 60, "answers")
        assert not any(c.is_closed for c in connections)
        assert len({c.peer_slot for c in connections}) == 4
        for number, connection in enumerate(connections):
            connection.close(0, "done")
            if number % AT_A_TIME == 0:
                await asyncio.sleep(0.02)  # the pace: no more at once than a socket's buffer holds
        await aio.until(lambda: counters(server, "connections") == 0, 80, "all closed")  # a lost close: idle_timeout
        return proxy.counters.rebinds


QUIC = 'handshake_timeout = "60s"\nretry_threshold = 5000'


def start_server(deployment: Deployment) -> Daemon:
    return deployment.server({"web": f'bind = "127.0.0.1:{free_port()}"'}, workers=4, quic=QUIC)


@pytest.fixture(scope="module")
def server(shared: Deployment) -> Daemon:
    return start_server(shared)


def check_steering(deployment: Deployment, server: Daemon, count: int) -> None:
    bundle = deployment.directory / deployment.bundle("pod-1")
    assert aio.run(rebind_and_rotate(server, deployment.quic_port, bundle, count), 160) == count * ROUNDS
    until(lambda: counters(server, "handshakes_completed") >= count, "all counted")
    assert counters(server, "handshakes_completed") == count
    assert counters(server, "foreign_packets") == 0
    assert counters(server, "datagrams_invalid") == 0


def test_50_connections_rebind_and_rotate(shared: Deployment, server: Daemon) -> None:
    check_steering(shared, server, 50)


@pytest.mark.serial  # a thousand handshakes in this process take what the machine has
@pytest.mark.timeout(180)
@pytest.mark.engines(extended=("auto", "aioquic"))
def test_1000_connections_rebind_and_rotate(deployment: Deployment) -> None:
    check_steering(deployment, start_server(deployment), 1000)


def test_successor_reads_what_was_queued(shared: Deployment, server: Daemon) -> None:
    """While a worker is dead its queue fills; Initials in it are answered by the successor, none is lost."""
    bundle = shared.directory / shared.bundle("pod-1")

    async def connect_to_dead_worker() -> float:
        engine = load_engine("aioquic")
        victim = server.workers()[1]
        psutil.Process(victim["pid"]).kill()
        strangers = [Stranger() for _ in range(20)]
        started = time.monotonic()
        address, config = ("127.0.0.1", shared.quic_port), connect_config(bundle, victim["slot"])
        connections = [engine.connect(address, config, stranger) for stranger in strangers]
        await asyncio.wait_for(asyncio.gather(*(s.is_connected for s in strangers)), START_S)
        took_s = time.monotonic() - started
        for connection, stranger in zip(connections, strangers, strict=True):
            await hang_up(connection, stranger)
        return took_s

    assert aio.run(connect_to_dead_worker()) < START_S


@pytest.mark.parametrize(
    ("bind", "addresses"),
    [("", ["127.0.0.1", "::1"]), pytest.param("[::1]", ["::1"], marks=pytest.mark.extended)],
)
def test_ipv6_and_wildcard_binds(deployment: Deployment, bind: str, addresses: list[str]) -> None:
    port = free_port(host="::1")
    with Service(named("x")) as service:
        text = deployment.server_text({"web": f'bind = "{bind}:{port}"'}, workers=2)
        text = text.replace(f"127.0.0.1:{deployment.quic_port}", f"{bind}:{deployment.quic_port}")
        server = deployment.start("qmuxd", deployment.write("server.toml", text)).until_ready()
        for number, address in enumerate(addresses):
            host = f"[{address}]" if ":" in address else address
            servers = [f"{host}:{deployment.quic_port}"]
            client = deployment.client(f"pod-{number}", {"web": service.target}, servers=servers)
            server.until_clients(1, connections=2)
            assert [says(port, host=address) for _ in range(20)] == ["x"] * 20
            assert client.stop() == 0
            until(lambda: server.status()["clients"] == [], "it has left")
        assert counters(server, "foreign_packets") == 0
