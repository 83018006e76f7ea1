"""The user connections that this worker's tasks serve: accepted here, handed back by the engine, or handed over."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
import time

from typing_extensions import override

from qmux import addresses, sockets
from qmux.config.schema import ServerConfig
from qmux.log import Reason
from qmux.pool.pool import Pool
from qmux.quic.accepting import Accepted, Accepting
from qmux.quic.offload import OffloadCounts
from qmux.relay.counters import Counters
from qmux.relay.handoff import Handoff
from qmux.relay.surroundings import Carrier, ServiceRuntime, StartedAttempt, Surroundings
from qmux.relay.user_connection import UserConnection
from qmux.tasks import TaskSet
from qmux.worker.server.ledger import Ledger
from qmux.worker.server.peers import PeerLinks
from qmux.worker.server.plans import Plans
from qmux.worker.server.roster import Roster
from qmux.worker.signal import ChangeSignal

log = logging.getLogger(__name__)


class UserConnections(Surroundings):
    """Starts a task for each, and offers it what it needs of this worker."""

    def __init__(
        self,
        config: ServerConfig,
        pool: Pool,
        roster: Roster,
        ledger: Ledger,
        plans: Plans,
        peers: PeerLinks,
        signal: ChangeSignal,
        tasks: TaskSet,
        accepting: Accepting,
    ) -> None:
        self.slot = pool.slot
        self.pool = pool
        self.counters = Counters(self._offload_counts)
        self._services: dict[str, ServiceRuntime] = {}
        self._roster = roster
        self._ledger = ledger
        self._plans = plans
        self._peers = peers
        self._signal = signal
        self._tasks = tasks
        self._accepting = accepting
        self._numbers = itertools.count(first_conn_id(self.slot))
        self.reconfigure(config)

    def reconfigure(self, config: ServerConfig) -> None:
        """Use another configuration from now on; what round-robin remembers stays where the policy does."""
        known, self._services = self._services, {}
        for name, service in config.services.items():
            runtime = self._services[name] = ServiceRuntime(service, self.slot)
            if name in known and known[name].config.balance == service.balance:
                runtime.selector = known[name].selector
        self._plans.reconfigure(self._services)

    # --- new ones ---

    def accept(self, service: str, user: socket.socket, address: object, bind_address: object) -> None:
        """A connection was accepted on a bind of ``service``."""
        try:
            sockets.prepare(user)
        except OSError as error:
            log.debug("user connection closed before it was served", extra={"service": service, "reason": error})
            user.close()
            return
        dest = _destination(user, bind_address)
        self.begin(Accepted(service, next(self._numbers), addresses.text_of(address), dest), user)

    def begin(self, accepted: Accepted, user: socket.socket) -> None:
        """Serve a connection from its beginning; its socket has its options."""
        runtime = self._services.get(accepted.service)
        if runtime is not None and not runtime.access.permits(addresses.split(accepted.source)[0]):
            self._refused(accepted.service, accepted.conn_id, accepted.source, "denied", "")
            sockets.reset(user)
            return
        self._serve(user, _about(accepted))

    def take_over(self, user: socket.socket, about: Handoff) -> None:
        """Another worker handed a connection over."""
        self._serve(user, about)

    def resume(self, accepted: Accepted, user: socket.socket, started: StartedAttempt) -> None:
        """The engine hands back a connection that it had admitted, and for which it had asked a client."""
        self._ledger.admitted(accepted.service)
        self._counted(accepted.service)
        if started.carrier is not None:
            started.carrier.user_added()
        self._serve(user, _about(accepted), started)

    def gave_up(self, service: str, conn_id: int, source: str) -> None:
        """A user reset its connection while the engine asked a client."""
        self._refused(service, conn_id, source, "user_reset", "the user gave up while it waited")

    def _serve(self, user: socket.socket, about: Handoff, started: StartedAttempt | None = None) -> None:
        connection = UserConnection(self, user, about, time.monotonic(), started)
        self._ledger.served(1)
        task = self._tasks.start(connection.serve(), "user connection")
        task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._ledger.served(-1)
        self._signal.fire()

    def _refused(self, service: str, conn_id: int, source: str, code: str, reason: str) -> None:
        self.counters.refused(service, code)
        fields = {"service": service, "source": source, "conn": f"{conn_id:x}"}
        log.warning(
            "user connection refused", extra={**fields, "reason": Reason(code, f"{code}: {reason}" if reason else code)}
        )

    def _counted(self, service: str) -> None:
        self.counters[service].active = self._ledger.active(service)

    def _offload_counts(self) -> dict[str, OffloadCounts]:
        self._accepting.tell_usual_ends(log.isEnabledFor(logging.DEBUG))  # a reload may have changed the level
        return self._accepting.counts()

    # --- what each of them needs ---

    @override
    def service(self, name: str) -> ServiceRuntime | None:
        return self._services.get(name)

    @override
    def carrier(self, key: int) -> Carrier | None:
        row = self._roster.by_key(key)
        return None if row is None or row.connection.is_closed else row

    @override
    def admit(self, service: str) -> bool:
        runtime = self._services.get(service)
        maxconn = runtime.config.maxconn if runtime is not None else None
        if maxconn is not None:
            self._plans.merge()
        if not self._ledger.admit(service, maxconn):
            return False
        self._counted(service)
        if maxconn is not None:
            self._plans.renew((service,))  # for one less, at once
        return True

    @override
    def release(self, service: str) -> None:
        self._ledger.release(service)
        self._counted(service)

    @override
    def hand_over(self, slot: int, user: socket.socket, about: Handoff) -> bool:
        return self._peers.hand_over(slot, user, about)

    @override
    def takes_users(self, slot: int) -> bool:
        return self._peers.takes_users(slot)

    @override
    async def changed(self, service: str, timeout_s: float) -> None:
        self._waits(service, 1)
        try:
            await self._signal.wait(timeout_s)
        finally:
            self._waits(service, -1)

    def _waits(self, service: str, change: int) -> None:
        if self._ledger.wait(service, change):
            self._plans.wanted(service)  # none while one waits: it is first


def first_conn_id(slot: int) -> int:
    """Where the worker of ``slot`` begins to number its user connections, so that no two workers use a number."""
    return slot << 40


def _about(accepted: Accepted) -> Handoff:
    return Handoff(
        service=accepted.service,
        source=accepted.source,
        dest=accepted.dest,
        conn_id=accepted.conn_id,
        principal="",
        session=b"",
        hops=0,
        waited_ms=0,
    )


def _destination(user: socket.socket, bind_address: object) -> str:
    """The address that the user connected to: more exact than a bind of every address."""
    try:
        return addresses.text_of(user.getsockname())
    except OSError:
        return addresses.text_of(bind_address)
