"""Through a bad network between client and server: every byte arrives, whatever happens to the packets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import threading
from collections.abc import Iterator

import pytest
import uvloop

from tests.daemons import Daemon, Deployment, free_port
from tests.integration.services import blob, digest, echo, pattern
from tests.integration.shared import Tunnel
from tests.integration.test_tunnel import exchange
from tests.integration.users import EchoFlow
from tests.netsim.proxy import Conditions, Proxy
from tests.waiting import lasts, until

pytestmark = pytest.mark.engines("native", "aioquic")


class Network:
    """The proxy in a thread of its own."""

    def __init__(self, server_port: int, conditions: Conditions, rebind_every_s: float | None = None) -> None:
        self.address = ("", 0)
        self._arguments = (server_port, conditions, rebind_every_s)
        self._loop = uvloop.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        assert self._started.wait(30)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def blackhole(self, on: bool) -> None:
        self._loop.call_soon_threadsafe(self.proxy.blackhole, on)

    def change(self, conditions: Conditions, rebind_every_s: float | None = None) -> None:
        """Behave otherwise from now on, in both directions."""
        self._loop.call_soon_threadsafe(self.proxy.change, conditions, rebind_every_s)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        port, conditions, rebind_every_s = self._arguments
        async with Proxy(("127.0.0.1", port), conditions, rebind_every_s=rebind_every_s) as self.proxy:
            self.address = self.proxy.address
            self._started.set()
            await self._stop.wait()


@contextlib.contextmanager
def tunnelled(
    deployment: Deployment,
    conditions: Conditions,
    rebind_every_s: float | None = None,
    *,
    workers: int = 2,
    **targets: str,
) -> Iterator[tuple[Network, dict[str, int]]]:
    """A server, a client behind a bad network, and the traffic port of each service."""
    ports = {name: free_port() for name in targets}
    server = deployment.server({name: f'bind = "127.0.0.1:{port}"' for name, port in ports.items()}, workers=workers)
    with Network(deployment.quic_port, conditions, rebind_every_s) as network:
        host, port = network.address
        deployment.client("pod-1", targets, servers=[f"{host}:{port}"])
        server.until_clients(1, connections=workers)
        yield network, ports


@pytest.fixture(scope="module")
def bad(shared: Deployment) -> Iterator[tuple[Network, Tunnel]]:
    """A tunnel through a network that each test makes bad in its own way."""
    with Network(shared.quic_port, Conditions()) as network:
        client = {"servers": ["{}:{}".format(*network.address)]}
        yield network, Tunnel(shared, {"up": "", "down": "", "web": ""}, client=client)


MIB = 1 << 20


@pytest.mark.parametrize("mib", [3, pytest.param(20, marks=pytest.mark.extended)])
def test_megabytes_through_loss_reordering_and_rebinding(bad: tuple[Network, Tunnel], mib: int) -> None:
    network, tunnel = bad
    data = pattern(MIB) * mib  # as blob sends it
    before = dataclasses.replace(network.proxy.counters)
    with tunnel.service("up", digest), tunnel.service("down", blob(len(data))):
        conditions = Conditions(loss=0.02, reorder=0.02, duplicate=0.01, delay_s=0.001, mtu_bytes=1500)
        network.change(conditions, rebind_every_s=0.3)
        results: dict[str, bytes] = {}
        threads = [
            threading.Thread(target=lambda: results.update(up=exchange(tunnel.ports["up"], data))),
            threading.Thread(target=lambda: results.update(down=exchange(tunnel.ports["down"], b""))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(110)
        network.change(Conditions())
        assert results["up"].decode() == hashlib.sha256(data).hexdigest()
        assert hashlib.sha256(results["down"]).digest() == hashlib.sha256(data).digest()
        counters = network.proxy.counters
        assert counters.dropped - before.dropped > 5 * mib
        assert counters.reordered - before.reordered > 5 * mib
        assert counters.rebinds > before.rebinds


def test_blackhole_of_2_s_loses_no_byte(bad: tuple[Network, Tunnel]) -> None:
    network, tunnel = bad
    with tunnel.service("web", echo):
        network.change(Conditions(delay_s=0.02))
        flow = EchoFlow(tunnel.ports["web"])
        flow.goes_on(MIB)
        network.blackhole(True)
        blackholed = network.proxy.counters.blackholed
        until(lambda: network.proxy.counters.blackholed > blackholed, "packets vanish")
        lasts(2.0)  # the darkness that is asked for
        network.blackhole(False)
        flow.goes_on(MIB)
        network.change(Conditions())
        assert flow.finish() > 2 * MIB


@pytest.mark.parametrize(
    "quic",
    [
        pytest.param('idle_timeout = "3s"\nkeep_alive = "1s"', id="3s"),
        pytest.param("", id="default", marks=pytest.mark.extended),
    ],
)
@pytest.mark.engines("auto", extended=("aioquic",))
def test_blackhole_beyond_the_idle_timeout_heals(deployment: Deployment, quic: str) -> None:
    """Nothing passes for longer than a client waits: it says so, goes on trying, and serves again."""
    with Network(deployment.quic_port, Conditions()) as network:
        client = {"servers": ["{}:{}".format(*network.address)]}
        tunnel = Tunnel(deployment, {"web": ""}, client=client, quic=quic)
        with tunnel.service("web", echo):
            assert exchange(tunnel.ports["web"], b"before") == b"before"
            network.blackhole(True)
            until(lambda: says_that_it_is_cut_off(tunnel.client), "the client notices", 60)
            network.blackhole(False)
            until(lambda: _answers(tunnel.ports["web"]), "served again")


def says_that_it_is_cut_off(client: Daemon) -> bool:
    return "the server does not answer" in client.log or "connection to server ended" in client.log


def _answers(port: int) -> bool:
    try:
        return exchange(port, b"again") == b"again"
    except OSError:
        return False
