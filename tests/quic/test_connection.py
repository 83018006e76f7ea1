"""Connecting, and what a connection says about itself."""

from __future__ import annotations

import asyncio

import pytest

from qmux.quic.engine import CloseKind
from tests.aio import until
from tests.quic.harness import World


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_both_ends_are_connected_and_know_each_other(world: World, host: str) -> None:
    server = world.serve(slot=5, host=host)
    pair = await world.pair(server, server_name=host)
    assert pair.client.heard.told == ["connected"]
    assert pair.server.heard.told == ["connected"]
    assert pair.client.connection.peer_slot == 5
    assert pair.client.connection.peer_address == server.address
    assert pair.client.connection.identity is None
    identity = pair.server.connection.identity
    assert identity is not None
    assert identity.principal == "alpha"
    assert pair.client.connection.number != pair.server.connection.number


async def test_closing_tells_the_peer_code_and_reason(world: World) -> None:
    pair = await world.pair()
    pair.client.connection.close(0x42, "enough")
    pair.client.connection.close(0x43, "again")
    ours, theirs = await pair.client.heard.is_closed(), await pair.server.heard.is_closed()
    assert (ours.kind, ours.code) == (CloseKind.LOCAL, 0x42)
    assert (theirs.kind, theirs.code, theirs.message) == (CloseKind.APPLICATION, 0x42, "enough")
    assert pair.client.connection.is_closed
    assert pair.client.heard.told == pair.server.heard.told == ["connected", "closed"]


async def test_a_stream_carries_bytes_both_ways(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    await ours.write(b"ping")
    assert await theirs.read(100) == b"ping"
    await theirs.write(b"pong")
    assert await ours.read(100) == b"pong"
    await asyncio.sleep(0)
    await until(lambda: not pair.client.connection.ack_eliciting_outstanding)
