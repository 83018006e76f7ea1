"""How many user connections this worker has of each service, how many wait, and whether ``maxconn`` leaves a place."""

from __future__ import annotations

from collections import defaultdict

from qmux.pool.pool import Pool
from qmux.quic.accepting import Accepting
from qmux.quic.engine import Connection


class Ledger:
    """Counts what this worker's tasks serve, takes over what the engine counts of its own, and tells the pool the sum.

    ``limit``: how many user connections this worker may have, its descriptors allow no more.
    """

    def __init__(self, pool: Pool, accepting: Accepting, limit: int) -> None:
        self._pool = pool
        self._accepting = accepting
        self._limit = limit
        self._served = 0
        self._active: defaultdict[str, int] = defaultdict(int)
        self._offloaded: dict[str, int] = {}
        self._waiting: defaultdict[str, int] = defaultdict(int)

    # --- the worker's user connections, of all services ---

    @property
    def total(self) -> int:
        """User connections of this worker: in its tasks, waiting ones included, and in the engine."""
        return self._served + self._accepting.users

    def may_accept(self) -> bool:
        """Whether there are descriptors for another user connection."""
        return self.total < self._limit

    def served(self, change: int) -> None:
        """A task began (1) or ended (-1) to serve a user connection."""
        self._served += change
        self._accepting.set_other_users(self._served)

    # --- by service ---

    def active(self, service: str) -> int:
        """Those of ``service`` that this worker's tasks hold a place for."""
        return self._active[service]

    def admit(self, service: str, maxconn: int | None) -> bool:
        """Take a place, or False where ``maxconn`` is reached at all workers together, as far as this one knows.
        (``offloaded`` should be up to date.)
        """
        if maxconn is not None and self.places_left(service, maxconn) <= 0:
            return False
        self.admitted(service)
        return True

    def admitted(self, service: str) -> None:
        """Count a place that was given already: the engine had the user connection until now."""
        self._count(service, 1)

    def release(self, service: str) -> None:
        """A place is free."""
        self._count(service, -1)

    def offloaded(self, service: str, count: int) -> None:
        """The engine serves so many of ``service`` now."""
        self._offloaded[service] = count
        self._publish(service)

    def places_left(self, service: str, maxconn: int) -> int:
        """How many more ``maxconn`` allows at all workers together."""
        return maxconn - self._pool.active(service)

    def waiting(self, service: str) -> int:
        """User connections of ``service`` that wait for a place or a client."""
        return self._waiting[service]

    def wait(self, service: str, change: int) -> bool:
        """One begins (1) or stops (-1) to wait; whether it is the first, or was the last."""
        before = self._waiting[service]
        self._waiting[service] = before + change
        return not before or before + change == 0

    # --- by client connection ---

    def offloaded_on(self, connection: Connection) -> int:
        """Those that the engine serves on this client's connection."""
        return self._accepting.users_on(connection)

    def limit_on(self, connection: Connection, served: int, most: int) -> None:
        """This worker's tasks have ``served`` on that connection, of ``most`` that it may carry in all."""
        self._accepting.limit_users(connection, served, most)

    def _count(self, service: str, change: int) -> None:
        self._active[service] += change
        self._publish(service)

    def _publish(self, service: str) -> None:
        self._pool.set_active(service, self._active[service] + self._offloaded.get(service, 0))
