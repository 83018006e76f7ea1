"""Who gets the next user connections of each service, kept up to date for an engine that accepts alone."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Iterable, Mapping

from qmux.pool.planning import SINGLE_USERS, Planner, may_plan
from qmux.pool.pool import Pool
from qmux.quic.accepting import Accepting
from qmux.relay.surroundings import ServiceRuntime
from qmux.worker.server.ledger import Ledger
from qmux.worker.server.peers import PeerLinks
from qmux.worker.server.roster import Roster

TICK_S = 0.01
"""Numbers and plans follow what happens within this time, as other workers hear of it."""

REST = 4
"""Between two looks at least so many times what the last one took: however many sessions there are, planning leaves the
loop most of its time."""

HOT_S = 1.0
"""A service whose user connections came longer ago has no plan: it would be made again and again for none, and its next
one may well be decided when it is there."""


class Plans:
    """The plans of one worker, made again soon after something changed. Nothing where the engine does not accept.

    Each look takes over the engine's numbers first (``merge``): plans are made from the pool, which has them.
    """

    def __init__(self, accepting: Accepting, pool: Pool, roster: Roster, ledger: Ledger, peers: PeerLinks) -> None:
        self._accepting = accepting
        self._pool = pool
        self._roster = roster
        self._ledger = ledger
        self._peers = peers
        self._planners: dict[str, Planner] = {}
        self._services: Mapping[str, ServiceRuntime] = {}
        self._in_force: set[str] = set()
        self._used_at: dict[str, float] = {}
        self._wanted: set[str] = set()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._rest_until = 0.0
        self._is_looking = False
        self._is_closed = False
        pool.subscribe(self._pool_changed)

    def reconfigure(self, services: Mapping[str, ServiceRuntime]) -> None:
        """Plan for these services from now on; nothing that was planned is in force."""
        for name in list(self._in_force):
            self._void(name)
        self._services = services
        self._planners = {
            name: Planner(runtime.config, runtime.selector, self._pool.slot)
            for name, runtime in services.items()
            if may_plan(runtime.config)
        }
        for name, runtime in services.items():
            self._accepting.set_limits(name, runtime.limits)

    def close(self) -> None:
        """Plan no more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- when ---

    def used(self, service: str) -> None:
        """User connections of it come and go."""
        self._used_at[service] = time.monotonic()

    def wanted(self, service: str) -> None:
        """What may be planned for this service is another thing now: look soon."""
        self._wanted.add(service)
        self._look_in(0.0)

    def changed(self) -> None:
        """The engine has other numbers."""
        self._look_in(TICK_S)

    def merge(self) -> None:
        """Take the engine's numbers over into ledger and pool."""
        changes = self._accepting.changes()
        for connection, _ in changes.connections:
            if (row := self._roster.by_connection(connection)) is not None:
                row.recount()
        for service, count in changes.services:
            self.used(service)
            self._ledger.offloaded(service, count)

    def _pool_changed(self) -> None:
        if self._is_looking:
            return
        if self._pool.is_urgent:
            self._rest_until = 0.0
        self._look_in(0.0 if self._pool.is_urgent else TICK_S)

    def _look_in(self, delay_s: float) -> None:
        at = max(self._loop.time() + delay_s, self._rest_until)
        if self._is_closed or not self._accepting.accepts or (self._timer is not None and self._timer_at <= at):
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
            self.renew(services)
        finally:
            self._is_looking = False
        ended = self._loop.time()
        self._rest_until = ended + REST * (ended - started)

    # --- what ---

    def renew(self, services: Iterable[str]) -> None:
        """Plan for these services as the pool is now."""
        now = time.monotonic()
        for name in services:
            if now - self._used_at.get(name, -math.inf) > HOT_S:
                self._void(name)
            elif (planner := self._planners.get(name)) is not None:
                self._plan(name, planner, now)

    def _plan(self, name: str, planner: Planner, now: float) -> None:
        sessions = self._pool.sessions(name, now)
        unused = self._accepting.unused(name)
        grants = planner.plan(sessions, self._peers.takes_users, self._room, self._most(name), unused)
        if grants or name in self._in_force:
            rows = [(self._roster.by_key(grant.key), grant.count) for grant in grants]
            self._accepting.plan(name, [(row.connection, count) for row, count in rows if row is not None])
            self._in_force.add(name)

    def _void(self, name: str) -> None:
        if name in self._in_force:
            self._in_force.discard(name)
            self._planners[name].void(self._accepting.unused(name))
            self._accepting.plan(name, ())

    def _most(self, name: str) -> int:
        """Who waits is first, and each worker may plan for its share of what ``maxconn`` leaves."""
        if self._ledger.waiting(name):
            return 0
        maxconn = self._services[name].config.maxconn
        return SINGLE_USERS if maxconn is None else self._ledger.places_left(name, maxconn) // self._peers.workers

    def _room(self, key: int) -> int:
        row = self._roster.by_key(key)
        return 0 if row is None else self._roster.config.quic.max_streams - row.active
