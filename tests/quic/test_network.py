"""Relays over a bad network, through ``tests.netsim``: every byte arrives, once and in order."""

from __future__ import annotations

import asyncio
import hashlib
import os

import pytest

from qmux.quic.engine import RelayEnd
from tests.aio import lasts, stays, until
from tests.netsim.proxy import Conditions, Proxy
from tests.quic.harness import Pair, World, receive_all, send_and_shut
from tests.quic.test_mtu import found

BAD = Conditions(loss=0.02, reorder=0.05, duplicate=0.01, delay_s=0.001, mtu_bytes=1500)
LOSSY_BYTES = 10_000_000
"""Each way."""


async def exchange(world: World, pair: Pair, up: bytes, down: bytes) -> None:
    relayed = await world.relayed(pair)
    _, _, got_up, got_down = await asyncio.gather(
        send_and_shut(relayed.user, up),
        send_and_shut(relayed.service, down),
        receive_all(relayed.service),
        receive_all(relayed.user),
    )
    assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
    done = await asyncio.wait_for(asyncio.gather(relayed.server.done, relayed.client.done), 30)
    assert done == [RelayEnd.FINISHED, RelayEnd.FINISHED]


async def test_loss_reordering_duplicates_and_rebinding(world: World) -> None:
    server = world.serve(slot=9)
    async with Proxy(server.address, BAD, rebind_every_s=0.5) as proxy:
        pair = await world.pair(server, via=proxy.address)
        halves = [(os.urandom(LOSSY_BYTES // 2), os.urandom(LOSSY_BYTES // 2)) for _ in range(2)]
        await asyncio.gather(*(exchange(world, pair, up, down) for up, down in halves))
        assert proxy.counters.rebinds > 1
        assert proxy.counters.dropped > 50
        assert proxy.counters.reordered > 50
        assert pair.client.connection.stats().lost_packets > 0
        assert server.endpoint.stats().foreign_packets == 0
        assert server.endpoint.stats().unknown_connection == 0


async def test_a_black_hole_of_two_seconds_is_survived(world: World) -> None:
    server = world.serve()
    async with Proxy(server.address, Conditions(mtu_bytes=1500)) as proxy:
        pair = await world.pair(server, via=proxy.address)
        size_bytes = 3_000_000 if world.engine.name == "aioquic" else 40_000_000  # not through before the hole
        running = asyncio.ensure_future(exchange(world, pair, os.urandom(size_bytes), os.urandom(size_bytes)))
        await until(lambda: proxy.counters.forwarded > 100, what="bytes are on their way")
        proxy.blackhole(True)
        assert await stays(lambda: not running.done(), 2)
        assert pair.client.connection.ack_eliciting_outstanding
        proxy.blackhole(False)
        await running
        assert proxy.counters.blackholed > 0


async def test_handshakes_through_heavy_loss(world: World) -> None:
    server = world.serve(handshake_timeout_s=30.0)
    async with Proxy(server.address, Conditions(loss=0.2)) as proxy:
        sides = [world.connect(proxy.address, handshake_timeout_s=30.0) for _ in range(20)]
        await asyncio.gather(*(side.heard.is_connected(30) for side in sides))
        assert len({side.connection.number for side in sides}) == 20


async def test_streams_that_overtake_each_other_are_all_opened(world: World) -> None:
    server = world.serve()
    async with Proxy(server.address, Conditions(), Conditions(reorder=0.5, loss=0.05)) as proxy:
        pair = await world.pair(server, via=proxy.address)
        for number in range(60):
            stream = pair.server.connection.open_stream()
            await stream.write(b"%d" % number)
            stream.finish()
            await lasts(0.001)  # each in a packet of its own
        seen = set()
        for _ in range(60):
            theirs = await asyncio.wait_for(pair.client.heard.streams.get(), 15)
            seen.add(int(await theirs.read(100)))
        assert seen == set(range(60))


@pytest.mark.at_pace(0.3)
async def test_a_new_address_of_the_client_ends_the_waiting(world: World) -> None:
    """Probes went to an address that was gone, ever more rarely. The client's next packet from its new address must be
    answered with data at once, not when the next probe would be due.
    """
    server = world.serve()
    async with Proxy(server.address, Conditions(mtu_bytes=1500)) as proxy:
        pair = await world.pair(server, via=proxy.address)
        ours, theirs = await pair.stream()
        # A lost packet of the search fills a native client's congestion window: its PING would wait for a probe.
        ends = (pair.server.connection, pair.client.connection)
        await until(lambda: all(found(world, 1500, end.stats().mtu_bytes) for end in ends), what="the search ends")
        searched = proxy.counters.forwarded
        data = os.urandom(3_000_000 if world.engine.name == "aioquic" else 30_000_000)  # not through before the hole
        writing = asyncio.ensure_future(ours.write(data))
        received = bytearray()

        async def read() -> None:
            while len(received) < len(data):
                received.extend(await theirs.read(len(data)))

        reading = asyncio.ensure_future(read())
        await until(lambda: proxy.counters.forwarded > searched + 100, what="bytes are on their way")
        proxy.blackhole(True)
        proxy.rebind()
        assert await stays(lambda: not reading.done(), 3)  # the server's probes go astray, with growing pauses
        proxy.blackhole(False)
        before = len(received)
        pair.client.connection.ping()
        await until(lambda: len(received) > before, 1.0, "data at the new address")
        await asyncio.wait_for(reading, 40)
        assert received == data
        await writing
