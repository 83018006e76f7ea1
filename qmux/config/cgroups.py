"""The control groups of this process, of either version: what limits a container or a systemd unit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def groups(controller: str, root: Path = ROOT, membership: Path = MEMBERSHIP) -> Iterator[Path]:
    """The directories of our group and those around it that have ``controller`` (cgroups(7)), innermost first.

    In a container the path of our group may be another namespace's: then the directories that are not there say
    nothing, and the top one is the container's own.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return  # no /proc: no limit that we could know of
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:  # version 2
            top = root
        elif controller in controllers.split(","):  # version 1: a hierarchy of its own
            top = next((place for name in (controllers, controller) if (place := root / name).is_dir()), root)
        else:
            continue
        group = top / path.lstrip("/")
        yield from (place for place in (group, *group.parents) if place.is_relative_to(top))


def number(file: Path) -> int | None:
    """The number in a file of a group; None where it is not there, or says "max" or something else."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None
