"""How many CPUs this process may really use: what ``workers = "auto"`` means."""

from __future__ import annotations

import math
import os
from pathlib import Path

from qmux.config.schema import MAX_WORKERS, Config, ServerConfig

MIN_SERVER_WORKERS = 2
"""So that a crash always leaves a sibling that can tell the victims' clients."""


def usable_cpus(cgroup_root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int:
    """CPUs of the affinity mask, at most the cgroup v2 quota (rounded up), at least 1."""
    allowed = len(os.sched_getaffinity(0))
    quota = _cgroup_quota(cgroup_root, membership)
    return max(1, allowed if quota is None else min(allowed, math.ceil(quota)))


def worker_count(config: Config) -> int:
    """How many workers this configuration runs."""
    if config.process.workers is not None:
        return config.process.workers
    least = MIN_SERVER_WORKERS if isinstance(config, ServerConfig) else 1
    return min(MAX_WORKERS, max(least, usable_cpus()))


def _cgroup_quota(root: Path, membership: Path) -> float | None:
    """The smallest ``cpu.max`` (docs.kernel.org, cgroup-v2) of our group and those around it, in CPUs."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None  # no /proc: no quota that we could know of
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    if own is None:
        return None  # cgroup v1 only
    group = root / own.lstrip("/")
    groups = [group, *(parent for parent in group.parents if parent.is_relative_to(root))]
    quotas = [quota for group in groups if (quota := _quota_of(group)) is not None]
    return min(quotas, default=None)


def _quota_of(group: Path) -> float | None:
    try:
        quota, period = (group / "cpu.max").read_text().split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None  # the root group has no such file; in a container the path may be another one's
