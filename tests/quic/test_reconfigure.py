"""A running endpoint hears of a reload: caps hold at once, the rest for connections that begin afterwards."""

from __future__ import annotations

import asyncio

import pytest

from qmux.errors import CertificateError
from qmux.pki.material import Material
from qmux.quic.engine import CloseKind
from tests.aio import until
from tests.quic import packets
from tests.quic.harness import World, udp_socket


async def test_another_idle_timeout_is_for_new_connections(world: World) -> None:
    server = world.serve(idle_timeout_s=600.0, keep_alive_s=300.0)
    old = await world.pair(server, keep_alive_s=300.0)
    server.reconfigure(idle_timeout_s=1.0)
    new = await world.pair(server, keep_alive_s=300.0)
    assert (await new.server.heard.is_closed()).kind == CloseKind.IDLE
    assert not old.server.connection.is_closed


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
