"""Who gets the next users of each service, kept up to date for the engine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

from qmux.pool.planning import SINGLE_USERS, Planner, may_plan
from qmux.pool.pool import Pool
from qmux.quic.accepting import Accepting
from qmux.relay.surroundings import ServiceRuntime
from qmux.worker.server.roster import Roster

HOT_S = 1.0
"""A service whose users came longer ago has no plan: it would be made again and again for nobody, and its next user may
well be looked at in person."""


class Plans:
    """The plans of one worker. ``usable``: whether a worker may be handed users. ``waiting``: how many users of a
    service wait, who are first. ``workers``: how many there are, each of which may plan for its share of ``maxconn``.
    """

    def __init__(
        self,
        accepting: Accepting,
        pool: Pool,
        roster: Roster,
        usable: Callable[[int], bool],
        waiting: Callable[[str], int],
        workers: Callable[[], int],
    ) -> None:
        self._accepting = accepting
        self._pool = pool
        self._roster = roster
        self._usable = usable
        self._waiting = waiting
        self._workers = workers
        self._planners: dict[str, Planner] = {}
        self._services: Mapping[str, ServiceRuntime] = {}
        self._in_force: set[str] = set()
        self._used_at: dict[str, float] = {}

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

    def used(self, service: str, now: float) -> None:
        """Users of it come and go."""
        self._used_at[service] = now

    def renew(self, services: Iterable[str], now: float) -> None:
        """Plan anew for these services, as the pool is now."""
        for name in services:
            if now - self._used_at.get(name, -math.inf) > HOT_S:
                self._void(name)
            elif (planner := self._planners.get(name)) is not None:
                self._plan(name, planner, now)

    def _plan(self, name: str, planner: Planner, now: float) -> None:
        sessions = self._pool.sessions(name, now)
        unused = self._accepting.unused(name)
        grants = planner.plan(sessions, self._usable, self._room, self._most(name), unused)
        if grants or name in self._in_force:
            clients = [(self._roster.by_key(grant.key), grant.count) for grant in grants]
            self._accepting.plan(name, [(client.connection, count) for client, count in clients if client is not None])
            self._in_force.add(name)

    def _void(self, name: str) -> None:
        if name in self._in_force:
            self._in_force.discard(name)
            self._planners[name].void(self._accepting.unused(name))
            self._accepting.plan(name, ())

    def _most(self, name: str) -> int:
        if self._waiting(name):
            return 0
        maxconn = self._services[name].config.maxconn
        return SINGLE_USERS if maxconn is None else (maxconn - self._pool.active(name)) // self._workers()

    def _room(self, key: int) -> int:
        client = self._roster.by_key(key)
        return 0 if client is None else self._roster.config.quic.max_streams - client.active
