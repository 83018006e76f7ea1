"""How many processes and threads the system lets us have, and what to say where it lets us have no more."""

from __future__ import annotations

import resource
from pathlib import Path

from qmux.config import cgroups


def tasks_left(root: Path = cgroups.ROOT, membership: Path = cgroups.MEMBERSHIP) -> int | None:
    """How many more tasks (processes and threads) the control groups allow; None: they set no limit."""
    return min((limit - used for limit, used in _pids_limits(root, membership)), default=None)


def of_tasks(root: Path = cgroups.ROOT, membership: Path = cgroups.MEMBERSHIP) -> str:
    """After EAGAIN of fork or clone: which limit it was, and what to do."""
    tightest = min(_pids_limits(root, membership), key=lambda each: each[0] - each[1], default=None)
    soft, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if tightest is not None and (tightest[1] >= tightest[0] // 2 or soft == resource.RLIM_INFINITY):
        limit, used = tightest
        return (
            f"the pids limit of this control group is {limit} processes and threads, {used} are used; raise TasksMax "
            "(systemd), --pids-limit (containers) or podPidsLimit (Kubernetes), or set fewer workers"
        )
    if soft != resource.RLIM_INFINITY:
        return (
            f"this user may have {soft} processes and threads; raise LimitNPROC (systemd) or `ulimit -u`, "
            "or set fewer workers"
        )
    return "the system has no more processes or threads (kernel.pid_max, kernel.threads-max, memory)"


def _pids_limits(root: Path, membership: Path) -> list[tuple[int, int]]:
    """(allowed, used) of each group that limits its tasks."""
    found = []
    for group in cgroups.groups("pids", root, membership):
        limit, used = cgroups.number(group / "pids.max"), cgroups.number(group / "pids.current")
        if limit is not None and used is not None:
            found.append((limit, used))
    return found
