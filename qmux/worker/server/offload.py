"""What the engine tells of the user connections that it accepts and serves alone, and those that it hands back."""

from __future__ import annotations

import logging
import socket

from typing_extensions import override

from qmux.heard import heard
from qmux.quic.accepting import Accepted, EngineAttempt, UserHandler
from qmux.quic.offload import OffloadEnd
from qmux.relay.attempt import AttemptResult, Outcome, refused
from qmux.relay.surroundings import StartedAttempt
from qmux.worker.server.plans import Plans
from qmux.worker.server.roster import Roster
from qmux.worker.server.user_connections import UserConnections

log = logging.getLogger(__name__)


class Offload(UserHandler):
    """Passes each to where it belongs: numbers to the plans, user connections to the tasks of this worker."""

    def __init__(self, users: UserConnections, plans: Plans, roster: Roster) -> None:
        self._users = users
        self._plans = plans
        self._roster = roster

    @override
    def unplanned(self, accepted: Accepted, sock: socket.socket) -> None:
        self._plans.used(accepted.service)
        self._users.begin(accepted, sock)
        self._plans.wanted(accepted.service)

    @override
    def handed_back(self, accepted: Accepted, sock: socket.socket, attempt: EngineAttempt) -> None:
        row = self._roster.by_connection(attempt.connection)
        session = row.session_key if row is not None else None
        failure = (
            AttemptResult(Outcome.LOST, heard(attempt.reason)) if attempt.refused is None else refused(attempt.refused)
        )
        self._users.resume(accepted, sock, StartedAttempt(session, row, attempt.began_at, failure, attempt.stream))

    @override
    def user_reset(self, service: str, conn_id: int, source: str) -> None:
        self._users.gave_up(service, conn_id, source)

    @override
    def relay_ended(self, ended: OffloadEnd) -> None:
        level = logging.DEBUG if ended.end.is_usual else logging.INFO
        fields = {"service": ended.service, "source": ended.source, "conn": f"{ended.conn_id:x}"}
        log.log(level, "user connection ended", extra={**fields, "reason": ended.end})

    @override
    def counts_changed(self) -> None:
        self._plans.changed()

    @override
    def plan_low(self, service: str) -> None:
        self._plans.wanted(service)

    @override
    def accept_paused(self, service: str, reason: str) -> None:
        log.warning("accept paused", extra={"service": service, "reason": reason})
