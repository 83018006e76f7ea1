"""The process table and the facts about the daemon, as the admin process gets them."""

from __future__ import annotations

import os
from collections.abc import Iterable

import msgspec
import psutil

from qmux.messages import DaemonFacts, DaemonState, GenerationFacts, ProcessRow, ReloadFacts
from supervisor.binds import Binds
from supervisor.daemon import Daemon
from supervisor.fleet import Fleet
from supervisor.process import Process
from supervisor.seats import Seat


def process_rows(
    seats: Iterable[tuple[Seat, Process | None]], started_at: float, is_stopping: bool = False
) -> list[ProcessRow]:
    """A row for the supervisor and for each seat, filled or not; an empty one is filled again unless we stop."""
    own = ProcessRow(name="supervisor", pid=os.getpid(), state="ready", started_at=started_at)
    rows = [own, *(_row(seat, process, "ended" if is_stopping else "restarting") for seat, process in seats)]
    for row in rows:
        row.rss_bytes, row.cpu_s = usage(row.pid)
    return rows


def daemon_facts(
    daemon: Daemon, fleet: Fleet, binds: Binds, state: DaemonState, last_reload: ReloadFacts | None
) -> DaemonFacts:
    """What the daemon is, and how it is."""
    engines = {worker.facts.engine for worker in fleet.workers() if worker.facts.engine}
    return DaemonFacts(
        **msgspec.structs.asdict(daemon.identity()),
        engine=", ".join(sorted(engines)),
        state=state,
        generation=daemon.generation.number,
        workers=daemon.workers,
        server_id=daemon.server_id.hex(),
        config_version=daemon.version,
        binds=binds.addresses(),
        last_reload=last_reload,
        generations=[GenerationFacts(daemon.generation.number, daemon.generation.started_at)],
    )


def usage(pid: int) -> tuple[int, float]:
    """Resident bytes, and CPU seconds (user and system), of a process; zeros where there is none, or no more."""
    if pid == 0:
        return 0, 0.0
    try:
        process = psutil.Process(pid)
        times = process.cpu_times()
        return int(process.memory_info().rss), float(times.user + times.system)
    except psutil.Error:  # it has just ended
        return 0, 0.0


def _row(seat: Seat, process: Process | None, without_process: str) -> ProcessRow:
    return ProcessRow(
        name=seat.name,
        pid=process.pid if process else 0,
        state=process.state if process else without_process,
        index=seat.index,
        slot=seat.slot,
        epoch=seat.epoch,
        restarts=seat.restarts,
        started_at=process.started_at if process else 0.0,
        silent_s=round(process.silent_s, 1) if process and process.was_heard else 0.0,
    )
