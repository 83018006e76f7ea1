"""What the native engine must reach, as ratios to other systems of the same run, and whether it did."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from loadtest.columns import Column
from loadtest.figures import CPU_GIB, FAILED, GBIT, P50, P99, REQUESTS, RSS_WORKER
from loadtest.summary import Key, Summary

JUDGED = ("qmux-native",)
"""The engine in Python is the reference for what is right, not for what is fast."""

BOTH = ("loopback", "veth")


class Floor(NamedTuple):
    """One figure of one case, in proportion to the same figure of the system ``against``, or absolute."""

    cases: tuple[str, ...]
    figure: str
    relation: str  # "≥" or "≤"
    bound: float
    against: str = ""
    paths: tuple[str, ...] = BOTH

    def __str__(self) -> str:
        return f"{self.relation} {self.bound:g}{f' × {self.against}' if self.against else ''}"

    def is_met(self, value: float) -> bool:
        """Whether this value, or ratio where the floor is one, is on the right side."""
        return value >= self.bound if self.relation == "≥" else value <= self.bound


ONE_STREAM = ("iperf3-up", "iperf3-down")
ALL_BULK = (*ONE_STREAM, "iperf3-32")
KEEP_ALIVE = ("wrk-c32", "wrk-c512")

FLOORS = (
    Floor(ONE_STREAM, GBIT, "≥", 1.4, "rathole", ("loopback",)),
    Floor(ONE_STREAM, GBIT, "≥", 0.9, "haproxy", ("loopback",)),
    Floor(ONE_STREAM, GBIT, "≥", 1.0, "rathole", ("veth",)),
    Floor(ONE_STREAM, GBIT, "≥", 2.0, "rathole-noise"),
    Floor(("iperf3-32",), GBIT, "≥", 1.1, "rathole", ("loopback",)),
    Floor(("iperf3-32",), GBIT, "≥", 0.8, "rathole", ("veth",)),
    Floor(KEEP_ALIVE, REQUESTS, "≥", 1.3, "rathole"),
    Floor(KEEP_ALIVE, P99, "≤", 2.0, "haproxy"),
    Floor(("wrk-close",), REQUESTS, "≥", 1.2, "rathole"),
    Floor(("wrk-close",), FAILED, "≤", 0),
    Floor(("wrk-64k",), REQUESTS, "≥", 0.6, "haproxy"),
    Floor(ALL_BULK, CPU_GIB, "≤", 0.8, "rathole", ("loopback",)),
    Floor(ALL_BULK, CPU_GIB, "≤", 1.3, "rathole", ("veth",)),
    Floor(("idle",), RSS_WORKER, "≤", 60),
    Floor(("wrk-c512",), RSS_WORKER, "≤", 90),
    # Of a relay that is fair to small requests; large windows made it 6 ms.
    Floor(("beside-up", "beside-down"), P50, "≤", 1.0),
)


class Verdict(NamedTuple):
    """A floor for one column on one path. ``met`` is None where a figure is missing."""

    path: str
    case: str
    floor: Floor
    column: Column
    value: float | None = None
    reference: float | None = None
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """Of the value to the reference; None where the floor has none."""
        return self.value / self.reference if self.value is not None and self.reference else None


def judge(summary: Summary, cases: Sequence[str], columns: Sequence[Column], paths: Iterable[str]) -> list[Verdict]:
    """A verdict for every floor of the cases and paths that were to be measured."""
    return [
        _judged(Verdict(path, case, floor, column), summary, columns)
        for path in paths
        for floor, case in _floors(path, cases)
        for column in columns
        if column.system in JUDGED
    ]


def _floors(path: str, cases: Sequence[str]) -> Iterator[tuple[Floor, str]]:
    for floor in FLOORS:
        if path in floor.paths:
            yield from ((floor, case) for case in floor.cases if case in cases)


def _judged(verdict: Verdict, summary: Summary, columns: Sequence[Column]) -> Verdict:
    floor = verdict.floor
    value = _value(summary, verdict, verdict.column)
    if not floor.against:
        return verdict._replace(value=value, met=None if value is None else floor.is_met(value))
    reference = _value(summary, verdict, reference_column(floor.against, verdict.column.workers, columns))
    with_both = verdict._replace(value=value, reference=reference)
    return with_both._replace(met=None if with_both.ratio is None else floor.is_met(with_both.ratio))


def _value(summary: Summary, verdict: Verdict, column: Column | None) -> float | None:
    if column is None:
        return None
    found = summary.get(Key(verdict.path, column, verdict.case, verdict.floor.figure))
    return None if found is None else found.value


def reference_column(system: str, workers: int, columns: Sequence[Column]) -> Column | None:
    """The column of ``system`` with as many workers, or its only one."""
    return next((column for column in columns if column.system == system and column.workers in (0, workers)), None)
