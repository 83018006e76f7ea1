"""Whether what the daemons hold has grown, and the table that shows it."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from loadtest.figures import MIB
from loadtest.soak.tally import Tally
from loadtest.soak.watch import Held, Process, Snapshot

GROWTH_MIB = 4.0

DESCRIPTOR_SLACK = 4
"""More than before the traffic. What is opened on first use stays open: a log, a resolver's socket. A leak is one for
each of tens of thousands of connections."""

THREAD_SLACK = 4
"""As above: the resolver's threads come when they are needed, and stay."""

LEAST_SNAPSHOTS = 6
"""Two for each third."""


class Soak(NamedTuple):
    """What was seen: idle before, during the traffic, and idle after it."""

    before: Snapshot
    during: Sequence[Snapshot]
    after: Snapshot
    tallies: Sequence[Tally]


class Thirds(NamedTuple):
    """Medians of one process's resident memory. The first third is warming up, and not looked at."""

    second_mib: float
    last_mib: float

    @property
    def growth_mib(self) -> float:
        """From the second third to the last."""
        return self.last_mib - self.second_mib


def problems(soak: Soak, growth_mib: float) -> list[str]:
    """Everything that is wrong, a line each; ``growth_mib`` is the most that a process may grow."""
    found = [line for process in soak.before.held for line in _of_process(process, soak, growth_mib)]
    found += left_over(soak.before, soak.after)
    return found + [line for tally in soak.tallies for line in _of_traffic(tally)]


def left_over(before: Snapshot, after: Snapshot) -> list[str]:
    """What idle daemons have after the traffic that they had not before, a line each. Memory is not looked at."""
    found = [f"{process} was not there at the start" for process in after.held if process not in before.held]
    if after.streams != 0:
        found.append(f"streams after the traffic: {'unknown' if after.streams is None else after.streams}")
    for process in (each for each in after.held if each in before.held):
        was, now = before.held[process], after.held[process]
        if now.descriptors > was.descriptors + DESCRIPTOR_SLACK:
            found.append(f"{process}: {now.descriptors} descriptors after the traffic, {was.descriptors} before")
        if now.threads > was.threads + THREAD_SLACK:
            found.append(f"{process}: {now.threads} threads after the traffic, {was.threads} before")
    return found


def thirds(process: Process, during: Sequence[Snapshot]) -> Thirds:
    """Of a process that was there in every snapshot."""
    sizes = [snapshot.held[process].rss_bytes / MIB for snapshot in during if process in snapshot.held]
    third = len(sizes) // 3
    return Thirds(statistics.median(sizes[third : 2 * third]), statistics.median(sizes[2 * third :]))


def table(soak: Soak) -> str:
    """A row for each process that was there from the first to the last moment, then the streams and the traffic."""
    lines = [
        "| process | RSS MiB before | second third | last third | growth | after "
        "| descriptors before, most, after | threads |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(_row(process, soak) for process in _lasting(soak)),
        "",
    ]
    known = [snapshot.streams for snapshot in soak.during if snapshot.streams is not None]
    lines.append(f"- streams: at most {max(known, default=0)}, after the traffic {soak.after.streams}")
    return "\n".join([*lines, *(f"- {tally}" for tally in soak.tallies)])


def _lasting(soak: Soak) -> list[Process]:
    return [process for process in soak.before.held if all(process in each.held for each in (*soak.during, soak.after))]


def _of_process(process: Process, soak: Soak, growth_mib: float) -> Iterable[str]:
    if process not in _lasting(soak):
        yield f"{process} ended"
        return
    growth = thirds(process, soak.during).growth_mib
    if growth > growth_mib:
        yield f"{process}: {growth:.1f} MiB more in the last third than in the second (at most {growth_mib:g})"


def _of_traffic(tally: Tally) -> Iterable[str]:
    if tally.failed:
        yield f"{tally.name}: {tally.failed} failed: {'; '.join(tally.problems) or 'as its load generator counts'}"
    if not tally.done:
        yield f"{tally.name}: nothing was done"


def _row(process: Process, soak: Soak) -> str:
    before, after = soak.before.held[process], soak.after.held[process]
    medians = thirds(process, soak.during)
    during = [snapshot.held[process] for snapshot in soak.during]
    cells = [
        str(process),
        *(f"{size:.1f}" for size in (before.rss_bytes / MIB, *medians, medians.growth_mib, after.rss_bytes / MIB)),
        _three(before, during, after, "descriptors"),
        _three(before, during, after, "threads"),
    ]
    return f"| {' | '.join(cells)} |"


def _three(before: Held, during: Sequence[Held], after: Held, name: str) -> str:
    most = max(getattr(held, name) for held in during)
    return f"{getattr(before, name)}, {most}, {getattr(after, name)}"
