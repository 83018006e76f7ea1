"""The cases: what load each one is, and how a sample of it is taken."""

from __future__ import annotations

import subprocess
import time
from typing import NamedTuple

from loadtest import generators, processes
from loadtest.figures import (
    CPU_GIB,
    CPU_REQUEST,
    GBIT,
    GIB,
    MIB,
    RSS,
    RSS_WORKER,
    Figures,
    SampleFailed,
)
from loadtest.generators import Generator
from loadtest.hosts import Host
from loadtest.system import Address, Addresses, BackendKind, System

GRACE_S = 20.0
"""What a load generator may take beyond its duration, before the sample counts as failed."""

BULK_BEFORE_S, BULK_AFTER_S = 1, 2
"""How long the bulk stream of a case has run when its requests begin, and how long it goes on after them."""


class Case(NamedTuple):
    """One kind of load. Without ``load`` only memory is looked at: ``idle``, before and after everything else."""

    name: str
    title: str
    load: Generator | None
    bulk: Generator | None = None
    """Runs meanwhile, through the same processes."""

    @property
    def backends(self) -> set[BackendKind]:
        """What it needs behind the systems."""
        return {generator.backend for generator in (self.load, self.bulk) if generator is not None}

    def seconds(self, duration_s: int) -> int:
        """How long one sample takes, with loads of ``duration_s``."""
        if self.load is None:
            return 0
        return duration_s + (BULK_BEFORE_S + BULK_AFTER_S if self.bulk is not None else 0)


class Cost(NamedTuple):
    """What the processes under test cost during a load."""

    cpu_s: float
    memory: Figures


def _beside(*options: str) -> tuple[Generator, Generator]:
    return generators.wrk("1k", 4), generators.iperf3(*options)


IDLE = Case("idle", "idle, before any load", None)
IDLE_AFTER = Case("idle-after", "idle, after the last load", None)

CASES = (
    IDLE,
    Case("iperf3-up", "iperf3, 1 stream, user → service", generators.iperf3()),
    Case("iperf3-down", "iperf3, 1 stream, service → user", generators.iperf3("--reverse")),
    Case("iperf3-32", "iperf3, 32 streams, user → service", generators.iperf3("--parallel", "32")),
    Case("wrk-c32", "wrk, 1 KiB, keep-alive, 32 connections", generators.wrk("1k", 32)),
    Case("wrk-c512", "wrk, 1 KiB, keep-alive, 512 connections", generators.wrk("1k", 512)),
    Case(
        "wrk-close",
        "wrk, 1 KiB, a new connection each, 32 at a time",
        generators.wrk("1k", 32, "--header", "Connection: close"),
    ),
    Case("wrk-64k", "wrk, 64 KiB, keep-alive, 32 connections", generators.wrk("64k", 32)),
    Case("beside-up", "wrk, 1 KiB, 4 connections, beside iperf3 user → service", *_beside()),
    Case("beside-down", "wrk, 1 KiB, 4 connections, beside iperf3 service → user", *_beside("--reverse")),
    IDLE_AFTER,
)


def memory(system: System) -> Figures:
    """Resident memory now: of the largest worker, and of all processes together. None where there are none."""
    if not system.pids():
        return {}
    everything_bytes = processes.cost(system.pids()).rss_bytes
    largest_bytes = max((processes.rss_bytes(pid) for pid in system.worker_pids()), default=0)
    return {RSS_WORKER: largest_bytes / MIB, RSS: everything_bytes / MIB}


def sample(case: Case, host: Host, addresses: Addresses, duration_s: int, system: System) -> Figures:
    """One sample, with the load generators on ``host``. Raises SampleFailed."""
    if case.load is None:
        return memory(system)
    if case.bulk is None:
        return _loaded(case.load, host, addresses[case.load.backend], duration_s, system)
    return _beside_bulk(case.load, case.bulk, host, addresses, duration_s, system)


def figures_of(said: generators.Said, cost: Cost) -> Figures:
    """What the load generator said, and what each part of it cost; nothing of that where there was no process."""
    if not cost.memory:
        return said.figures
    figures = {**said.figures, CPU_GIB: cost.cpu_s / (said.bytes / GIB)}
    if said.requests:
        figures[CPU_REQUEST] = cost.cpu_s / said.requests * 1e6
    return {**figures, **cost.memory}


def _loaded(load: Generator, host: Host, address: Address, duration_s: int, system: System) -> Figures:
    before_s = processes.cost(system.pids()).cpu_s
    with load.start(host, address, duration_s) as process:
        try:
            _is_over(process, 0.8 * duration_s)  # both generators write only at their end: the pipe cannot fill
            under_load = memory(system)
            output = _output(process, 0.2 * duration_s)
        finally:
            process.kill()
    return figures_of(load.read(output), Cost(processes.cost(system.pids()).cpu_s - before_s, under_load))


def _beside_bulk(
    load: Generator, bulk: Generator, host: Host, addresses: Addresses, duration_s: int, system: System
) -> Figures:
    """The figures of the requests, and the throughput of the bulk stream. CPU time is not told: it is of both."""
    bulk_s = BULK_BEFORE_S + duration_s + BULK_AFTER_S
    with bulk.start(host, addresses[bulk.backend], bulk_s) as process:
        try:
            if _is_over(process, BULK_BEFORE_S):
                bulk.read(_output(process, 0))
                raise SampleFailed("the bulk stream ended before its time")
            figures = _loaded(load, host, addresses[load.backend], duration_s, system)
            ended_early = process.poll() is not None
            said = bulk.read(_output(process, BULK_AFTER_S))
        finally:
            process.kill()
    if ended_early:
        raise SampleFailed("the bulk stream ended before the requests")
    kept = {name: value for name, value in figures.items() if name not in (CPU_GIB, CPU_REQUEST)}
    return {**kept, GBIT: said.figures[GBIT]}


def _is_over(process: subprocess.Popen[str], within_s: float) -> bool:
    try:
        process.wait(within_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _output(process: subprocess.Popen[str], within_s: float) -> str:
    begun = time.monotonic()
    try:
        output, _ = process.communicate(timeout=within_s + GRACE_S)
    except subprocess.TimeoutExpired:
        raise SampleFailed(f"no result {time.monotonic() - begun:.0f} s later") from None
    return output
