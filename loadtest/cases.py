"""The cases: which load generator, how it is called, and the figures that come out."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from loadtest import processes
from loadtest.system import Address, BackendKind

GRACE_S = 20.0
"""What a load generator may take beyond its duration, before the sample counts as failed."""

GIB = 1 << 30
MIB = 1 << 20

Figures = dict[str, float]

GBIT = "Gbit/s"
REQUESTS = "requests/s"
P50 = "p50 ms"
P99 = "p99 ms"
FAILED = "failed"
CPU_GIB = "CPU s/GiB"
CPU_REQUEST = "CPU µs/request"
RSS = "RSS MiB"


class SampleFailed(Exception):
    """The load generator gave no result; the message says why."""


class Loaded(NamedTuple):
    """What a load generator said, and what the processes under test cost meanwhile."""

    output: str
    cpu_s: float
    rss_bytes: int


class Case(NamedTuple):
    """One kind of load. ``command``: the load generator's arguments for an address and a duration in seconds."""

    name: str
    title: str
    backend: BackendKind
    command: Callable[[Address, int], list[str]]
    figures: Callable[[Loaded], Figures]


def run(case: Case, address: Address, duration_s: int, pids: Sequence[int]) -> Figures:
    """One sample. Raises SampleFailed."""
    return case.figures(_load(case.command(address, duration_s), duration_s, pids))


def _load(command: list[str], duration_s: int, pids: Sequence[int]) -> Loaded:
    before = processes.cost(pids)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        try:
            try:
                process.wait(0.8 * duration_s)  # both generators write only at their end: the pipe cannot fill
            except subprocess.TimeoutExpired:
                pass
            under_load = processes.cost(pids)
            output, _ = process.communicate(timeout=0.2 * duration_s + GRACE_S)
        except subprocess.TimeoutExpired:
            raise SampleFailed(f"no result within {duration_s + GRACE_S:.0f} s") from None
        finally:
            process.kill()
    return Loaded(output, processes.cost(pids).cpu_s - before.cpu_s, under_load.rss_bytes)


def _iperf3(*arguments: str) -> Callable[[Address, int], list[str]]:
    def command(address: Address, duration_s: int) -> list[str]:
        where = ["--client", address.host, "--port", str(address.port)]
        return [processes.program("iperf3"), *where, "--time", str(duration_s), "--json", *arguments]

    return command


def _wrk(path: str, connections: int, *arguments: str) -> Callable[[Address, int], list[str]]:
    def command(address: Address, duration_s: int) -> list[str]:
        script = str(Path(__file__).with_name("wrk.lua"))
        load = ["--threads", "2", "--connections", str(connections), "--duration", f"{duration_s}s", "--timeout", "10s"]
        return [processes.program("wrk"), *load, "--script", script, *arguments, f"http://{address}/{path}"]

    return command


def _iperf3_figures(loaded: Loaded) -> Figures:
    try:
        result = json.loads(loaded.output)
    except ValueError:
        raise SampleFailed(f"iperf3 wrote no JSON: {loaded.output[:200]!r}") from None
    if "error" in result:
        raise SampleFailed(f"iperf3: {result['error']}")
    received = result["end"]["sum_received"]
    if not received["bytes"]:
        raise SampleFailed("iperf3: nothing was received")
    return {
        GBIT: received["bits_per_second"] / 1e9,
        CPU_GIB: loaded.cpu_s / (received["bytes"] / GIB),
        RSS: loaded.rss_bytes / MIB,
    }


def _wrk_figures(loaded: Loaded) -> Figures:
    _, found, text = loaded.output.partition("RESULT ")
    if not found:
        raise SampleFailed(f"wrk gave no result: {loaded.output[:200]!r}")
    result = json.loads(text)
    failed = sum(result[kind] for kind in ("connect", "read", "write", "timeout", "status"))
    if not result["requests"]:
        raise SampleFailed(f"wrk: no request was answered, {failed} failed")
    return {
        REQUESTS: result["requests"] / (result["duration_us"] / 1e6),
        P50: result["p50_us"] / 1e3,
        P99: result["p99_us"] / 1e3,
        FAILED: failed,
        CPU_REQUEST: loaded.cpu_s / result["requests"] * 1e6,
        CPU_GIB: loaded.cpu_s / (result["bytes"] / GIB),
        RSS: loaded.rss_bytes / MIB,
    }


CASES = (
    Case("iperf3-up", "iperf3, 1 stream, user → service", "iperf3", _iperf3(), _iperf3_figures),
    Case("iperf3-down", "iperf3, 1 stream, service → user", "iperf3", _iperf3("--reverse"), _iperf3_figures),
    Case("iperf3-32", "iperf3, 32 streams, user → service", "iperf3", _iperf3("--parallel", "32"), _iperf3_figures),
    Case("wrk-c32", "wrk, 1 KiB, keep-alive, 32 connections", "http", _wrk("1k", 32), _wrk_figures),
    Case("wrk-c512", "wrk, 1 KiB, keep-alive, 512 connections", "http", _wrk("1k", 512), _wrk_figures),
    Case(
        "wrk-close",
        "wrk, 1 KiB, a new connection each, 32 at a time",
        "http",
        _wrk("1k", 32, "--header", "Connection: close"),
        _wrk_figures,
    ),
    Case("wrk-64k", "wrk, 64 KiB, keep-alive, 32 connections", "http", _wrk("64k", 32), _wrk_figures),
)
