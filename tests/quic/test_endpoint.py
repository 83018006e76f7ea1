"""What an endpoint answers without a connection, and to whom it does not listen."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from qmux import steering
from qmux.addresses import socket_address
from qmux.quic.aioquic_engine.endpoint import AioquicEndpoint
from qmux.quic.engine import CloseKind, Endpoint, StreamLimit
from tests.aio import stays, until
from tests.netsim.proxy import Proxy
from tests.ports import link_local
from tests.quic import packets
from tests.quic.harness import World, ping, udp_socket


@asynccontextmanager
async def stranger(host: str = "127.0.0.1") -> AsyncIterator[socket.socket]:
    with udp_socket(host) as sock:
        yield sock


async def answer(sock: socket.socket, to: tuple[str, int], data: bytes, timeout_s: float = 15.0) -> bytes | None:
    """What comes back for this datagram, or None."""
    loop = asyncio.get_running_loop()
    sock.sendto(data, to)
    try:
        return await asyncio.wait_for(loop.sock_recv(sock, 65_535), timeout_s)
    except TimeoutError:
        return None


# --- stateless reset ---


async def test_a_replaced_endpoint_ends_the_old_connections(world: World) -> None:
    """The worker died and another took its slot, its keys and its socket: a PING is answered by a stateless reset."""
    sock = udp_socket()
    old = world.serve(slot=3, sock=sock.dup())
    pair = await world.pair(old)
    # The old worker is gone without a word: nobody reads its socket, and the new one reads a duplicate.
    abandon(old.endpoint)
    new = world.serve(slot=3, sock=sock)
    pair.client.connection.ping()
    reason = await pair.client.heard.is_closed()
    assert reason.kind == CloseKind.RESET
    assert new.endpoint.stats().stateless_resets_sent >= 1
    await world.pair(new)


def abandon(endpoint: Endpoint) -> None:
    """Nobody reads its sockets any more."""
    if isinstance(endpoint, AioquicEndpoint):
        asyncio.get_running_loop().remove_reader(endpoint._sockets[0].fileno())
    else:
        endpoint._core.abandon(endpoint._handle)  # type: ignore[attr-defined]


async def test_a_reset_with_another_key_is_ignored(world: World) -> None:
    server = world.serve()
    async with Proxy(server.address) as proxy:
        pair = await world.pair(server, via=proxy.address)
        proxy.inject(packets.short_header(os.urandom(12)))
        proxy.inject(packets.short_header(steering.issued_id(0)))
        assert await stays(lambda: not pair.client.connection.is_closed, 0.1)


async def test_unknown_ids_of_our_own_slot_get_a_stateless_reset(world: World) -> None:
    server = world.serve(slot=3)
    async with stranger() as sock:
        cause = packets.short_header(steering.issued_id(3))
        reset = await answer(sock, server.address, cause)
        assert reset is not None
        assert 21 <= len(reset) < len(cause)
        assert reset[0] & 0xC0 == 0x40
        assert await answer(sock, server.address, packets.short_header(steering.issued_id(3), 21), 0.2) is None


async def test_an_id_of_another_live_slot_is_never_answered(world: World) -> None:
    server = world.serve(slot=3)
    server.endpoint.set_live_slots([3, 4])
    async with stranger() as sock:
        assert await answer(sock, server.address, packets.short_header(steering.issued_id(4)), 0.2) is None
        await until(lambda: server.endpoint.stats().foreign_packets == 1)
        server.endpoint.set_live_slots([3])  # slot 4 died: somebody has to tell its clients
        assert await answer(sock, server.address, packets.short_header(steering.issued_id(4))) is not None


@pytest.mark.at_pace(0.5)
async def test_stateless_resets_are_limited(world: World) -> None:
    server = world.serve(slot=3)
    async with stranger() as sock:
        for _ in range(1000):
            sock.sendto(packets.short_header(steering.issued_id(3)), server.address)
        await until(lambda: server.endpoint.stats().unknown_connection == 1000)
    assert server.endpoint.stats().stateless_resets_sent < 400


# --- Initials ---


async def test_an_initial_with_an_issued_id_never_creates_a_connection(world: World) -> None:
    server = world.serve(slot=3)
    async with stranger() as sock:
        for slot in (3, 4):
            assert await answer(sock, server.address, packets.initial(steering.issued_id(slot)), 0.2) is None
        await until(lambda: server.endpoint.stats().unknown_connection == 2)
    assert server.sides == []


async def test_a_small_initial_is_ignored(world: World) -> None:
    server = world.serve()
    async with stranger() as sock:
        assert await answer(sock, server.address, packets.initial(size_bytes=1199), 0.2) is None
    assert server.sides == []


async def test_refused_while_stopping_and_the_client_hears_it_at_once(world: World) -> None:
    server = world.serve()
    pair = await world.pair(server)
    server.endpoint.refuse_new(True)
    side = world.connect(server.address, handshake_timeout_s=60.0)
    reason = await side.heard.is_closed()  # which waits for a quarter of what the handshake may take
    assert (reason.kind, reason.code) == (CloseKind.TRANSPORT, 0x2)  # CONNECTION_REFUSED, RFC 9000 §20.1
    assert not pair.client.connection.is_closed
    server.endpoint.refuse_new(False)
    await world.pair(server)


async def test_max_connections(world: World) -> None:
    server = world.serve(max_connections=2)
    first, _ = await world.pair(server), await world.pair(server)
    reason = await world.connect(server.address).heard.is_closed()
    assert (reason.kind, reason.code) == (CloseKind.TRANSPORT, 0x2)
    assert server.endpoint.stats().connections == 2
    first.client.connection.close(0, "")
    await until(lambda: server.endpoint.stats().connections == 1)
    await world.pair(server)


async def test_an_unknown_version_is_negotiated(world: World) -> None:
    server = world.serve()
    async with stranger() as sock:
        reply = await answer(sock, server.address, packets.initial(version=0x1A2A3A4A))
        assert reply is not None
        assert reply[0] & 0x80
        assert reply[1:5] == bytes(4)  # version 0: Version Negotiation, RFC 9000 §17.2.1
        assert await answer(sock, server.address, packets.initial(version=0x1A2A3A4A, size_bytes=1100), 0.2) is None
        assert await answer(sock, server.address, packets.initial(version=0), 0.2) is None
    assert server.sides == []


async def test_garbage_and_short_datagrams_are_counted_and_dropped(world: World) -> None:
    server = world.serve()
    pair = await world.pair(server)
    garbage = [b"", b"\x00", b"\x40", b"\xc0", b"\xff" * 7, os.urandom(3), b"\x80" + bytes(30), b"\xff" * 1200]
    async with stranger() as sock:
        for data in garbage:
            assert await answer(sock, server.address, data, 0.05) is None

    def seen() -> int:
        stats = server.endpoint.stats()
        return stats.datagrams_invalid + stats.unknown_connection

    await until(lambda: seen() >= len(garbage), what="all of it was read")
    await ping(pair.client.connection)


async def test_garbage_towards_a_connection_does_not_harm_it(world: World) -> None:
    server = world.serve(slot=3)
    known: set[bytes] = set()

    def look(data: bytes, up: bool) -> None:
        if up and not data[0] & 0x80:
            known.add(data[1 : 1 + steering.CONNECTION_ID_BYTES])

    async with Proxy(server.address) as proxy:
        proxy.tap = look
        pair = await world.pair(server, via=proxy.address)
        await ping(pair.client.connection)
        async with stranger() as sock:
            for connection_id in known:
                for size_bytes in (13, 20, 30, 100, 1200):
                    garbage = packets.short_header(connection_id, size_bytes)
                    assert await answer(sock, server.address, garbage, 0.05) is None
        ours, theirs = await pair.stream()
        await ours.write(b"fine")
        assert await theirs.read(10) == b"fine"
    assert known


# --- Retry ---


async def test_beyond_the_threshold_an_address_must_prove_itself(world: World) -> None:
    server = world.serve(retry_threshold=0)
    await world.pair(server)
    stats = server.endpoint.stats()
    assert stats.retries_sent >= 1
    assert stats.handshakes_completed == 1


async def test_a_token_is_valid_at_every_worker(world: World) -> None:
    """The Retry comes from one endpoint, the Initial with its token goes to another with the same keys."""
    first = world.serve(slot=1, retry_threshold=0, host="127.0.0.1")
    second = world.serve(slot=2, retry_threshold=0, host="127.0.0.1")
    async with Proxy(first.address) as proxy:

        def switch(data: bytes, up: bool) -> None:
            if not up and data[0] & 0xF0 == 0xF0:  # the Retry: its answer goes to the other worker
                proxy.change_server(second.address)

        proxy.tap = switch
        side = world.connect(proxy.address)
        await side.heard.is_connected()
    assert side.connection.peer_slot == 2
    assert first.endpoint.stats().retries_sent == 1
    assert second.endpoint.stats().retries_sent == 0


async def test_a_token_for_another_address_is_not_taken(world: World) -> None:
    server = world.serve(retry_threshold=0)
    async with stranger() as one, stranger() as other:
        retry = await answer(one, server.address, packets.initial())
        assert retry is not None
        destination, token = retry_of(retry)
        again = await answer(other, server.address, packets.initial(destination, token=token))
        assert again is not None
        # RFC 9000 §8.1.3 lets a server choose: another Retry, or INVALID_TOKEN in an Initial.
        assert again[0] & 0xF0 == (0xF0 if world.engine.name == "aioquic" else 0xC0)
        assert server.sides == []
        assert steering.has_initial_form(destination)


def retry_of(datagram: bytes) -> tuple[bytes, bytes]:
    """(source ID, token) of a Retry packet (RFC 9000 §17.2.5)."""
    assert datagram[0] & 0xF0 == 0xF0
    at = 5
    at += 1 + datagram[at]
    source = datagram[at + 1 : at + 1 + datagram[at]]
    return source, datagram[at + 1 + len(source) : -16]


async def test_half_open_handshakes_are_capped(world: World) -> None:
    server = world.serve(retry_threshold=5, handshake_timeout_s=3.0)
    async with stranger() as sock:
        for _ in range(50):
            sock.sendto(packets.initial(), server.address)
        await until(lambda: server.endpoint.stats().retries_sent == 45)
    assert server.endpoint.stats().half_open == 5
    await world.pair(server)  # a real client gets through with its token
    await until(lambda: server.endpoint.stats().half_open == 0)
    assert server.endpoint.stats().handshakes_failed == 5


# --- steering ---


def only_aioquic(world: World) -> None:
    """The other engine's client never changes its ID of its own accord."""
    if world.engine.name != "aioquic":
        pytest.skip("needs a private method of aioquic that changes the connection ID")


@pytest.mark.parametrize("lane", [0, 7, steering.MAX_SLOT])
async def test_a_client_names_its_lane_in_its_first_id(world: World, lane: int) -> None:
    with udp_socket() as listener:
        world.connect(listener.getsockname(), lane=lane)
        first = await asyncio.get_running_loop().sock_recv(listener, 65_535)
    assert steering.packet_id_prefix(first) == steering.INITIAL_FORM | lane


async def test_every_id_steers_to_its_slot_through_rotation(world: World) -> None:
    only_aioquic(world)
    for slot in (1, 258, steering.MAX_SLOT):
        pair = await world.pair(world.serve(slot=slot))
        quic = pair.client.connection.quic  # type: ignore[attr-defined]
        seen = set()
        for _ in range(20):
            seen.add(quic.peer_connection_id)
            assert pair.client.connection.peer_slot == slot
            quic.change_connection_id()
            ours, theirs = await pair.stream()
            ours.abort(0)
            theirs.abort(0)
        assert len(seen) > 15
        assert not pair.client.connection.is_closed


async def test_an_id_can_be_used_the_moment_it_was_sent(world: World) -> None:
    """The routing table knows an ID before the peer can: a packet with it must not be taken for a stranger's."""
    only_aioquic(world)
    server = world.serve()
    async with Proxy(server.address) as proxy:
        pair = await world.pair(server, via=proxy.address)
        quic, routed = pair.server.connection.quic, server.endpoint._by_id  # type: ignore[attr-defined]
        unknown: list[bytes] = []

        def look(_: bytes, up: bool) -> None:
            if not up:
                unknown.extend(issued.cid for issued in quic._host_cids if issued.was_sent and issued.cid not in routed)

        proxy.tap = look
        for _ in range(30):
            pair.client.connection.quic.change_connection_id()  # type: ignore[attr-defined]
            await ping(pair.client.connection)
        assert unknown == []
        assert server.endpoint.stats().unknown_connection == 0
        assert server.endpoint.stats().stateless_resets_sent == 0


async def test_closed_connections_leave_no_id_behind(world: World) -> None:
    server = world.serve()
    for _ in range(3):
        pair = await world.pair(server)
        pair.client.connection.close(0, "")
        await pair.server.heard.is_closed()
    assert server.endpoint.stats().connections == 0
    await until(lambda: known_connections(server.endpoint) == 0, what="nothing is known of them")


def known_connections(endpoint: Endpoint) -> int:
    """What the tables behind the endpoint still have."""
    if isinstance(endpoint, AioquicEndpoint):
        return len(endpoint._by_id)
    return int(endpoint._core.counts()[1])  # type: ignore[attr-defined]


async def test_a_full_client_is_told_so_by_stream_limit(world: World) -> None:
    pair = await world.pair(max_streams=1)
    await pair.stream()
    with pytest.raises(StreamLimit):
        pair.server.connection.open_stream()


async def test_what_comes_after_the_close_is_nothing(world: World) -> None:
    """Messages of the supervisor may be on their way while a worker ends."""
    server = world.serve()
    server.endpoint.close(0, "")
    server.endpoint.set_live_slots((1, 2))
    server.endpoint.refuse_new(True)
    server.reconfigure(idle_timeout_s=5.0)
    sock = udp_socket("127.0.0.1")
    server.endpoint.add_socket(sock)
    assert sock.fileno() == -1
    server.endpoint.close(0, "")
    assert server.endpoint.stats().connections == 0


async def test_two_sockets_of_one_endpoint(world: World) -> None:
    server = world.serve()
    second = udp_socket("::1")
    address = second.getsockname()[:2]
    server.endpoint.add_socket(second)
    await world.pair(server)
    await world.pair(server, via=address)


async def test_a_server_on_one_link_is_reached_by_its_scoped_address(world: World) -> None:
    if (host := link_local()) is None:
        pytest.skip("no interface has a link-local address")
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(socket_address(host, 0))
    server = world.serve(sock=sock)
    await world.connect((host, server.address[1])).heard.is_connected()
