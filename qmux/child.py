"""What every child process of the supervisor does alike: the control channel, heartbeats, logging, and a sure end.

A child ignores terminal signals and obeys only its channel. When that ends, the supervisor is dead: the child closes
and exits within ``ORPHAN_EXIT_S``, whatever its event loop is doing, since a thread watches too.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from qmux import log as qmux_log
from qmux.channel import Channel, child_end
from qmux.errors import QmuxError, StartError
from qmux.messages import Down, Failed, Heartbeat, LogTo, Up
from qmux.tasks import TaskSet

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
ORPHAN_EXIT_S = 1.8
"""After the supervisor's death: below the two seconds in which its ports must be free again."""

LOOP_EXIT_S = 1.2
"""How long an orphan's event loop may take to close what it has before the thread ends the process."""


class Role(Protocol):
    """What a kind of child makes of its messages. Methods return at once; long work goes into tasks of its own."""

    def received(self, message: Down, fds: list[int]) -> None:
        """A message; ``fds`` are ours to close. Raises QmuxError where the child cannot go on."""
        ...

    def active(self) -> int:
        """What the heartbeat reports: user connections under way."""
        ...

    async def close(self) -> None:
        """End everything within a second."""
        ...


class Child:
    """The process as its role sees it: send to the supervisor, and end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._exit_code: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._channel: Channel[Up, Down] | None = None

    def send(self, message: Up) -> None:
        """Tell the supervisor."""
        if self._channel is not None:
            self._channel.send(message)

    def exit(self, code: int) -> None:
        """End this process: ``Role.close`` runs first."""
        if not self._exit_code.done():
            self._exit_code.set_result(code)

    def fail(self, error: QmuxError, fatal: bool = False) -> None:
        """Tell the supervisor why, and end."""
        self.send(Failed(str(error), error.exit_code, fatal))
        self.exit(error.exit_code)

    def task_failed(self, name: str, error: BaseException) -> None:
        """For a ``TaskSet`` that this process cannot do without: end it. The supervisor starts another one."""
        self.fail(QmuxError(f"task {name} failed: {error!r}; this is a defect, the log has its traceback"))

    async def run(self, sock: socket.socket, role: Role) -> int:
        """Serve the channel until ``exit``, or until the supervisor is gone."""

        def on_message(message: Down, fds: list[int]) -> None:
            if isinstance(message, LogTo):
                _log_to(fds)
                return
            if self._exit_code.done():  # the role is closed, or about to be: what comes after that is nothing
                for fd in fds:
                    os.close(fd)
                return
            try:
                role.received(message, fds)
            except QmuxError as error:
                self.fail(error)

        def on_closed() -> None:
            if not self._exit_code.done():
                log.warning("supervisor has exited: closing")
            self.exit(1)

        self._channel = child_end(sock, on_message, on_closed)
        tasks = TaskSet(self.task_failed)
        tasks.start(self._beat(role), "heartbeat")
        try:
            code = await self._exit_code
        finally:
            await tasks.close()
        await role.close()
        self._channel.close()
        return code

    async def _beat(self, role: Role) -> None:
        while True:
            self.send(Heartbeat(role.active()))
            await asyncio.sleep(HEARTBEAT_S)


def run_child(fd: int, name: str, make_role: Callable[[Child], Role]) -> int:
    """The whole life of a child with the control channel at descriptor ``fd``. Returns its exit code."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    faulthandler.enable()  # SIGABRT from the watchdog then shows where the loop was stuck
    try:
        qmux_log.configure("info", "human", name)
    except OSError as error:  # the log has no thread to write it
        os.write(qmux_log.STDERR, f"{name}: cannot start: {error.strerror}\n".encode())
        return StartError.exit_code
    qmux_log.log_uncaught()
    sock = socket.socket(fileno=fd)
    sock.set_inheritable(False)
    try:
        threading.Thread(target=_watch_supervisor, args=(os.dup(fd),), name="orphan-watch", daemon=True).start()
    except RuntimeError:  # without the thread nothing would end us for sure; the system lets us start none
        log.error("cannot start: no thread to be had; raise the limit of processes and threads (TasksMax, pids, nproc)")
        return StartError.exit_code

    async def main() -> int:
        child = Child(name)
        code = await child.run(sock, make_role(child))
        _end(code)
        return code

    return _run(main)


def _end(code: int) -> None:
    """End this process, in which everything is closed, without waiting for threads: one that asks a name server that
    does not answer would hold it for a minute.
    """
    logging.shutdown()  # the last lines get a bounded time
    os._exit(code)


def _run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def _watch_supervisor(fd: int) -> None:
    """End the process when the other end of the channel is gone and the event loop did not: it may be stuck."""
    poller = select.poll()
    poller.register(fd, select.POLLRDHUP)
    while True:
        events = poller.poll()
        if any(event & (select.POLLHUP | select.POLLERR | select.POLLRDHUP) for _, event in events):
            break
    time.sleep(ORPHAN_EXIT_S)
    os._exit(1)


def _log_to(fds: list[int]) -> None:
    for fd in fds:
        os.dup2(fd, 1)
        os.dup2(fd, 2)
        os.close(fd)
    qmux_log.moved()
