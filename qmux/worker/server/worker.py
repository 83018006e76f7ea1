"""The server's side of a worker: one endpoint, its share of the traffic binds, and what ties them together."""

from __future__ import annotations

import logging
import resource
import socket
import time

import msgspec
from msgspec.structs import asdict
from typing_extensions import override

from qmux.addresses import text_of
from qmux.child import Child
from qmux.config.schema import ServerConfig
from qmux.messages import (
    Accept,
    AddBind,
    Configure,
    Done,
    Down,
    Drain,
    Peers,
    Ready,
    ReadyFacts,
    RemoveBind,
    Stop,
    StopAccepting,
)
from qmux.pool.pool import Pool
from qmux.pool.rows import EndpointReport, FailedBind, WorkerReport
from qmux.protocol.frames import AppCode
from qmux.quic.accepting import accepting_of
from qmux.quic.choose import load_engine
from qmux.quic.engine import Acceptor, EndpointConfig
from qmux.quic.trial import try_material
from qmux.relay.handoff import HandoffLink
from qmux.tasks import TaskSet, only_logged
from qmux.worker.publishing import Publishing, worker_report
from qmux.worker.server.ledger import Ledger
from qmux.worker.server.listeners import Listeners
from qmux.worker.server.offload import Offload
from qmux.worker.server.peers import PeerLinks
from qmux.worker.server.plans import Plans
from qmux.worker.server.roster import Roster
from qmux.worker.server.user_connections import UserConnections, first_conn_id
from qmux.worker.signal import ChangeSignal
from qmux.worker.worker import Worker

log = logging.getLogger(__name__)

RESERVED_FDS = 64
"""Descriptors kept for what is not a user: the control channel, the bus, binds, hand-off pairs, a file to read."""


class ServerWorker(Worker):
    """Raises QmuxError where it cannot start."""

    def __init__(self, child: Child, message: Configure) -> None:
        self._child = child
        self._config = _config_of(message)
        self._slot = message.slot
        self._epoch = message.epoch
        self._is_ready = False
        self._quic_sockets: list[socket.socket] = []
        self._failed_binds: list[FailedBind] = []
        self._tasks = TaskSet(child.task_failed)
        self._side_tasks = TaskSet(only_logged)
        self._engine = load_engine(self._config.process.engine)
        try_material(self._engine, message.material, self._config.process.tls)
        self._pool = Pool(message.slot, message.epoch)
        self._signal = ChangeSignal()
        self._pool.subscribe(self._signal.fire)
        limit = _users_limit()
        self._accepting = accepting_of(self._engine, first_conn_id(message.slot), limit)
        self._ledger = Ledger(self._pool, self._accepting, limit)
        self._peers = PeerLinks(self._pool)
        self._roster = Roster(self._config, self._pool, self._ledger, message.slot, message.server_id, self._side_tasks)
        acceptor: Acceptor = self._roster.accept
        self._endpoint = self._engine.serve(_endpoint_config(self._config, message), acceptor)
        self._plans = Plans(self._accepting, self._pool, self._roster, self._ledger, self._peers)
        self._users = UserConnections(
            self._config,
            self._pool,
            self._roster,
            self._ledger,
            self._plans,
            self._peers,
            self._signal,
            self._side_tasks,
            self._accepting,
        )
        self._accepting.begin(Offload(self._users, self._plans, self._roster))
        self._listeners = Listeners(self._users.accept, self._ledger.may_accept, self._accepting)
        # Last: it asks for a report soon, and a worker that cannot start has none.
        self._publishing = Publishing(message.bus_publish, message.bus_subscribe, self._pool, self._report)

    # --- what the role tells ---

    @override
    def configure(self, message: Configure) -> None:
        config = _config_of(message)
        try_material(self._engine, message.material, config.process.tls)
        self._endpoint.reconfigure(_endpoint_config(config, message))
        self._config = config
        self._roster.reconfigure(config)
        self._users.reconfigure(config)
        self._signal.fire()  # ``maxconn`` may leave a place now

    @override
    def received(self, message: Down, fds: list[int]) -> None:
        if isinstance(message, AddBind):
            self._add_bind(message, fds)
        elif isinstance(message, RemoveBind):
            self._listeners.remove(message.key, message.shutdown)
        elif isinstance(message, Peers):
            self._peers_changed(message, fds)
        elif isinstance(message, Accept):
            self._accept()
        elif isinstance(message, StopAccepting):
            self._listeners.close(shutdown=True)
        elif isinstance(message, Drain):
            self._drain(message)
        elif isinstance(message, Stop):
            self._child.exit(0)

    @override
    def active(self) -> int:
        return self._ledger.total

    @override
    async def close(self) -> None:
        self._listeners.close(shutdown=False)
        self._plans.close()
        self._accepting.close()
        self._roster.close()
        self._endpoint.close(AppCode.GOING_AWAY, "the server stops")
        self._peers.close()
        await self._side_tasks.close()
        await self._tasks.close()
        self._publishing.close()

    # --- messages ---

    def _add_bind(self, message: AddBind, fds: list[int]) -> None:
        sock = socket.socket(fileno=fds[0])
        if message.purpose == "quic":
            self._quic_sockets.append(sock)
        else:
            self._listeners.add(message.key, message.service, sock)

    def _accept(self) -> None:
        while self._quic_sockets:
            sock = self._quic_sockets.pop(0)
            address = text_of(sock.getsockname())
            try:
                self._endpoint.add_socket(sock)
            except OSError as error:
                reason = error.strerror or str(error)
                self._failed_binds.append(FailedBind("", address, reason))
                log.error(
                    "bind is not read: clients get no answer there; restart qmuxd",
                    extra={"quic_bind": address, "reason": reason},
                )
        self._listeners.start()

    def _peers_changed(self, message: Peers, fds: list[int]) -> None:
        live = {peer.slot: peer for peer in message.slots}
        self._peers.keep(live.keys() - set(message.died))
        for slot, fd in zip(message.links, fds, strict=True):
            link = HandoffLink(socket.socket(fileno=fd), self._users.take_over, self._ledger.may_accept)
            self._peers.set(slot, link)
        self._pool.set_live({slot: peer.epoch for slot, peer in live.items()})
        self._endpoint.set_live_slots(tuple(live))
        active = tuple(slot for slot, peer in live.items() if peer.active)
        died = tuple(slot for slot in message.died if slot != self._slot)
        self._roster.set_active_slots(active, died)
        if not self._is_ready:
            self._is_ready = True
            self._child.send(Ready(ReadyFacts(engine=self._engine.name)))

    def _drain(self, message: Drain) -> None:
        # At once: Peers may follow in the same read, and clients must not be moved away from users who wait here.
        self._endpoint.refuse_new(True)
        self._roster.drain(message.deadline_s, message.replace)
        self._signal.fire()
        self._tasks.start(self._finish(message), "drain")

    async def _finish(self, message: Drain) -> None:
        until = time.monotonic() + message.deadline_s
        await self._signal.wait_until(lambda: not self._ledger.total, message.deadline_s)
        self._peers.finish()
        await self._signal.wait_until(lambda: not self._ledger.total, until - time.monotonic())
        self._child.send(Done())
        self._child.exit(0)

    def _report(self) -> WorkerReport:
        endpoint = EndpointReport(
            **asdict(self._endpoint.stats()),
            bus_dropped=self._publishing.dropped,
            bus_invalid=self._publishing.invalid,
            rejected=self._roster.rejected,
            protocol_errors=self._roster.protocol_errors,
        )
        counted = self._users.counters.snapshot()
        failed = (*self._failed_binds, *self._listeners.failed())
        return worker_report(self._slot, self._epoch, self._engine.name, counted, endpoint, failed_binds=failed)


def _config_of(message: Configure) -> ServerConfig:
    return msgspec.msgpack.decode(message.config, type=ServerConfig)


def _endpoint_config(config: ServerConfig, message: Configure) -> EndpointConfig:
    return EndpointConfig(
        slot=message.slot,
        material=message.material,
        keys=message.keys,
        idle_timeout_s=config.quic.idle_timeout_s,
        keep_alive_s=config.quic.keep_alive_s,
        handshake_timeout_s=config.quic.handshake_timeout_s,
        retry_threshold=max(1, config.quic.retry_threshold // max(1, message.workers)),
        # A session may be connected twice for a moment, and a handshake that will be rejected needs a place too.
        max_connections=2 * config.max_clients + 64,
        stream_window_bytes=config.quic.stream_window_bytes,
    )


def _users_limit() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(16, soft - RESERVED_FDS)
