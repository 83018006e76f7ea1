"""Start processes and end them; what they cost, from /proc."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest.system import Address, StartFailed

STOP_S = 10.0
"""From SIGTERM to SIGKILL."""

SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"
_TICKS = os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """CPU seconds since the processes began (reaped children included) and resident bytes now."""

    cpu_s: float
    rss_bytes: int
    processes: int


def program(name: str) -> str:
    """The path of a program. Raises StartFailed where it is not installed."""
    path = shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_DIRECTORIES}")
    if path is None:
        raise StartFailed(f"{name} is not installed (scripts/test-tools names or installs what is missing)")
    return path


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def free_address() -> Address:
    """A free TCP address of this machine."""
    return Address("127.0.0.1", free_port())


def start(command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start ``command`` in a process group of its own, so that Ctrl-C comes to the load test alone."""
    with log.open("ab") as file:
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0)


def stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """End them all: SIGTERM, and SIGKILL to the group of what is still there after ``STOP_S``."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    for process in processes:
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):  # it ended in this moment
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(STOP_S)


def is_running(pid: int) -> bool:
    """Whether this process of ours has not ended."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


def cost(pids: Sequence[int]) -> Cost:
    """What these processes and all their descendants have cost."""
    tree = _with_descendants(pids)
    cpu_s = sum(_cpu_s(pid) for pid in tree)
    return Cost(cpu_s, sum(_rss_bytes(pid) for pid in tree), len(tree))


def _with_descendants(pids: Sequence[int]) -> set[int]:
    if not pids:
        return set()
    parents = {int(entry): _parent(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()}
    tree = {pid for pid in pids if pid in parents}
    while more := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= more
    return tree


def _stat(pid: int) -> list[str]:
    """The fields of proc_pid_stat(5) after the command name, which may hold blanks: index 0 is field 3."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it ended
        return []


def _parent(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else -1


def _cpu_s(pid: int) -> float:
    return sum(int(ticks) for ticks in _stat(pid)[11:15]) / _TICKS  # utime, stime, cutime, cstime


def _rss_bytes(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[21]) * os.sysconf("SC_PAGE_SIZE") if fields else 0
