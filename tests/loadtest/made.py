"""Samples and plans without a measurement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadtest.cases import CASES
from loadtest.columns import Column
from loadtest.run import Plan, Sample

CASE = {case.name: case for case in CASES}

DIRECT, HAPROXY, RATHOLE = Column("direct"), Column("haproxy", 1), Column("rathole")
NATIVE, NATIVE_2, AIOQUIC = Column("qmux-native", 1), Column("qmux-native", 2), Column("qmux-aioquic", 1)


def plan(*cases: str, columns: Sequence[Column], paths: Sequence[str] = ("loopback",), rounds: int = 3) -> Plan:
    return Plan(paths, columns, [CASE[name] for name in cases], rounds, 1)


def samples(case: str, column: Column, *rounds: Mapping[str, float], path: str = "loopback") -> list[Sample]:
    return [Sample(path, column, case, number, dict(figures)) for number, figures in enumerate(rounds)]
