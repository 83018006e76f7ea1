"""The process table, as the admin process gets it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from qmux.messages import ProcessRow
from supervisor.seats import Seat

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def process_rows(seats: Iterable[Seat], started_at: float, is_stopping: bool = False) -> list[ProcessRow]:
    """A row for the supervisor and for each seat, filled or not; an empty one is filled again unless we stop."""
    own = ProcessRow(name="supervisor", pid=os.getpid(), state="ready", started_at=started_at)
    rows = [own, *(_row(seat, "ended" if is_stopping else "restarting") for seat in seats)]
    for row in rows:
        row.rss_bytes, row.cpu_s = usage(row.pid)
    return rows


def usage(pid: int) -> tuple[int, float]:
    """Resident bytes and CPU seconds of a process (proc(5)); zeros where it has just ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0, 0.0
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    return int(fields[21]) * _PAGE_BYTES, (int(fields[11]) + int(fields[12])) / _TICKS


def _row(seat: Seat, without_process: str) -> ProcessRow:
    process = seat.process
    return ProcessRow(
        name=seat.name,
        pid=process.pid if process else 0,
        state=process.state if process else without_process,
        index=seat.index,
        slot=seat.slot,
        epoch=seat.epoch,
        restarts=seat.restarts,
        started_at=process.started_at if process else 0.0,
    )
