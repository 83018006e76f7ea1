"""Streams before a relay: reading, writing, backpressure, and every way to end one."""

from __future__ import annotations

import asyncio

import pytest

from qmux.quic.engine import ConnectionLost, Stream, StreamError, StreamLimit
from tests.aio import stays, until
from tests.quic.harness import Pair, World, read_exactly


async def test_read_never_takes_more_than_asked(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    await ours.write(b"0123456789")
    await until(lambda: not pair.server.connection.ack_eliciting_outstanding, what="all is there")
    assert await theirs.read(1) == b"0"
    assert await theirs.read(4) == b"1234"
    assert await theirs.read(100) == b"56789"


async def test_cancelling_a_read_loses_nothing(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(theirs.read(10), 0.02)
    await ours.write(b"later")
    assert await theirs.read(10) == b"later"


@pytest.mark.mixed
async def test_write_waits_for_room_and_every_byte_arrives(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    data = bytes(range(256)) * (5 << 12)  # 5 MiB
    writing = asyncio.ensure_future(ours.write(data))
    assert await stays(lambda: not writing.done(), 0.1)
    assert await read_exactly(theirs, len(data)) == data
    await asyncio.wait_for(writing, 15)


async def test_several_writers_wait_and_none_is_forgotten(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    parts = [bytes([number]) * (2 << 20) for number in range(4)]
    writing = [asyncio.ensure_future(ours.write(part)) for part in parts]
    assert await stays(lambda: not any(each.done() for each in writing), 0.1)
    writing.pop().cancel()  # its bytes are queued all the same, and the others wait on
    assert await read_exactly(theirs, 8 << 20) == b"".join(parts)
    await asyncio.wait_for(asyncio.gather(*writing), 15)


@pytest.mark.mixed
@pytest.mark.parametrize("client_first", [True, False], ids=["client first", "server first"])
async def test_fin_closes_one_direction_only(world: World, client_first: bool) -> None:
    ours, theirs = await (await world.pair()).stream()
    first, second = (theirs, ours) if client_first else (ours, theirs)
    await first.write(b"last words")
    first.finish()
    assert await second.read(100) == b"last words"
    assert await second.read(100) == b""
    await second.write(b"still talking")
    assert await first.read(100) == b"still talking"
    second.finish()
    assert await first.read(100) == b""


@pytest.mark.mixed
@pytest.mark.parametrize("client_aborts", [True, False], ids=["client aborts", "server aborts"])
async def test_abort_ends_both_directions_at_the_peer(world: World, client_aborts: bool) -> None:
    ours, theirs = await (await world.pair()).stream()
    aborting, other = (theirs, ours) if client_aborts else (ours, theirs)
    reading = asyncio.ensure_future(other.read(10))
    await asyncio.sleep(0)
    aborting.abort(0x11)
    aborting.abort(0x12)
    with pytest.raises(StreamError) as caught:
        await asyncio.wait_for(reading, 15)
    assert caught.value.code == 0x11
    with pytest.raises(StreamError):
        await other.write(b"x")
    with pytest.raises(StreamError):
        await aborting.read(1)


async def test_a_blocked_writer_hears_of_the_abort(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    writing = asyncio.ensure_future(ours.write(bytes(4 << 20)))
    assert await stays(lambda: not writing.done(), 0.1)
    theirs.abort(0x13)
    with pytest.raises(StreamError):
        await asyncio.wait_for(writing, 15)


async def test_a_lost_connection_ends_reads_and_writes(world: World) -> None:
    pair = await world.pair()
    ours, theirs = await pair.stream()
    reading = asyncio.ensure_future(ours.read(10))  # the client writes nothing
    writing = asyncio.ensure_future(ours.write(bytes(4 << 20)))
    assert await theirs.read(1) == b"\0"
    assert not reading.done()
    pair.client.connection.close(7, "gone")
    with pytest.raises(ConnectionLost) as caught:
        await asyncio.wait_for(writing, 15)
    assert caught.value.reason.code == 7
    with pytest.raises(ConnectionLost):
        await asyncio.wait_for(reading, 15)
    with pytest.raises(ConnectionLost):
        pair.server.connection.open_stream()


@pytest.mark.mixed
async def test_streams_beyond_the_peers_limit_are_refused_until_one_closes(world: World) -> None:
    pair = await world.pair(max_streams=3)
    opened = [await pair.stream() for _ in range(3)]
    with pytest.raises(StreamLimit):
        pair.server.connection.open_stream()
    for _, theirs in opened:
        theirs.abort(0)
    await until(lambda: opens(pair), what="a place for a new stream")


def opens(pair: Pair) -> bool:
    """Whether the server may open another stream; then it does."""
    try:
        pair.server.connection.open_stream()
    except StreamLimit:
        return False
    return True


async def one_more(pair: Pair) -> tuple[Stream, Stream]:
    """A stream, as soon as there is a place for it."""

    async def opened() -> tuple[Stream, Stream] | None:
        try:
            return await pair.stream()
        except StreamLimit:
            return None

    return await until(opened, what="a place for a new stream")


async def test_of_many_streams_the_place_of_each_that_ended_is_free(world: World) -> None:
    pair = await world.pair(max_streams=100)
    for _ in range(10):  # an eighth is not announced at once
        (await pair.stream())[1].abort(0)
    opened = [await one_more(pair) for _ in range(100)]
    assert not opens(pair)
    for count in (1, 2, 5):
        for _ in range(count):
            _, theirs = opened.pop()
            theirs.abort(0)
        for _ in range(count):
            await until(lambda: opens(pair), what="the place of one that ended")
        assert not opens(pair)


async def test_raise_limits_lets_the_peer_open_more(world: World) -> None:
    pair = await world.pair(max_streams=2)
    for _ in range(2):
        await pair.stream()
    with pytest.raises(StreamLimit):
        pair.server.connection.open_stream()
    pair.client.connection.raise_limits(500, 1 << 20)
    for _ in range(498):
        await one_more(pair)
    with pytest.raises(StreamLimit):
        pair.server.connection.open_stream()


@pytest.mark.mixed
async def test_an_unregistered_client_gets_one_stream_and_a_small_window(world: World) -> None:
    server = world.serve(registered=False)
    pair = await world.pair(server)
    stream = pair.client.connection.open_stream()
    with pytest.raises(StreamLimit):
        pair.client.connection.open_stream()
    writing = asyncio.ensure_future(stream.write(bytes(2 << 20)))
    theirs = await asyncio.wait_for(pair.server.heard.streams.get(), 15)
    await read_exactly(theirs, 65_536)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(theirs.read(1), 0.2)
    pair.server.connection.raise_limits(1, 1 << 20)
    await read_exactly(theirs, (2 << 20) - 65_536)
    await asyncio.wait_for(writing, 15)


async def test_a_stream_opened_after_registration_has_the_large_window_at_once(world: World) -> None:
    ours, theirs = await (await world.pair()).stream()
    writing = asyncio.ensure_future(theirs.write(bytes(900_000)))
    await asyncio.wait_for(writing, 15)
    await until(lambda: not ours.connection.is_closed and theirs.connection.stats().sent_bytes > 900_000)
    assert len(await read_exactly(ours, 900_000)) == 900_000


@pytest.mark.mixed
async def test_many_streams_at_once_each_with_its_own_bytes(world: World) -> None:
    pair = await world.pair(max_streams=300)
    streams = [pair.server.connection.open_stream() for _ in range(300)]
    await asyncio.gather(*(stream.write(b"%4d" % number * 500) for number, stream in enumerate(streams)))
    for stream in streams:
        stream.finish()
    seen = set()
    for _ in streams:
        theirs = await asyncio.wait_for(pair.client.heard.streams.get(), 15)
        data = await read_exactly(theirs, 2000)
        assert data == data[:4] * 500
        assert await theirs.read(1) == b""
        theirs.finish()
        seen.add(data[:4])
    assert len(seen) == 300


async def test_the_control_stream_overtakes_bulk(world: World) -> None:
    pair = await world.pair()
    control = pair.client.connection.open_stream()
    await control.write(b"!")
    control_there = await asyncio.wait_for(pair.server.heard.streams.get(), 15)
    assert await control_there.read(1) == b"!"
    ours, theirs = await pair.stream()
    control_there.set_priority(1)
    bulk = asyncio.ensure_future(ours.write(bytes(8 << 20)))
    assert await stays(lambda: not bulk.done(), 0.01)  # it fills the window
    await control_there.write(b"heartbeat")
    assert await asyncio.wait_for(control.read(100), 15) == b"heartbeat"
    assert not bulk.done()
    await read_exactly(theirs, 8 << 20)
    await bulk
