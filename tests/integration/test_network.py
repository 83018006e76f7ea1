"""Through a bad network between client and server: every byte arrives, whatever happens to the packets."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
from collections.abc import Iterator

import uvloop

from tests.daemons import Deployment, free_port, until
from tests.integration.services import Service, blob, digest, echo, pattern
from tests.integration.test_tunnel import exchange
from tests.integration.users import EchoFlow
from tests.netsim.proxy import Conditions, Proxy

SIZE_BYTES = 20_000_000


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


def test_20_mb_through_loss_reordering_and_rebinding(deployment: Deployment) -> None:
    conditions = Conditions(loss=0.02, reorder=0.02, duplicate=0.01, delay_s=0.001, mtu_bytes=1500)
    data = (pattern(1 << 20) * 20)[:SIZE_BYTES]
    with (
        Service(digest) as sink,
        Service(blob(SIZE_BYTES)) as source,
        tunnelled(deployment, conditions, 1.0, up=sink.target, down=source.target) as (network, ports),
    ):
        results: dict[str, bytes] = {}
        threads = [
            threading.Thread(target=lambda: results.update(up=exchange(ports["up"], data))),
            threading.Thread(target=lambda: results.update(down=exchange(ports["down"], b""))),
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(110)
        assert results["up"].decode() == hashlib.sha256(data).hexdigest()
        assert hashlib.sha256(results["down"]).digest() == hashlib.sha256(data).digest()
        counters = network.proxy.counters
        assert counters.dropped > 100
        assert counters.reordered > 100
        assert counters.rebinds > 0


def test_blackhole_of_2_s_loses_no_byte(deployment: Deployment) -> None:
    with (
        Service(echo) as service,
        tunnelled(deployment, Conditions(delay_s=0.02), web=service.target) as (network, ports),
    ):
        flow = EchoFlow(ports["web"])
        flow.goes_on(1_000_000)
        network.blackhole(True)
        until(lambda: network.proxy.counters.blackholed > 0, "packets vanish")
        dark_since = time.monotonic()
        until(lambda: time.monotonic() - dark_since > 2.0, "two seconds of darkness")
        network.blackhole(False)
        flow.goes_on(1_000_000)
        assert flow.finish() > 2_000_000
        assert network.proxy.counters.blackholed > 0


def test_blackhole_beyond_the_idle_timeout_heals(deployment: Deployment) -> None:
    """Nothing passes for longer than a client waits: it says so, goes on trying, and serves again."""
    with Service(echo) as service, tunnelled(deployment, Conditions(), web=service.target) as (network, ports):
        assert exchange(ports["web"], b"before") == b"before"
        client = deployment.daemons[-1]
        network.blackhole(True)
        until(lambda: "the server does not answer" in client.log, "the client notices", 40)
        network.blackhole(False)
        until(lambda: _answers(ports["web"]), "served again", 30)


def _answers(port: int) -> bool:
    try:
        return exchange(port, b"again") == b"again"
    except OSError:
        return False
