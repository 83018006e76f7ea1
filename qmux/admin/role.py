"""The admin process as a child of the supervisor: what it does with each message, and its socket's life."""

from __future__ import annotations

import logging
import os
import socket
import stat
import time
from pathlib import Path

import msgspec
from aiohttp import web

from qmux import log as qmux_log
from qmux.admin.app import make_app
from qmux.admin.requests import Requests
from qmux.admin.view import View
from qmux.bus import Subscriber
from qmux.child import Child
from qmux.errors import StartError
from qmux.messages import Configure, Configured, Down, Ready, ReadyFacts, Relisten, Reply, Stop, Table
from qmux.paths import path_of, text_of
from qmux.pool.rows import BusMessage
from qmux.tasks import TaskSet

log = logging.getLogger(__name__)

SOCKET_NAME = "admin.sock"
SOCKET_MODE = 0o660
"""The owner and the daemon's group; the directory above (0700 by default) decides too."""

CLOSE_S = 0.5
"""How long an answer that is under way may take once the process ends."""


class AdminRole:
    """Follows ``qmux.child.Role``."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._view = View()
        self._requests = Requests(child.send, lambda: self._view.silent_s(time.monotonic()))
        self._tasks = TaskSet(child.task_failed)
        self._subscriber: Subscriber | None = None
        self._runner: web.AppRunner | None = None
        self._path = Path()

    def received(self, message: Down, fds: list[int]) -> None:
        """Act on a message; those for workers mean nothing here."""
        for fd in fds:  # nothing for this process carries descriptors
            os.close(fd)
        match message:
            case Configure():
                self._configure(message)
            case Table():
                self._view.table(message, time.monotonic())
            case Reply():
                self._requests.answered(message)
            case Relisten():
                self._tasks.start(self._relisten(), "admin-relisten")
            case Stop():  # not Drain: while users finish, status is wanted most
                self._child.exit(0)
            case _:
                pass

    def active(self) -> int:
        """No user connection ever runs through this process."""
        return 0

    async def close(self) -> None:
        """Stop listening, and hear nothing more."""
        await self._tasks.close()
        if self._subscriber is not None:
            self._subscriber.close()
        if self._runner is not None:
            await self._runner.cleanup()

    def _configure(self, message: Configure) -> None:
        try:
            config = self._view.configure(message)
        except msgspec.MsgspecError as error:
            self._child.send(Configured(message.version, f"the admin process cannot read the configuration: {error}"))
            return
        qmux_log.configure(config.log.level, config.log.format, self._child.name)
        self._child.send(Configured(message.version))
        if self._subscriber is None:
            self._subscriber = Subscriber(message.bus_subscribe, self._on_bus)
            self._path = Path(path_of(message.runtime_dir)) / SOCKET_NAME
            self._tasks.start(self._serve(), "admin-serve")

    def _on_bus(self, message: BusMessage) -> None:
        self._view.bus(message, time.monotonic())

    async def _serve(self) -> None:
        self._runner = web.AppRunner(
            make_app(self._view, self._requests), access_log=None, handle_signals=False, shutdown_timeout=CLOSE_S
        )
        await self._runner.setup()
        if await self._listen(self._runner):
            self._child.send(Ready(ReadyFacts(admin_socket=text_of(self._path))))

    async def _relisten(self) -> None:
        """Nobody finds the socket that was removed; the requests that are under way on it still get their answers."""
        if self._runner is None or not self._runner.sites:
            return  # not there yet: it will listen in the directory as it is now
        before = list(self._runner.sites)
        if await self._listen(self._runner):
            for site in before:
                await site.stop()

    async def _listen(self, runner: web.AppRunner) -> bool:
        """Serve at the socket's path. False: it cannot be made, and the process ends and says so."""
        try:
            listener = listen(self._path)
        except OSError as error:
            reason = f"{self._path}: the admin socket cannot be made: {error.strerror or error}"
            self._child.fail(StartError(reason))
            return False
        await web.SockSite(runner, listener).start()
        return True


def listen(path: Path) -> socket.socket:
    """A listening Unix socket at ``path``, which only its owner and group may use. Raises OSError.

    What an earlier process left there is removed: the supervisor's lock says that no other one lives.
    """
    if os.path.lexists(path) and stat.S_ISSOCK(path.lstat().st_mode):
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # Bound under a closed mode first: there is no moment in which others can connect.
        mask = os.umask(0o777 & ~SOCKET_MODE)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen()
    except OSError:
        listener.close()
        raise
    return listener
