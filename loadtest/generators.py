"""The load generators: how iperf3 and wrk are called, and what they say."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from loadtest import processes
from loadtest.figures import FAILED, GBIT, P50, P99, REQUESTS, Figures, SampleFailed
from loadtest.hosts import Host
from loadtest.system import Address, BackendKind

THREADS = max(2, len(os.sched_getaffinity(0)) // 4)
"""Of wrk. More on a machine with many CPUs, so that the load generator is not what is measured."""

TIMEOUT = "10s"
"""After which wrk counts a request as failed."""


class Said(NamedTuple):
    """The figures that a load generator gave, and what passed: bytes of the backend, requests answered."""

    figures: Figures
    bytes: int
    requests: int


class Generator(NamedTuple):
    """A load generator with its options. ``command``: its arguments for an address and a duration in seconds."""

    backend: BackendKind
    command: Callable[[Address, int], list[str]]
    read: Callable[[str], Said]
    """Its output. Raises SampleFailed."""

    def start(self, host: Host, address: Address, duration_s: int) -> subprocess.Popen[str]:
        """Start it on ``host``; it writes to a pipe."""
        command = self.command(address, duration_s)
        with host.inside():
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def iperf3(*options: str) -> Generator:
    """TCP streams that take what they get."""

    def command(address: Address, duration_s: int) -> list[str]:
        where = ["--client", address.host, "--port", str(address.port)]
        return [processes.program("iperf3"), *where, "--time", str(duration_s), "--json", *options]

    return Generator("iperf3", command, read_iperf3)


def wrk(file: str, connections: int, *options: str) -> Generator:
    """HTTP requests for ``file``, the next one on a connection as soon as the last one is answered."""

    def command(address: Address, duration_s: int) -> list[str]:
        threads = min(THREADS, connections)
        load = ["--threads", str(threads), "--connections", str(connections), "--duration", f"{duration_s}s"]
        script = ["--script", str(Path(__file__).with_name("wrk.lua"))]
        return [processes.program("wrk"), *load, "--timeout", TIMEOUT, *script, *options, f"http://{address}/{file}"]

    return Generator("http", command, read_wrk)


def read_iperf3(output: str) -> Said:
    """What the receiver got. Raises SampleFailed."""
    try:
        result = json.loads(output)
    except ValueError:
        raise SampleFailed(f"iperf3 wrote no JSON: {output[:200]!r}") from None
    if "error" in result:
        raise SampleFailed(f"iperf3: {result['error']}")
    received = result["end"]["sum_received"]
    if not received["bytes"]:
        raise SampleFailed("iperf3: nothing was received")
    return Said({GBIT: received["bits_per_second"] / 1e9}, received["bytes"], 0)


def read_wrk(output: str) -> Said:
    """The line that wrk.lua wrote. Raises SampleFailed."""
    _, found, text = output.partition("RESULT ")
    if not found:
        raise SampleFailed(f"wrk gave no result: {output[:200]!r}")
    result = json.loads(text)
    failed = sum(result[kind] for kind in ("connect", "read", "write", "timeout", "status"))
    if not result["requests"]:
        raise SampleFailed(f"wrk: no request was answered, {failed} failed")
    figures = {
        REQUESTS: result["requests"] / (result["duration_us"] / 1e6),
        P50: result["p50_us"] / 1e3,
        P99: result["p99_us"] / 1e3,
        FAILED: float(failed),
    }
    return Said(figures, result["bytes"], result["requests"])
