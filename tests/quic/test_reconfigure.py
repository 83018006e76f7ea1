"""A running endpoint hears of a reload: caps hold at once, the rest for connections that begin afterwards."""

from __future__ import annotations

import asyncio

import pytest

from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.quic.engine import CloseKind
from tests.aio import stands_still, until
from tests.netsim.proxy import Proxy
from tests.quic import packets
from tests.quic.harness import MAX_STREAMS, World, read_exactly, udp_socket


async def test_another_idle_timeout_is_for_new_connections(world: World) -> None:
    server = world.serve(idle_timeout_s=600.0, keep_alive_s=300.0)
    old = await world.pair(server, keep_alive_s=300.0)
    server.reconfigure(idle_timeout_s=1.0)
    new = await world.pair(server, keep_alive_s=300.0)
    assert (await new.server.heard.is_closed()).kind == CloseKind.IDLE
    assert not old.server.connection.is_closed


async def test_another_keep_alive_is_for_new_connections(world: World) -> None:
    server = world.serve(idle_timeout_s=1.5, keep_alive_s=0.3)
    old = await world.pair(server, keep_alive_s=300.0)
    server.reconfigure(keep_alive_s=300.0)
    new = await world.pair(server, keep_alive_s=300.0)
    assert (await new.server.heard.is_closed()).kind == CloseKind.IDLE
    assert not old.server.connection.is_closed


@pytest.mark.parametrize("window_bytes", [100_000, 400_000])
async def test_another_stream_window_is_for_new_connections(world: World, window_bytes: int) -> None:
    server = world.serve(registered=False, stream_window_bytes=200_000)
    server.reconfigure(stream_window_bytes=window_bytes)
    async with Proxy(server.address) as proxy:
        pair = await world.pair(server, via=proxy.address)
        pair.server.connection.raise_limits(MAX_STREAMS, window_bytes)  # a worker heard of the reload, too
        ours, theirs = await pair.stream()
        writing = asyncio.ensure_future(theirs.write(bytes(2 << 20)))
        await stands_still(lambda: pair.client.connection.stats().sent_bytes)
        proxy.blackhole(True)  # what is read now makes no room for more
        assert await read_exactly(ours, window_bytes) == bytes(window_bytes)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ours.read(1), 0.1)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)


async def test_a_lower_cap_holds_at_once(world: World) -> None:
    server = world.serve()
    await world.pair(server)
    server.reconfigure(max_connections=1)
    await world.connect(server.address).heard.is_closed()
    assert server.endpoint.stats().initials_refused >= 1
    server.reconfigure(max_connections=2)
    await world.pair(server)


async def test_a_lower_retry_threshold_holds_at_once(world: World) -> None:
    server = world.serve()
    await world.pair(server)
    assert server.endpoint.stats().retries_sent == 0
    server.reconfigure(retry_threshold=0)
    await world.pair(server)
    assert server.endpoint.stats().retries_sent == 1


async def test_another_handshake_timeout_is_for_new_handshakes(world: World) -> None:
    server = world.serve(handshake_timeout_s=300.0)
    server.reconfigure(handshake_timeout_s=0.5)
    with udp_socket() as stranger:
        stranger.sendto(packets.initial(), server.address)  # and nothing after it
        await until(lambda: server.endpoint.stats().half_open == 1, what="a handshake has begun")
        await until(lambda: server.endpoint.stats().half_open == 0, what="it is given up")
    assert server.endpoint.stats().handshakes_failed == 1


async def test_a_configuration_that_cannot_be_used_changes_nothing(world: World) -> None:
    server = world.serve()
    good, other = world.pki.server, world.pki.client
    with pytest.raises(CertificateError):
        server.reconfigure(material=Material(good.chain, other.key, good.ca), max_connections=0)
    await asyncio.gather(world.pair(server), world.pair(server))
