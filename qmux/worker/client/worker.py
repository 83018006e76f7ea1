"""The client's side of a worker: its session, its servers, and the user connections that they open."""

from __future__ import annotations

import asyncio
import os

import msgspec
from typing_extensions import override

from qmux.child import Child
from qmux.config.schema import ClientConfig
from qmux.messages import Accept, Configure, Done, Down, Drain, Peers, Ready, ReadyFacts, Stop
from qmux.pool.rows import WorkerReport
from qmux.quic.choose import load_engine
from qmux.quic.trial import try_material
from qmux.resolver import Resolver
from qmux.tasks import TaskSet
from qmux.worker.client.connector import STREAM_WINDOW_BYTES, Connector
from qmux.worker.client.servers import Servers
from qmux.worker.client.user_streams import UserStreams
from qmux.worker.publishing import Publishing, worker_report
from qmux.worker.signal import ChangeSignal
from qmux.worker.worker import Worker


class ClientWorker(Worker):
    """Follows the supervisor's messages; everything else is in its parts."""

    def __init__(self, child: Child, message: Configure) -> None:
        config = _config_of(message)
        self._engine = load_engine(config.process.engine)
        try_material(self._engine, message.material, config.process.tls)  # else every connection would fail
        self._child = child
        self._slot, self._epoch = message.slot, message.epoch
        self._signal = ChangeSignal()
        self._resolver = Resolver()
        self._streams = UserStreams(
            config.services, STREAM_WINDOW_BYTES, self._engine, self._resolver, self._load_changed
        )
        self._connector = Connector(self._engine, self._streams, config, message.material)
        self._servers = Servers(config, self._connector, message.timings, self._signal, self._resolver, self._end)
        self._tasks = TaskSet(child.task_failed)
        self._is_ready = False
        self._publishing = Publishing(message.bus_publish, message.bus_subscribe, None, self._report)

    @override
    def configure(self, message: Configure) -> None:
        config = _config_of(message)
        try_material(self._engine, message.material, config.process.tls)
        targets = {service.target.host for service in config.services.values()}
        self._resolver.keep(targets | {server.host for server in config.servers})
        is_other_offer = self._connector.configure(config, message.material)
        self._streams.reconfigure(config.services)
        self._servers.configure(config)
        if is_other_offer:
            self._servers.replace_all()
        self._servers.try_now()

    @override
    def received(self, message: Down, fds: list[int]) -> None:
        for fd in fds:  # hand-off pairs: a client hands nothing over
            os.close(fd)
        if isinstance(message, Peers):
            if not self._is_ready:
                self._is_ready = True
                self._child.send(Ready(ReadyFacts(engine=self._engine.name)))
        elif isinstance(message, Accept):
            self._servers.start()
        elif isinstance(message, Drain):
            self._tasks.start(self._drain(message.deadline_s), "drain")
        elif isinstance(message, Stop):
            self._child.exit(0)

    @override
    def active(self) -> int:
        return self._streams.active

    @override
    async def close(self) -> None:
        await self._servers.close()
        await self._streams.close()
        await self._tasks.close()
        self._publishing.close()

    async def _drain(self, deadline_s: float) -> None:
        lanes = [lane for link in self._servers.links() for lane in link.connections()]
        for lane in lanes:
            lane.drain(deadline_s)
        await asyncio.sleep(min(deadline_s, max((lane.settling_s for lane in lanes), default=0.0)))
        self._streams.drain()
        await self._signal.wait_until(lambda: not self._streams.active, deadline_s)
        self._end(0)

    def _end(self, exit_code: int) -> None:
        """Finished: drained, or the attempt of ``--once`` came to nothing. The supervisor passes the code on."""
        self._child.send(Done(exit_code))
        self._child.exit(0)

    def _load_changed(self) -> None:
        for link in self._servers.links():
            for lane in link.connections():
                lane.load_changed()
        self._signal.fire()

    def _report(self) -> WorkerReport:
        counted = self._streams.counted()
        return worker_report(self._slot, self._epoch, self._engine.name, counted, None, tuple(self._servers.rows()))


def _config_of(message: Configure) -> ClientConfig:
    return msgspec.msgpack.decode(message.config, type=ClientConfig)
