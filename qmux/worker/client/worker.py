"""The client's side of a worker: one session, a link to every address of every server, and the services it offers."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Sequence

import msgspec

from qmux import __version__
from qmux.child import Child
from qmux.config.schema import ClientConfig, ServerAddress
from qmux.messages import Accept, Configure, Done, Down, Drain, Peers, Ready, Stop
from qmux.pki.bundle import parse
from qmux.pool.rows import ServerRow, WorkerReport
from qmux.protocol.frames import AppCode, Offered, Register
from qmux.protocol.values import MAX_NAME
from qmux.quic.choose import load_engine
from qmux.quic.engine import ConnectConfig
from qmux.quic.tickets import Tickets
from qmux.tasks import TaskSet
from qmux.worker.client import resolving
from qmux.worker.client.failures import UNREACHABLE, Failure, unresolved
from qmux.worker.client.lane import LaneConnection
from qmux.worker.client.reconnect import ReconnectPause
from qmux.worker.client.server_link import ServerLink
from qmux.worker.client.user_streams import UserStreams
from qmux.worker.publishing import Publishing, worker_report
from qmux.worker.signal import ChangeSignal

log = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 600.0
"""The client's transport parameter: the smaller of both ends' rules, and the server's is the one that is configured."""

KEEP_ALIVE_S = 10.0
FIRST_MAX_STREAMS = 64
STREAM_WINDOW_BYTES = 1 << 20
"""The client's constants (docs/architecture.md, "Protocol"): transport parameters go before RegisterAck raises them."""

SESSION_BYTES = 16


class ClientWorker:
    """Implements ``qmux.worker.role.Worker`` and ``qmux.worker.client.connector.Connector``."""

    def __init__(self, child: Child, message: Configure) -> None:
        self._child = child
        self._config = _config_of(message)
        self._material = message.material
        _check(message)
        self._slot, self._epoch = message.slot, message.epoch
        self._session = os.urandom(SESSION_BYTES)
        self._engine = load_engine(self._config.process.engine)
        self.signal = ChangeSignal()
        self.reconnect_max_s = self._config.reconnect_max_s
        self.once = self._config.once
        self._streams = UserStreams(self._config.services, STREAM_WINDOW_BYTES, self._engine)
        self._streams.on_change = self._load_changed
        self._tickets = Tickets()
        self._tasks = TaskSet()
        self._resolvers: dict[ServerAddress, asyncio.Task[None]] = {}
        self._links: dict[tuple[ServerAddress, tuple[str, int]], ServerLink] = {}
        self._retired: set[ServerLink] = set()
        self._holders: dict[bytes, ServerLink] = {}
        self._failures: dict[object, Failure] = {}
        self._unresolved: dict[ServerAddress, int] = {}  # since when, wall clock, milliseconds
        self._is_ready = False
        self._publishing = Publishing(message.bus_publish, message.bus_subscribe, None, self._report)

    # --- qmux.worker.role.Worker ---

    def configure(self, message: Configure) -> None:
        """See ``Worker.configure``."""
        config = _config_of(message)
        _check(message)
        previous, self._config, self._material = self._config, config, message.material
        self.reconnect_max_s = config.reconnect_max_s
        self._streams.reconfigure(config.services)
        if self._resolvers:
            self._follow_servers()
        if _offered(previous) != _offered(config) or previous.instance != config.instance:
            for link in self._links.values():
                link.replace_all()

    def received(self, message: Down, fds: list[int]) -> None:
        """See ``Worker.received``."""
        for fd in fds:  # hand-off pairs: a client hands nothing over
            os.close(fd)
        if isinstance(message, Peers):
            if not self._is_ready:
                self._is_ready = True
                self._child.send(Ready({"engine": self._engine.name}))
        elif isinstance(message, Accept):
            self._follow_servers()
        elif isinstance(message, Drain):
            self._tasks.start(self._drain(message.deadline_s), "drain")
        elif isinstance(message, Stop):
            self._child.exit(0)

    def active(self) -> int:
        """See ``Worker.active``."""
        return self._streams.active

    async def close(self) -> None:
        """See ``Worker.close``."""
        await asyncio.gather(*(self._end_link(link) for link in self._all_links()))
        await self._streams.close()
        await self._tasks.close()
        self._publishing.close()

    async def _drain(self, deadline_s: float) -> None:
        lanes = [lane for link in self._all_links() for lane in link.connections()]
        for lane in lanes:
            lane.drain(deadline_s)
        await asyncio.sleep(min(deadline_s, max((lane.settling_s for lane in lanes), default=0.0)))
        self._streams.drain()
        await self.signal.wait_until(lambda: not self._streams.active, deadline_s)
        self._child.send(Done())
        self._child.exit(0)

    # --- servers ---

    def _follow_servers(self) -> None:
        wanted = set(self._config.servers)
        for server in [server for server in self._resolvers if server not in wanted]:
            self._resolvers.pop(server).cancel()
            self._unresolved.pop(server, None)
            self._drop_links(server, ())
        for server in self._config.servers:
            if server not in self._resolvers:
                self._resolvers[server] = self._tasks.start(self._resolve(server), f"addresses of {server}")

    async def _resolve(self, server: ServerAddress) -> None:
        """Keep a link to every address of ``server``. A name that stops resolving keeps what it had."""
        backoff = ReconnectPause(self.reconnect_max_s)
        reported = ""
        while True:
            try:
                found = await resolving.addresses(server)
            except OSError as error:
                failure = unresolved(server.host, error.strerror or str(error))
                if failure.text != reported:
                    reported = failure.text
                    self._unresolved.setdefault(server, round(time.time() * 1000))
                    text = "cannot find server" if self.once else "cannot find server; trying again"
                    log.warning(text, extra={"server": server, "reason": failure.text})
                self._attempt_failed(server, failure)
                await asyncio.sleep(max(1.0, backoff.next_s()))
                continue
            backoff = ReconnectPause(self.reconnect_max_s)
            reported = ""
            self._unresolved.pop(server, None)
            self._drop_links(server, found)
            for address in found:
                if (server, address) not in self._links:
                    self._links[server, address] = ServerLink(server, address, self)
            await asyncio.sleep(self._config.resolve_interval_s)

    def _all_links(self) -> list[ServerLink]:
        return [*self._links.values(), *self._retired]

    def _drop_links(self, server: ServerAddress, keep: Sequence[tuple[str, int]]) -> None:
        for key in [key for key in self._links if key[0] == server and key[1] not in keep]:
            self._tasks.start(self._retire_link(self._links.pop(key)), "end of a server link")

    async def _retire_link(self, link: ServerLink) -> None:
        """An address that its name has lost, or a server that a reload removed: users who are there may finish."""
        self.release(link)
        self._retired.add(link)
        await link.retire()
        await self._end_link(link)

    async def _end_link(self, link: ServerLink) -> None:
        await link.close(AppCode.GOING_AWAY, "the client gives this server up")
        self._retired.discard(link)
        self.release(link)

    # --- qmux.worker.client.connector.Connector ---

    def connect(self, link: ServerLink, lane: int | None, *, is_probe: bool = False) -> LaneConnection | Failure:
        """See ``Connector.connect``."""
        register = self._probing() if is_probe else self._register()
        handler = LaneConnection(register, self._streams, link.text, self._config.connect_timeout_s)
        config = ConnectConfig(
            material=self._material,
            server_name=self._config.server_name or link.server.host,
            lane=lane,
            idle_timeout_s=IDLE_TIMEOUT_S,
            keep_alive_s=KEEP_ALIVE_S,
            handshake_timeout_s=self._config.connect_timeout_s,
            max_streams=FIRST_MAX_STREAMS,
            stream_window_bytes=STREAM_WINDOW_BYTES,
            tickets=None if is_probe else self._tickets,  # a probe must not use up what the session's lanes need
        )
        try:
            handler.attach(self._engine.connect(link.address, config, handler))
        except OSError as error:
            return Failure("unreachable", f"the network has no way to it: {error.strerror or error}", UNREACHABLE)
        return handler

    def holder(self, server_id: bytes) -> ServerLink | None:
        """See ``Connector.holder``."""
        return self._holders.get(server_id)

    def claim(self, server_id: bytes, link: ServerLink) -> ServerLink:
        """See ``Connector.claim``."""
        for known in [known for known, holder in self._holders.items() if holder is link]:
            del self._holders[known]
        self._failures.clear()
        return self._holders.setdefault(server_id, link)

    def release(self, link: ServerLink) -> None:
        """See ``Connector.release``."""
        self._holders = {known: holder for known, holder in self._holders.items() if holder is not link}
        self.signal.fire()

    async def released(self, timeout_s: float) -> None:
        """See ``Connector.released``."""
        held = set(self._holders)
        await self.signal.wait_until(lambda: not held <= set(self._holders), timeout_s)

    def failed(self, link: ServerLink, failure: Failure) -> None:
        """See ``Connector.failed``."""
        self._attempt_failed((link.server, link.address), failure)

    def lost(self, link: ServerLink) -> None:
        """See ``Connector.lost``."""
        if self.once and not any(other.is_registered for other in self._links.values()):
            self._child.send(Done(UNREACHABLE))
            self._child.exit(0)

    def _attempt_failed(self, what: object, failure: Failure) -> None:
        """With ``--once``: when every way has failed, the most telling failure is the exit code."""
        if not self.once or any(link.is_registered for link in self._links.values()):
            return
        self._failures[what] = failure
        ways = {key for key in self._links} | {s for s in self._resolvers if not any(k[0] == s for k in self._links)}
        if ways <= set(self._failures):
            codes = [each.exit_code for each in self._failures.values()]
            self._child.send(Done(min(codes, key=lambda code: (code == UNREACHABLE, code))))
            self._child.exit(0)

    # --- the session ---

    def _register(self) -> Register:
        instance = self._config.instance or os.uname().nodename
        return Register(
            session=self._session,
            client_id=instance[:MAX_NAME],
            services=_offered(self._config),
            version=__version__,
        )

    def _probing(self) -> Register:
        """Another session, so that it takes no place of ours at the server, and the last to be given a user."""
        services = tuple(msgspec.structs.replace(each, backup=True) for each in _offered(self._config))
        return msgspec.structs.replace(self._register(), session=os.urandom(SESSION_BYTES), services=services)

    def _load_changed(self) -> None:
        for link in self._all_links():
            for lane in link.connections():
                lane.load_changed()
        self.signal.fire()

    def _report(self) -> WorkerReport:
        return worker_report(
            self._slot, self._epoch, self._engine.name, self._streams.counted(), {}, tuple(self._rows())
        )

    def _rows(self) -> list[ServerRow]:
        """Every server, those too whose name has no address yet."""
        linked = {server for server, _ in self._links}
        nowhere = {server: since for server, since in self._unresolved.items() if server not in linked}
        rows = [link.row() for link in self._all_links()]
        return rows + [ServerRow(str(server), "", "unresolved", 0, 0.0, since) for server, since in nowhere.items()]


def _offered(config: ClientConfig) -> tuple[Offered, ...]:
    return tuple(Offered(each.name, each.weight, each.backup) for each in config.services.values())


def _config_of(message: Configure) -> ClientConfig:
    return msgspec.msgpack.decode(message.config, type=ClientConfig)


def _check(message: Configure) -> None:
    """Raise CertificateError where the material cannot be used: every connection would fail."""
    parse(message.material.chain, message.material.key, message.material.ca)
