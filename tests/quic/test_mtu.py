"""The search for the largest datagram of a path, and what happens when the path shrinks."""

from __future__ import annotations

import asyncio
import inspect
import os

import pytest
from aioquic.quic.congestion.base import QuicCongestionControl
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketRecovery

from qmux.quic.aioquic_engine.mtu import BASE_BYTES, STEPS_BYTES
from tests.aio import until
from tests.netsim.proxy import Conditions, Proxy
from tests.quic.harness import World, read_exactly

LARGEST_BYTES = {"aioquic": STEPS_BYTES[-1], "native": 65_488}


async def test_loopback_carries_the_largest(world: World) -> None:
    pair = await world.pair()
    ends = (pair.server.connection, pair.client.connection)
    await until(lambda: all(found(world, 65_536, end.stats().mtu_bytes) for end in ends), what="the search ends")
    assert not any(end.stats().lost_packets for end in ends)


def found(world: World, path_bytes: int, size_bytes: int) -> bool:
    """Whether this is the size that the engine ends with: aioquic has steps, the native one halves the range until a
    step is less than 20 bytes.
    """
    if world.engine.name == "aioquic":
        return size_bytes == max(size for size in (BASE_BYTES, *STEPS_BYTES) if size <= path_bytes)
    return min(path_bytes, LARGEST_BYTES[world.engine.name]) - 40 <= size_bytes <= path_bytes


@pytest.mark.parametrize("path_bytes", [1200, 1300, 1472, 9000])
async def test_a_smaller_path_is_found_and_no_data_is_lost(world: World, path_bytes: int) -> None:
    server = world.serve()
    async with Proxy(server.address, Conditions(mtu_bytes=path_bytes)) as proxy:
        pair = await world.pair(server, via=proxy.address)
        ours, theirs = await pair.stream()
        data = os.urandom(300_000)
        got, _ = await asyncio.gather(read_exactly(theirs, len(data)), ours.write(data))
        assert got == data
        ends = (pair.server.connection, pair.client.connection)
        what = f"the size for {path_bytes}"
        await until(lambda: all(found(world, path_bytes, end.stats().mtu_bytes) for end in ends), 15, what=what)
        # Only probes were too large: three of each size at each end; the native engine bisects.
        assert proxy.counters.too_large <= (6 if world.engine.name == "aioquic" else 3 * 13 * 2)


@pytest.mark.parametrize("chatter", [False, True], ids=["quiet", "with small packets"])
async def test_a_path_that_shrinks(world: World, chatter: bool) -> None:
    """Large packets vanish, small ones do not: the transfer goes on with small ones."""
    server = world.serve()
    async with Proxy(server.address) as proxy:
        pair = await world.pair(server, via=proxy.address)
        ours, theirs = await pair.stream()
        sender = pair.server.connection
        await until(lambda: found(world, 65_536, sender.stats().mtu_bytes), what="large datagrams")
        proxy.to_server = proxy.to_client = Conditions(mtu_bytes=1300)
        data = os.urandom(500_000)
        writing = asyncio.ensure_future(ours.write(data))
        reading = asyncio.ensure_future(read_exactly(theirs, len(data)))

        def chatters() -> bool:
            pair.client.connection.ping()  # each one acknowledged: no timeouts in a row
            return reading.done()

        if chatter:
            await until(chatters, 40, "everything arrives")
        assert await asyncio.wait_for(reading, 40) == data
        await writing
        assert sender.stats().mtu_bytes <= 1300
        assert proxy.counters.too_large > 0


def test_what_the_search_reaches_into_is_there() -> None:
    """Canary: private names and signatures of aioquic that ``mtu.py`` uses."""
    assert list(inspect.signature(QuicConnection._flush_builder).parameters) == [
        "self", "builder", "network_path", "peer_cid", "now",
    ]  # fmt: skip
    assert "self._max_datagram_size" in inspect.getsource(QuicConnection.datagrams_to_send)
    assert "_datagram_needs_padding" in inspect.getsource(QuicPacketBuilder._end_packet)
    assert "_pto_count" in inspect.getsource(QuicPacketRecovery.on_loss_detection_timeout)
    assert "if packet.in_flight" in inspect.getsource(QuicPacketRecovery._on_packets_lost)
    assert set(inspect.signature(QuicPacketRecovery._on_packets_lost).parameters) >= {"now", "packets", "space"}
    assert set(inspect.signature(QuicCongestionControl.on_packet_acked).parameters) == {"self", "now", "packet"}
