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
from qmux.quic.accepting import AcceptingEngine, NewUser
from qmux.quic.engine import Engine
from qmux.relay import sockets
from qmux.relay.counters import Counters
from qmux.relay.handoff import HandedUser, HandoffLink
from qmux.relay.surroundings import Begun, Opener, ServiceRuntime
from qmux.relay.user_connection import UserConnection
from qmux.tasks import TaskSet
from qmux.worker.server.offload import AcceptedUsers, EngineUsers
from qmux.worker.server.roster import Roster
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
        engine: Engine,
    ) -> None:
        self.slot = pool.slot
        self.pool = pool
        self.services: dict[str, ServiceRuntime] = {}
        self._roster = roster
        self._links = links
        self._signal = signal
        self._on_change = on_change
        self._tasks = tasks
        self._limit = limit
        self._served = 0
        self._active: defaultdict[str, int] = defaultdict(int)
        self._waiting: defaultdict[str, int] = defaultdict(int)
        first_conn_id = self.slot << 40
        self._numbers = itertools.count(first_conn_id)
        self.engine = EngineUsers()
        if isinstance(engine, AcceptingEngine):
            self.engine = AcceptedUsers(engine, self, pool, roster, first_conn_id, limit)
        self.counters = Counters(self.engine.counts)
        self.reconfigure(config)

    def reconfigure(self, config: ServerConfig) -> None:
        """Use another configuration for users from now on; what round-robin remembers stays where the policy does."""
        known, self.services = self.services, {}
        for name, service in config.services.items():
            runtime = self.services[name] = ServiceRuntime(service, self.slot)
            if name in known and known[name].config.balance == service.balance:
                runtime.selector = known[name].selector
        self.engine.reconfigure()

    # --- new users ---

    @property
    def count(self) -> int:
        """Users of this worker: in its tasks, and in the engine."""
        return self._served + self.engine.total

    def may_accept(self) -> bool:
        """Whether there are descriptors for another user."""
        return self.count < self._limit

    def accepted(self, service: str, user: socket.socket, address: object, bind_address: object) -> None:
        """A user was accepted on a bind of ``service``."""
        try:
            sockets.prepare(user)
        except OSError as error:
            log.debug("user connection closed before it was served", extra={"service": service, "reason": error})
            user.close()
            return
        dest = _destination(user, bind_address)
        self.came(NewUser(service, next(self._numbers), sockets.endpoint_text(address), dest), user)

    def came(self, new: NewUser, user: socket.socket) -> None:
        """A user is there, whose socket has its options."""
        runtime = self.services.get(new.service)
        if runtime is not None and not runtime.access.permits(sockets.host_of(new.source)):
            self._refused(new.service, new.conn_id, new.source, "denied", "")
            sockets.reset(user)
            return
        self._serve(user, _about(new))

    def handed(self, user: socket.socket, about: HandedUser) -> None:
        """Another worker handed a user over."""
        self._serve(user, about)

    def asked(self, new: NewUser, user: socket.socket, begun: Begun) -> None:
        """The engine gives up a user, whom it had admitted and asked a client for."""
        self._count(new.service, 1)
        if begun.opener is not None:
            begun.opener.user_came()
        self._serve(user, _about(new), begun)

    def gone(self, service: str, conn_id: int, source: str) -> None:
        """A user of the engine gave up while a client was asked."""
        self._refused(service, conn_id, source, "user_reset", "the user gave up while it waited")

    def _serve(self, user: socket.socket, about: HandedUser, begun: Begun | None = None) -> None:
        connection = UserConnection(self, user, about, time.monotonic(), begun)
        self._served += 1
        self.engine.set_others(self._served)
        task = self._tasks.start(connection.serve(), "user connection")
        task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._served -= 1
        self.engine.set_others(self._served)
        self._signal.fire()

    def _refused(self, service: str, conn_id: int, source: str, code: str, reason: str) -> None:
        self.counters.refused(service, code)
        fields = {"service": service, "source": source, "conn": f"{conn_id:x}"}
        log.warning("user connection refused", extra={**fields, "reason": f"{code}: {reason}" if reason else code})

    # --- what the engine's users need ---

    def waiting(self, service: str) -> int:
        """How many users of it wait."""
        return self._waiting[service]

    def workers(self) -> int:
        """How many workers take users."""
        return len(self._links) + 1

    def recount(self, service: str) -> None:
        """The engine has another number of users of it."""
        self.pool.set_active(service, self._active[service] + self.engine.of(service))

    # --- qmux.relay.surroundings.Surroundings ---

    def service(self, name: str) -> ServiceRuntime | None:
        """See ``Surroundings.service``."""
        return self.services.get(name)

    def opener(self, key: int) -> Opener | None:
        """See ``Surroundings.opener``."""
        client = self._roster.by_key(key)
        return None if client is None or client.connection.is_closed else client

    def admit(self, service: str) -> bool:
        """See ``Surroundings.admit``."""
        runtime = self.services.get(service)
        limit = runtime.config.maxconn if runtime is not None else None
        if limit is None:
            self._count(service, 1)
            return True
        self.engine.merge()
        if self.pool.active(service) >= limit:
            return False
        self._count(service, 1)
        self.engine.admitted(service)
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

    async def changed(self, service: str, timeout_s: float) -> None:
        """See ``Surroundings.changed``."""
        self._waits(service, 1)
        try:
            await self._signal.wait(timeout_s)
        finally:
            self._waits(service, -1)

    def _waits(self, service: str, change: int) -> None:
        before = self._waiting[service]
        self._waiting[service] = before + change
        if not before or before + change == 0:
            self.engine.wanted(service)

    def _count(self, service: str, change: int) -> None:
        self._active[service] += change
        self.counters[service].active = self._active[service]
        self.recount(service)
        self._on_change()


def _about(new: NewUser) -> HandedUser:
    return HandedUser(
        service=new.service,
        source=new.source,
        dest=new.dest,
        conn_id=new.conn_id,
        principal="",
        session=b"",
        hops=0,
        waited_ms=0,
    )


def _destination(user: socket.socket, bind_address: object) -> str:
    """The address that the user connected to: more exact than a bind of every address."""
    try:
        return sockets.endpoint_text(user.getsockname())
    except OSError:
        return sockets.endpoint_text(bind_address)
