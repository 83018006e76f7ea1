"""One attempt for each way it can end, against a connection that does what the test says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from qmux.protocol.attempt import MIN_PING_INTERVAL_S, MIN_SILENCE_S
from qmux.protocol.frames import AppCode, ConnReady, ConnRefused, Heartbeat, NewConn, StreamType
from qmux.relay.attempt import AttemptResult, Outcome, attempt, go_on
from tests.aio import until
from tests.relay import fakes
from tests.relay.fakes import FakeConnection, FakeStream

REQUEST = NewConn(7, "web", "192.0.2.1:4000", "192.0.2.2:80")
Act = Callable[[FakeStream], Awaitable[None]]


async def tried(
    connection: FakeConnection, act: Act | None = None, early: bytes = b"", deadline_s: float = 10.0
) -> AttemptResult:
    """The result of an attempt during which the client does ``act``."""
    trying = asyncio.ensure_future(attempt(connection, REQUEST, early, time.monotonic() + deadline_s))
    if act is not None:
        await until(lambda: connection.streams and connection.streams[0].sent)
        await act(connection.streams[0])
    return await trying


async def test_ready() -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_sends(ConnReady())
        stream.peer_sends(b"first bytes of the service")

    connection = FakeConnection()
    result = await tried(connection, act)
    stream = connection.streams[0]
    assert result == AttemptResult(Outcome.READY, stream=stream)
    assert stream.request() == (StreamType.TCP, REQUEST, b"")
    assert stream.left == b"first bytes of the service"
    assert stream.aborted is None


async def test_early_data_goes_with_the_request() -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_sends(ConnReady())

    connection = FakeConnection()
    early = b"GET / HTTP/1.1\r\n" * 4000
    assert (await tried(connection, act, early)).outcome is Outcome.READY
    assert connection.streams[0].request() == (StreamType.TCP, REQUEST, early)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (ConnRefused("refused"), "refused"),
        (ConnRefused("timeout", "127.0.0.1:80 did not answer"), "timeout: 127.0.0.1:80 did not answer"),
    ],
)
async def test_refused(answer: ConnRefused, reason: str) -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_sends(answer)

    connection = FakeConnection()
    assert await tried(connection, act) == AttemptResult(Outcome.REFUSED, reason)
    assert connection.streams[0].aborted == AppCode.NONE


async def test_a_slow_dial_is_not_dead() -> None:
    count = 1 + round(2 * MIN_SILENCE_S / MIN_PING_INTERVAL_S)

    connection = FakeConnection()

    async def act(stream: FakeStream) -> None:
        await until(lambda: connection.pings >= count)
        stream.peer_sends(ConnReady())

    started = time.monotonic()
    assert (await tried(connection, act, deadline_s=30.0)).outcome is Outcome.READY
    assert time.monotonic() - started >= (count - 1) * MIN_PING_INTERVAL_S  # no more often than that


async def test_silent() -> None:
    connection = FakeConnection(answers_pings=False)
    started = time.monotonic()
    result = await tried(connection, deadline_s=60.0)
    took_s = time.monotonic() - started
    assert result == AttemptResult(Outcome.SILENT, "the client's connection does not answer")
    assert MIN_SILENCE_S <= took_s < 30.0  # long before its deadline
    assert connection.streams[0].aborted == AppCode.CANCELLED


async def test_a_client_that_dies_during_a_slow_dial() -> None:
    async def act(stream: FakeStream) -> None:
        await until(lambda: stream.connection.pings >= 2)  # type: ignore[attr-defined]
        stream.connection.answers_pings = False  # type: ignore[attr-defined]

    assert (await tried(FakeConnection(), act)).outcome is Outcome.SILENT


async def test_late() -> None:
    connection = FakeConnection()
    started = time.monotonic()
    assert await tried(connection, deadline_s=0.3) == AttemptResult(Outcome.LATE, "setup_timeout")
    assert time.monotonic() - started > 0.29
    assert connection.streams[0].aborted == AppCode.CANCELLED


async def test_late_while_the_request_has_no_room() -> None:
    connection = FakeConnection()
    trying = asyncio.ensure_future(attempt(connection, REQUEST, b"x" * 65_536, time.monotonic() + 0.2))
    await until(lambda: connection.streams)
    connection.streams[0].write_room.clear()
    assert (await trying).outcome is Outcome.LATE


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        (fakes.reset(0x11), "stream ended by peer with code 0x11"),
        (fakes.lost(), "idle"),
        (True, "the stream ended inside a frame"),
    ],
)
async def test_lost(why: Exception | bool, reason: str) -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_ends(why)

    assert await tried(FakeConnection(), act) == AttemptResult(Outcome.LOST, reason)


async def test_a_reset_of_the_service_overtakes_the_answer() -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_ends(fakes.reset(0x12))

    result = await tried(FakeConnection(), act)
    assert (result.outcome, result.reason) == (
        Outcome.RESET,
        "the service accepted the connection and reset it at once",
    )


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Heartbeat(1, 1), "a Heartbeat frame is not allowed here"),
        (b"\x11\x7f\xff", "a ConnReady frame of 16383 bytes; at most 256 are allowed"),
        (b"\x12\x01\xc1", "a ConnRefused frame does not decode"),
    ],
)
async def test_an_answer_that_is_none(answer: Heartbeat | bytes, reason: str) -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_sends(answer)

    connection = FakeConnection()
    result = await tried(connection, act)
    assert result.outcome is Outcome.LOST
    assert result.reason.startswith(reason)
    assert connection.streams[0].aborted == AppCode.PROTOCOL_ERROR


async def test_frames_of_a_later_release_before_the_answer() -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_sends(b"\x40\x77\x03abc")
        stream.peer_sends(ConnReady())

    assert (await tried(FakeConnection(), act)).outcome is Outcome.READY


@pytest.mark.parametrize(
    ("why", "outcome"),
    [(fakes.full(), Outcome.FULL), (fakes.lost(), Outcome.LOST)],
)
async def test_no_stream(why: Exception, outcome: Outcome) -> None:
    connection = FakeConnection()
    connection.refuses = why
    result = await tried(connection)
    assert result.outcome is outcome
    assert result.reason


async def test_a_user_that_leaves_meanwhile_frees_the_stream() -> None:
    connection = FakeConnection()
    trying = asyncio.ensure_future(tried(connection))
    await until(lambda: connection.streams and connection.streams[0].sent)
    trying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert connection.streams[0].aborted == AppCode.CANCELLED
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_user_that_leaves_when_the_answer_has_just_come() -> None:
    connection = FakeConnection()
    trying = asyncio.ensure_future(attempt(connection, REQUEST, b"", time.monotonic() + 10))
    await until(lambda: connection.streams and connection.streams[0].sent)
    connection.streams[0].peer_sends(ConnReady())
    await asyncio.sleep(0)
    trying.cancel()
    try:
        result = await trying
    except asyncio.CancelledError:
        assert connection.streams[0].aborted == AppCode.CANCELLED
    else:
        assert result.outcome is Outcome.READY


async def test_a_defect_below_frees_the_stream_and_is_not_hidden() -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_ends(RuntimeError("a defect"))

    connection = FakeConnection()
    with pytest.raises(RuntimeError, match="a defect"):
        await tried(connection, act)
    assert connection.streams[0].aborted == AppCode.CANCELLED


# --- an attempt that the engine began ---


async def gone_on_with(connection: FakeConnection, began_s_ago: float, act: Act | None = None) -> AttemptResult:
    now = time.monotonic()
    trying = asyncio.ensure_future(go_on(connection.open_stream(), now - began_s_ago, now + 10))
    if act is not None:
        await act(connection.streams[0])
    return await trying


async def test_what_the_engine_asked_is_not_asked_again() -> None:
    async def act(stream: FakeStream) -> None:
        stream.peer_sends(ConnReady())

    connection = FakeConnection()
    result = await gone_on_with(connection, 0.1, act)
    assert result == AttemptResult(Outcome.READY, stream=connection.streams[0])
    assert connection.streams[0].sent == b""


async def test_the_clock_of_the_engines_attempt_goes_on() -> None:
    """The first PING was due when the engine gave up: silence is noticed by so much earlier."""

    connection = FakeConnection(answers_pings=False)
    started = time.monotonic()
    result = await gone_on_with(connection, 2 * MIN_PING_INTERVAL_S)
    assert result.outcome is Outcome.SILENT
    assert connection.pings >= 1
    assert MIN_SILENCE_S <= time.monotonic() - started < 8.0  # before its deadline
    assert connection.streams[0].aborted == AppCode.CANCELLED
