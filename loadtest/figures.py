"""The figures: their names, how they are printed, and how the rounds of one become one value."""

from __future__ import annotations

GBIT = "Gbit/s"
REQUESTS = "requests/s"
P50 = "p50 ms"
P99 = "p99 ms"
FAILED = "failed"
CPU_GIB = "CPU s/GiB"
CPU_REQUEST = "CPU µs/request"
RSS_WORKER = "RSS MiB, largest worker"
RSS = "RSS MiB, all processes"

Figures = dict[str, float]

FORMATS = {
    GBIT: ".2f",
    REQUESTS: ",.0f",
    P50: ".2f",
    P99: ".2f",
    FAILED: ",.0f",
    CPU_GIB: ".2f",
    CPU_REQUEST: ".1f",
    RSS_WORKER: ".0f",
    RSS: ".0f",
}
"""In the order of the table."""

SUMMED = (FAILED,)
"""A median would hide the only round that failed."""

GIB = 1 << 30
MIB = 1 << 20


class SampleFailed(Exception):
    """There is no figure; the message says why."""
