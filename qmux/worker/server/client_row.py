"""A registered client connection as the pool and user connections see it: its row, its users, whether it answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from typing_extensions import override

from qmux import addresses
from qmux.heard import heard
from qmux.pool.candidates import SessionKey
from qmux.pool.rows import Row, RowState
from qmux.protocol.frames import AppCode, Heartbeat, Register
from qmux.quic.engine import Connection
from qmux.relay.surroundings import Carrier
from qmux.worker.server import registration

if TYPE_CHECKING:
    from qmux.worker.server.roster import Roster

log = logging.getLogger(__name__)

MIN_SUSPECT_S = 0.6
"""Data unanswered for max(3 PTO, this): above a delayed ACK and a scheduling pause, far below the idle timeout."""


class ClientRow(Carrier):
    """Keeps the row ``key`` up to date from the registration on. ``log_fields``: what a log line says of the client."""

    def __init__(
        self, connection: Connection, register: Register, roster: Roster, log_fields: Callable[[], dict[str, object]]
    ) -> None:
        identity = connection.identity
        assert identity is not None, "streams come after connected()"
        self.key = roster.next_key()
        self.session_key: SessionKey = (identity.principal, register.session)
        self.replaced = False
        self._connection = connection
        self._offered = register.services
        self._roster = roster
        self._log_fields = log_fields
        self._users = 0  # served by this worker's tasks
        self.first = Row(
            key=self.key,
            tenant=identity.tenant,
            principal=identity.principal,
            session=register.session,
            instance=heard(register.client_id),
            offers=registration.offers_of(register.services, roster.config),
            state="ready",
            active=0,
            active_total=0,
            active_here=0,
            active_at_ms=0,
            address=self._address(),
            rtt_ms=round(connection.stats().rtt_s * 1000, 2),
            connected_at_ms=_wall_ms(),
            not_after=identity.not_after,
        )
        """What the pool begins with."""

    # --- user connections ---

    @property
    @override
    def connection(self) -> Connection:
        return self._connection

    @override
    def has_room(self) -> bool:
        # (A client's own limit begins at 64, so it is not enough.)
        return self.active < self._roster.config.quic.max_streams

    @property
    def active(self) -> int:
        """User connections on this connection, those included that the engine serves alone."""
        return self._users + self._roster.ledger.offloaded_on(self.connection)

    @override
    def user_added(self) -> None:
        self._change_users(1)

    @override
    def user_removed(self) -> None:
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

    # --- what the client tells ---

    def heard(self, heartbeat: Heartbeat) -> None:
        """How many user connections the client's session has elsewhere."""
        self._roster.pool.update(
            self.key,
            active_total=heartbeat.active_total,
            active_here=heartbeat.active_here,
            active_at_ms=_wall_ms(),
        )

    def drain(self) -> None:
        """No new user connection comes on it."""
        self._set_state("draining")

    def replace(self) -> None:
        """A newer connection of the session is registered: this one ends with its last user connection."""
        self.replaced = True
        self.drain()

    # --- what changes by itself ---

    def offers_changed(self) -> None:
        """The server's services changed by a reload."""
        offers = registration.offers_of(self._offered, self._roster.config)
        row = self._roster.pool.own(self.key)
        if row is not None and row.offers != offers:
            self._roster.pool.update(self.key, offers=offers)

    @override
    def suspect(self) -> None:
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
        """Called once a second: round-trip time, datagram size and where packets come from now (RFC 9000 §9.3), for the
        row, where they changed visibly.
        """
        row = self._roster.pool.own(self.key)
        stats = self.connection.stats()
        rtt_ms = round(stats.rtt_s * 1000, 2)
        if row is None:
            return
        address = self._address()
        is_other = address != row.address or stats.mtu_bytes != row.mtu_bytes
        if is_other or abs(rtt_ms - row.rtt_ms) > max(0.5, row.rtt_ms / 5):
            self._roster.pool.update(self.key, rtt_ms=rtt_ms, mtu_bytes=stats.mtu_bytes, address=address)

    def _address(self) -> str:
        """Where its packets come from now."""
        return addresses.join(*self._connection.peer_address)

    def _set_state(self, state: RowState) -> None:
        row = self._roster.pool.own(self.key)
        if row is not None and row.state not in (state, "draining"):
            self._roster.pool.update(self.key, state=state)
            if state != "draining":
                log.info(f"client is {state}", extra=self._log_fields())


def _wall_ms() -> int:
    return round(time.time() * 1000)
