"""The user connections that servers open at a client: read the request, dial the target, answer, relay."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable

from typing_extensions import override

from qmux import sockets
from qmux.config.schema import ClientServiceConfig
from qmux.errors import PeerError
from qmux.heard import heard
from qmux.log import Reason
from qmux.pool.rows import ServiceCounters
from qmux.protocol.codec import FrameDecoder, encode
from qmux.protocol.frames import (
    AppCode,
    ConnReady,
    ConnRefused,
    NewConn,
    RefuseCode,
    RegisterAck,
    ServiceSettings,
    StreamType,
)
from qmux.quic.dialling import dialled_s, dialling_of
from qmux.quic.engine import ConnectionLost, Engine, Relay, RelayEnd, RelayLimits, Stream, StreamError
from qmux.quic.offload import OffloadEnd
from qmux.relay.counters import Counters
from qmux.relay.dial import DialFailed, dial
from qmux.relay.frames import read_frame, read_stream_type
from qmux.resolver import Resolver
from qmux.tasks import TaskSet, only_logged
from qmux.worker.client.lane import LaneConnection, StreamServer
from qmux.worker.client.targets import Targets

log = logging.getLogger(__name__)

CHANGE_S = 0.02
"""Changes within this time are one change of load: heartbeats tell of it every 100 ms at most."""

HEAD_S = 10.0
"""A stream whose request is not there by then is given up: the server writes it at once."""

REFUSAL_S = 5.0
"""How long a refusal may take to be read."""

MAX_STREAMS = 65_536
"""User connections on one connection at most, whatever the server asks for."""


class UserStreams(StreamServer):
    """``on_change`` is called soon after a user connection came or went."""

    def __init__(
        self,
        services: dict[str, ClientServiceConfig],
        stream_window_bytes: int,
        engine: Engine,
        resolver: Resolver,
        on_change: Callable[[], None],
    ) -> None:
        self.max_streams = MAX_STREAMS
        self.stream_window_bytes = stream_window_bytes
        self.services = services
        self._resolver = resolver
        self._on_change = on_change
        self._dialling = dialling_of(engine, HEAD_S, self._changed, self._user_ended)
        self._targets = Targets(self._dialling, services)
        self._counters = Counters(self._dialling.counts)
        self._draining = False
        self._tasks = TaskSet(only_logged)
        self._on_lanes: Counter[LaneConnection] = Counter()
        self._change_timer: asyncio.TimerHandle | None = None

    @property
    @override
    def active(self) -> int:
        return len(self._tasks) + self._dialling.users

    @override
    def active_on(self, lane: LaneConnection) -> int:
        return self._on_lanes[lane] + self._dialling.users_on(lane.connection)

    def reconfigure(self, services: dict[str, ClientServiceConfig]) -> None:
        """User connections that come from now on are served by these."""
        self.services = services
        self._targets.follow(services)

    def drain(self) -> None:
        """Refuse user connections that come from now on."""
        self._draining = True
        self._targets.drain()

    def counted(self) -> dict[str, ServiceCounters]:
        """The counters of every service."""
        self._dialling.tell_usual_ends(log.isEnabledFor(logging.DEBUG))  # a reload may have changed the level
        counted = self._counters.snapshot()
        for name, service in self.services.items():
            if failures := self._resolver.failures(service.target.host):
                counted.setdefault(name, ServiceCounters()).resolve_failed = failures
        return counted

    @override
    def registered(self, lane: LaneConnection) -> None:
        assert lane.ack is not None, "it is registered"
        self._dialling.serve(lane.connection, {each.name: _limits(each) for each in lane.ack.services})

    @override
    def serve(self, lane: LaneConnection, stream: Stream) -> None:
        self._on_lanes[lane] += 1
        self._changed()
        task = self._tasks.start(self._serve(lane, stream), "user connection")
        task.add_done_callback(lambda _: self._ended(lane))

    async def close(self) -> None:
        """End every user connection; those of the engine end with theirs."""
        await self._tasks.close()
        self._dialling.close()
        if self._change_timer is not None:
            self._change_timer.cancel()

    def _ended(self, lane: LaneConnection) -> None:
        self._on_lanes[lane] -= 1
        if not self._on_lanes[lane]:
            del self._on_lanes[lane]
        self._changed()

    def _changed(self) -> None:
        if self._change_timer is None:
            self._change_timer = asyncio.get_running_loop().call_later(CHANGE_S, self._tell_change)

    def _tell_change(self) -> None:
        self._change_timer = None
        self._dialling.expect_change()
        self._on_change()

    async def _serve(self, lane: LaneConnection, stream: Stream) -> None:
        try:
            async with asyncio.timeout(HEAD_S):
                request = await self._request(stream)
            if request is not None:
                await self._connect(lane, stream, request)
        except TimeoutError:
            stream.abort(AppCode.TIMED_OUT)
        except PeerError as error:
            log.warning("server broke the protocol", extra={"reason": heard(error)})
            stream.abort(AppCode.PROTOCOL_ERROR)
        except (StreamError, ConnectionLost):
            stream.abort(AppCode.CANCELLED)  # the server gave this attempt up
        except BaseException:  # cancelled, or a defect of ours: the server must not wait for an answer
            stream.abort(AppCode.GOING_AWAY)
            raise

    async def _request(self, stream: Stream) -> NewConn | None:
        if await read_stream_type(stream) != StreamType.TCP:
            stream.abort(AppCode.UNKNOWN_STREAM_TYPE)
            return None
        frame = await read_frame(stream, FrameDecoder({NewConn}))
        assert isinstance(frame, NewConn), "the decoder allows nothing else"
        return frame

    async def _connect(self, lane: LaneConnection, stream: Stream, request: NewConn) -> None:
        service = self.services.get(request.service)
        try:
            if service is None:
                raise DialFailed(RefuseCode.UNKNOWN_SERVICE, request.service)
            if self._draining:
                raise DialFailed(RefuseCode.DRAINING, "")
            await stream.write(b"")  # raises where the server gave this attempt up: its user is served elsewhere
            waited_s = dialled_s(stream)
            if waited_s:
                self._counters[request.service].retried += 1
            sock = await dial(service.target, self._resolver, service.connect_timeout_s, waited_s)
        except DialFailed as error:
            self._refused(request, error)
            await self._refuse(stream, error)
            return
        self._targets.reached(service, sock)
        try:
            await stream.write(encode(ConnReady()))
        except BaseException:
            sockets.reset(sock)
            raise
        relay = stream.relay(sock, _limits_of(lane.ack, request.service))
        await self._relay(request, relay)

    async def _relay(self, request: NewConn, relay: Relay) -> None:
        counters = self._counters[request.service]
        counters.total += 1
        counters.active += 1
        self._counters.relay_started(request.service, relay)
        try:
            end = await relay.done
        except BaseException:
            relay.abort()
            raise
        finally:
            counters.active -= 1
            self._counters.relay_ended(request.service, relay)
        self._user_ended(OffloadEnd(request.service, request.conn_id, request.source, end))

    def _user_ended(self, user: OffloadEnd) -> None:
        fields = {**_fields(user), "reason": user.end}
        log.debug("user connection ended", extra=fields)
        if user.end in (RelayEnd.IDLE_TIMEOUT, RelayEnd.HALF_CLOSED_TIMEOUT):
            log.info("user connection timed out", extra=fields)

    def _refused(self, request: NewConn, error: DialFailed) -> None:
        reason = Reason(error.code, error.reason or str(error.code))
        if request.service not in self.services:  # the server may ask for any name: nothing is kept of it
            log.warning("asked for a service that is not here", extra={"asked": request.service, "reason": reason})
            return
        self._counters.refused(request.service, str(error.code))
        log.warning("cannot reach the service", extra={**_fields(request), "reason": reason})

    async def _refuse(self, stream: Stream, error: DialFailed) -> None:
        await stream.write(encode(ConnRefused(error.code, error.reason[:500])))
        stream.finish()
        try:
            # The server resets the stream once it has read the refusal; an abort before that would overtake it.
            async with asyncio.timeout(REFUSAL_S):
                while await stream.read(4096):
                    pass
        except TimeoutError:
            pass
        stream.abort(AppCode.REFUSED)


def _limits_of(ack: RegisterAck | None, service: str) -> RelayLimits:
    """What the server said when this connection was registered."""
    settings = (each for each in ack.services if each.name == service) if ack is not None else ()
    return next(map(_limits, settings), RelayLimits())


def _limits(settings: ServiceSettings) -> RelayLimits:
    return RelayLimits(settings.idle_timeout_ms / 1000 or None, settings.half_closed_timeout_ms / 1000)


def _fields(user: NewConn | OffloadEnd) -> dict[str, object]:
    return {"service": user.service, "source": user.source, "conn": f"{user.conn_id:x}"}
