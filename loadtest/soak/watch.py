"""What the daemons hold at one moment: memory, descriptors, threads, streams."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import NamedTuple

from loadtest import processes
from loadtest.systems.qmux import SIDES, Qmux
from qmux.errors import UnreachableError

POLL_S = 0.25
ROLES = {"qmux.worker": "worker", "qmux.admin": "admin"}


class Process(NamedTuple):
    """One process of a daemon: "server" or "client"."""

    daemon: str
    role: str
    pid: int

    def __str__(self) -> str:
        return f"{self.daemon} {self.role} {self.pid}"


class Held(NamedTuple):
    """What one process holds."""

    rss_bytes: int
    descriptors: int
    threads: int


class Snapshot(NamedTuple):
    """One moment. ``streams``: user connections that the two ends say they have; None where one did not answer."""

    held: dict[Process, Held]
    streams: int | None


def look(system: Qmux) -> Snapshot:
    """Now."""
    held = {
        process: found
        for pid, daemon in zip(system.pids(), SIDES, strict=True)
        for process in _processes(pid, daemon)
        if (found := _held(process.pid)) is not None
    }
    return Snapshot(held, streams(system))


def streams(system: Qmux) -> int | None:
    """The larger count of the two ends; None where one does not answer."""
    ends: list[list[dict[str, int]]]
    try:
        ends = [system.status(side)["services"] for side in SIDES]
    except UnreachableError:
        return None
    return max(sum(service["connections"] for service in services) for services in ends)


def until(holds: Callable[[], bool], within_s: float) -> bool:
    """Poll until it holds, or the time is over; what it was at last."""
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _processes(root: int, daemon: str) -> list[Process]:
    return [Process(daemon, _role(pid), pid) for pid in processes.with_descendants([root])]


def _role(pid: int) -> str:
    arguments = processes.command_line(pid)
    return next((role for module, role in ROLES.items() if module in arguments), "supervisor")


def _held(pid: int) -> Held | None:
    """None where the process has ended."""
    fields = processes.stat(pid)
    try:
        descriptors = len(os.listdir(f"/proc/{pid}/fd"))
    except (FileNotFoundError, ProcessLookupError):
        return None
    return Held(processes.rss_bytes(pid), descriptors, int(fields[17])) if fields else None
