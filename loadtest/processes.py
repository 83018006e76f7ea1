"""Start processes and end them; what they cost, from /proc."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest.hosts import Host
from loadtest.system import Address, StartFailed

STOP_S = 10.0
"""From SIGTERM to SIGKILL."""

STOP_RETRY_S = 0.01

CACHE = Path(__file__).parent / "cache"
"""Where ``--prepare`` installs what no package has."""

SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
LISTEN = "0A"  # TCP_LISTEN in /proc/net/tcp

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Cost(NamedTuple):
    """CPU seconds since the processes began (reaped children included) and resident bytes now."""

    cpu_s: float
    rss_bytes: int
    processes: int


class Group:
    """Processes that belong together; their logs are in one folder."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []
        self._names: dict[int, str] = {}

    def start(self, host: Host, name: str, command: Sequence[str]) -> None:
        """Start ``command`` on ``host``, with ``name``.log, in a process group of its own: Ctrl-C comes to us alone."""
        with (self._directory / f"{name}.log").open("ab") as log, host.inside():
            started = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0)
        self._processes.append(started)
        self._names[started.pid] = name

    def stop(self) -> None:
        """End them all: SIGTERM, the last one first; then, ``STOP_S`` later at most, SIGKILL to all of their groups."""
        stopping = list(reversed(self._processes))
        self._processes.clear()
        for process in stopping:
            os.kill(process.pid, signal.SIGTERM)  # Popen.terminate() reaps what has ended: see _code
        deadline = time.monotonic() + STOP_S
        for process in stopping:
            while _code(process) is None and time.monotonic() < deadline:
                time.sleep(STOP_RETRY_S)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)

    def ended(self) -> str:
        """Those that have ended though they were not stopped, with their exit codes; "" where there are none."""
        codes = {self._names[process.pid]: _code(process) for process in self._processes}
        return ", ".join(f"{name} ended with {code}" for name, code in codes.items() if code is not None)

    def pids(self) -> list[int]:
        """The processes that were started."""
        return [process.pid for process in self._processes]


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """As ``Popen.returncode``; None where it runs.

    It is not reaped: its number, which is that of its group too, stays its own until we have ended the group.
    """
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def raise_descriptor_limit() -> None:
    """As far as the hard limit allows: the daemons inherit it, and 512 connections take two descriptors each."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def program(name: str) -> str:
    """The path of a program, what ``--prepare`` installed first. Raises StartFailed where it is not installed."""
    path = shutil.which(name, path=f"{CACHE / 'bin'}:{os.environ.get('PATH', os.defpath)}:{SYSTEM_DIRECTORIES}")
    if path is None:
        raise StartFailed(f"{name} is not installed (python -m loadtest --prepare installs what it can)")
    return path


def missing(*names: str) -> str:
    """What ``program`` says of the first of these that is not installed, or ""."""
    try:
        for name in names:
            program(name)
    except StartFailed as error:
        return str(error)
    return ""


def free_port(host: Host, kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of ``host`` that was free a moment ago."""
    with host.inside(), socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((host.address, 0))
        port: int = sock.getsockname()[1]
        return port


def free_address(host: Host) -> Address:
    """A free TCP address of ``host``."""
    return Address(host.address, free_port(host))


def listens(host: Host, port: int) -> bool:
    """Whether a process of ``host`` listens at this TCP port over IPv4; asked of the kernel, not by connecting."""
    with host.inside():
        _, *lines = Path("/proc/thread-self/net/tcp").read_text().splitlines()
    rows = (line.split() for line in lines)
    return any(row[3] == LISTEN and int(row[1].rpartition(":")[2], 16) == port for row in rows)


def logs(directory: Path) -> str:
    """The end of every log in a folder, for the message about what did not come up."""
    tails = (f"\n--- {path.name}\n{path.read_text()[-2000:]}" for path in sorted(directory.glob("*.log")))
    return "".join(tails)


def cost(pids: Iterable[int]) -> Cost:
    """What these processes and all their descendants have cost."""
    tree = with_descendants(pids)
    return Cost(sum(_cpu_s(pid) for pid in tree), sum(rss_bytes(pid) for pid in tree), len(tree))


def with_descendants(pids: Iterable[int]) -> list[int]:
    """Those of these processes that are there, and all below them."""
    parents = {int(entry): _parent(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    tree = {pid for pid in pids if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return sorted(tree)


def command_line(pid: int) -> list[str]:
    """The arguments of a process; none where it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1]
    except (FileNotFoundError, ProcessLookupError):
        return []


def rss_bytes(pid: int) -> int:
    """Resident bytes; 0 where it has ended."""
    fields = stat(pid)
    return int(fields[21]) * _PAGE_BYTES if fields else 0


def stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) after the command name, which may hold blanks: index 0 is field 3."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return []


def _parent(pid: int) -> int:
    fields = stat(pid)
    return int(fields[1]) if fields else -1


def _cpu_s(pid: int) -> float:
    return sum(int(ticks) for ticks in stat(pid)[11:15]) / _TICKS  # utime, stime, cutime, cstime
