"""What the workers of a daemon hold: descriptors, tasks, and what memory is left when the freed part is given back."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import dataclass

import psutil

from tests.daemons import Daemon, Deployment
from tests.waiting import until

SITE = """
import asyncio, ctypes, gc, os, signal

def tell(*_):
    gc.collect()
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):  # the GNU C library keeps what was freed
        libc.malloc_trim(0)
    path = os.path.join({folder!r}, str(os.getpid()))
    with open(path + ".new", "w") as out:
        out.write(str(len(asyncio.all_tasks())))
    os.rename(path + ".new", path)

signal.signal(signal.SIGUSR2, tell)
"""


class Watch:
    """For daemons that are started after this was made: their workers answer a signal, by ``sitecustomize``."""

    def __init__(self, deployment: Deployment) -> None:
        self._folder = deployment.directory / "site"
        self._folder.mkdir()
        (self._folder / "sitecustomize.py").write_text(SITE.format(folder=str(self._folder)))
        deployment.extra_environment["PYTHONPATH"] = ":".join([str(self._folder), *sys.path])

    def tasks(self, *daemons: Daemon) -> int:
        """asyncio's tasks in all workers."""
        return sum(self._tasks(process.pid) for process in workers(*daemons))

    def live_bytes(self, *daemons: Daemon) -> int:
        """Memory of all workers without what they could give back."""
        self.tasks(*daemons)
        return rss_bytes(*daemons)

    def _tasks(self, pid: int) -> int:
        answer = self._folder / str(pid)
        answer.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        until(answer.exists, f"process {pid} says how many tasks it has")
        return int(answer.read_text())


def workers(*daemons: Daemon) -> list[psutil.Process]:
    """Of daemons that are ready: before, the admin process may not know of every worker."""
    return [psutil.Process(row["pid"]) for daemon in daemons for row in daemon.until_ready().workers()]


def descriptors(*daemons: Daemon) -> int:
    return sum(process.num_fds() for process in workers(*daemons))


def rss_bytes(*daemons: Daemon) -> int:
    """Of the workers: nobody else sees a user's bytes."""
    return sum(process.memory_info().rss for process in workers(*daemons))


def open_connections(server: Daemon) -> int:
    """QUIC connections at all workers of a server, once each has reported."""
    until(lambda: all("endpoint" in row for row in server.workers()), "every worker reports")
    return sum(int(row["endpoint"]["connections"]) for row in server.workers())


ALLOWED_BYTES = 4 << 20
"""What all workers together may grow by before it counts as a leak: tables and code that only a later user needs."""


@dataclass(frozen=True)
class Held:
    """What some daemons' workers hold while nothing runs."""

    descriptors: int
    tasks: int
    live_bytes: int

    @classmethod
    def by(cls, watch: Watch, *daemons: Daemon) -> Held:
        live_bytes = watch.live_bytes(*daemons)
        return cls(descriptors(*daemons), watch.tasks(*daemons), live_bytes)

    def until_again(self, watch: Watch, *daemons: Daemon) -> None:
        """Wait until they hold no more than that."""
        now = self

        def is_again() -> bool:
            nonlocal now
            now = Held.by(watch, *daemons)
            fewer = now.descriptors <= self.descriptors and now.tasks <= self.tasks
            return fewer and now.live_bytes <= self.live_bytes + ALLOWED_BYTES

        try:
            until(is_again, "what was held is given back")
        except AssertionError as error:
            raise AssertionError(f"{error}: {self} before, {now} now") from None
