"""One connection of a client to one worker of a server: registration, heartbeats, streams that the server opens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from msgspec.structs import replace
from typing_extensions import override

from qmux.errors import PeerError
from qmux.protocol.codec import encode_stream_type
from qmux.protocol.frames import AppCode, Drain, Frame, Lanes, Register, RegisterAck, RegisterReject, StreamType
from qmux.protocol.sessions import ClientSession
from qmux.quic.engine import CloseReason, Connection, ConnectionHandler, ConnectionLost, Stream, StreamError
from qmux.tasks import TaskSet
from qmux.worker.client.failures import UNREACHABLE, Failure, closed, rejected
from qmux.worker.control_stream import ControlWriter

log = logging.getLogger(__name__)

MIN_SETTLING_S = 0.2
"""A server that is busy needs this long to read that we drain."""

LOOK_S = 0.5
"""How often a heartbeat's answer is looked for: the silence that counts is at least two seconds."""


class StreamServer(Protocol):
    """Serves the streams that a server opens, one for each user connection."""

    max_streams: int
    stream_window_bytes: int

    @property
    def active(self) -> int:
        """User connections on all connections to servers."""
        ...

    def active_on(self, lane: LaneConnection) -> int:
        """User connections on one of them."""
        ...

    def registered(self, lane: LaneConnection) -> None:
        """The server has accepted what we offer there."""
        ...

    def serve(self, lane: LaneConnection, stream: Stream) -> None:
        """A stream that the server opened."""
        ...


class Link(Protocol):
    """The link to a server that a lane is one connection of."""

    @property
    def text(self) -> str:
        """The server's numeric address."""
        ...

    @property
    def active(self) -> int:
        """User connections on all of its connections."""
        ...

    def lanes_told(self, lane: LaneConnection, lanes: Lanes) -> None:
        """The server named the lanes again, on ``lane``."""
        ...


class LaneConnection(ConnectionHandler):
    """Starts with ``connect``, which raises OSError where there is no way to the server.

    ``registered`` resolves to the RegisterAck, or to the Failure. ``ended`` resolves when the connection is gone.
    ``wants_replacement`` resolves when the server asked for one, or has been silent for too long.
    """

    def __init__(
        self,
        connect: Callable[[ConnectionHandler], Connection],
        register: Register,
        streams: StreamServer,
        link: Link,
        timeout_s: float,
    ) -> None:
        loop = asyncio.get_running_loop()
        self.registered: asyncio.Future[RegisterAck | Failure] = loop.create_future()
        self.ended: asyncio.Future[CloseReason] = loop.create_future()
        self.wants_replacement: asyncio.Future[str] = loop.create_future()
        self.ack: RegisterAck | None = None
        self._register = register
        self._streams = streams
        self._link = link
        self._timeout_s = timeout_s
        self._started = False
        self._control: ControlWriter | None = None
        self._session = ClientSession()
        self._tasks = TaskSet(self._task_failed)
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._register_timer: asyncio.TimerHandle | None = None
        self.connection = connect(self)
        # Where a session is resumed, the registration goes out with the first packets: it may be replayed, and at a
        # server it counts from the confirmed handshake on.
        if self.connection.may_write_early:
            self._start()

    @property
    def active(self) -> int:
        """User connections on it."""
        return self._streams.active_on(self)

    @property
    def is_usable(self) -> bool:
        """Registered and not ended."""
        return self.ack is not None and not self.ended.done()

    @property
    def left_out(self) -> list[str]:
        """Services that we offered and the server did not take, because it has none of that name."""
        taken = {settings.name for settings in self.ack.services} if self.ack is not None else set()
        return [offered.name for offered in self._register.services if offered.name not in taken]

    async def until_ended_or_replaced(self) -> None:
        """Until the connection is gone, or another shall take its place."""
        either: list[asyncio.Future[Any]] = [self.ended, self.wants_replacement]
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)

    # --- what the engine tells ---

    @override
    def connected(self) -> None:
        self._register_timer = asyncio.get_running_loop().call_later(self._timeout_s, self._not_registered)
        if not self._started:
            self._start()

    @override
    def stream_opened(self, stream: Stream) -> None:
        self._streams.serve(self, stream)

    @override
    def datagram_received(self, data: bytes) -> None:
        log.debug("unexpected datagram", extra={"address": self._link.text})  # this version asks for none

    @override
    def closed(self, reason: CloseReason) -> None:
        for timer in (self._timer, self._register_timer):
            if timer is not None:
                timer.cancel()
        if not self.registered.done():
            self.registered.set_result(closed(reason, self._link.text, self._timeout_s))
        if not self.ended.done():
            self.ended.set_result(reason)

    # --- the control stream ---

    def _start(self) -> None:
        self._started = True
        self._tasks.start(self._run(), f"control of connection {self.connection.number}")

    async def _run(self) -> None:
        try:
            stream = self.connection.open_stream()
            self._control = ControlWriter(stream, self._tasks, self._link.text)
            stream.set_priority(1)
            await stream.write(encode_stream_type(StreamType.CONTROL) + self._session.register(self._register))
            while data := await stream.read(self._session.want()):
                frame = self._session.receive(data)
                if frame is not None:
                    self._received(frame)
                self._arm()
            # FIN: the server said its last word (a reject); the connection's end follows.
        except PeerError as error:
            self.connection.close(AppCode.PROTOCOL_ERROR, str(error)[:200])
        except (StreamError, ConnectionLost):
            pass  # ``closed`` tells why

    def _received(self, frame: Frame) -> None:
        if isinstance(frame, RegisterAck):
            self.ack = frame
            streams = min(frame.limits.max_streams, self._streams.max_streams)
            self.connection.raise_limits(streams, self._streams.stream_window_bytes)
            self._streams.registered(self)
            if not self.registered.done():
                self.registered.set_result(frame)
        elif isinstance(frame, RegisterReject):
            if not self.registered.done():
                self.registered.set_result(rejected(frame))
            self.connection.close(AppCode.NONE, "rejected")
        elif isinstance(frame, Lanes):
            if self.ack is not None:  # the link may not keep us yet: it looks at the ack then
                self.ack = replace(self.ack, lanes=frame.lanes)
            self._link.lanes_told(self, frame)
        elif isinstance(frame, Drain) and frame.replace:
            self.ask_replacement("the server asks for a new connection")

    def _not_registered(self) -> None:
        """The handshake was answered, the registration is not."""
        if not self.registered.done():
            text = f"the server did not answer our registration within {self._timeout_s:g} s; trying again may help"
            self.registered.set_result(Failure("no_registration", text, UNREACHABLE))
            self.close(AppCode.NOT_REGISTERED, "no answer to Register")

    def load_changed(self) -> None:
        """User connections came or went somewhere in this process."""
        self._session.load_changed(self._streams.active, self._link.active)
        self._arm()

    def drain(self, deadline_s: float) -> None:
        """Tell the server that we are about to stop."""
        if self._session.is_registered and self._control is not None and not self.ended.done():
            self._control.send(self._session.drain(round(deadline_s * 1000)))

    @property
    def settling_s(self) -> float:
        """After ``drain``: when this has passed, what the server opened before it heard of it is here."""
        return 0.0 if self.ended.done() else max(MIN_SETTLING_S, 2 * self.connection.stats().pto_s)

    def ping(self) -> None:
        """Provoke an answer: from a worker that took the place of a dead one it is a stateless reset."""
        self.connection.ping()

    def close(self, code: AppCode, reason: str) -> None:
        """End the connection."""
        self.connection.close(code, reason)

    async def close_tasks(self) -> None:
        """End what runs for this connection."""
        await self._tasks.close()

    def _task_failed(self, name: str, error: BaseException) -> None:
        """Without its control stream a connection is none: the lane gets another."""
        self.close(AppCode.GOING_AWAY, "internal error; the client's log has it")

    # --- heartbeats ---

    def _arm(self) -> None:
        """Wake when a heartbeat is due, and regularly while one is unanswered."""
        if not self._session.is_registered or self.ended.done():
            return
        now = time.monotonic()
        at = min(max(self._session.next_heartbeat(), now), now + LOOK_S)
        if self._timer is not None and self._timer_at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = asyncio.get_running_loop().call_later(at - now, self._beat)

    def _beat(self) -> None:
        self._timer = None
        now = time.monotonic()
        if self.ended.done():
            return
        if data := self._session.poll(now):
            assert self._control is not None, "registered on it"
            self._control.send(data)
        if self._session.is_silent(now, self.connection.last_received_at, self.connection.stats().pto_s):
            self.ask_replacement("the server does not answer on this connection")
        self._arm()

    def ask_replacement(self, why: str) -> None:
        """Another connection shall take the place of this one."""
        if not self.wants_replacement.done():
            self.wants_replacement.set_result(why)
