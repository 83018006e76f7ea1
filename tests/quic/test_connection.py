"""Connecting, and what a connection says about itself."""

from __future__ import annotations

import asyncio

import pytest

from qmux.quic.engine import CloseKind
from tests.aio import lasts, stays, until
from tests.netsim.proxy import Conditions, Proxy
from tests.quic.harness import Mixed, World, ping, read_exactly, udp_socket


@pytest.mark.mixed
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
    if not isinstance(world.engine, Mixed):
        assert pair.client.connection.number != pair.server.connection.number


@pytest.mark.mixed
async def test_closing_tells_the_peer_code_and_reason(world: World) -> None:
    pair = await world.pair()
    pair.client.connection.close(0x42, "enough")
    pair.client.connection.close(0x43, "again")
    ours, theirs = await pair.client.heard.is_closed(), await pair.server.heard.is_closed()
    assert (ours.kind, ours.code) == (CloseKind.LOCAL, 0x42)
    assert (theirs.kind, theirs.code, theirs.message) == (CloseKind.APPLICATION, 0x42, "enough")
    assert pair.client.connection.is_closed
    assert pair.client.heard.told == pair.server.heard.told == ["connected", "closed"]


@pytest.mark.mixed
async def test_the_words_of_a_close_are_kept_short_and_printable(world: World) -> None:
    pair = await world.pair()
    pair.client.connection.close(0x42, "\x9b[2J\r\n" + "x" * 900)
    theirs = await pair.server.heard.is_closed()
    assert (theirs.kind, theirs.code) == (CloseKind.APPLICATION, 0x42)
    assert theirs.message == r"\x9b[2J\r\n" + "x" * 186 + "…"


async def test_a_close_is_heard_in_the_middle_of_a_transfer(world: World) -> None:
    """Data that waits for the congestion window must not hold the close back."""
    server = world.serve()
    for number in range(20):
        pair = await world.pair(server)
        ours, theirs = await pair.stream()
        closing, hearing = (pair.server, pair.client) if number % 2 else (pair.client, pair.server)
        bulk = [asyncio.ensure_future(stream.write(bytes(1 << 20))) for stream in (ours, theirs)]
        await lasts(0.001 * (number // 2))  # at every place of the transfer
        closing.connection.close(7, "enough")
        reason = await hearing.heard.is_closed()
        # aioquic forgets a connection when it closes it: what the peer still sends may be answered with a reset first.
        forgets = type(closing.connection).__module__.startswith("qmux.quic.aioquic_engine")
        assert reason.code == 7 or (forgets and reason.kind == CloseKind.RESET), reason
        await asyncio.gather(*bulk, return_exceptions=True)


@pytest.mark.mixed
async def test_a_stream_carries_bytes_both_ways(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    await ours.write(b"ping")
    assert await theirs.read(100) == b"ping"
    await theirs.write(b"pong")
    assert await ours.read(100) == b"pong"
    await asyncio.sleep(0)
    await until(lambda: not pair.client.connection.ack_eliciting_outstanding)


@pytest.mark.mixed
async def test_ping_is_acknowledged(world: World) -> None:
    pair = await world.pair()
    for connection in (pair.client.connection, pair.server.connection):
        await ping(connection)


@pytest.mark.at_pace(0.5)
async def test_keep_alive_keeps_an_idle_connection(world: World) -> None:
    server = world.serve(idle_timeout_s=1.0, keep_alive_s=0.25)
    pair = await world.pair(server)
    ends = (pair.client.connection, pair.server.connection)
    assert await stays(lambda: not any(end.is_closed for end in ends), 2.5)


@pytest.mark.mixed
async def test_silence_ends_a_connection_at_the_smaller_idle_timeout(world: World) -> None:
    started = asyncio.get_running_loop().time()
    async with Proxy(world.serve(idle_timeout_s=1.0).address) as proxy:
        side = world.connect(proxy.address, idle_timeout_s=600.0)
        await side.heard.is_connected()
        proxy.blackhole(True)
        assert (await side.heard.is_closed()).kind == CloseKind.IDLE
        assert asyncio.get_running_loop().time() - started > 0.9


async def test_stats(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    await asyncio.gather(ours.write(bytes(500_000)), read_exactly(theirs, 500_000))
    sent, received = pair.server.connection.stats(), pair.client.connection.stats()
    assert sent.sent_bytes > 500_000
    assert received.received_bytes > 500_000
    assert sent.sent_packets > 500_000 // sent.mtu_bytes
    assert sent.lost_packets < sent.sent_packets // 10
    assert 0 < sent.rtt_s < 10  # seconds, and not milliseconds; the machine may stand still for some of them
    assert sent.rtt_s < sent.pto_s < 60
    assert sent.mtu_bytes >= 1200
    assert sent.cwnd_bytes > 1200


async def test_losses_are_counted(world: World) -> None:
    async with Proxy(world.serve().address, Conditions(loss=0.05, mtu_bytes=1500)) as proxy:
        side = world.connect(proxy.address)
        await side.heard.is_connected()
        stream = side.connection.open_stream()
        await stream.write(bytes(60_000))
        await until(lambda: side.connection.stats().lost_packets > 0)


# --- DATAGRAM ---


async def test_datagrams_up_to_the_maximum_and_not_beyond(world: World) -> None:
    pair = await world.pair()
    ours = pair.server.connection
    largest = ours.max_datagram_size
    assert largest > 1100
    assert not ours.send_datagram(bytes(largest + 1))
    for data in (b"", b"x", bytes(largest)):
        assert ours.send_datagram(data)
    await until(lambda: len(pair.client.heard.datagrams) == 3)
    assert sorted(pair.client.heard.datagrams) == [b"", bytes(largest), b"x"]


@pytest.mark.mixed
async def test_datagrams_are_not_announced_where_nothing_takes_them(world: World) -> None:
    server = world.serve(datagrams=False)
    pair = await world.pair(server)
    assert pair.client.connection.max_datagram_size == 0
    assert not pair.client.connection.send_datagram(b"x")


async def test_the_datagram_queue_is_bounded(world: World) -> None:
    pair = await world.pair()
    taken = sum(pair.server.connection.send_datagram(bytes(1000)) for _ in range(5000))
    assert 1 <= taken <= 1000
    await until(lambda: pair.client.heard.datagrams)


# --- how a connection ends ---


async def test_a_port_where_nobody_listens_is_refused_at_once(world: World) -> None:
    with udp_socket() as sock:
        address = sock.getsockname()
    reason = await world.connect(address).heard.is_closed()  # long before the handshake would be given up
    assert reason.kind == CloseKind.REFUSED


async def test_a_handshake_that_nobody_answers_times_out(world: World) -> None:
    with udp_socket() as silent:
        side = world.connect(silent.getsockname(), handshake_timeout_s=0.5)
        reason = await side.heard.is_closed()
    assert reason.kind == CloseKind.TIMEOUT
    assert side.heard.told == ["closed"]


async def test_a_lost_handshake_is_given_up_by_the_server(world: World) -> None:
    server = world.serve(handshake_timeout_s=0.5)
    async with Proxy(server.address) as proxy:
        proxy.blackhole_to_client = True
        world.connect(proxy.address, handshake_timeout_s=0.5)
        side = await server.side()
        assert (await side.heard.is_closed()).kind == CloseKind.TIMEOUT
        assert server.endpoint.stats().half_open == 0
        assert server.endpoint.stats().handshakes_failed == 1


async def test_a_client_that_closes_during_the_handshake_is_told_as_such(world: World) -> None:
    """Its close travels as the transport's APPLICATION_ERROR (RFC 9000 §10.2.3): nothing went wrong with QUIC."""
    server = world.serve()
    async with Proxy(server.address) as proxy:
        proxy.blackhole_to_client = True
        client = world.connect(proxy.address)
        side = await server.side()
        client.connection.close(0x4, "no longer wanted")
        reason = await side.heard.is_closed()
        assert (reason.kind, reason.code) == (CloseKind.APPLICATION, 0)


@pytest.mark.mixed
async def test_another_protocol_is_refused_by_tls(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    server = world.serve()
    monkeypatch.setattr(f"qmux.quic.{world.engine.name}_engine.credentials.ALPN", "other/9")
    reason = await world.connect(server.address).heard.is_closed()
    assert reason.kind == CloseKind.TLS
    assert reason.code == 120  # no_application_protocol, RFC 7301 §3.2


async def test_an_endpoint_that_closes_tells_every_client(world: World) -> None:
    server = world.serve()
    pairs = [await world.pair(server) for _ in range(3)]
    server.endpoint.close(4, "going away")
    for pair in pairs:
        reason = await pair.client.heard.is_closed()
        assert (reason.kind, reason.code, reason.message) == (CloseKind.APPLICATION, 4, "going away")
