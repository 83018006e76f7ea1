"""How many CPUs this process may really use: what ``workers = "auto"`` means."""

from __future__ import annotations

import math
import os
from pathlib import Path

from qmux.config import cgroups, limits
from qmux.config.schema import MAX_WORKERS, Config, ServerConfig

MIN_SERVER_WORKERS = 2
"""So that a crash always leaves a sibling that can tell the victims' clients."""


WORKER_TASKS, OTHER_TASKS = 16, 32
"""Processes and threads of a worker (its loop, the bus, name lookups, the watch over the supervisor), and those of the
supervisor and the admin process together; rounded up."""


def usable_cpus(cgroup_root: Path = cgroups.ROOT, membership: Path = cgroups.MEMBERSHIP) -> int:
    """CPUs of the affinity mask, at most the quota of the control groups (rounded up), at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(cgroup_root, membership)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def worker_count(config: Config) -> int:
    """How many workers this configuration runs, if it is started now."""
    if config.process.workers is not None:
        return config.process.workers
    least = MIN_SERVER_WORKERS if isinstance(config, ServerConfig) else 1
    return min(MAX_WORKERS, max(least, min(usable_cpus(), _fitting(limits.tasks_left()))))


def _fitting(tasks_left: int | None) -> int:
    """How many workers the limit of processes and threads has room for."""
    return MAX_WORKERS if tasks_left is None else (tasks_left - OTHER_TASKS) // WORKER_TASKS


def _cgroup_quota(root: Path, membership: Path) -> float | None:
    """The smallest quota of our group and those around it, in CPUs."""
    quotas = (_quota_of(group) for group in cgroups.groups("cpu", root, membership))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(group: Path) -> float | None:
    """``cpu.max`` of version 2, ``cpu.cfs_quota_us`` of version 1 (docs.kernel.org, cgroup-v2 and sched-bwc)."""
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        pass  # the root group has no such file; in a container the path may be another one's; or it is version 1
    quota_us, period_us = (cgroups.number(group / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
    return quota_us / period_us if quota_us and period_us and quota_us > 0 else None  # -1: no quota
