"""Relays: users' bytes between a stream and a TCP socket, and every way in which either side ends."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket

import pytest

from qmux import sockets
from qmux.quic.engine import Relay, RelayEnd, RelayLimits
from tests.aio import stands_still, stays, until
from tests.quic.harness import (
    WINDOW_BYTES,
    Pair,
    Relayed,
    World,
    is_reset,
    read_exactly,
    receive_all,
    reset,
    send_and_shut,
)

TCP_CLOSE = 7  # tcp_states.h


async def ends(relayed: Relayed) -> tuple[RelayEnd, RelayEnd]:
    server, client = await asyncio.wait_for(asyncio.gather(relayed.server.done, relayed.client.done), 15)
    return server, client


@pytest.mark.mixed
async def test_megabytes_both_ways_at_once(world: World) -> None:
    relayed = await world.relayed(await world.pair())
    up, down = os.urandom(6_000_001), os.urandom(4_000_003)
    _, _, got_up, got_down = await asyncio.gather(
        send_and_shut(relayed.user, up),
        send_and_shut(relayed.service, down),
        receive_all(relayed.service),
        receive_all(relayed.user),
    )
    assert hashlib.sha256(got_up).digest() == hashlib.sha256(up).digest()
    assert hashlib.sha256(got_down).digest() == hashlib.sha256(down).digest()
    assert await ends(relayed) == (RelayEnd.FINISHED, RelayEnd.FINISHED)
    assert relayed.server.bytes_to_stream == relayed.client.bytes_to_socket == len(up)
    assert relayed.client.bytes_to_stream == relayed.server.bytes_to_socket == len(down)


async def test_what_was_read_and_what_was_not_before_the_relay_is_not_lost(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    await ours.write(b"frame|" + b"a" * 50_000)
    assert await theirs.read(6) == b"frame|"
    await until(lambda: not pair.server.connection.ack_eliciting_outstanding, what="the rest is there")
    inner, user = await world.tcp_pair()
    relay = theirs.relay(inner, RelayLimits())
    await ours.write(b"b" * 50_000)
    ours.finish()
    assert await receive_all(user) == b"a" * 50_000 + b"b" * 50_000
    relay.abort()


@pytest.mark.mixed
@pytest.mark.parametrize("user_first", [True, False], ids=["user first", "service first"])
async def test_half_close_in_both_orders(world: World, user_first: bool) -> None:
    relayed = await world.relayed(await world.pair())
    first, second = (relayed.user, relayed.service) if user_first else (relayed.service, relayed.user)
    await send_and_shut(first, b"question")
    assert await receive_all(second) == b"question"
    answer = os.urandom(300_000)
    sending = asyncio.ensure_future(send_and_shut(second, answer))
    assert await receive_all(first) == answer
    await sending
    assert await ends(relayed) == (RelayEnd.FINISHED, RelayEnd.FINISHED)


@pytest.mark.mixed
@pytest.mark.parametrize("user_resets", [True, False], ids=["user resets", "service resets"])
async def test_rst_travels_through(world: World, user_resets: bool) -> None:
    relayed = await world.relayed(await world.pair())
    resetting, other = (relayed.user, relayed.service) if user_resets else (relayed.service, relayed.user)
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(resetting, b"hello")
    assert await loop.sock_recv(other, 100) == b"hello"
    reset(resetting)
    assert await is_reset(other)
    near, far = await ends(relayed)
    if not user_resets:
        near, far = far, near
    assert (near, far) == (RelayEnd.SOCKET_RESET, RelayEnd.STREAM_RESET)


async def test_rst_of_a_socket_that_is_not_read_is_noticed(world: World) -> None:
    relayed = await world.relayed(await world.pair())
    sending = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(relayed.user, bytes(64 << 20)))
    await stands_still(lambda: relayed.server.bytes_to_stream)
    sending.cancel()
    await asyncio.gather(sending, return_exceptions=True)
    reset(relayed.user)
    assert await ends(relayed) == (RelayEnd.SOCKET_RESET, RelayEnd.STREAM_RESET)


async def test_abort_resets_both_sockets(world: World) -> None:
    relayed = await world.relayed(await world.pair())
    relayed.server.abort()
    relayed.server.abort()
    assert await is_reset(relayed.user)
    assert await is_reset(relayed.service)
    assert await ends(relayed) == (RelayEnd.ABORTED, RelayEnd.STREAM_RESET)


@pytest.mark.mixed
async def test_a_lost_connection_resets_both_sockets(world: World) -> None:
    pair = await world.pair()
    relayed = await world.relayed(pair)
    pair.client.connection.close(1, "gone")
    assert await is_reset(relayed.user)
    assert await is_reset(relayed.service)
    assert await ends(relayed) == (RelayEnd.CONNECTION_LOST, RelayEnd.CONNECTION_LOST)


async def test_a_relay_on_a_stream_that_has_ended_ends_at_once(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    ours.abort(1)
    await until(lambda: theirs_is_reset(theirs))
    inner, user = await world.tcp_pair()
    relay = theirs.relay(inner, RelayLimits())
    assert await asyncio.wait_for(relay.done, 10) == RelayEnd.STREAM_RESET
    assert await is_reset(user)


def theirs_is_reset(stream: object) -> bool:
    return getattr(stream, "_error", None) is not None


async def test_urgent_data_is_passed_on_in_its_place(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    inner, user = await world.tcp_pair()
    sockets.prepare(inner)
    relay = theirs.relay(inner, RelayLimits())
    for _ in range(3):
        user.send(b"abc")
        assert await read_exactly(ours, 3) == b"abc"
        user.send(b"!", socket.MSG_OOB)
        user.send(b"rest")
        assert await asyncio.wait_for(read_exactly(ours, 5), 15) == b"!rest"
    relay.abort()


async def test_idle_timeout(world: World) -> None:
    relayed = await world.relayed(await world.pair(), RelayLimits(idle_timeout_s=2.0))
    loop = asyncio.get_running_loop()
    for _ in range(6):  # traffic keeps it alive for longer than that
        await loop.sock_sendall(relayed.user, b"x")
        assert await loop.sock_recv(relayed.service, 10) == b"x"
        assert await stays(lambda: not relayed.server.done.done(), 0.4)
    assert await is_reset(relayed.user)
    assert RelayEnd.IDLE_TIMEOUT in await ends(relayed)


async def test_half_closed_timeout(world: World) -> None:
    relayed = await world.relayed(await world.pair(), RelayLimits(half_closed_timeout_s=0.8))
    assert await stays(lambda: not relayed.server.done.done(), 1.0)  # quiet, but not half-closed
    relayed.user.shutdown(socket.SHUT_WR)
    assert await receive_all(relayed.service) == b""
    assert await is_reset(relayed.user)
    assert RelayEnd.HALF_CLOSED_TIMEOUT in await ends(relayed)


@pytest.mark.at_pace(0.2)
async def test_both_closed_but_the_rest_is_not_taken(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    inner, user = await world.tcp_pair()
    relay = ours.relay(inner, RelayLimits(half_closed_timeout_s=0.4))
    theirs.finish()
    assert await receive_all(user) == b""
    await send_and_shut(user, bytes(1_400_000))  # more than the window that the peer never moves
    assert await asyncio.wait_for(relay.done, 15) == RelayEnd.HALF_CLOSED_TIMEOUT


@pytest.mark.at_pace(0.3)
async def test_an_upload_that_outlives_its_download_is_not_taken_for_a_reset(world: World) -> None:
    """Both FINs are there while we pause: the kernel calls that socket closed, with bytes still to be read from it."""
    ours, theirs = await (await world.pair()).stream()
    inner, user = await world.tcp_pair()
    relay = ours.relay(inner, RelayLimits())
    theirs.finish()
    assert await receive_all(user) == b""
    upload = bytearray()
    while len(upload) < 8 << 20:  # until the relay takes no more: the last piece waits in the kernel
        piece = os.urandom(16_384)
        await asyncio.get_running_loop().sock_sendall(user, piece)
        upload += piece
        if not await reaches(relay, len(upload)):
            break
    user.shutdown(socket.SHUT_WR)
    await until(lambda: tcp_state(user) == TCP_CLOSE, what="the acknowledgement of the user's FIN")
    assert await stays(lambda: relay.bytes_to_stream < len(upload), 0.6)  # the relay looks for resets twice
    assert await read_exactly(theirs, len(upload)) == upload
    assert await theirs.read(1) == b""
    assert await asyncio.wait_for(relay.done, 15) == RelayEnd.FINISHED


async def reaches(relay: Relay, size_bytes: int) -> bool:
    return not await stays(lambda: relay.bytes_to_stream < size_bytes, 1.0)


def tcp_state(sock: socket.socket) -> int:
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


async def test_a_stopped_reader_is_bounded_and_its_sibling_is_not_slowed(world: World) -> None:
    pair = await world.pair()
    baseline = await seconds_for(world, pair, 6 << 20)
    stalled = await world.relayed(pair)
    offered = asyncio.ensure_future(asyncio.get_running_loop().sock_sendall(stalled.user, bytes(256 << 20)))
    await stands_still(lambda: stalled.server.bytes_to_stream)
    held = stalled.server.bytes_to_stream - stalled.client.bytes_to_socket
    assert WINDOW_BYTES // 2 < held <= 4 << 20
    assert min([await seconds_for(world, pair, 6 << 20) for _ in range(3)]) < 2 * baseline + 0.5
    assert stalled.server.bytes_to_stream - stalled.client.bytes_to_socket == held
    offered.cancel()
    await asyncio.gather(offered, return_exceptions=True)
    loop = asyncio.get_running_loop()
    got = 0  # and it goes on where it stopped
    while got < held:
        got += len(await loop.sock_recv(stalled.service, 1 << 20))
    stalled.server.abort()


async def seconds_for(world: World, pair: Pair, size_bytes: int) -> float:
    relayed = await world.relayed(pair)
    loop = asyncio.get_running_loop()
    started = loop.time()
    sending = asyncio.ensure_future(send_and_shut(relayed.user, bytes(size_bytes)))
    assert len(await receive_all(relayed.service)) == size_bytes
    await sending
    relayed.service.shutdown(socket.SHUT_WR)
    await ends(relayed)
    return loop.time() - started


@pytest.mark.mixed
async def test_every_state_of_a_relay_is_given_back(world: World) -> None:
    """After many relays of every ending, the connections hold no stream any more."""
    pair = await world.pair()
    for number in range(40):
        relayed = await world.relayed(pair)
        if number % 3 == 0:
            reset(relayed.user)
        elif number % 3 == 1:
            relayed.client.abort()
        else:
            await asyncio.gather(send_and_shut(relayed.user, b"a"), send_and_shut(relayed.service, b"b"))
        await ends(relayed)
    for connection in (pair.client.connection, pair.server.connection):
        await until(lambda c=connection: held_streams(c) == 0, what="streams given back")


def held_streams(connection: object) -> int:
    if (quic := getattr(connection, "quic", None)) is not None:  # aioquic
        streams = connection.streams  # type: ignore[attr-defined]
        return len(quic._streams) + len(streams._streams) + len(streams.relays) + len(streams._watches)
    return int(connection._core.streams(connection._handle)) + len(connection._streams)  # type: ignore[attr-defined]
