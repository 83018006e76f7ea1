"""One child process: started with fork and exec, watched through a pidfd, spoken to over its control channel."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from qmux import channel
from qmux.messages import Down, Failed, ReadyFacts, Up
from supervisor.privileges import Owner
from supervisor.settings import Kind

log = logging.getLogger(__name__)

State = Literal["starting", "ready", "draining", "stopping", "stuck"]

EOF_WAIT_S = 1.0
"""After a child's end its last messages are read; the end of its channel shows that there are no more."""


@dataclass(frozen=True)
class Launch:
    """What every child is started with. ``log_fd`` gives where stdout and stderr go, which a reload may change.

    ``silent_exit_s``: a child that closed its channel, or broke it, has this long to end by itself.
    """

    command: Callable[[Kind, int, str], list[str]]
    owner: Owner
    lock_fd: int
    log_fd: Callable[[], int]
    silent_exit_s: float = 2.0


class Process:
    """A child from its start to its end. ``on_ended`` is called once, when it is reaped and its messages are read."""

    def __init__(
        self,
        *,
        kind: Kind,
        name: str,
        index: int,
        slot: int,
        epoch: int,
        launch: Launch,
        on_message: Callable[[Process, Up], None],
        on_ended: Callable[[Process], None],
    ) -> None:
        """Start it. Raises OSError where the system does not let us."""
        self.kind = kind
        self.name = name
        self.index = index
        self.slot = slot
        self.epoch = epoch
        self.state: State = "starting"
        self.was_ready = False
        self.was_heard = False
        self._killed = False
        self.failure: Failed | None = None
        self.facts = ReadyFacts()
        self.active = 0
        self.started_at = time.time()
        self.ended = asyncio.Event()
        self._started = self._heard = time.monotonic()
        self._silent_exit_s = launch.silent_exit_s
        self._on_message = on_message
        self._on_ended = on_ended
        self._loop = asyncio.get_running_loop()
        self._timers: list[asyncio.TimerHandle] = []
        ours, theirs = channel.pair()
        try:
            with theirs:
                self._popen = _spawn(kind, name, theirs.fileno(), launch)
        except BaseException:
            ours.close()
            raise
        self.pid = self._popen.pid
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._exited)
        self._channel = channel.supervisor_end(ours, self._received, self._channel_closed)

    def __repr__(self) -> str:
        return f"<{self.name} pid {self.pid} {self.state}>"

    @property
    def lived_s(self) -> float:
        """How long ago it was started."""
        return time.monotonic() - self._started

    @property
    def silent_s(self) -> float:
        """How long ago it was last heard (or started, or forgiven)."""
        return time.monotonic() - self._heard

    @property
    def exit_words(self) -> str:
        """How it ended, for a log line."""
        return "killed by the supervisor" if self._killed else exit_words(self._popen.returncode)

    @property
    def log_fields(self) -> dict[str, object]:
        """What a log line about this process names."""
        if self.kind != "worker":
            return {"pid": self.pid}
        return {"worker": self.name, "slot": self.slot, "epoch": self.epoch, "pid": self.pid}

    def send(self, message: Down, fds: Sequence[int] = ()) -> None:
        """Send a message; nothing where the process is gone."""
        self._channel.send(message, fds)

    def kill(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal; nothing where the process has ended."""
        if self._popen.returncode is None:
            self._killed = True
            self._popen.send_signal(signum)

    def kill_after(self, delay_s: float) -> None:
        """SIGKILL it unless it ends within ``delay_s``."""
        self._timers.append(self._loop.call_later(delay_s, self.kill))

    def forgive_silence(self) -> None:
        """Restart the clock of ``silent_s``: it was we who did not listen."""
        self._heard = time.monotonic()

    def _received(self, message: Up, fds: list[int]) -> None:
        for fd in fds:  # children have no reason to send any
            os.close(fd)
        self._heard = time.monotonic()
        self.was_heard = True
        self._on_message(self, message)

    def _channel_closed(self) -> None:
        if self._pidfd < 0:
            self._loop.call_soon(self._finish)
        else:
            self.kill_after(self._silent_exit_s)

    def _exited(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self._pidfd = -1
        self._popen.wait()
        if self._channel.is_closed:
            self._finish()
        else:
            self._timers.append(self._loop.call_later(EOF_WAIT_S, self._finish))

    def _finish(self) -> None:
        if self.ended.is_set():
            return
        self._channel.close()
        for timer in self._timers:
            timer.cancel()
        self.ended.set()
        self._on_ended(self)


async def all_ended(processes: Iterable[Process], timeout_s: float) -> bool:
    """Wait until every one of ``processes`` has ended. False: not within ``timeout_s``."""
    try:
        async with asyncio.timeout(timeout_s):
            for process in list(processes):
                await process.ended.wait()
    except TimeoutError:
        return False
    return True


def exit_words(status: int) -> str:
    """A return code of ``subprocess`` in words: negative ones are signals."""
    if status >= 0:
        return f"exited with status {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    if -status == signal.SIGKILL:
        return "killed by SIGKILL (if you did not send it: out of memory? see `dmesg` or the container's memory limit)"
    return f"killed by {name}"


def reap_strangers(own: Iterable[int]) -> int:
    """As PID 1 the children of processes that ended become ours: take what has ended of them. Returns how many."""
    ours = set(own)
    count = 0
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if found is None or found.si_pid in ours:
            return count  # our own ones are reaped through their pidfd, and this function is called again then
        os.waitpid(found.si_pid, os.WNOHANG)
        count += 1


def _spawn(kind: Kind, name: str, control_fd: int, launch: Launch) -> subprocess.Popen[bytes]:
    log_fd = launch.log_fd()
    return subprocess.Popen(
        launch.command(kind, control_fd, name),
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        pass_fds=(control_fd, launch.lock_fd),
        start_new_session=True,  # a terminal's Ctrl-C reaches the supervisor only
        **launch.owner.popen_arguments(),
    )
