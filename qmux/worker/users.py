"""The users of one worker: accepted here or handed over, counted, and served as tasks."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time
from collections import defaultdict
from collections.abc import Callable

from qmux.config.schema import ServerConfig
from qmux.pool.pool import Pool
from qmux.relay import sockets
from qmux.relay.counters import Counters
from qmux.relay.handoff import HandedUser, HandoffLink
from qmux.relay.surroundings import Opener, ServiceRuntime
from qmux.relay.users import UserConnection
from qmux.tasks import TaskSet
from qmux.worker.roster import Roster
from qmux.worker.signal import ChangeSignal

log = logging.getLogger(__name__)


class Users:
    """Implements ``qmux.relay.surroundings.Surroundings``."""

    def __init__(
        self,
        config: ServerConfig,
        pool: Pool,
        roster: Roster,
        links: dict[int, HandoffLink],
        signal: ChangeSignal,
        on_change: Callable[[], None],
        tasks: TaskSet,
        limit: int,
    ) -> None:
        self.slot = pool.slot
        self.pool = pool
        self.counters = Counters()
        self.count = 0
        self._roster = roster
        self._links = links
        self._signal = signal
        self._on_change = on_change
        self._tasks = tasks
        self._limit = limit
        self._active: defaultdict[str, int] = defaultdict(int)
        self._numbers = itertools.count(1)
        self._services: dict[str, ServiceRuntime] = {}
        self.reconfigure(config)

    def reconfigure(self, config: ServerConfig) -> None:
        """Use another configuration for users from now on; what round-robin remembers stays where the policy does."""
        for name in list(self._services):
            if name not in config.services:
                del self._services[name]
        for name, service in config.services.items():
            known = self._services.get(name)
            runtime = ServiceRuntime(service, self.slot)
            if known is not None and known.config.balance == service.balance:
                runtime.selector = known.selector
            self._services[name] = runtime

    # --- new users ---

    def may_accept(self) -> bool:
        """Whether there are descriptors for another user."""
        return self.count < self._limit

    def accepted(self, service: str, user: socket.socket, address: object, bind_address: object) -> None:
        """A user was accepted on a bind of ``service``."""
        source = sockets.endpoint_text(address)
        runtime = self._services.get(service)
        if runtime is not None and not runtime.access.permits(_host_of(address)):
            self.counters.refused(service, "denied")
            log.warning("user connection refused", extra={"service": service, "source": source, "reason": "denied"})
            sockets.reset(user)
            return
        about = HandedUser(
            service=service,
            source=source,
            dest=_destination(user, bind_address),
            conn_id=(self.slot << 40) | next(self._numbers),
            principal="",
            session=b"",
            hops=0,
            waited_ms=0,
        )
        self._serve(user, about)

    def handed(self, user: socket.socket, about: HandedUser) -> None:
        """Another worker handed a user over."""
        self._serve(user, about)

    def _serve(self, user: socket.socket, about: HandedUser) -> None:
        try:
            sockets.prepare(user)
        except OSError as error:  # the user is already gone
            log.debug("user left at once", extra={"service": about.service, "reason": error})
            user.close()
            return
        connection = UserConnection(self, user, about, time.monotonic())
        self.count += 1
        task = self._tasks.start(connection.serve(), "user connection")
        task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self.count -= 1
        self._signal.fire()

    # --- qmux.relay.surroundings.Surroundings ---

    def service(self, name: str) -> ServiceRuntime | None:
        """See ``Surroundings.service``."""
        return self._services.get(name)

    def opener(self, key: int) -> Opener | None:
        """See ``Surroundings.opener``."""
        client = self._roster.by_key(key)
        return None if client is None or client.connection.is_closed else client

    def admit(self, service: str) -> bool:
        """See ``Surroundings.admit``."""
        runtime = self._services.get(service)
        limit = runtime.config.maxconn if runtime is not None else None
        if limit is not None and self.pool.active(service) >= limit:
            return False
        self._count(service, 1)
        return True

    def release(self, service: str) -> None:
        """See ``Surroundings.release``."""
        self._count(service, -1)

    def hand_over(self, slot: int, user: socket.socket, about: HandedUser) -> bool:
        """See ``Surroundings.hand_over``."""
        link = self._links.get(slot)
        return link is not None and link.send(user, about)

    def takes_users(self, slot: int) -> bool:
        """See ``Surroundings.takes_users``."""
        return slot in self._links and not self.pool.is_late(slot, time.monotonic())

    async def changed(self, timeout_s: float) -> None:
        """See ``Surroundings.changed``."""
        await self._signal.wait(timeout_s)

    def _count(self, service: str, change: int) -> None:
        self._active[service] += change
        self.counters[service].active = self._active[service]
        self.pool.set_active(service, self._active[service])
        self._on_change()


def _host_of(address: object) -> str:
    return str(address[0]) if isinstance(address, tuple) else ""


def _destination(user: socket.socket, bind_address: object) -> str:
    """The address that the user connected to: more exact than a bind of every address."""
    try:
        return sockets.endpoint_text(user.getsockname())
    except OSError:
        return sockets.endpoint_text(bind_address)
