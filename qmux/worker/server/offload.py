"""The users whom the engine accepts and serves alone: their numbers here, their plans there, and who is left over."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from typing import TYPE_CHECKING

from qmux.pool.pool import Pool
from qmux.quic.accepting import Accepting, AcceptingEngine, EngineAttempt, NewUser
from qmux.quic.engine import Connection, RelayEnd
from qmux.quic.offload import OffloadCounts, OffloadEnd
from qmux.relay.attempt import AttemptResult, Outcome, refused
from qmux.relay.surroundings import StartedAttempt
from qmux.worker.server.plans import Plans
from qmux.worker.server.roster import Roster

if TYPE_CHECKING:
    from qmux.worker.server.user_connections import Users

log = logging.getLogger(__name__)

TICK_S = 0.01
"""Numbers and plans follow what happens within this time, as other workers hear of it."""

REST = 4
"""Between two looks at least so many times what the last one took: however many sessions there are, planning leaves the
loop most of its time."""

_USUAL = (RelayEnd.FINISHED, RelayEnd.SOCKET_RESET, RelayEnd.STREAM_RESET)


class EngineUsers:
    """Nobody: for an engine that accepts no users."""

    accepting: Accepting | None = None

    @property
    def total(self) -> int:
        """Users whom the engine serves now."""
        return 0

    def of(self, service: str) -> int:
        """Users of one service, when ``merge`` was called last."""
        return 0

    def merge(self) -> None:
        """Bring the pool up to date."""

    def set_others(self, count: int) -> None:
        """How many users this worker's tasks serve."""

    def counts(self) -> dict[str, OffloadCounts]:
        """By service, since the start."""
        return {}

    def reconfigure(self) -> None:
        """Another configuration is in force."""

    def wanted(self, service: str) -> None:
        """What may be planned for this service is another thing now: look soon."""

    def admitted(self, service: str) -> None:
        """A user has got a place in a service of which ``maxconn`` is limited: plan for one less, at once."""

    def pool_changed(self) -> None:
        """Rows or counts changed."""

    def close(self) -> None:
        """End every user."""


class AcceptedUsers(EngineUsers):
    """Implements ``qmux.quic.accepting.UserHandler``."""

    def __init__(
        self, engine: AcceptingEngine, users: Users, pool: Pool, roster: Roster, first_conn_id: int, limit: int
    ) -> None:
        self.accepting: Accepting = engine.accepting(self, first_conn_id, limit)
        self._users = users
        self._pool = pool
        self._roster = roster
        self._plans = Plans(self.accepting, pool, roster, users.takes_users, users.waiting, users.workers)
        self._of: dict[str, int] = {}
        self._wanted: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._rest_until = 0.0
        self._is_looking = False
        self._is_closed = False
        roster.engine_users_on = self._on
        roster.limit_engine_users = self.accepting.limit_users

    @property
    def total(self) -> int:
        """See ``EngineUsers.total``."""
        return self.accepting.users

    def of(self, service: str) -> int:
        """See ``EngineUsers.of``."""
        return self._of.get(service, 0)

    def set_others(self, count: int) -> None:
        """See ``EngineUsers.set_others``."""
        self.accepting.set_other_users(count)

    def counts(self) -> dict[str, OffloadCounts]:
        """See ``EngineUsers.counts``."""
        self.accepting.tell_usual_ends(log.isEnabledFor(logging.DEBUG))  # a reload may have changed the level
        return self.accepting.counts()

    def reconfigure(self) -> None:
        """See ``EngineUsers.reconfigure``."""
        self._plans.reconfigure(self._users.services)

    def close(self) -> None:
        """See ``EngineUsers.close``."""
        self._is_closed = True
        self.accepting.close()
        if self._timer is not None:
            self._timer.cancel()

    # --- numbers and plans ---

    def merge(self) -> None:
        """See ``EngineUsers.merge``."""
        now = time.monotonic()
        changes = self.accepting.changes()
        for connection, _ in changes.connections:
            if (client := self._roster.by_connection(connection)) is not None:
                client.recount()
        for service, count in changes.services:
            self._of[service] = count
            self._plans.used(service, now)
            self._users.recount(service)

    def wanted(self, service: str) -> None:
        """See ``EngineUsers.wanted``."""
        self._wanted.add(service)
        self._look_in(0.0)

    def admitted(self, service: str) -> None:
        """See ``EngineUsers.admitted``."""
        self._plans.renew((service,), time.monotonic())

    def pool_changed(self) -> None:
        """See ``EngineUsers.pool_changed``."""
        if self._is_looking:
            return
        if self._pool.is_urgent:
            self._rest_until = 0.0
        self._look_in(0.0 if self._pool.is_urgent else TICK_S)

    def _look_in(self, delay_s: float) -> None:
        at = max(self._loop.time() + delay_s, self._rest_until)
        if self._is_closed or (self._timer is not None and self._timer_at <= at):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(at, self._look), at

    def _look(self) -> None:
        self._timer = None
        started = self._loop.time()
        self._is_looking = True
        try:
            self.merge()
            services, self._wanted = self._pool.take_touched() | self._wanted, set()
            self._plans.renew(services, time.monotonic())
        finally:
            self._is_looking = False
        ended = self._loop.time()
        self._rest_until = ended + REST * (ended - started)

    def _on(self, connection: Connection) -> int:
        return self.accepting.users_on(connection)

    # --- qmux.quic.accepting.UserHandler ---

    def unplanned(self, user: NewUser, sock: socket.socket) -> None:
        """See ``UserHandler``."""
        self._plans.used(user.service, time.monotonic())
        self._users.came(user, sock)
        self.wanted(user.service)

    def handed_back(self, user: NewUser, sock: socket.socket, asked: EngineAttempt) -> None:
        """See ``UserHandler``."""
        client = self._roster.by_connection(asked.connection)
        session = client.session_key if client is not None else None
        failure = AttemptResult(Outcome.LOST, asked.reason) if asked.refused is None else refused(asked.refused)
        self._users.asked(user, sock, StartedAttempt(session, client, asked.began_at, failure, asked.stream))

    def user_reset(self, service: str, conn_id: int, source: str) -> None:
        """See ``UserHandler``."""
        self._users.gone(service, conn_id, source)

    def relay_ended(self, user: OffloadEnd) -> None:
        """See ``UserHandler``."""
        level = logging.DEBUG if user.end in _USUAL else logging.INFO
        fields = {"service": user.service, "source": user.source, "conn": f"{user.conn_id:x}"}
        log.log(level, "user connection ended", extra={**fields, "reason": user.end.value})

    def counts_changed(self) -> None:
        """See ``UserHandler``."""
        self._look_in(TICK_S)

    def plan_low(self, service: str) -> None:
        """See ``UserHandler``."""
        self.wanted(service)

    def accept_paused(self, service: str, reason: str) -> None:
        """See ``UserHandler``."""
        log.warning("not accepting for a moment", extra={"service": service, "reason": reason})
