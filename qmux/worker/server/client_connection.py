"""A client's connection at a server: from its first packet to its registration, its row in the pool, and its end."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING

from qmux.errors import PeerError
from qmux.pool.candidates import SessionKey
from qmux.pool.rows import Row, RowState
from qmux.protocol.frames import AppCode, Drain, Frame, Heartbeat, Lanes, Register, StreamType
from qmux.protocol.sessions import ServerSession
from qmux.quic.engine import CloseKind, CloseReason, Connection, ConnectionLost, Stream, StreamError, handshake_of
from qmux.relay.frames import read_stream_type
from qmux.tasks import TaskSet
from qmux.worker.server import registration
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

MAX_UNSENT = 64
"""Frames that wait for a client that does not read its control stream."""

MIN_SUSPECT_S = 0.6
"""Data unanswered for max(3 PTO, this): above a delayed ACK and a scheduling pause, far below the idle timeout."""

_QUIET = (CloseKind.LOCAL, CloseKind.APPLICATION, CloseKind.TIMEOUT)


class ClientConnection:
    """Implements ``qmux.quic.engine.ConnectionHandler`` for a connection at a server."""

    def __init__(self, connection: Connection, roster: Roster) -> None:
        self.connection = connection
        self.key = 0  # of the row; 0: not registered
        self.session_key: SessionKey | None = None
        self.replaced = False
        self._roster = roster
        self._users = 0  # whom this worker's tasks serve
        self._register: Register | None = None
        self._session = ServerSession(0.0)
        self._control: Stream | None = None
        self._lanes: tuple[int, ...] = ()
        self._tasks = TaskSet()
        self._deadline: asyncio.TimerHandle | None = None
        self._frames_paid = 0.0

    # --- what the engine tells ---

    def connected(self) -> None:
        """See ``ConnectionHandler``: nobody until a Register is accepted."""
        wait_s = self._roster.config.quic.handshake_timeout_s
        self._deadline = asyncio.get_running_loop().call_later(wait_s, self._register_late)

    def stream_opened(self, stream: Stream) -> None:
        """See ``ConnectionHandler``."""
        self._tasks.start(self._serve(stream), f"control of connection {self.connection.number}")

    def datagram_received(self, data: bytes) -> None:
        """See ``ConnectionHandler``: there is no datagram type in this version."""

    def closed(self, reason: CloseReason) -> None:
        """See ``ConnectionHandler``."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._roster.gone(self)
        if self.key or reason.kind not in _QUIET:
            level = logging.INFO if self.key or reason.kind is CloseKind.IDLE else logging.WARNING
            if self.key:
                log.log(level, "client disconnected", extra={**self.fields(), "reason": reason})
            else:
                log.log(level, "client could not connect", extra={**self.fields(), "reason": of_client(reason)})

    def fields(self) -> dict[str, object]:
        """What a log line says of this connection."""
        identity = self.connection.identity
        host, port = self.connection.peer_address
        return {
            "client": identity.principal if identity is not None else "unknown",
            "connection": self.connection.number,
            "address": f"[{host}]:{port}" if ":" in host else f"{host}:{port}",
        }

    # --- the control stream ---

    async def _serve(self, stream: Stream) -> None:
        try:
            if await read_stream_type(stream) != StreamType.CONTROL:
                stream.abort(AppCode.UNKNOWN_STREAM_TYPE)
                return
            if self._control is not None:
                raise PeerError("a second control stream")
            self._control = stream
            stream.set_priority(1)
            await self._read_frames(stream)
        except PeerError as error:
            self._roster.protocol_errors += 1
            log.warning("client broke the protocol", extra={**self.fields(), "reason": error})
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
            self._roster.pool.update(
                self.key,
                active_total=frame.active_total,
                active_here=frame.active_here,
                active_at_ms=_wall_ms(),
            )
            await stream.write(self._session.heard())
        elif isinstance(frame, Drain):
            self._set_state("draining")
            if not self.connection.is_closed:
                log.info("client is stopping", extra=self.fields())

    async def _registering(self, stream: Stream, register: Register) -> None:
        identity = self.connection.identity
        assert identity is not None, "streams come after connected()"
        self.session_key = (identity.principal, register.session)
        try:
            offers = registration.check(
                register, identity, self._roster.config, self._roster.admission(self.session_key)
            )
        except registration.Rejected as error:
            log.warning("client rejected", extra={**self.fields(), "reason": error})
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
        self._roster.registered(self, self._row(register, identity.principal, identity.tenant, identity.not_after))
        log.info(
            "client registered",
            extra={
                **self.fields(),
                "services": ",".join(o.service for o in offers),
                "instance": register.client_id,
                "version": register.version,
                "handshake": handshake_of(self.connection),
            },
        )

    def _row(self, register: Register, principal: str, tenant: str, not_after: int) -> Row:
        self.key = self._roster.next_key()
        now_ms = _wall_ms()
        return Row(
            key=self.key,
            tenant=tenant,
            principal=principal,
            session=register.session,
            instance=register.client_id,
            offers=registration.offers_of(register.services, self._roster.config),
            state="ready",
            active=0,
            active_total=0,
            active_here=0,
            active_at_ms=0,
            address=str(self.fields()["address"]),
            rtt_ms=round(self.connection.stats().rtt_s * 1000, 2),
            connected_at_ms=now_ms,
            not_after=not_after,
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
        self.replaced = True
        self.drain(0.0, replace=False)
        self._set_state("draining")

    def offers_changed(self) -> None:
        """The server's services changed by a reload."""
        if self._register is not None:
            offers = registration.offers_of(self._register.services, self._roster.config)
            row = self._roster.pool.own(self.key)
            if row is not None and row.offers != offers:
                self._roster.pool.update(self.key, offers=offers)

    def has_room(self) -> bool:
        """Whether it has fewer users than ``max_streams``. (A client's own limit begins at 64, so it is not enough.)"""
        return self.active < self._roster.config.quic.max_streams

    @property
    def active(self) -> int:
        """Users on this connection, those included whom the engine serves alone."""
        return self._users + self._roster.ledger.offloaded_on(self.connection)

    def user_added(self) -> None:
        """A user connection begins on this connection."""
        self._change_users(1)

    def user_removed(self) -> None:
        """A user connection on this connection ended."""
        self._change_users(-1)

    def _change_users(self, change: int) -> None:
        self._users += change
        self.limit_users()
        self.recount()

    def limit_users(self) -> None:
        """The engine serves users up to the limit of the connection, those of this worker's tasks included."""
        self._roster.ledger.limit_on(self.connection, self._users, self._roster.config.quic.max_streams)

    def recount(self) -> None:
        """The number of users changed."""
        self._roster.pool.update(self.key, active=self.active)

    def suspect(self) -> None:
        """An attempt was not answered."""
        self._set_state("suspect")

    def sweep(self, now: float) -> None:
        """Called some times a second: suspect or not, and the end of a replaced connection."""
        row = self._roster.pool.own(self.key)
        if row is None:
            return
        if self.replaced and not self.active:
            self.connection.close(AppCode.REPLACED, "a newer connection of this session is registered")
            return
        silent_s = now - self.connection.last_received_at
        if row.state == "ready" and self.connection.ack_eliciting_outstanding:
            if silent_s > max(3 * self.connection.stats().pto_s, MIN_SUSPECT_S):
                self._set_state("suspect")
        elif row.state == "suspect" and silent_s < MIN_SUSPECT_S:
            self._set_state("ready")

    def measure(self) -> None:
        """Called once a second: round-trip time and datagram size for the row, where they changed visibly."""
        row = self._roster.pool.own(self.key)
        stats = self.connection.stats()
        rtt_ms = round(stats.rtt_s * 1000, 2)
        if row is None:
            return
        if abs(rtt_ms - row.rtt_ms) > max(0.5, row.rtt_ms / 5) or stats.mtu_bytes != row.mtu_bytes:
            self._roster.pool.update(self.key, rtt_ms=rtt_ms, mtu_bytes=stats.mtu_bytes)

    async def close_tasks(self) -> None:
        """End what runs for this connection."""
        await self._tasks.close()

    # --- small things ---

    def _set_state(self, state: RowState) -> None:
        row = self._roster.pool.own(self.key)
        if row is not None and row.state not in (state, "draining"):
            self._roster.pool.update(self.key, state=state)
            if state != "draining":
                log.info(f"client is {state}", extra=self.fields())

    def _tell(self, data: bytes) -> None:
        assert self._control is not None, "registered on it"
        if len(self._tasks) > MAX_UNSENT:
            self.connection.close(AppCode.PROTOCOL_ERROR, "the control stream is not read")
            return
        self._tasks.start(self._write(self._control, data), f"control frame to connection {self.connection.number}")

    async def _write(self, stream: Stream, data: bytes) -> None:
        try:
            await stream.write(data)
        except (StreamError, ConnectionLost):
            pass  # the connection's end is told by ``closed``

    def _register_late(self) -> None:
        log.warning("client did not register in time", extra=self.fields())
        self.connection.close(AppCode.NOT_REGISTERED, "no registration within handshake_timeout")

    def _close_later(self, code: AppCode, reason: str) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(REJECT_GRACE_S, self.connection.close, code, reason)


def _wall_ms() -> int:
    return round(time.time() * 1000)
