"""Errors of sockets at the wrong moment: a reset behind unread bytes, an ICMP answer on a live connection."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests import aio
from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import Service, echo
from tests.integration.shared import Tunnel
from tests.integration.test_network import Network
from tests.integration.users import reset
from tests.netsim.proxy import Conditions
from tests.waiting import lasts, until

pytestmark = pytest.mark.engines("native", "aioquic")


def users(daemon: Daemon) -> int:
    return sum(int(service["connections"]) for service in daemon.status()["services"])


SERVICES = {
    f"{'early' if early else 'late'}-{size_bytes}": f"early_data = {str(early).lower()}"
    for early in (False, True)
    for size_bytes in (5, 300_000)
}


@pytest.fixture(scope="module")
def tunnel(shared: Deployment) -> Iterator[Tunnel]:
    """Its client is 0.1 s away, so that users are still being connected when they leave."""
    with Network(shared.quic_port, Conditions(delay_s=0.1)) as network:
        host, quic_port = network.address
        client = {"servers": [f"{host}:{quic_port}"]}
        yield Tunnel(shared, {**SERVICES, "tick": ""}, unserved=("tick",), client=client, workers=1)


@pytest.mark.parametrize("name", SERVICES)
def test_reset_behind_unread_bytes(tunnel: Tunnel, name: str) -> None:
    """Users that reset while they are still being connected: nothing of them stays, here or at the service."""
    size_bytes = int(name.partition("-")[2])

    async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            pass

    with tunnel.service(name, swallow) as service:

        def come_and_reset() -> bool:
            """Twenty more. Whom a worker accepts that stood still for a moment may be gone already."""
            timers = []
            for number in range(20):
                user = socket.create_connection(("127.0.0.1", tunnel.ports[name]), 10)
                user.sendall(bytes(size_bytes))
                if number % 2:
                    user.shutdown(socket.SHUT_WR)
                timers.append(threading.Timer(0.01 * number, reset, (user,)))
                timers[-1].start()
            for timer in timers:
                timer.join()
            return service.connections >= 10

        until(come_and_reset, "users reach the service")
        for daemon in (tunnel.server, tunnel.client):
            until(lambda daemon=daemon: users(daemon) == 0, "all gone")  # type: ignore[misc]
    assert "Traceback" not in tunnel.server.log + tunnel.client.log


class Forwarder:
    """A UDP forwarder for one client that can be taken away: then the client's packets get an ICMP answer."""

    def __init__(self, server_port: int) -> None:
        self._server = ("127.0.0.1", server_port)
        self._upstream = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._upstream.connect(self._server)
        self.port = free_port(socket.SOCK_DGRAM)
        self._client: tuple[str, int] | None = None
        self._ended = threading.Event()
        self._upstream.settimeout(0.05)
        self._open()
        self._back_thread = threading.Thread(target=self._back, daemon=True)
        self._back_thread.start()

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, *_: object) -> None:
        """Before the daemons end: what they answer then would come as an error in a thread."""
        self._ended.set()
        self._back_thread.join()
        self._close()
        self._upstream.close()

    def _open(self) -> None:
        self._near = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._near.bind(("127.0.0.1", self.port))
        self._near.settimeout(0.05)
        self._away = threading.Event()
        self._forth_thread = threading.Thread(target=self._forth, daemon=True)
        self._forth_thread.start()

    def _close(self) -> None:
        self._away.set()
        self._forth_thread.join()  # while it waits for a packet the kernel does not give the port back
        self._near.close()

    def _forth(self) -> None:
        while not self._away.is_set():
            with contextlib.suppress(OSError):  # nothing came, or nobody is there
                data, self._client = self._near.recvfrom(65_536)
                self._upstream.send(data)

    def _back(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(OSError):  # nothing came, or taken away
                data = self._upstream.recv(65_536)
                if self._client is not None:
                    self._near.sendto(data, self._client)

    def away_for(self, duration_s: float) -> None:
        self._close()
        lasts(duration_s)
        self._open()


def test_icmp_answers_do_not_deafen_a_client(tunnel: Tunnel) -> None:
    """Packets of a live connection get "port unreachable" for a while: the connection goes on, and no user is lost."""

    async def tick(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        ticking = asyncio.ensure_future(echo(reader, writer))

        # Something to send while the path is away.
        await aio.until(lambda: ticking.done() or writer.write(b"."), 60, "the user leaves")

    with Service(tick) as service, Forwarder(tunnel.deployment.quic_port) as forwarder:
        servers = [f"127.0.0.1:{forwarder.port}"]
        client = tunnel.deployment.client("pod-2", {"tick": service.target}, servers=servers)
        tunnel.server.until_clients(2)
        registered = tunnel.server.log.count("client registered")
        with socket.create_connection(("127.0.0.1", tunnel.ports["tick"]), 30) as user:
            assert user.recv(1) == b"."
            forwarder.away_for(0.5)
            user.sendall(b"!")
            received = b""
            while b"!" not in received:  # the socket has a timeout
                received = user.recv(65_536)
                assert received, "FIN"
        assert tunnel.server.log.count("client registered") == registered
        assert "connection to server ended" not in client.log
        assert client.stop() == 0
