"""One attempt to reach a service through one client connection: open a stream, ask, wait for the answer."""

from __future__ import annotations

import asyncio
import enum
import time
from collections.abc import Coroutine
from typing import Any

import msgspec

from qmux.errors import PeerError
from qmux.heard import heard
from qmux.protocol import reasons
from qmux.protocol.attempt import AttemptClock
from qmux.protocol.codec import FrameDecoder, encode, encode_stream_type
from qmux.protocol.frames import AppCode, ConnReady, ConnRefused, NewConn, RefuseCode, StreamType
from qmux.quic.engine import Connection, ConnectionLost, Stream, StreamError, StreamLimit
from qmux.relay.frames import read_frame


class Outcome(enum.Enum):
    """How an attempt ended."""

    READY = "ready"
    REFUSED = "refused"  # the client said no: nothing was delivered, another one may be tried
    SILENT = "silent"  # the connection does not answer: suspect
    RESET = "reset"  # the service reset the connection before the client's answer was read: it may have got early data
    LOST = "lost"  # the connection or the stream ended without an answer
    FULL = "full"  # no stream left on that connection
    LATE = "late"  # the caller's deadline passed


class AttemptResult(msgspec.Struct, frozen=True):
    """``stream`` where READY, else a reason for the log."""

    outcome: Outcome
    reason: str = ""
    stream: Stream | None = None
    is_passing: bool = False  # REFUSED, but another client, or this one a moment later, may not


_PASSING = frozenset({RefuseCode.DRAINING, RefuseCode.OVERLOADED})


async def attempt(connection: Connection, request: NewConn, early: bytes, deadline: float) -> AttemptResult:
    """Ask the client for a connection to its service; ``early``: user bytes to send with the request.

    ``deadline``: ``time.monotonic()`` when the user has waited long enough. A slow dial must not look dead: while
    nothing is answered, PINGs tell a busy client from a dead one (docs/architecture.md, "The path of a connection").
    """
    try:
        stream = connection.open_stream()
    except StreamLimit:
        return AttemptResult(Outcome.FULL, "the client allows no more streams on this connection")
    except ConnectionLost as error:
        return AttemptResult(Outcome.LOST, str(error))
    head = encode_stream_type(StreamType.TCP) + encode(request) + early
    return await _answer_to(_ask(stream, head), stream, time.monotonic(), deadline)


async def go_on(stream: Stream, began_at: float, deadline: float) -> AttemptResult:
    """Wait on for the answer to a request that the engine sent at ``began_at``."""
    return await _answer_to(_ask(stream, b""), stream, began_at, deadline)


async def _answer_to(
    question: Coroutine[Any, Any, AttemptResult], stream: Stream, began_at: float, deadline: float
) -> AttemptResult:
    # Owned by this call: it has ended when this returns.
    asking = asyncio.ensure_future(question)
    try:
        outcome = await _wait(asking, stream.connection, AttemptClock(began_at), deadline)
        if outcome is None:
            return asking.result()
    except BaseException:  # the user is gone, or the worker stops
        stream.abort(AppCode.CANCELLED)
        raise
    finally:
        if not asking.done():
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
    stream.abort(AppCode.CANCELLED)
    return outcome


async def _wait(
    asking: asyncio.Future[AttemptResult], connection: Connection, clock: AttemptClock, deadline: float
) -> AttemptResult | None:
    """None when ``asking`` has the answer."""
    while not asking.done():
        now = time.monotonic()
        pto_s = connection.stats().pto_s
        clock.heard(connection.last_received_at)
        if clock.is_dead(now, pto_s):
            return AttemptResult(Outcome.SILENT, "the client's connection does not answer")
        if now >= deadline:
            return AttemptResult(Outcome.LATE, "setup_timeout")
        if now >= clock.next_ping(pto_s):
            connection.ping()
            clock.ping_sent(now)
        wait_s = min(deadline, clock.next_ping(pto_s)) - now
        await asyncio.wait([asking], timeout=max(0.001, wait_s))
    return None


async def _ask(stream: Stream, head: bytes) -> AttemptResult:
    decoder = FrameDecoder({ConnReady, ConnRefused})
    try:
        if head:
            await stream.write(head)
        answer = await read_frame(stream, decoder)
    except StreamError as error:
        if error.code == AppCode.SOCKET_RESET:  # it overtakes the answer that was written before (RFC 9000 §3.2)
            return AttemptResult(Outcome.RESET, reasons.refused(RefuseCode.RESET, ""))
        return AttemptResult(Outcome.LOST, str(error))
    except ConnectionLost as error:
        return AttemptResult(Outcome.LOST, str(error))
    except PeerError as error:
        stream.abort(AppCode.PROTOCOL_ERROR)
        return AttemptResult(Outcome.LOST, heard(error))
    if isinstance(answer, ConnReady):
        return AttemptResult(Outcome.READY, stream=stream)
    stream.abort(AppCode.NONE)
    assert isinstance(answer, ConnRefused), "the decoder allows nothing else"
    return refused(answer)


def refused(answer: ConnRefused) -> AttemptResult:
    """What a client's refusal means."""
    reason = f"{heard(answer.code)}: {heard(answer.reason)}" if answer.reason else heard(answer.code)
    return AttemptResult(Outcome.REFUSED, reason, is_passing=answer.code in _PASSING)
