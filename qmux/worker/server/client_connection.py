"""A client's connection at a server: from its first packet to its registration, its control stream, and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from typing_extensions import override

from qmux import addresses
from qmux.errors import PeerError
from qmux.heard import heard
from qmux.log import Reason
from qmux.protocol.frames import AppCode, Drain, Frame, Heartbeat, Lanes, Register, StreamType
from qmux.protocol.sessions import ServerSession
from qmux.quic.engine import (
    CloseKind,
    CloseReason,
    Connection,
    ConnectionHandler,
    ConnectionLost,
    Stream,
    StreamError,
    handshake_of,
)
from qmux.relay.frames import read_stream_type
from qmux.tasks import TaskSet
from qmux.worker.control_stream import ControlWriter
from qmux.worker.server import registration
from qmux.worker.server.client_row import ClientRow
from qmux.worker.server.failures import of_client

if TYPE_CHECKING:
    from qmux.worker.server.roster import Roster

log = logging.getLogger(__name__)

REJECT_GRACE_S = 1.0
"""A rejected client reads why and closes; after this time we do, since a close overtakes what was written before it."""

FRAME_S = 0.02
FRAME_BURST_S = 1.0
"""A client says something every 100 ms at most. More than 50 frames a second, after as many at once, are not read:
each changes the pool, which every worker hears."""

_QUIET = (CloseKind.LOCAL, CloseKind.APPLICATION, CloseKind.TIMEOUT)


class ClientConnection(ConnectionHandler):
    """A connection at a server. ``row``: None until it is registered."""

    def __init__(self, connection: Connection, roster: Roster) -> None:
        self.connection = connection
        self.row: ClientRow | None = None
        self._roster = roster
        self._register: Register | None = None
        self._session = ServerSession()
        self._control: ControlWriter | None = None
        self._lanes: tuple[int, ...] = ()
        self._tasks = TaskSet(self._task_failed)
        self._deadline: asyncio.TimerHandle | None = None
        self._frames_paid = 0.0

    # --- what the engine tells ---

    @override
    def connected(self) -> None:
        wait_s = self._roster.config.quic.handshake_timeout_s
        self._deadline = asyncio.get_running_loop().call_later(wait_s, self._register_late)

    @override
    def stream_opened(self, stream: Stream) -> None:
        self._tasks.start(self._serve(stream), f"control of connection {self.connection.number}")

    @override
    def datagram_received(self, data: bytes) -> None:
        pass  # there is no datagram type in this version

    @override
    def closed(self, reason: CloseReason) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        self._roster.gone(self)
        if self.row is not None:
            log.info("client disconnected", extra={**self.fields(), "reason": reason})
        elif reason.kind not in _QUIET:
            level = logging.INFO if reason.kind is CloseKind.IDLE else logging.WARNING
            log.log(
                level,
                "client could not connect",
                extra={**self.fields(), "reason": Reason(reason.kind, of_client(reason))},
            )

    def fields(self) -> dict[str, object]:
        """What a log line says of this connection."""
        identity = self.connection.identity
        return {
            "client": heard(identity.principal) if identity is not None else "unknown",
            "connection": self.connection.number,
            "address": addresses.join(*self.connection.peer_address),
        }

    # --- the control stream ---

    async def _serve(self, stream: Stream) -> None:
        try:
            if await read_stream_type(stream) != StreamType.CONTROL:
                stream.abort(AppCode.UNKNOWN_STREAM_TYPE)
                return
            if self._control is not None:
                raise PeerError("a second control stream")
            self._control = ControlWriter(stream, self._tasks, f"connection {self.connection.number}")
            stream.set_priority(1)
            await self._read_frames(stream)
        except PeerError as error:
            self._roster.protocol_errors += 1
            log.warning("client broke the protocol", extra={**self.fields(), "reason": heard(error)})
            self.connection.close(AppCode.PROTOCOL_ERROR, str(error)[:200])
        except (StreamError, ConnectionLost) as error:
            if not self.connection.is_closed:
                self.connection.close(AppCode.PROTOCOL_ERROR, f"the control stream ended: {error}")

    async def _read_frames(self, stream: Stream) -> None:
        while data := await stream.read(self._session.want()):
            frame = self._session.receive(data)
            if frame is not None:
                await self._received(stream, frame)
                await self._pace()
        raise PeerError("the control stream ended")

    async def _pace(self) -> None:
        now = time.monotonic()
        self._frames_paid = max(now, self._frames_paid) + FRAME_S
        if self._frames_paid - now > FRAME_BURST_S:
            await asyncio.sleep(self._frames_paid - now - FRAME_BURST_S)

    async def _received(self, stream: Stream, frame: Frame) -> None:
        if isinstance(frame, Register):
            await self._registering(stream, frame)
        elif isinstance(frame, Heartbeat):
            if self.row is not None:
                self.row.heard(frame)
            await stream.write(self._session.heard())
        elif isinstance(frame, Drain):
            if self.row is not None:
                self.row.drain()
            if not self.connection.is_closed:
                log.info("client is stopping", extra=self.fields())

    async def _registering(self, stream: Stream, register: Register) -> None:
        identity = self.connection.identity
        assert identity is not None, "streams come after connected()"
        admission = self._roster.admission((identity.principal, register.session))
        try:
            offers = registration.check(register, identity, self._roster.config, admission)
        except registration.Rejected as error:
            log.warning("client rejected", extra={**self.fields(), "reason": Reason(error.code, heard(error))})
            self._roster.rejected += 1
            await stream.write(self._session.reject(error.code, error.reason))
            stream.finish()
            self._close_later(AppCode.REJECTED, str(error))
            return
        if self._deadline is not None:
            self._deadline.cancel()
        self._register = register
        quic = self._roster.config.quic
        self.connection.raise_limits(1, quic.stream_window_bytes)
        self._lanes = self._roster.lanes_for(register.session)
        ack = registration.acknowledgement(
            self._roster.config, self._roster.server_id, self._roster.slot, self._lanes, offers
        )
        await stream.write(self._session.accept(ack))
        if self.connection.is_closed:
            return
        self.row = ClientRow(self.connection, register, self._roster, self.fields)
        self._roster.registered(self, self.row)
        log.info(
            "client registered",
            extra={
                **self.fields(),
                "services": ",".join(o.service for o in offers),
                "instance": heard(register.client_id),
                "version": heard(register.version),
                "handshake": handshake_of(self.connection),
            },
        )

    # --- what the roster tells ---

    def tell_lanes(self, suspect: tuple[int, ...]) -> None:
        """The workers changed: which lanes to hold now, and which have just died."""
        if self._register is None or not self._session.is_registered:
            return
        lanes = self._roster.lanes_for(self._register.session)
        if lanes != self._lanes or suspect:
            self._lanes = lanes
            self._tell(self._session.lanes(Lanes(self._roster.slot, lanes, suspect)))

    def drain(self, deadline_s: float, replace: bool) -> None:
        """Tell the client that no new work comes; with ``replace`` once it has registered another. Users that are
        here already, and wait, are still served: whether others come is decided where they are accepted.
        """
        if self._session.is_registered and not self.connection.is_closed:
            self._tell(self._session.drain(round(deadline_s * 1000), replace))

    def replace_by_newer(self) -> None:
        """The session registered again at this worker: this connection only finishes what it has."""
        self.drain(0.0, replace=False)
        if self.row is not None:
            self.row.replace()

    async def close_tasks(self) -> None:
        """End what runs for this connection."""
        await self._tasks.close()

    # --- small things ---

    def _task_failed(self, name: str, error: BaseException) -> None:
        """Without its control stream a connection is none: the client makes another."""
        self.connection.close(AppCode.GOING_AWAY, "internal error; the server's log has it")

    def _tell(self, data: bytes) -> None:
        assert self._control is not None, "registered on it"
        self._control.send(data)

    def _register_late(self) -> None:
        log.warning("client did not register in time", extra=self.fields())
        self.connection.close(AppCode.NOT_REGISTERED, "no registration within handshake_timeout")

    def _close_later(self, code: AppCode, reason: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(REJECT_GRACE_S, self.connection.close, code, reason)
