"""What a worker makes of the supervisor's messages: the first Configure decides whether it serves or is a client."""

from __future__ import annotations

import logging

import msgspec
from typing_extensions import override

from qmux import log as qmux_log
from qmux.child import Child, Role
from qmux.config.schema import ClientConfig, ServerConfig
from qmux.errors import QmuxError
from qmux.messages import Configure, Configured, Down
from qmux.worker.client.worker import ClientWorker
from qmux.worker.server.worker import ServerWorker
from qmux.worker.worker import Worker

log = logging.getLogger(__name__)


class WorkerRole(Role):
    """Becomes the server's or the client's worker with the first Configure."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._worker: Worker | None = None

    @override
    def received(self, message: Down, fds: list[int]) -> None:
        if isinstance(message, Configure):
            self._configure(message)
        elif self._worker is not None:
            self._worker.received(message, fds)

    @override
    def active(self) -> int:
        return 0 if self._worker is None else self._worker.active()

    @override
    async def close(self) -> None:
        if self._worker is not None:
            await self._worker.close()

    def _configure(self, message: Configure) -> None:
        if self._worker is None:
            self._start(message)
            return
        try:
            self._worker.configure(message)
        except QmuxError as error:
            self._child.send(Configured(message.version, str(error)))
            return
        self._log_as(message)
        self._child.send(Configured(message.version))

    def _start(self, message: Configure) -> None:
        self._log_as(message)
        try:
            kind = ServerWorker if message.role == "server" else ClientWorker
            self._worker = kind(self._child, message)
        except QmuxError as error:
            self._child.fail(error, fatal=True)

    def _log_as(self, message: Configure) -> None:
        config: ServerConfig | ClientConfig
        if message.role == "server":
            config = msgspec.msgpack.decode(message.config, type=ServerConfig)
        else:
            config = msgspec.msgpack.decode(message.config, type=ClientConfig)
        qmux_log.configure(config.log.level, config.log.format, self._child.name)
